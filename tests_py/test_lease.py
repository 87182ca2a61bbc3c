"""A worker that can't reach the database stops its jobs before others start them, unless told to go on."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pljobs import App, JobContext
from pljobs.answers import Call
from pljobs.embedded import Server
from pljobs.link import Link
from proxy import Proxy, running_proxy
from waiting import wait_until, wait_until_async
from workers import DEADLINE, HASTY, SIDE_TABLE, Process, running

Conn = psycopg.Connection[Any]

# Each waits for a lease to be over.
pytestmark = pytest.mark.slow

# A worker stops its jobs when 0.6 of it is over: what a busy machine does not stall for.
LEASE = 8.0
OPTIONS: dict[str, Any] = {
    "fetch_job_polling_interval": 0.1,
    "update_heartbeat_interval": 0.3,
    "stalled_worker_timeout": LEASE,
}


@pytest.fixture(autouse=True)
def _side_table(conn: Conn) -> None:
    conn.execute(SIDE_TABLE)


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with running_proxy(server) as started:
        yield started


def side(conn: Conn, job_id: int) -> list[tuple[int, str]]:
    """Return pid and word of what the job's bodies wrote, in order."""
    rows = conn.execute("SELECT pid, what FROM public.side WHERE job_id = %s ORDER BY id", [job_id])
    return [(pid, what) for pid, what in rows]


def defer(conn: Conn, task: str, args: str = "{}") -> int:
    found = conn.execute("SELECT pljobs.defer_job(%s, %s)", [task, args]).fetchone()
    assert found is not None
    return int(found[0])


def worker(url: str, direct: str, folder: Path, name: str, **options: Any) -> Process:
    started = Process(
        url, folder / f"{name}.log", {"PLJOBS_SIDE_URL": direct}, name=name, **OPTIONS, **options
    )
    started.until_said("started")
    return started


def starts(conn: Conn, job_id: int) -> list[int]:
    return [pid for pid, what in side(conn, job_id) if what == "start"]


@pytest.mark.parametrize(("task", "args"), [("work", '{"seconds": 60}'), ("sync_work", '{"seconds": 60}')])
def test_a_cut_off_workers_job_stops_before_another_worker_starts_it(
    conn: Conn, db_url: str, proxy: Proxy, tmp_path: Path, task: str, args: str
) -> None:
    job_id = defer(conn, task, args)
    first = worker(proxy.url(conn.info.dbname), db_url, tmp_path, "first")
    second = None
    try:
        wait_until(lambda: starts(conn, job_id), DEADLINE, "the job starts")
        proxy.swallow_up = proxy.swallow_down = True
        second = worker(db_url, db_url, tmp_path, "second")
        wait_until(lambda: len(starts(conn, job_id)) >= 2, DEADLINE, "the job starts again")
        assert [what for _, what in side(conn, job_id)] == ["start", "cancelled", "start"]
        first.until_said("the jobs stop")
        # Back again, it works on, and what it reports of its run changes nothing.
        proxy.heal()
        other = defer(conn, "quick")
        wait_until(lambda: "end" in [what for _, what in side(conn, other)], DEADLINE, "the other job ends")
        assert first.running
    finally:
        first.kill()
        if second is not None:
            second.kill()


def test_what_can_not_be_stopped_ends_with_its_process(
    conn: Conn, db_url: str, proxy: Proxy, tmp_path: Path
) -> None:
    job_id = defer(conn, "stubborn")
    first = worker(proxy.url(conn.info.dbname), db_url, tmp_path, "first")
    try:
        wait_until(lambda: starts(conn, job_id), DEADLINE, "the job starts")
        proxy.swallow_up = proxy.swallow_down = True
        assert first.wait() != 0
        assert first.said("the lease is over")
        # Not reported as anything: it is rescued as from a dead worker, and runs again.
        second = worker(db_url, db_url, tmp_path, "second")
        try:
            wait_until(lambda: len(starts(conn, job_id)) >= 2, DEADLINE, "the job starts again")
        finally:
            second.kill()
    finally:
        first.kill()


