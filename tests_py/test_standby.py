"""A standby answers what people read; what would write says why not, and a worker waits until it may."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import make_conninfo

from cli_fixtures import bare_environment
from clusters import INSTALL, Conn, Filled, another_server, contents, standby_of, statuses
from pljobs import App, exceptions
from pljobs.cli_commands import cli
from pljobs.embedded import PORT, Server
from pljobs.maintenance import Manager
from waiting import wait_until, wait_until_async
from workers import DEADLINE, HASTY, LASTING, SIDE_TABLE, Process, process, running, until

DB = "app"
SAID_ONCE = "the database is read-only"
SAID_AFTER = "goes on: the database is there, and takes writes"
# It is for the server to say how many there were.
LOGGED = {"log_connections": "on", "log_error_verbosity": "terse", "log_statement_stats": "off"}


@dataclass(frozen=True)
class Pair:
    """A primary whose database holds some of everything, and its standby, which has all of it."""

    primary: Server
    standby: Server
    filled: Filled


@contextlib.contextmanager
def a_pair(server: Server) -> Iterator[Pair]:
    with another_server(server) as primary:
        filled = fill(primary)
        with standby_of(primary, **LOGGED) as standby:
            with connected(primary) as sent, connected(standby) as seen:
                wait_until(lambda: contents(seen) == contents(sent), DEADLINE)
            yield Pair(primary, standby, filled)


@pytest.fixture(scope="module")
def shared(server: Server) -> Iterator[Pair]:
    """A pair to read from."""
    with a_pair(server) as pair:
        yield pair


@pytest.fixture
def standby(shared: Pair) -> Server:
    return shared.standby


@pytest.fixture
def pair(server: Server) -> Iterator[Pair]:
    """A pair whose standby a test may promote."""
    with a_pair(server) as pair:
        yield pair


@pytest.fixture
def pljobs(standby: Server, bare_environment: None) -> Callable[..., Result]:
    """The command line, with the standby as its database."""

    def run(*arguments: str) -> Result:
        result = CliRunner().invoke(cli, arguments, env={"PLJOBS_URL": standby.url(DB)})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def fill(server: Server) -> Filled:
    server.create_database(DB)
    server.run_sql(f"BEGIN;\n\\i '{INSTALL}'\nCOMMIT;", DB)
    with connected(server) as conn:
        conn.execute(SIDE_TABLE.encode())
        return Filled(conn)


def connected(server: Server) -> Conn:
    return psycopg.connect(server.url(DB), autocommit=True)


def promote(server: Server) -> None:
    server.run_sql("SELECT pg_promote(wait => true)")


def demote(server: Server) -> None:
    """Make it a standby, as a failover's tool does with the former primary."""
    (server.data / "standby.signal").touch()
    server.restart()


# Reading


def test_every_view_answers(shared: Pair) -> None:
    ours = ["jobs", "workers", "queues", "requests", "stalled_jobs", "history"]
    views = "SELECT relname FROM pg_class WHERE relnamespace = 'pljobs'::regnamespace AND relkind = 'v'"
    with connected(shared.primary) as sent, connected(shared.standby) as seen:

        def rows(conn: Conn, view: str) -> list[Any]:
            return conn.execute(f"SELECT * FROM pljobs.{view}".encode()).fetchall()

        found = {view: rows(seen, view) for (view,) in seen.execute(views.encode()).fetchall()}
        assert found.keys() >= {*ours, "stuck_aborts"}
        for view in ours:
            assert found[view]
            assert found[view] == rows(sent, view)


@pytest.mark.parametrize(
    "command",
    ["list", "show {todo}", "queues", "workers", "stuck", "healthcheck", "schema", "schema --check",
     "migrate", "cancel --queue todo"],
)  # fmt: skip
def test_commands_that_change_nothing_answer(
    pljobs: Callable[..., Result], shared: Pair, command: str
) -> None:
    result = pljobs(*command.format(**vars(shared.filled)).split())
    assert result.exit_code == 0, result.output
    assert result.stdout


def test_waiting_for_a_job_answers(shared: Pair) -> None:
    with App(shared.standby.url(DB)).open() as app:
        assert app.job_manager.wait_for_job(shared.filled.succeeded) == "succeeded"
    called = f"CALL pljobs.wait_for_job({shared.filled.todo}, '0 s')"
    assert shared.standby.run_sql(called, DB) == "todo"


# Writing


@pytest.mark.parametrize(
    "command",
    ["defer quick", "cancel {todo}", "retry {failed}", "delete {failed}", "rescind {asked}", "pause todo",
     "resume paused", "rescue", "prune --older-than 1d", "migrate --url {empty}"],
)  # fmt: skip
def test_commands_that_write_say_that_the_database_is_read_only(
    pljobs: Callable[..., Result], shared: Pair, command: str
) -> None:
    names = vars(shared.filled) | {"empty": shared.standby.url()}
    result = pljobs(*command.format(**names).split())
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"pljobs: the database is read-only \(.+\): connect to the primary\n", result.stderr)


async def test_deferring_says_at_once_that_the_database_is_read_only(standby: Server) -> None:
    app = App(standby.url(DB))
    task = app.configure_task("quick")
    with app.open(), pytest.raises(exceptions.DatabaseReadOnly, match="primary") as caught:
        task.defer()
    assert caught.value.sqlstate == "25006"
    async with app.open_async():
        with pytest.raises(exceptions.DatabaseReadOnly, match="primary"):
            await task.defer_async()


# Workers


