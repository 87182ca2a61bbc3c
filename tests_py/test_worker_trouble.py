"""Servers that restart, connections that die or only seem to live, people who hold a row: nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import oracle
from pljobs import App, JobAborted, JobContext, Status, install, outage
from pljobs.answers import RunEnd
from pljobs.embedded import PORT, THROW_AWAY, Server, StopMode, environment
from pljobs.exceptions import ConnectorException, DatabaseUnavailable
from pljobs.finisher import Finisher
from pljobs.link import KEEPALIVES, Link
from pljobs.maintenance import Maintenance
from pljobs.worker import Worker
from proxy import Proxy, running_proxy
from waiting import wait_until_async
from workers import DEADLINE, HASTY, LASTING, NOTIFIED, job, request, row, running, until

Conn = psycopg.AsyncConnection[Any]
INSTALL = Path(__file__).parent.parent / "sql" / "install.sql"


@pytest.fixture
def own_server(server: Server) -> Iterator[Server]:
    """A server that a test may restart."""
    with Server.start(server.bin_dir, settings=THROW_AWAY) as started:
        started.create_database("own")
        started.run_sql(f"BEGIN;\n\\i '{INSTALL}'\nCOMMIT;", "own")
        yield started


class Psql:
    """A person in psql, who can leave a transaction open."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def type(self, sql: str) -> None:
        """Send SQL, and wait until it is done."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{sql}\n\\echo done\n".encode())
        await stdin.drain()
        while (line := await asyncio.wait_for(stdout.readline(), DEADLINE)) != b"done\n":
            assert line, "psql ended"


@contextlib.asynccontextmanager
async def person(server: Server, db_url: str) -> AsyncIterator[Psql]:
    """Open psql with the schema on the search path."""
    process = await asyncio.create_subprocess_exec(
        str(server.bin_dir / "psql"), db_url, "-XqAt",
        env=environment() | {"PGOPTIONS": "-c search_path=pljobs"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Psql(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.wait_for(process.wait(), DEADLINE)


# A person's open transaction


@pytest.mark.parametrize("then", ["ROLLBACK", "COMMIT"])
async def test_a_persons_open_transaction_holds_up_that_job_and_nothing_else(
    app: App, aconn: Conn, server: Server, db_url: str, then: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pljobs")
    go = asyncio.Event()

    @app.task(name="held")
    async def held() -> str:
        await go.wait()
        return "done"

    @app.task(name="other")
    async def other() -> None: ...

    job_id = await held.defer_async()
    async with running(app, **LASTING, concurrency=2), person(server, db_url) as psql:
        await until(aconn, job_id, "doing")
        await psql.type(f"BEGIN; SELECT cancel_job({job_id}, abort => true);")
        go.set()
        await wait_until_async(lambda: "somebody's open transaction holds it" in caplog.text, DEADLINE)
        for _ in range(3):
            await until(aconn, await other.defer_async(), "succeeded")
        before = await row(aconn, "SELECT heartbeat_at FROM pljobs.workers")
        assert before is not None

        async def goes_on() -> bool:
            found = await row(
                aconn,
                "SELECT heartbeat_at - %s > '1.2 s' AS enough, state FROM pljobs.workers",
                before["heartbeat_at"],
            )
            assert found is not None
            assert found["state"] == "alive"
            return bool(found["enough"])

        await wait_until_async(goes_on, DEADLINE, "heartbeat after heartbeat")
        await aconn.execute("SELECT pljobs.rescue_jobs()")
        assert (await job(aconn, job_id))["status"] == "doing"
        await psql.type(f"{then};")
        found = await until(aconn, job_id)
    assert (found["status"], found["result"], found["crashes"]) == ("succeeded", "done", 0)
    asked = await request(aconn, job_id)
    assert asked == {} if then == "ROLLBACK" else asked["resolution"] == "finished_first"


async def test_a_worker_that_stops_gives_up_on_what_it_cant_report(
    app: App, aconn: Conn, admin_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    @app.task(name="held")
    async def held() -> None:
        began.set()
        await go.wait()

    job_id = await held.defer_async()
    async with await psycopg.AsyncConnection.connect(admin_url) as holder:
        async with running(app, **HASTY) as worker:
            await asyncio.wait_for(began.wait(), DEADLINE)
            await holder.execute("SELECT FROM pljobs.job WHERE id = %s FOR UPDATE", [job_id])
            go.set()
            worker.stop()
            await wait_until_async(lambda: "Gave up reporting" in caplog.text, DEADLINE)
        assert (await job(aconn, job_id))["status"] == "doing"
        await holder.rollback()
    await aconn.execute("SELECT pljobs.rescue_jobs()")
    assert (await job(aconn, job_id))["status"] == "todo"


# The worker's row


async def test_a_worker_whose_row_is_gone_registers_again_at_once(app: App, aconn: Conn) -> None:
    @app.task(name="runs")
    async def runs() -> None: ...

    async with running(app, **NOTIFIED) as worker:
        await until(aconn, await runs.defer_async(), "succeeded")
        await aconn.execute("DELETE FROM pljobs.worker")
        await until(aconn, await runs.defer_async(), "succeeded")
        found = await row(aconn, "SELECT id, state FROM pljobs.workers")
        assert found == {"id": worker.worker_id, "state": "alive"}


async def test_a_worker_whose_row_is_gone_keeps_its_running_jobs(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a worker's row anybody may rescue its jobs at once, itself as well.
    async def never(_: Maintenance) -> float:
        return 3600.0

    monkeypatch.setattr(Maintenance, "_rescue", never)
    go = asyncio.Event()

    @app.task(name="held")
    async def held() -> str:
        await go.wait()
        return "done"

    job_id = await held.defer_async()
    async with running(app, **LASTING) as worker:
        await until(aconn, job_id, "doing")
        await aconn.execute("DELETE FROM pljobs.worker")

        async def back() -> bool:
            found = await row(aconn, "SELECT id FROM pljobs.workers WHERE state = 'alive'")
            return found == {"id": worker.worker_id}

        await wait_until_async(back, DEADLINE)
        go.set()
        found = await until(aconn, job_id)
    assert (found["status"], found["result"], found["attempts"]) == ("succeeded", "done", 1)


# Servers and connections that go away


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_of_the_server_under_load_loses_and_doubles_nothing(
    own_server: Server, mode: StopMode
) -> None:
    url = own_server.url("own")
    app = App(url)

    @app.task(name="works", pass_context=True, retry=True)
    async def works(context: Any) -> None:
        # Through a connection of its own, as any task's: one that dies makes the job fail, and run again.
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
            for what in ("start", "end"):
                await conn.execute(
                    "INSERT INTO public.side (job_id, run_id, what) VALUES (%s, %s, %s)",
                    [context.job.id, context.job.run_id, what],
                )

    with psycopg.connect(url, autocommit=True) as conn:
        oracle.install(conn)
    async with app.open_async():
        await works.batch_defer_async(*({} for _ in range(300)))
        async with running(app, **HASTY, concurrency=8):
            for done in (50, 150):

                async def so_many(done: int = done) -> bool:
                    return await _succeeded(url) >= done

                await wait_until_async(so_many, DEADLINE)
                await asyncio.to_thread(own_server.restart, mode)

            async def all_done() -> bool:
                return await _succeeded(url) == 300

            await wait_until_async(all_done, DEADLINE)
    with psycopg.connect(url, autocommit=True) as conn:
        assert oracle.check(conn) == {"succeeded": 300}


async def test_a_database_that_is_away_is_said_once_and_so_is_its_return(
    own_server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "REMIND_EVERY", 600.0)
    caplog.set_level(logging.INFO, logger="pljobs")
    app = App(own_server.url("own"))

    @app.task(name="runs")
    async def runs() -> None: ...

    tries: Counter[str] = Counter()
    connect, connect_async = app.connector.connect, app.connector.connect_async

    def counted(*hooks: Any, **options: Any) -> psycopg.Connection[Any]:
        tries["control"] += 1
        return connect(*hooks, **options)

    async def counted_async(**options: Any) -> psycopg.AsyncConnection[Any]:
        tries["work"] += 1
        return await connect_async(**options)

    monkeypatch.setattr(app.connector, "connect", counted)
    monkeypatch.setattr(app.connector, "connect_async", counted_async)
    async with app.open_async(), running(app, **HASTY):
        first = await runs.defer_async()
        await app.job_manager.wait_for_job_async(first, timeout=DEADLINE)
        socket = own_server.base / f".s.PGSQL.{PORT}"
        with psycopg.connect(own_server.url("own"), autocommit=True) as conn:
            socket.rename(socket.with_suffix(".away"))
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        tries.clear()
        await wait_until_async(lambda: min(tries["control"], tries["work"]) > 3, 60, "both try several times")
        socket.with_suffix(".away").rename(socket)
        second = await runs.defer_async()
        assert await app.job_manager.wait_for_job_async(second, timeout=60) == "succeeded"
        await wait_until_async(lambda: "goes on" in caplog.text, DEADLINE, "it says so")
    said = [record.getMessage() for record in caplog.records if record.name == "pljobs.outage"]
    assert len(said) == 2, said
    assert "can't reach the database" in said[0]
    assert "goes on: the database is there" in said[1]


async def _succeeded(url: str) -> int:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        found = await row(conn, "SELECT count(*) AS n FROM pljobs.jobs WHERE status = 'succeeded'")
        return int(found["n"]) if found else 0


async def test_each_of_the_workers_connections_may_be_terminated(app: App, aconn: Conn) -> None:
    started = asyncio.Event()

    @app.task(name="runs")
    async def runs() -> None: ...

    @app.task(name="long")
    async def long() -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    async def pids() -> set[int]:
        cursor = await aconn.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return {pid for (pid,) in await cursor.fetchall()}

    before = await pids()
    async with running(app, **NOTIFIED, concurrency=2):
        await until(aconn, await runs.defer_async(), "succeeded")
        ours = await pids() - before
        assert len(ours) >= 2
        for pid in ours:
            started.clear()
            job_id = await long.defer_async()
            await asyncio.wait_for(started.wait(), DEADLINE)
            await aconn.execute("SELECT pg_terminate_backend(%s)", [pid])
            # Notifications come again, also what was said while nobody listened; and jobs are fetched.
            await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
            assert (await until(aconn, job_id))["status"] == "aborted"
            await until(aconn, await runs.defer_async(), "succeeded")


async def test_a_line_that_worked_is_back_at_once_however_often_it_breaks(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pljobs.control.LONGEST_PAUSE", 1000.0)
    line = (
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE '%%heartbeat%%' AND state = 'idle' AND pid <> %s"
    )
    pid = 0

    async def another() -> int:
        found = await row(aconn, line, pid)
        return 0 if found is None else int(found["pid"])

    async with running(app, **NOTIFIED):
        for _ in range(11):
            # Pauses that grew from one to the next would come to 51 s.
            pid = await wait_until_async(another, DEADLINE, "there is a line")
            await aconn.execute("SELECT pg_terminate_backend(%s)", [pid])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a connection for frozen after one or two seconds, not after ten or fifteen.

    Not while the worker registers: it would end with a connection that is only slow.
    """
    work = Worker._work

    async def impatiently(worker: Worker, *args: Any) -> None:
        monkeypatch.setattr("pljobs.link.DEADLINE", 2.0)
        monkeypatch.setattr("pljobs.control.FROZEN_AFTER", 1.0)
        monkeypatch.setitem(KEEPALIVES, "connect_timeout", 2)
        await work(worker, *args)

    monkeypatch.setattr(Worker, "_work", impatiently)


