"""A run over its timeout whose job's row somebody holds: the database can't ask it, its worker does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from pljobs import App, JobContext
from pljobs.control import Control
from pljobs.jobs import AbortReason
from pljobs.maintenance import Maintenance
from pljobs.worker import Worker
from waiting import wait_until_async
from workers import DEADLINE, NOTIFIED, job, request, row, running, until

Conn = psycopg.AsyncConnection[Any]
HOUR = 3600.0
# While somebody has it, no worker calls its heartbeat.
STILL = threading.Lock()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but the worker enforces limits, nor at a moment that a test does not choose."""

    async def later(_: Maintenance) -> float:
        return 3600.0

    monkeypatch.setattr(Maintenance, "_enforce_limits", later)
    beat = Control._beat

    def beat_if_it_may(control: Control, conn: psycopg.Connection[Any]) -> None:
        with STILL:
            beat(control, conn)

    monkeypatch.setattr(Control, "_beat", beat_if_it_may)


@pytest.fixture
async def person(admin_url: str) -> AsyncIterator[Conn]:
    """Somebody who leaves a transaction open."""
    async with await psycopg.AsyncConnection.connect(admin_url) as connection:
        yield connection
        await connection.rollback()


@contextlib.asynccontextmanager
async def made_late(aconn: Conn, worker: Worker, job_id: int, *, ago: str = "10 s") -> AsyncIterator[None]:
    """Have a running job's timeout be over; its worker looks when the block, which holds the row, is over.

    It may have any reason to look earlier, as the notification of the job that it runs already: that
    heartbeat would find the row free, and have the database ask.
    """
    await wait_until_async(lambda: STILL.acquire(blocking=False), DEADLINE, "no heartbeat is under way")
    try:
        update = "UPDATE pljobs.job SET timeout_at = clock_timestamp() - %s::interval WHERE id = %s"
        await aconn.execute(update.encode(), [ago, job_id])
        yield
        worker._control.look_now()
    finally:
        STILL.release()


async def hold(person: Conn, job_id: int) -> None:
    await person.execute("SELECT FROM pljobs.job WHERE id = %s FOR UPDATE", [job_id])


async def wait_for(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), DEADLINE)


def a_waiting_task(app: App, **options: Any) -> tuple[Any, asyncio.Event, asyncio.Event]:
    """Make a task that waits until it is stopped; return it, when it has begun, and when it was stopped."""
    begun, stopped = asyncio.Event(), asyncio.Event()

    @app.task(name="waits", timeout=HOUR, **options)
    async def waits() -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            stopped.set()

    return waits, begun, stopped


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if "holds its row" in r.getMessage()]


