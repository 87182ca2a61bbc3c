"""Workers as processes: signals, kills, stops, and who takes over."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from waiting import wait_until
from workers import DEADLINE, HASTY, SIDE_TABLE, defer, process, side, until_started

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_jobs_end_and_starts_no_other(
    db_url: str, conn: Conn, tmp_path: Path, number: signal.Signals
) -> None:
    running, waiting = defer(conn, "until_told"), defer(conn, "until_told")
    with process(db_url, tmp_path, **HASTY) as worker:
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
    with process(db_url, tmp_path, **HASTY) as worker:
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
    with process(db_url, tmp_path, **HASTY) as worker:
        until_started(conn, job_id)
        for count in (1, 2):
            worker.signal(number)
            wait_until(lambda count=count: worker.log.read_text().count("Received") == count, DEADLINE)  # type: ignore[misc]
        assert job(conn, job_id)[0] == "doing"
        worker.signal(number)
        assert worker.wait() == -number
    # Its lease runs out; a second worker takes the job.
    with process(db_url, tmp_path, "second", **HASTY):
        wait_until(lambda: side(conn, job_id) == ["start", "start"], DEADLINE)
        assert job(conn, job_id) == ("doing", 2, 1)


def test_the_timeout_of_a_graceful_stop_aborts(db_url: str, conn: Conn, tmp_path: Path) -> None:
    job_id = defer(conn, "forever")
    with process(db_url, tmp_path, **HASTY, shutdown_graceful_timeout=0.1) as worker:
        until_started(conn, job_id)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert job(conn, job_id) == ("todo", 0, 0)


def test_a_killed_workers_job_is_run_by_another(db_url: str, conn: Conn, tmp_path: Path) -> None:
    job_id = defer(conn, "until_told")
    with process(db_url, tmp_path, **HASTY) as worker:
        until_started(conn, job_id)
        worker.kill()
    go(conn)
    with process(db_url, tmp_path, "second", **HASTY):
        assert until_status(conn, job_id, "succeeded") == ("succeeded", 2, 1)
    assert side(conn, job_id) == ["start", "start", "end"]


def test_an_abort_holds_though_the_worker_is_killed(db_url: str, conn: Conn, tmp_path: Path) -> None:
    job_id = defer(conn, "stubborn")
    with process(db_url, tmp_path, **HASTY) as worker:
        until_started(conn, job_id)
        conn.execute("SELECT pljobs.cancel_job(%s, abort => true)", [job_id])
        worker.kill()
    with process(db_url, tmp_path, "second", **HASTY):
        until_status(conn, job_id, "aborted")
    assert side(conn, job_id) == ["start"]
    assert conn.execute("SELECT resolution FROM pljobs.requests").fetchall() == [("worker_lost",)]


def test_a_worker_that_stood_still_stops_what_it_lost_and_goes_on(
    db_url: str, conn: Conn, tmp_path: Path
) -> None:
    job_id = defer(conn, "until_told")
    # Else it would stop for its lease before it could ask whose the run is: see test_lease.py.
    with process(db_url, tmp_path, **HASTY, stop_without_database=False) as frozen:
        until_started(conn, job_id)
        frozen.signal(signal.SIGSTOP)
        with process(db_url, tmp_path, "second", **HASTY) as second:
            wait_until(lambda: side(conn, job_id) == ["start", "start"], DEADLINE, "the second takes over")
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
        with process(db_url, tmp_path, f"worker{count}", **HASTY) as worker:
            assert worker.wait() == 137
    with process(db_url, tmp_path, "last", **HASTY):
        assert until_status(conn, poison, "failed") == ("failed", 3, 3)
        for each in good:
            until_status(conn, each, "succeeded")
    assert conn.execute("SELECT message FROM pljobs.jobs WHERE id = %s", [poison]).fetchone() == (
        "worker lost 3 times",
    )


def test_a_poisonous_job_can_be_cancelled(db_url: str, conn: Conn, tmp_path: Path) -> None:
    poison = defer(conn, "kills_itself")
    with process(db_url, tmp_path, **HASTY) as worker:
        assert worker.wait() == 137
    conn.execute("SELECT pljobs.cancel_job(%s, abort => true)", [poison])
    with process(db_url, tmp_path, "second", **HASTY):
        until_status(conn, poison, "aborted")
    assert side(conn, poison) == ["start"]