def test_told_to_go_on_it_goes_on(conn: Conn, db_url: str, proxy: Proxy, tmp_path: Path) -> None:
    job_id = defer(conn, "work", f'{{"seconds": {1.5 * LEASE}}}')
    first = worker(proxy.url(conn.info.dbname), db_url, tmp_path, "first", stop_without_database=False)
    try:
        wait_until(lambda: starts(conn, job_id), DEADLINE, "the job starts")
        proxy.swallow_up = proxy.swallow_down = True

        def expired() -> bool:
            found = conn.execute("SELECT state FROM pljobs.workers").fetchone()
            return found == ("stalled",)

        wait_until(expired, DEADLINE, "the lease runs out")
        wait_until(lambda: (first.pid, "end") in side(conn, job_id), DEADLINE, "the job ends")
        proxy.heal()
    finally:
        first.kill()


def test_a_suspended_process_is_not_given_up_when_it_wakes(conn: Conn, db_url: str, tmp_path: Path) -> None:
    job_id = defer(conn, "work", '{"seconds": 60}')
    first = worker(db_url, db_url, tmp_path, "first")
    try:
        wait_until(lambda: starts(conn, job_id), DEADLINE, "the job starts")
        first.signal(signal.SIGSTOP)

        def expired() -> bool:
            found = conn.execute("SELECT state FROM pljobs.workers").fetchone()
            return found == ("stalled",)

        wait_until(expired, DEADLINE, "the lease runs out")
        # Else its first heartbeat may renew the lease, and the run goes on.
        conn.execute("SELECT pljobs.rescue_jobs()")
        first.signal(signal.SIGCONT)
        wait_until(lambda: (first.pid, "cancelled") in side(conn, job_id), DEADLINE, "its run is stopped")
        wait_until(lambda: len(starts(conn, job_id)) >= 2, DEADLINE, "the job starts again")
        assert first.running
    finally:
        first.kill()


async def test_jobs_that_come_after_they_were_given_back_are_not_started(
    app: App, conn: Conn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int | None] = []

    @app.task(name="runs", pass_context=True)
    async def runs_once(context: JobContext) -> None:
        runs.append(context.job.run_id)

    execute, late = Link.execute, asyncio.Event()

    async def answers_late(self: Link, call: Call[Any]) -> Any:
        answer = await execute(self, call)
        if "fetch_jobs_v1" in call.statement and answer and not late.is_set():
            await wait_until_async(lambda: _status(conn, job_id) == "todo", DEADLINE, "it is given back")
            late.set()
        return answer

    monkeypatch.setattr(Link, "execute", answers_late)
    job_id = await app.configure_task("runs").defer_async()
    async with running(app, **HASTY):
        await wait_until_async(lambda: _status(conn, job_id) == "succeeded", DEADLINE)
    assert late.is_set()
    assert len(runs) == 1
    assert f"runs[{job_id}] came too late" in caplog.text


def _status(conn: Conn, job_id: int) -> str:
    found = conn.execute("SELECT status FROM pljobs.jobs WHERE id = %s", [job_id]).fetchone()
    assert found is not None
    return str(found[0])


def test_a_worker_whose_lease_runs_out_starts_no_more_and_lives(
    conn: Conn, db_url: str, tmp_path: Path
) -> None:
    """Its heartbeats wait, its fetches are answered: as where one connection is back before the other."""
    first = worker(db_url, db_url, tmp_path, "first")
    try:
        with psycopg.connect(conn.info.dsn) as holder:
            holder.execute("UPDATE pljobs.worker SET expires_at = expires_at + interval '1 h'")
            holder.commit()
            holder.execute("SELECT FROM pljobs.worker FOR UPDATE")

            def over() -> bool:
                age = "SELECT clock_timestamp() - heartbeat_at > 1.2 * lease FROM pljobs.worker"
                return conn.execute(age).fetchone() == (True,)

            wait_until(over, DEADLINE, "the worker takes its lease for over")
            job_id = defer(conn, "work", '{"seconds": 0.1}')
            end = time.monotonic() + 1.0
            wait_until(lambda: starts(conn, job_id) or time.monotonic() > end, DEADLINE)
            assert first.running
            assert not starts(conn, job_id)
        wait_until(lambda: "end" in [what for _, what in side(conn, job_id)], DEADLINE, "the job ends")
        assert starts(conn, job_id) == [first.pid]
        assert first.running
    finally:
        first.kill()