async def test_a_job_that_hangs_in_the_transaction_that_ends_it_is_stopped_and_fails(
    app: App, aconn: Conn, db_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[AbortReason | None] = []

    @app.task(pass_context=True, timeout=HOUR, retry=1)
    async def task(context: JobContext) -> None:
        assert context.job.id is not None
        try:
            async with await psycopg.AsyncConnection.connect(db_url) as mine:
                async with made_late(aconn, worker, context.job.id):
                    await context.finish_async(mine)
                await asyncio.get_running_loop().create_future()
        finally:
            seen.append(context.abort_reason())

    async with running(app, **NOTIFIED) as worker:
        job_id = await task.defer_async()
        found = await until(aconn, job_id, "failed")
    assert seen == [AbortReason.DEADLINE] * 2
    assert (found["attempts"], found["message"]) == (2, "timeout: ran longer than its timeout of 01:00:00")
    asked = await request(aconn, job_id)
    assert (asked["source"], asked["resolution"]) == ("deadline", "timeout")
    said = warnings(caplog)
    assert [r.levelname for r in said] == ["WARNING"] * 2  # each of its runs
    assert {r.__dict__["job_id"] for r in said} == {job_id}
    assert len({r.__dict__["run_id"] for r in said}) == 2


async def test_a_job_whose_row_somebody_holds_is_stopped_in_time_and_ends_when_it_is_let_go(
    app: App, aconn: Conn, person: Conn
) -> None:
    task, go, stopped = a_waiting_task(app)

    async with running(app, **NOTIFIED) as worker:
        job_id = await task.defer_async()
        await wait_for(go)
        async with made_late(aconn, worker, job_id):
            await hold(person, job_id)
        await wait_for(stopped)
        assert (await job(aconn, job_id))["status"] == "doing"
        await person.rollback()
        found = await until(aconn, job_id)
    assert (found["status"], "timeout" in found["message"]) == ("failed", True)


async def test_if_it_was_an_abort_that_had_not_been_committed_the_job_is_aborted(
    app: App, aconn: Conn, person: Conn
) -> None:
    task, go, stopped = a_waiting_task(app, retry=9)

    async with running(app, **NOTIFIED) as worker:
        job_id = await task.defer_async()
        await wait_for(go)
        async with made_late(aconn, worker, job_id):
            await person.execute("SELECT pljobs.cancel_job(%s, abort => true, reason => 'mine')", [job_id])
        await wait_for(stopped)
        await person.commit()
        assert (await until(aconn, job_id, "aborted", "failed"))["status"] == "aborted"
    asked = await request(aconn, job_id)
    assert (asked["source"], asked["reason"], asked["resolution"]) == ("user", "mine", "aborted")


async def test_it_is_only_told_until_the_database_can_take_the_further_steps(
    app: App, aconn: Conn, person: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    go, swallowed, stopped = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @app.task(timeout=HOUR, grace=0)
    async def stubborn() -> None:
        go.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        swallowed.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            stopped.set()

    async with running(app, **NOTIFIED) as worker:
        job_id = await stubborn.defer_async()
        await wait_for(go)
        async with made_late(aconn, worker, job_id):
            await hold(person, job_id)
        await wait_for(swallowed)
        await late(aconn, job_id, by="12 s")
        assert not stopped.is_set()
        await person.rollback()
        await wait_for(stopped)
        await until(aconn, job_id, "failed")
    asked = await request(aconn, job_id)
    assert (asked["source"], asked["level"], asked["resolution"]) == ("deadline", 3, "timeout")
    assert len(warnings(caplog)) == 1


async def test_what_is_held_for_a_moment_is_asked_by_the_database(
    app: App,
    aconn: Conn,
    person: Conn,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task, go, _ = a_waiting_task(app)

    async with running(app, **NOTIFIED) as worker:
        job_id = await task.defer_async()
        await wait_for(go)
        async with made_late(aconn, worker, job_id, ago="0 s"):
            await hold(person, job_id)
        await late(aconn, job_id)
        await person.rollback()
        await until(aconn, job_id, "failed")
    assert (await request(aconn, job_id))["resolution"] == "timeout"
    assert warnings(caplog) == []


async def late(aconn: Conn, job_id: int, *, by: str = "0 s") -> None:
    """Wait until a heartbeat came so much later than the job's timeout."""

    async def has_come() -> bool:
        query = (
            "SELECT w.heartbeat_at > j.timeout_at + %s::interval AS is_so"
            " FROM pljobs.job AS j JOIN pljobs.worker AS w ON w.id = j.worker_id WHERE j.id = %s"
        )
        found = await row(aconn, query, by, job_id)
        return found is not None and bool(found["is_so"])

    await wait_until_async(has_come, DEADLINE, f"job {job_id} is late")


async def test_a_job_that_has_ended_in_time_is_not_late_for_not_being_recorded(
    app: App, aconn: Conn, person: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    @app.task(timeout=HOUR)
    async def task() -> None:
        begun.set()
        await go.wait()

    async with running(app, **NOTIFIED) as worker:
        job_id = await task.defer_async()
        await wait_for(begun)
        async with made_late(aconn, worker, job_id):
            await hold(person, job_id)
            go.set()
            await wait_until_async(
                lambda: all(run and run.ended for run in worker._control._runs.values()), DEADLINE
            )
        await late(aconn, job_id)
        await person.rollback()
        assert (await until(aconn, job_id))["status"] == "succeeded"
    assert warnings(caplog) == []