def test_a_worker_says_so_once_asks_less_and_less_often_and_stops(pair: Pair, tmp_path: Path) -> None:
    waiting = Process(pair.standby.url(DB), tmp_path / "worker.log", name="early")
    try:
        waiting.until_said(SAID_ONCE)
        # The first two are the app's.
        attempts = wait_until(lambda: at if len(at := connections(pair.standby)[2:]) >= 3 else None, DEADLINE)
        waiting.signal(signal.SIGTERM)
        assert waiting.wait() == 0
    finally:
        waiting.kill()
    log = waiting.log.read_text()
    assert log.count("read-only") == 1
    assert len(log.splitlines()) == 4, log  # that, the signal, the stop, ended well
    assert "ended well" in log
    pauses = [(later - sooner).total_seconds() for sooner, later in itertools.pairwise(attempts)]
    # No timer rings early, but for what is rounded.
    assert pauses[0] > 0.9
    assert pauses[1] > 1.9
    assert "ERROR" not in pair.standby.log.read_text()
    assert pair.primary.run_sql("SELECT name FROM pljobs.workers", DB) == "before"


def connections(server: Server) -> list[datetime]:
    """When this database was connected to for pljobs, by the server's log."""
    return [
        datetime.fromisoformat(line[:23])
        for line in server.log.read_text().splitlines()
        if "connection authorized" in line and f"database={DB} application_name=pljobs" in line
    ]


def test_a_worker_starts_when_its_standby_is_promoted(pair: Pair, tmp_path: Path) -> None:
    filled = pair.filled
    waiting = Process(pair.standby.url(DB), tmp_path / "worker.log", name="early", **HASTY)
    try:
        waiting.until_said(SAID_ONCE)
        pair.primary.stop()
        promote(pair.standby)
        waiting.until_said("started")
        with connected(pair.standby) as conn:

            def all_done() -> bool:
                found = statuses(conn)
                return {found[job_id] for job_id in filled.running | filled.waiting} == {"succeeded"}

            wait_until(all_done, DEADLINE)
            assert statuses(conn)[filled.asked] == "aborted"
            # Where no run of the lost primary's can have been.
            latest = conn.execute("SELECT max(last_run_id) FROM pljobs.job").fetchone()
            assert latest is not None
            assert latest[0] > 2**20
        waiting.signal(signal.SIGTERM)
        assert waiting.wait() == 0
    finally:
        waiting.kill()
    assert waiting.log.read_text().count("read-only") == 1
    assert waiting.log.read_text().count(SAID_AFTER) == 1


async def test_a_worker_whose_database_becomes_a_standby_says_so_once_and_loses_nothing(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pljobs")
    with another_server(server) as own:
        fill(own)
        app = App(own.url(DB))
        go = asyncio.Event()

        @app.task(name="held", queue="own")
        async def held() -> str:
            await go.wait()
            return "done"

        async with app.open_async():
            job_id = await held.defer_async()
            async with running(app, **LASTING, queues=["own"], concurrency=2):
                async with await psycopg.AsyncConnection.connect(own.url(DB)) as conn:
                    await until(conn, job_id, "doing")
                await asyncio.to_thread(demote, own)
                await wait_until_async(lambda: SAID_ONCE in caplog.text, DEADLINE)
                go.set()
                await asyncio.to_thread(promote, own)
                await wait_until_async(lambda: SAID_AFTER in caplog.text, DEADLINE)
                async with await psycopg.AsyncConnection.connect(own.url(DB), autocommit=True) as conn:
                    found = await until(conn, job_id)
                    assert (found["status"], found["result"], found["attempts"]) == ("succeeded", "done", 1)
                    await until(conn, await held.defer_async(), "succeeded")
    assert caplog.text.count("read-only") == caplog.text.count(SAID_AFTER) == 1
    between = caplog.text[caplog.text.index(SAID_ONCE) : caplog.text.index(SAID_AFTER)]
    # A part that has not noticed yet that its connection broke in the restart may still say so.
    assert between.count("WARNING") <= 1


def test_among_several_hosts_a_worker_finds_the_primary(pair: Pair, tmp_path: Path) -> None:
    writable = make_conninfo(pair.standby.url(DB), target_session_attrs="read-write")
    both = make_conninfo(writable, host=f"{pair.standby.base},{pair.primary.base}", port=f"{PORT},{PORT}")
    with process(both, tmp_path):
        alive = pair.primary.run_sql("SELECT name FROM pljobs.workers WHERE state = 'alive'", DB)
        assert alive == "worker"
    with pytest.raises(exceptions.DatabaseUnavailable):
        App(writable).run_worker(install_signal_handlers=False)


async def test_a_worker_that_is_not_to_wait_for_jobs_does_not_wait_for_a_primary(standby: Server) -> None:
    with pytest.raises(exceptions.DatabaseReadOnly):
        await App(standby.url(DB)).run_worker_async(wait=False, install_signal_handlers=False)


async def test_a_manager_waits_for_the_promotion_as_well(
    pair: Pair, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "pljobs")
    monkeypatch.setattr("pljobs.maintenance.LONGEST_PAUSE", 0.1)
    app = App(pair.standby.url(DB))
    manager = Manager(app, interval=0.1, install_signal_handlers=False)
    async with app.open_async():
        task = asyncio.create_task(manager.run())
        await wait_until_async(lambda: SAID_ONCE in caplog.text, DEADLINE)
        await asyncio.to_thread(promote, pair.standby)
        await wait_until_async(lambda: "rescued" in caplog.text, DEADLINE)
        manager.stop()
        await asyncio.wait_for(task, DEADLINE)
    assert caplog.text.count("read-only") == caplog.text.count(SAID_AFTER) == 1
