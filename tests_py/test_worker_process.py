"""Workers as processes: signals, kills, stops, and who takes over."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from waiting import wait_until
from workers import DEADLINE, LASTING, SIDE_TABLE, defer, process, side, until_started

Conn = psycopg.Connection[Any]


@pytest.fixture(autouse=True)
def _side_table(conn: Conn) -> None:
    conn.execute(SIDE_TABLE)


def job(conn: Conn, job_id: int) -> tuple[str, int, int]:
    """Return status, attempts, crashes."""
    found = conn.execute(
        "SELECT status, attempts, crashes FROM pljobs.jobs WHERE id = %s", [job_id]
    ).fetchone()
    assert found is not None
    status, attempts, crashes = found
    return status, attempts, crashes


def until_status(conn: Conn, job_id: int, status: str) -> tuple[str, int, int]:
    wait_until(lambda: job(conn, job_id)[0] == status, DEADLINE, f"job {job_id} becomes {status}")
    return job(conn, job_id)


def go(conn: Conn) -> None:
    conn.execute("INSERT INTO public.side (what) VALUES ('go')")


def lease_over(conn: Conn) -> None:
    """Have the lease of a worker whose process has ended run out."""
    # A heartbeat that it has sent would renew it.
    left = (
        "SELECT FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    wait_until(lambda: not conn.execute(left).fetchall(), DEADLINE, "its connections have ended")
    expire(conn)


def expire(conn: Conn) -> None:
    conn.execute(
        "UPDATE pljobs.worker SET expires_at = clock_timestamp() - interval '1 s'"
        " WHERE name <> 'second' AND stopped_at IS NULL"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_jobs_end_and_starts_no_other(
    db_url: str, conn: Conn, tmp_path: Path, number: signal.Signals
) -> None:
    running, waiting = defer(conn, "until_told"), defer(conn, "until_told")
    with process(db_url, tmp_path, **LASTING) as worker:
        until_started(conn, running)
        worker.signal(number)
        worker.until_said("stops, with 1 jobs")
        go(conn)
        assert worker.wait() == 0
        assert worker.said("ended well")
    assert job(conn, running) == ("succeeded", 1, 0)
    assert job(conn, waiting) == ("todo", 0, 0)
    assert conn.execute("SELECT state FROM pljobs.workers").fetchall() == [("stopped",)]


def test_the_second_signal_aborts_and_the_job_runs_again(db_url: str, conn: Conn, tmp_path: Path) -> None:
    job_id = defer(conn, "forever")
    with process(db_url, tmp_path, **LASTING) as worker:
        until_started(conn, job_id)
        worker.signal(signal.SIGTERM)
        worker.until_said("stops, with 1 jobs")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert job(conn, job_id) == ("todo", 0, 0)


@pytest.mark.parametrize("task", ["stubborn", "stubborn_async"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_third_signal_ends_the_process_whatever_its_tasks_do(
    db_url: str, conn: Conn, tmp_path: Path, task: str, number: signal.Signals
) -> None:
    job_id = defer(conn, task)
    with process(db_url, tmp_path, **LASTING) as worker:
        until_started(conn, job_id)
        for count in (1, 2):
            worker.signal(number)
            wait_until(lambda count=count: worker.log.read_text().count("Received") == count, DEADLINE)  # type: ignore[misc]
        assert job(conn, job_id)[0] == "doing"
        worker.signal(number)
        assert worker.wait() == -number
    lease_over(conn)
    with process(db_url, tmp_path, "second", **LASTING):
        wait_until(lambda: side(conn, job_id) == ["start", "start"], DEADLINE)
        assert job(conn, job_id) == ("doing", 2, 1)


def test_the_timeout_of_a_graceful_stop_aborts(db_url: str, conn: Conn, tmp_path: Path) -> None:
    job_id = defer(conn, "forever")
    with process(db_url, tmp_path, **LASTING, shutdown_graceful_timeout=0.1) as worker:
        until_started(conn, job_id)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert job(conn, job_id) == ("todo", 0, 0)


def test_a_killed_workers_job_is_run_by_another(db_url: str, conn: Conn, tmp_path: Path) -> None:
    job_id = defer(conn, "until_told")
    with process(db_url, tmp_path, **LASTING) as worker:
        until_started(conn, job_id)
        worker.kill()
    lease_over(conn)
    go(conn)
    with process(db_url, tmp_path, "second", **LASTING):
        assert until_status(conn, job_id, "succeeded") == ("succeeded", 2, 1)
    assert side(conn, job_id) == ["start", "start", "end"]


def test_an_abort_holds_though_the_worker_is_killed(db_url: str, conn: Conn, tmp_path: Path) -> None:
    job_id = defer(conn, "stubborn")
    with process(db_url, tmp_path, **LASTING) as worker:
        until_started(conn, job_id)
        conn.execute("SELECT pljobs.cancel_job(%s, abort => true)", [job_id])
        worker.kill()
    lease_over(conn)
    with process(db_url, tmp_path, "second", **LASTING):
        until_status(conn, job_id, "aborted")
    assert side(conn, job_id) == ["start"]
    assert conn.execute("SELECT resolution FROM pljobs.requests").fetchall() == [("worker_lost",)]


def test_a_worker_that_stood_still_stops_what_it_lost_and_goes_on(
    db_url: str, conn: Conn, tmp_path: Path
) -> None:
    job_id = defer(conn, "until_told")

    def is_taken_over() -> bool:
        # Again and again: a heartbeat that was sent before may renew it.
        expire(conn)
        conn.execute("SELECT pljobs.rescue_jobs()")
        return side(conn, job_id) == ["start", "start"]

    # By its own clock its lease is not over, else it would stop before it could ask whose the run is: see
    # test_lease.py.
    with process(db_url, tmp_path, **LASTING) as frozen:
        until_started(conn, job_id)
        frozen.signal(signal.SIGSTOP)
        with process(db_url, tmp_path, "second", **LASTING) as second:
            wait_until(is_taken_over, DEADLINE, "the second takes over")
            frozen.signal(signal.SIGCONT)
            frozen.until_said("is no longer this run's: it is stopped")
            frozen.until_said("nothing was recorded")
            assert job(conn, job_id) == ("doing", 2, 1)
            go(conn)
            until_status(conn, job_id, "succeeded")
            second.signal(signal.SIGTERM)
            assert second.wait() == 0
        assert side(conn, job_id) == ["start", "start", "end"]
        until_status(conn, defer(conn, "quick"), "succeeded")


def test_a_job_that_kills_its_process_fails_after_three_and_the_others_end(
    db_url: str, conn: Conn, tmp_path: Path
) -> None:
    poison = defer(conn, "kills_itself")
    good = [defer(conn, "quick") for _ in range(5)]
    for count in (1, 2, 3):
        with process(db_url, tmp_path, f"worker{count}", **LASTING) as worker:
            assert worker.wait() == 137
        lease_over(conn)
    with process(db_url, tmp_path, "last", **LASTING):
        assert until_status(conn, poison, "failed") == ("failed", 3, 3)
        for each in good:
            until_status(conn, each, "succeeded")
    assert conn.execute("SELECT message FROM pljobs.jobs WHERE id = %s", [poison]).fetchone() == (
        "worker lost 3 times",
    )


def test_what_a_thread_forks_is_ended_by_sigterm_and_the_worker_still_hears_it(
    db_url: str, conn: Conn, tmp_path: Path
) -> None:
    job_id = defer(conn, "ends_what_it_forks")
    with process(db_url, tmp_path, **LASTING) as worker:
        until_status(conn, job_id, "succeeded")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    (codes,) = conn.execute("SELECT result FROM pljobs.jobs WHERE id = %s", [job_id]).fetchone() or ([],)
    assert set(codes) == {-signal.SIGTERM}


def test_a_poisonous_job_can_be_cancelled(db_url: str, conn: Conn, tmp_path: Path) -> None:
    poison = defer(conn, "kills_itself")
    with process(db_url, tmp_path, **LASTING) as worker:
        assert worker.wait() == 137
    lease_over(conn)
    conn.execute("SELECT pljobs.cancel_job(%s, abort => true)", [poison])
    with process(db_url, tmp_path, "second", **LASTING):
        until_status(conn, poison, "aborted")
    assert side(conn, poison) == ["start"]
