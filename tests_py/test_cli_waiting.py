"""The command line: who waits until a job has ended is told what was asked, whatever comes between."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from cli_fixtures import Command, Pljobs, bare_environment, command, pljobs
from pljobs import calls, db
from pljobs.answers import RunEnd
from pljobs.embedded import Server
from waiting import wait_until

Conn = psycopg.Connection[Any]
Begin = Callable[..., Command]


@pytest.fixture(autouse=True)
def job(pljobs: Pljobs, conn: Conn) -> None:
    """Job 1 runs, of a worker that is a registration alone."""
    pljobs("defer", "t")
    db.run(conn, calls.fetch_jobs(db.run(conn, calls.register_worker("w", host="h", pid=1))))


def session_of(conn: Conn, statement: str) -> Callable[[], int | None]:
    """Find the command's session, once its last statement is this one."""

    def find() -> int | None:
        row = conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = 'pljobs_tests'"
            " AND query LIKE %s AND pid <> pg_backend_pid()",
            [f"%{statement}%"],
        ).fetchone()
        return None if row is None else int(row[0])

    return find


def asked(command: Command) -> dict[str, Any]:
    told = json.loads(command.answered)
    assert (told["outcome"], told["request_id"]) == ("abort_requested", 1)
    return dict(told)


def test_interrupted_it_says_that_the_request_was_made(command: Begin, conn: Conn) -> None:
    cancel = command("cancel", "1", "--abort", "--wait", "--json")
    wait_until(session_of(conn, "pljobs.requests"))
    cancel.process.send_signal(signal.SIGINT)
    cancel.ends(130)
    assert "request" not in asked(cancel)
    assert cancel.said == "pljobs: interrupted: the request 1 was made, and stays: `pljobs show 1`\n"


def test_a_lost_connection_is_made_good(command: Begin, conn: Conn) -> None:
    cancel = command("cancel", "1", "--abort", "--wait", "--json")
    first = wait_until(session_of(conn, "pljobs.requests"))
    conn.execute("SELECT pg_terminate_backend(%s)", [first])
    cancel.has_said("the connection was lost, another is tried; the request 1 stays\n")
    wait_until(session_of(conn, "pljobs.requests"))
    db.run(conn, calls.finish_jobs([RunEnd(job_id=1, run_id=1, outcome="aborted")]))
    cancel.ends(0)
    assert asked(cancel)["request"]["resolution"] == "aborted"


@pytest.mark.slow  # so long that all before the loss of the connection fits in, on a busy machine too
def test_without_a_connection_it_says_that_the_request_was_made(
    command: Begin, conn: Conn, server: Server
) -> None:
    cancel = command("cancel", "1", "--abort", "--wait", "15", "--json")
    only = wait_until(session_of(conn, "pljobs.requests"))
    with psycopg.connect(server.url("postgres"), autocommit=True) as elsewhere:
        elsewhere.execute(f"ALTER DATABASE {conn.info.dbname} ALLOW_CONNECTIONS false".encode())
    conn.execute("SELECT pg_terminate_backend(%s)", [only])
    cancel.ends(5)
    asked(cancel)
    assert "pljobs: the request 1 was made, and stays; could not see how it ended" in cancel.said
    assert "`pljobs show 1`" in cancel.said
    assert "--url" not in cancel.said


def test_a_connection_that_is_lost_before_the_answer_is_no_matter_of_the_url(
    command: Begin, conn: Conn, admin_url: str
) -> None:
    with psycopg.connect(admin_url) as holder:
        holder.execute("SELECT FROM pljobs.job FOR UPDATE")
        cancel = command("cancel", "1", "--abort")
        conn.execute("SELECT pg_terminate_backend(%s)", [wait_until(session_of(conn, "cancel_job_v1"))])
        cancel.ends(1)
        holder.execute("LOCK TABLE pljobs.job")
        listing = command("list")
        conn.execute("SELECT pg_terminate_backend(%s)", [wait_until(session_of(conn, "FROM pljobs.jobs"))])
        listing.ends(1)
    assert "the connection was lost: `pljobs show 1` says whether job 1 was asked (" in cancel.said
    assert listing.said.startswith("pljobs: the connection to the database was lost: ")
    assert "--url" not in cancel.said + listing.said