@pytest.fixture
def proxied(server: Server) -> Iterator[Proxy]:
    with running_proxy(server) as proxy:
        yield proxy


@pytest.mark.usefixtures("impatient")
async def test_a_frozen_line_is_noticed_and_what_was_missed_is_seen(
    app: App, aconn: Conn, proxied: Proxy, db_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    started = asyncio.Event()
    through = App(proxied.url(aconn.info.dbname))

    @through.task(name="long")
    async def long() -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    job_id = await app.configure_task("long").defer_async()
    # Long enough to be held while nothing passes; and a fetch that was only slow is given back after it.
    options = HASTY | {"stalled_worker_timeout": 20.0}
    async with through.open_async(), running(through, **options):
        await asyncio.wait_for(started.wait(), DEADLINE)
        proxied.swallow_up = proxied.swallow_down = True
        await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
        await wait_until_async(lambda: "reconnecting" in caplog.text, DEADLINE)
        proxied.heal()
        assert (await until(aconn, job_id))["status"] == "aborted"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("statement", "line"), [("LISTEN", 0), ("pg_backend_pid", 1), ("pg_backend_pid", 2)])
async def test_a_line_that_freezes_while_it_is_set_up_is_noticed_too(
    app: App, aconn: Conn, proxied: Proxy, statement: str, line: int
) -> None:
    """Be it the control thread's or the event loop's; when it registers it would fail at once."""
    through = App(proxied.url(aconn.info.dbname))
    started = asyncio.Event()

    @through.task(name="long")
    async def long() -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    job_id = await app.configure_task("long").defer_async()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(through.open_async())
        proxied.swallow_after = line
        proxied.swallow_reply_to = statement.encode()
        await stack.enter_async_context(running(through, **NOTIFIED))
        await asyncio.wait_for(started.wait(), DEADLINE)
        await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
        assert (await until(aconn, job_id))["status"] == "aborted"
    assert proxied.swallowed > 0


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("lost", ["fetch_jobs_v1", "finish_jobs_v1"])
async def test_a_lost_reply_neither_loses_nor_doubles_the_job(
    app: App, aconn: Conn, conn: psycopg.Connection, proxied: Proxy, lost: str
) -> None:
    oracle.install(conn)
    through = App(proxied.url(aconn.info.dbname))
    runs: list[object] = []

    @through.task(name="runs", pass_context=True)
    async def runs_once(context: Any) -> str:
        runs.append(context.job.run_id)
        conn.execute(
            "INSERT INTO public.side (job_id, run_id, what)"
            " VALUES (%(id)s, %(run)s, 'start'), (%(id)s, %(run)s, 'end')",
            {"id": context.job.id, "run": context.job.run_id},
        )
        return "done"

    job_id = await app.configure_task("runs").defer_async()
    proxied.swallow_reply_to = lost.encode()
    async with through.open_async(), running(through, **HASTY | {"stalled_worker_timeout": 20.0}):
        if lost == "fetch_jobs_v1":  # which is given back once it is older than the lease
            await wait_until_async(lambda: proxied.swallowed > 0, DEADLINE)
            await until(aconn, job_id, "doing")
            await aconn.execute("UPDATE pljobs.job SET started_at = started_at - interval '1 h'")
        found = await until(aconn, job_id)
        assert (found["status"], found["result"]) == ("succeeded", "done")
        assert (found["attempts"], found["crashes"]) == (1, 0)
        # The worker learns it as well: it is free for another.
        await until(aconn, await app.configure_task("runs").defer_async(), "succeeded")
    assert proxied.swallowed > 0
    assert len(runs) == 2
    assert oracle.check(conn) == {"succeeded": 2}


