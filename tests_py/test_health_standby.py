"""On a standby, pljobs.health shows what it can, as it was when the primary last said something."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from click.testing import CliRunner

from cli_fixtures import bare_environment, fields
from nights import CAREFUL, Conn, found, night_server, standby_of
from pljobs.cli_commands import cli
from pljobs.embedded import Server
from waiting import wait_until

__all__ = ["bare_environment"]


@pytest.fixture(scope="module")
def primary(server: Server) -> Iterator[Server]:
    with night_server(server) as started:
        yield started


@pytest.fixture(scope="module")
def standby(primary: Server) -> Iterator[Server]:
    with standby_of(primary, **CAREFUL) as server:
        yield server


@pytest.fixture
def conn(standby: Server) -> Iterator[Conn]:
    with psycopg.connect(standby.url("night"), autocommit=True) as connection:
        yield connection


@pytest.fixture
def worker(primary: Server, standby: Server) -> int:
    """A worker that runs a job, as both servers know."""
    with psycopg.connect(primary.url("night"), autocommit=True) as writing:
        writing.execute("SELECT pljobs.defer_job('a task')")
        worker_id = writing.execute("SELECT pljobs.register_worker_v2('w', 'h', 1, 3)").fetchall()[0][0]
        writing.execute("SELECT pljobs.fetch_jobs_v1(%s)", [worker_id])
    with psycopg.connect(standby.url("night"), autocommit=True) as reading:
        wait_until(
            lambda: reading.execute("SELECT 1 FROM pljobs.job WHERE worker_id = %s", [worker_id]).fetchone()
        )
    return int(worker_id)


def test_it_says_that_it_is_one_and_what_it_does_not_know(
    standby: Server, conn: Conn, worker: int, bare_environment: None
) -> None:
    rows = conn.execute("SELECT item, severity FROM pljobs.health WHERE severity <> 'ok'").fetchall()
    assert rows == [("dead_tuples", "notice"), ("standby", "notice")]

    result = CliRunner().invoke(cli, ["doctor", "--json"], env={"PLJOBS_URL": standby.url("night")})
    assert result.exit_code == 0, result.output
    said = fields(result)
    assert said["standby"] is True
    assert "notifications" in {found["item"] for found in said["findings"]}  # type: ignore[attr-defined]


def test_behind_its_primary_it_sees_no_leases_run_out(primary: Server, conn: Conn, worker: int) -> None:
    conn.execute("SELECT pg_wal_replay_pause()")
    wait_until(
        lambda: conn.execute("SELECT pg_get_wal_replay_pause_state() = 'paused'").fetchone() == (True,)
    )
    try:
        with psycopg.connect(primary.url("night"), autocommit=True) as writing:
            writing.execute("SELECT pljobs.heartbeat_v1(%s)", [worker])
        wait_until(
            lambda: (
                conn.execute("SELECT pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()").fetchone()
                == (True,)
            )
        )
        conn.execute("SET pljobs.health_patience = 0")
        assert found(conn, "expired_leases") == {}
        (_, detail, _) = found(conn, "standby")["standby"]
        assert "on its primary 00:00:" in detail
    finally:
        conn.execute("SELECT pg_wal_replay_resume()")
