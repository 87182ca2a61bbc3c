"""At the edge of exactly once: a defer that can be repeated, a job that ends in its body's transaction."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import psycopg
import pytest

from pljobs import App, JobContext, calls
from pljobs.exceptions import InvalidArgument, InvalidJob, KeyReused, RunLost
from pljobs.jobs import Job
from waiting import wait_until_async
from workers import DEADLINE, HASTY, NOTIFIED, job, running, until

Conn = psycopg.AsyncConnection[Any]


@pytest.fixture
def effects(conn: psycopg.Connection) -> psycopg.Connection:
    conn.execute(
        "CREATE TABLE public.effect (job_id bigint, what text); GRANT ALL ON public.effect TO PUBLIC"
    )
    return conn


def written(conn: psycopg.Connection, job_id: int) -> list[str]:
    found = conn.execute("SELECT what FROM public.effect WHERE job_id = %s ORDER BY what", [job_id])
    return [what for (what,) in found]


async def test_who_defers_again_under_a_key_gets_the_same_job(app: App) -> None:
    @app.task(name="pay")
    def pay(order: int) -> None: ...

    first = pay.configure(idempotency_key="order 7").defer(order=7)
    assert await pay.configure(idempotency_key="order 7").defer_async(order=7) == first
    assert app.configure_task("pay", idempotency_key="order 7").defer(order=7) == first
    assert pay.configure(idempotency_key="order 8").defer(order=7) != first
    assert pay.defer(order=7) != first


def test_a_key_stands_for_one_job(app: App) -> None:
    @app.task(name="pay")
    def pay(order: int) -> None: ...

    keyed = pay.configure(idempotency_key="order 7")
    keyed.defer(order=7)
    with pytest.raises(KeyReused, match="order 7"):
        keyed.defer(order=8)
    with pytest.raises(InvalidJob, match="one job"):
        keyed.batch_defer({"order": 7}, {"order": 8})
    with pytest.raises(InvalidJob, match="idempotency_key"):
        pay.configure(idempotency_key="")


def test_a_key_is_rolled_back_with_its_job(app: App, db_url: str) -> None:
    @app.task(name="pay")
    def pay() -> None: ...

    with psycopg.connect(db_url) as mine:
        rolled_back = pay.configure(idempotency_key="k", connection=mine).defer()
        mine.rollback()
    assert pay.configure(idempotency_key="k").defer() != rolled_back


async def test_a_job_ends_with_its_bodys_transaction(
    app: App, aconn: Conn, effects: psycopg.Connection, db_url: str
) -> None:
    committed = asyncio.Event()
    go_on = asyncio.Event()

    @app.task(pass_context=True)
    async def task(context: JobContext) -> str:
        async with await psycopg.AsyncConnection.connect(db_url) as mine:
            await mine.execute("INSERT INTO public.effect VALUES (%s, 'done')", [context.job.id])
            await context.finish_async(mine, result={"paid": True})
        committed.set()
        await go_on.wait()
        return "ignored"

    async with running(app, **HASTY):
        job_id = await task.defer_async()
        await asyncio.wait_for(committed.wait(), DEADLINE)
        assert (await job(aconn, job_id))["status"] == "succeeded"
        # Heartbeats find that the run is not the job's any more; the body is left to end by itself.
        await worker_beats(aconn, 3)
        go_on.set()
        ended = await until(aconn, job_id, "succeeded")
    assert ended["result"] == {"paid": True}
    assert written(effects, job_id) == ["done"]


async def worker_beats(aconn: Conn, times: int) -> None:
    """Wait until the only worker has sent some more heartbeats."""
    seen: set[object] = set()

    async def more() -> bool:
        cursor = await aconn.execute("SELECT heartbeat_at FROM pljobs.workers")
        seen.update(row[0] for row in await cursor.fetchall())
        return len(seen) > times

    await wait_until_async(more, DEADLINE)


async def test_a_sync_task_too_and_what_it_raises_afterwards_is_told(
    app: App, aconn: Conn, effects: psycopg.Connection, db_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(pass_context=True, retry=True)
    def task(context: JobContext) -> None:
        with psycopg.connect(db_url) as mine:
            mine.execute("INSERT INTO public.effect VALUES (%s, 'done')", [context.job.id])
            context.finish(mine)
        raise RuntimeError("afterwards")

    with caplog.at_level(logging.INFO):
        async with running(app, **NOTIFIED):
            job_id = await task.defer_async()
            await until(aconn, job_id, "succeeded")
            await wait_until_async(lambda: "had ended itself" in caplog.text, DEADLINE)
    assert written(effects, job_id) == ["done"]
    assert "afterwards" in caplog.text


async def test_rolled_back_it_never_ended(
    app: App, aconn: Conn, effects: psycopg.Connection, db_url: str
) -> None:
    @app.task(pass_context=True, retry=1)
    async def task(context: JobContext) -> None:
        async with await psycopg.AsyncConnection.connect(db_url) as mine:
            await mine.execute(
                "INSERT INTO public.effect VALUES (%s, %s)", [context.job.id, f"try {context.job.attempts}"]
            )
            await context.finish_async(mine)
            if context.job.attempts == 0:
                raise RuntimeError("before the commit")

    async with running(app, **NOTIFIED | {"fetch_job_polling_interval": 0.1}):
        job_id = await task.defer_async()
        await until(aconn, job_id, "succeeded")
    assert written(effects, job_id) == ["try 1"]


async def test_a_run_that_was_lost_can_commit_nothing(
    app: App, aconn: Conn, effects: psycopg.Connection, db_url: str
) -> None:
    started, forced = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    @app.task(pass_context=True)
    def task(context: JobContext) -> None:
        started.set()
        forced.wait(DEADLINE)
        try:
            with psycopg.connect(db_url) as mine:
                mine.execute("INSERT INTO public.effect VALUES (%s, 'doubled')", [context.job.id])
                context.finish(mine)
        except RunLost as error:
            raised.append(error)
            raise

    async with running(app, **NOTIFIED):
        job_id = await task.defer_async()
        await wait_until_async(started.is_set, DEADLINE)
        await app.job_manager.cancel_job_by_id_async(job_id, force=True)
        forced.set()
        await wait_until_async(lambda: bool(raised), DEADLINE)
        await until(aconn, job_id, "aborted")
    assert written(effects, job_id) == []


def test_outside_of_a_transaction_there_is_nothing_to_end_with(app: App, conn: psycopg.Connection) -> None:
    @app.task
    def task() -> None: ...

    context = JobContext(app=app, job=Job(id=1, run_id=1, task_name="task"), task=task)
    with pytest.raises(InvalidArgument, match="no transaction"):
        context.finish(conn)
    with psycopg.connect(conn.info.dsn) as mine:
        with pytest.raises(InvalidArgument, match="JSON"):
            context.finish(mine, result=object())
        with pytest.raises(RunLost, match="run 1 is not job 1"):
            context.finish(mine)


async def test_a_body_that_goes_on_after_it_has_ended_its_job_keeps_nobody_busy(
    app: App, aconn: Conn, db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even past the time at which its timeout would have been over."""
    beats: list[object] = []
    original = calls.heartbeat

    def heartbeat(worker_id: int, **options: Any) -> Any:
        beats.append(worker_id)
        return original(worker_id, **options)

    monkeypatch.setattr(calls, "heartbeat", heartbeat)
    go = asyncio.Event()

    @app.task(name="pay", pass_context=True)
    async def pay(context: JobContext) -> None:
        async with await psycopg.AsyncConnection.connect(db_url) as mine:
            await context.finish_async(mine, result="done")
        await go.wait()

    async with running(app, **NOTIFIED):
        job_id = await app.configure_task("pay", timeout=0.5).defer_async()
        await until(aconn, job_id, "succeeded")
        began = len(beats)
        await asyncio.sleep(1.5)
        assert len(beats) - began < 20  # it were thousands
        go.set()
