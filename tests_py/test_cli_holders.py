"""The command line where somebody holds what it needs: it says who, gives up in time, and leaves nothing."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from cli_fixtures import Command, Pljobs, bare_environment, command, pljobs
from pgbouncer import MISSING, binary, folder_for, pgbouncer
from pljobs import calls, cli_holders, db
from pljobs.calls_cli import Holder
from pljobs.embedded import SUPERUSER, Server
from sessions import sessions
from waiting import wait_until

Conn = psycopg.Connection[Any]
Begin = Callable[..., Command]
needs_pgbouncer = pytest.mark.skipif(binary() is None, reason=MISSING)


@pytest.fixture
def job(pljobs: Pljobs, conn: Conn) -> None:
    """Job 1 runs, of a worker that is a registration alone."""
    pljobs("defer", "t")
    db.run(conn, calls.fetch_jobs(db.run(conn, calls.register_worker("w", host="h", pid=1))))


@pytest.fixture
def holder(job: None, db_url: str) -> Iterator[Conn]:
    """Somebody whose transaction holds job 1."""
    with psycopg.connect(db_url, application_name="psql of ann") as connection:
        # What it asks for is rolled back.
        connection.execute("SELECT pljobs.cancel_job(1, abort => true)")
        yield connection
        connection.rollback()


def waiting(conn: Conn) -> list[int]:
    """The sessions that wait for a lock."""
    rows = conn.execute(
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return [row[0] for row in rows]


def requests(conn: Conn) -> list[Any]:
    return conn.execute("SELECT kind, force, resolution FROM pljobs.requests").fetchall()


@pytest.mark.parametrize(
    ("arguments", "what", "requested"),
    [
        (["cancel", "1", "--abort"], "job 1", [("abort", False, None)]),
        (["cancel", "1", "--force"], "job 1", [("abort", True, "forced")]),
        (["cancel", "--ids", "1", "--abort", "--yes"], "one of these jobs", [("abort", False, None)]),
        (["cancel", "1", "--tree", "--abort"], "a job of the tree of 1", [("abort", False, None)]),
    ],
)
def test_it_says_who_holds_the_job_and_goes_on_when_that_is_over(
    command: Begin, conn: Conn, holder: Conn, arguments: list[str], what: str, requested: Any
) -> None:
    cancel = command(*arguments)
    cancel.has_said("Ctrl-C gives up\n")
    pid = holder.info.backend_pid
    assert cancel.said.startswith(
        f"still waiting: {what} is held by pid {pid} (pljobs_tests, psql of ann, idle in transaction for "
    )
    assert f"; SELECT pg_terminate_backend({pid}) ends it; nothing is " in cancel.said
    assert requests(conn) == []
    holder.rollback()
    cancel.ends(0)
    assert requests(conn) == requested


@pytest.mark.parametrize("arguments", [["retry", "1"], ["delete", "1"], ["retry", "--ids", "1", "--yes"]])
def test_so_do_retry_and_delete(command: Begin, pljobs: Pljobs, db_url: str, arguments: list[str]) -> None:
    pljobs("defer", "t")
    pljobs("cancel", "1")
    with psycopg.connect(db_url) as holder:
        holder.execute("SELECT pljobs.retry_job(1)")
        asked = command(*arguments)
        asked.has_said(f"held by pid {holder.info.backend_pid}")
        holder.rollback()
        asked.ends(0)


def test_with_wait_it_gives_up_in_time_and_nothing_is_asked(command: Begin, conn: Conn, holder: Conn) -> None:
    cancel = command("cancel", "1", "--force", "--wait", "0.1")
    cancel.ends(5)
    assert cancel.answered == ""
    pid = holder.info.backend_pid
    assert "pljobs: job 1: NOTHING was asked: after " in cancel.said
    assert f" it is still held by pid {pid} (pljobs_tests, psql of ann, idle in transaction" in cancel.said
    assert cancel.said.endswith(f"SELECT pg_terminate_backend({pid}) ends it, then ask again\n")
    holder.rollback()
    assert (waiting(conn), requests(conn)) == ([], [])


def test_whoever_waits_as_well_is_not_to_blame(command: Begin, conn: Conn, holder: Conn) -> None:
    command("cancel", "1", "--abort")
    wait_until(lambda: len(waiting(conn)) == 1)
    second = command("cancel", "1", "--force")
    second.has_said(f"is held by pid {holder.info.backend_pid} (")
    wait_until(lambda: len(waiting(conn)) == 2)
    assert not any(f"({pid})" in second.said for pid in waiting(conn))


def test_whoever_holds_it_next_is_told_of(command: Begin, conn: Conn, admin_url: str, holder: Conn) -> None:
    with sessions(admin_url, 1) as (following,):
        following.send("BEGIN; SELECT FROM pljobs.job WHERE id = 1 FOR UPDATE")
        wait_until(lambda: waiting(conn) == [following.pid])
        cancel = command("cancel", "1", "--force")
        cancel.has_said(f"is held by pid {holder.info.backend_pid} (")
        holder.rollback()
        # A superuser, of whom this role sees little.
        cancel.has_said(f"is held by pid {following.pid} ({SUPERUSER}); ")
        following.answer()
        following.ask("ROLLBACK")
    cancel.ends(0)


@pytest.mark.usefixtures("holder")
def test_interrupted_nothing_is_asked(command: Begin, conn: Conn) -> None:
    cancel = command("cancel", "1", "--abort")
    wait_until(lambda: waiting(conn))
    cancel.process.send_signal(signal.SIGINT)
    cancel.ends(130)
    assert (waiting(conn), requests(conn)) == ([], [])
    assert "`pljobs show 1` says" in cancel.said


def test_what_a_killed_command_has_asked_for_does_not_come_to_pass(
    command: Begin, conn: Conn, holder: Conn
) -> None:
    cancel = command("cancel", "1", "--force")
    wait_until(lambda: waiting(conn))
    cancel.process.kill()
    wait_until(lambda: not waiting(conn), what="the server has noticed")
    holder.rollback()
    assert requests(conn) == []


def test_a_prepared_transaction_is_named() -> None:
    held, ending = cli_holders._described([Holder(0, None, None, None, None)])
    assert held == "a prepared transaction"
    assert ending.startswith("ROLLBACK PREPARED")
    held, ending = cli_holders._described(
        [
            Holder(0, None, None, None, None),
            Holder(7, "ann", "", None, None),
            Holder(8, None, None, None, None),
        ]
    )
    assert held == "a prepared transaction (see pg_prepared_xacts) and pid 7 (ann) and pid 8"
    assert ending == "SELECT pg_terminate_backend(7), pg_terminate_backend(8) ends them"


# Behind PgBouncer


@pytest.fixture
def pooled(server: Server, conn: Conn) -> Iterator[str]:
    with folder_for() as folder, pgbouncer(server, folder, SUPERUSER) as pooler:
        yield pooler.url(conn.info.dbname, SUPERUSER)


@needs_pgbouncer
def test_behind_a_pooler_it_does_the_same_and_leaves_no_settings(
    command: Begin, conn: Conn, holder: Conn, pooled: str
) -> None:
    killed = command("cancel", "1", "--force", url=pooled)
    killed.has_said(f"job 1 is held by pid {holder.info.backend_pid} (pljobs_tests, psql of ann")
    killed.process.kill()
    wait_until(lambda: not waiting(conn), what="the server has noticed")
    given_up = command("cancel", "1", "--abort", "--wait", "1", url=pooled)
    given_up.ends(5)
    assert "NOTHING was asked" in given_up.said
    cancel = command("cancel", "1", "--abort", url=pooled)
    cancel.has_said("held by")
    holder.rollback()
    cancel.ends(0)
    assert requests(conn) == [("abort", False, None)]
    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as through:
        for _ in range(10):
            assert through.execute("SHOW client_connection_check_interval").fetchone() == ("0",)