# What takes longer than a call may, all at once; and more of it than the system holds for a connection.
SLOW, LARGE = 2_500_000, 1_000_000


@contextlib.contextmanager
def slow(line: Proxy) -> Iterator[None]:
    line.rate = SLOW
    try:
        yield
    finally:
        line.heal()


@pytest.mark.usefixtures("impatient")
async def test_ends_that_are_too_much_for_a_slow_line_go_over_it_in_parts(
    app: App, aconn: Conn, proxied: Proxy
) -> None:
    go = asyncio.Event()
    through = App(proxied.url(aconn.info.dbname))

    @through.task(name="long")
    async def long() -> str:
        await go.wait()
        return "x" * LARGE

    ids = await app.configure_task("long").batch_defer_async(*({} for _ in range(20)))
    async with through.open_async(), running(through, **LASTING, concurrency=len(ids)):
        for each in ids:
            await until(aconn, each, "doing")
        with slow(proxied):
            go.set()
            for each in ids:
                await until(aconn, each, "succeeded")


@pytest.mark.usefixtures("impatient")
async def test_a_fetch_that_is_too_much_for_a_slow_line_asks_for_less(
    app: App, aconn: Conn, proxied: Proxy
) -> None:
    through = App(proxied.url(aconn.info.dbname))

    @through.task(name="long")
    async def long(text: str) -> None: ...

    async def is_any_done() -> object:
        return await row(aconn, "SELECT id FROM pljobs.jobs WHERE status = 'succeeded' LIMIT 1")

    # What was lost on the line does not come back meanwhile: that takes a lease.
    async with through.open_async(), running(through, **LASTING, concurrency=20):
        with slow(proxied):
            await app.configure_task("long").batch_defer_async(*({"text": "x" * LARGE} for _ in range(100)))
            await wait_until_async(is_any_done, DEADLINE)


async def test_settings_of_the_database_change_nothing(
    server: Server, app: App, aconn: Conn, db_url: str
) -> None:
    started = asyncio.Event()

    @app.task(name="long")
    async def long() -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    for setting in (
        "default_transaction_isolation = 'serializable'",
        "search_path = 'nowhere'",
        "datestyle = 'German'",
        "intervalstyle = 'iso_8601'",
        "timezone = 'Asia/Kathmandu'",
        "bytea_output = 'escape'",
        "row_security = off",
        "statement_timeout = '20 s'",
        "idle_in_transaction_session_timeout = '1 s'",
        "standard_conforming_strings = on",
    ):
        await aconn.execute(f"ALTER DATABASE {aconn.info.dbname} SET {setting}".encode())
    other = App(db_url)
    other.tasks = app.tasks
    async with other.open_async(), running(other, **HASTY):
        job_id = await other.configure_task("long", timeout=3600, start_by=60).defer_async()
        await asyncio.wait_for(started.wait(), DEADLINE)
        await other.job_manager.cancel_job_by_id_async(job_id, abort=True, grace=60)
        assert (await until(aconn, job_id))["status"] == "aborted"


async def test_a_blocked_line_at_a_stop_does_not_hold_the_worker(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is gone for good: the worker stops, and says what it could not report."""
    app = App(own_server.url("own"))
    began, go = asyncio.Event(), asyncio.Event()

    @app.task(name="held")
    async def held() -> None:
        began.set()
        await go.wait()

    async with app.open_async():
        await held.defer_async()
        async with running(app, **HASTY) as worker:
            await asyncio.wait_for(began.wait(), DEADLINE)
            await asyncio.to_thread(own_server.stop, "immediate")
            go.set()
            worker.stop()
            await wait_until_async(lambda: "Gave up reporting" in caplog.text, DEADLINE)


def test_an_outage_is_said_once_however_late_an_idle_part_sees_its_broken_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "pljobs")
    away, error = outage.Outage("Worker w"), DatabaseUnavailable("gone")
    before = time.monotonic()
    away.met("work", error, opened_at=before)
    away.over("work")
    away.met("fetch", error, opened_at=before)
    away.over("fetch")
    assert (caplog.text.count("can't reach"), caplog.text.count("goes on")) == (1, 1)
    away.met("fetch", error, opened_at=time.monotonic())
    away.met("work", error)
    assert caplog.text.count("can't reach") == 2


async def test_threads_that_tasks_have_left_behind_keep_no_worker_from_ending(
    db_url: str, aconn: Conn
) -> None:
    """Not even as many as the event loop's executor has."""
    app, let_go = App(db_url), threading.Event()
    many = min(32, (os.cpu_count() or 1) + 4) + 4

    @app.task(name="stuck")
    async def stuck() -> None:
        await asyncio.to_thread(let_go.wait, DEADLINE)

    try:
        async with asyncio.timeout(DEADLINE / 2):
            async with app.open_async(), running(app, concurrency=many, **NOTIFIED):
                ids = await stuck.batch_defer_async(*[{}] * many)
                for job_id in ids:
                    await until(aconn, job_id, "doing")
                for job_id in ids:
                    await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
                for job_id in ids:
                    await until(aconn, job_id, "aborted")
    finally:
        let_go.set()


async def test_an_end_whose_batch_failed_is_reported_though_the_reporting_is_cancelled(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one then; what was not sent yet when it was cancelled is sent by who goes on."""
    answered: list[tuple[int, str | None]] = []
    link = Link(app.connector, outage.Outage("Worker w"))
    original = Link.execute
    cut = asyncio.Event()

    async def execute(link: Link, call: Any) -> Any:
        runs = json.loads(call.params["runs"])
        if len(runs) > 1:
            raise ConnectorException("no room", sqlstate="53100")
        if runs[0]["job_id"] == 3 and not cut.is_set():
            cut.set()
            await asyncio.sleep(DEADLINE)
        return await original(link, call)

    monkeypatch.setattr(Link, "execute", execute)

    def note(job_id: int, status: str | None) -> None:
        answered.append((job_id, status))

    finisher = Finisher(link)
    for job_id in range(1, 6):
        end = RunEnd(job_id=job_id, run_id=job_id, outcome="succeeded")
        finisher.report(end, functools.partial(note, job_id))
    task = asyncio.create_task(finisher.run())
    await asyncio.wait_for(cut.wait(), DEADLINE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    finisher.close(patience=DEADLINE)
    await asyncio.wait_for(finisher.run(), DEADLINE)
    await link.close()
    await asyncio.sleep(0)  # the last one is told by the event loop
    assert sorted(answered) == [(job_id, "not_found") for job_id in range(1, 6)]


def test_a_task_of_a_job_that_exits_ends_neither_its_worker_nor_its_neighbours(db_url: str) -> None:
    app = App(db_url)
    words: list[str] = []

    async def exits() -> None:
        raise SystemExit(0)

    @app.task(name="vandal")
    async def vandal() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(exits())

    async def last_words() -> None:
        await asyncio.sleep(0.5)
        words.append("said")

    @app.task(name="neighbour")
    async def neighbour() -> None:
        await asyncio.shield(asyncio.create_task(last_words()))

    with app.open():
        app.configure_task("neighbour").defer()
        app.configure_task("vandal").defer()
    app.run_worker(wait=False, concurrency=2)
    with psycopg.connect(db_url) as conn:
        found = conn.execute("SELECT task, status, message FROM pljobs.jobs ORDER BY id").fetchall()
    assert found == [
        ("neighbour", "succeeded", None),
        ("vandal", "failed", "SystemExit: 0 (a task can't end its worker)"),
    ]
    assert words == ["said"]


def test_an_exit_in_a_signal_handler_of_the_applications_ends_the_worker(db_url: str) -> None:
    app = App(db_url)

    def leave(*_: object) -> None:
        raise SystemExit(7)

    @app.task(name="person")
    async def person() -> None:
        # While the worker works, not while it starts; between two steps of the loop, and in nobody's context:
        # in a job's, the exit would be taken for the job's own.
        loop, nobodys = asyncio.get_running_loop(), contextvars.Context()
        loop.call_soon(os.kill, os.getpid(), signal.SIGTERM, context=nobodys)

    with app.open():
        person.defer()
    former = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(SystemExit) as caught:
            app.run_worker(install_signal_handlers=False)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert caught.value.code == 7


async def test_what_a_database_has_no_characters_for_costs_no_worker_its_lease_and_no_job_its_end(
    server: Server, empty_db_url: str
) -> None:
    name = f"{conninfo_to_dict(empty_db_url)['dbname']}_encoded"
    server.run_sql(f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    url = make_conninfo(empty_db_url, dbname=name)
    try:
        install.migrate(url)
        app, go = App(url), asyncio.Event()

        @app.task(name="tells", pass_context=True)
        async def tells(context: JobContext) -> str:
            context.progress(0.5, "halfway \N{HORIZONTAL ELLIPSIS}")
            await go.wait()
            return "\N{RIGHTWARDS ARROW}"

        @app.task(name="fails", pass_context=True)
        async def fails(context: JobContext) -> None:
            context.progress(0.5, "\N{EURO SIGN}")
            raise JobAborted("nothing but \N{EURO SIGN}")

        async with app.open_async(), running(app, **LASTING, concurrency=2) as worker:
            ids = [await tells.defer_async(), await fails.defer_async()]
            manager, renewed = app.job_manager, worker._control.renewed_at
            assert await manager.wait_for_job_async(ids[1], timeout=DEADLINE) == Status.FAILED
            await wait_until_async(lambda: worker._control.renewed_at > renewed, what="the lease is renewed")
            go.set()
            assert await manager.wait_for_job_async(ids[0], timeout=DEADLINE) == Status.SUCCEEDED
            message = (await manager.get_job_async(ids[1])).message
        assert message == "cancelled from inside, nobody asked: nothing but \\u20ac"
    finally:
        server.run_sql(f"DROP DATABASE {name}")
