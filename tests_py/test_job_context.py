"""What a task can ask and tell while it runs: its abort, its progress, and which job it is."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import psycopg
import pytest

from pljobs import App, JobAborted, JobContext, JobLogFilter, current_context
from pljobs.exceptions import InvalidArgument
from pljobs.jobs import AbortReason, Job
from waiting import wait_until_async
from workers import DEADLINE, NOTIFIED, job, request, running, until

Conn = psycopg.AsyncConnection[Any]


async def abort(app: App, job_id: int, **options: Any) -> None:
    assert await app.job_manager.cancel_job_by_id_async(job_id, abort=True, **options)


async def test_a_sync_loop_over_iter_stops_by_itself(app: App, aconn: Conn) -> None:
    seen: list[int] = []
    third = threading.Event()

    @app.task(pass_context=True)
    def task(context: JobContext) -> None:
        for number in context.iter(range(1000)):
            seen.append(number)
            if number == 2:
                third.set()
                context.abort_flag.wait(DEADLINE)

    async with running(app, **NOTIFIED):
        job_id = await task.defer_async()
        await wait_until_async(third.is_set, DEADLINE)
        await abort(app, job_id)
        ended = await until(aconn, job_id, "aborted")
    assert seen == [0, 1, 2]
    assert ended["message"] == "stopped after 3 items"


async def test_iter_loses_no_item_that_was_taken(app: App) -> None:
    @app.task
    def task() -> None: ...

    context = JobContext(app=app, job=Job(id=1, run_id=1, task_name=task.name), task=task)
    waiting = [1, 2, 3]

    def take() -> int:
        if len(waiting) == 2:
            context.abort_flag.set(AbortReason.USER_REQUEST)
        return waiting.pop(0)

    taken = context.iter(iter(take, None))
    assert [next(taken), next(taken)] == [1, 2]
    with pytest.raises(JobAborted, match="after 2 items"):
        next(taken)
    assert waiting == [3]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_on_abort_calls_back_once_whether_registered_before_or_after(
    app: App, aconn: Conn, when: str
) -> None:
    begun = threading.Event()
    calls: list[tuple[str, AbortReason | None, int | None]] = []
    called = threading.Event()

    def call_back() -> None:
        context = current_context()
        assert context is not None
        calls.append((threading.current_thread().name, context.abort_reason(), context.job.id))
        called.set()

    @app.task(pass_context=True)
    def task(context: JobContext) -> None:
        if when == "before":
            context.on_abort(call_back)
        begun.set()
        assert context.abort_flag.wait(DEADLINE)
        if when == "after":
            context.on_abort(call_back)
        assert called.wait(DEADLINE)

    async with running(app, **NOTIFIED):
        job_id = await task.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        await abort(app, job_id)
        await until(aconn, job_id, "succeeded")
    assert calls == [("pljobs-on-abort", AbortReason.USER_REQUEST, job_id)]


async def test_in_async_code_on_abort_calls_back_in_the_event_loop_before_the_cancel(
    app: App, aconn: Conn
) -> None:
    begun = asyncio.Event()
    order: list[str] = []

    @app.task(pass_context=True)
    async def task(context: JobContext) -> None:
        loop = asyncio.get_running_loop()
        context.on_abort(
            lambda: order.append("callback" if asyncio.get_running_loop() is loop else "elsewhere")
        )
        begun.set()
        try:
            await asyncio.sleep(DEADLINE)
        finally:
            order.append("cancel")

    async with running(app, **NOTIFIED):
        job_id = await task.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        await abort(app, job_id)
        await until(aconn, job_id, "aborted")
    assert order == ["callback", "cancel"]


async def test_who_asked_and_why_can_be_read_in_the_task(app: App, aconn: Conn) -> None:
    seen: list[Any] = []
    begun = threading.Event()

    @app.task(pass_context=True)
    def task(context: JobContext) -> None:
        assert context.abort_request() is None
        begun.set()
        assert context.abort_flag.wait(DEADLINE)
        seen.append(context.abort_request())

    async with running(app, **NOTIFIED):
        job_id = await task.defer_async()
        await wait_until_async(begun.is_set, DEADLINE)
        await abort(app, job_id, reason="too slow", actor="ann")
        await until(aconn, job_id, "succeeded")
    assert (seen[0].reason, seen[0].actor, seen[0].deadline) == ("too slow", "ann", None)
    assert seen[0].requested_by


# Progress


async def test_progress_is_stored_while_the_task_runs_and_when_it_ends(app: App, aconn: Conn) -> None:
    go_on = threading.Event()

    @app.task(pass_context=True)
    def task(context: JobContext) -> None:
        context.progress(0.4, "loading")
        go_on.wait(DEADLINE)
        context.progress(1, "loaded")

    async def shown() -> tuple[Any, ...]:
        found = await job(aconn, job_id)
        return (found["progress"], found["progress_message"])

    async def loading() -> bool:
        return await shown() == (pytest.approx(0.4), "loading")

    async with running(app, fetch_job_polling_interval=0.05, listen_notify=False):
        job_id = await task.defer_async()
        await wait_until_async(loading, DEADLINE, "the progress is stored")
        go_on.set()
        await until(aconn, job_id, "succeeded")
        assert await shown() == (1.0, "loaded")


async def test_progress_that_a_heartbeat_took_along_too_late_is_stored_with_the_end(
    app: App, aconn: Conn
) -> None:
    @app.task(pass_context=True)
    def task(context: JobContext) -> None:
        context.progress(1, "loaded")
        context.reported_progress.take()  # as a heartbeat does, which then finds that the run has ended

    async with running(app, **NOTIFIED):
        job_id = await task.defer_async()
        found = await until(aconn, job_id, "succeeded")
    assert (found["progress"], found["progress_message"]) == (1.0, "loaded")


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan"), float("inf"), "half"])
async def test_what_is_no_share_of_one_is_refused_in_the_task(app: App, fraction: Any) -> None:
    @app.task
    def task() -> None: ...

    context = JobContext(app=app, job=Job(id=1, run_id=1, task_name="task"), task=task)
    with pytest.raises((InvalidArgument, TypeError)):
        context.progress(fraction)
    assert context.reported_progress.take() is None


async def test_a_long_message_is_cut_and_a_hostile_one_stored(app: App, aconn: Conn) -> None:
    @app.task(pass_context=True)
    def task(context: JobContext, text: str) -> None:
        context.progress(None, text + "\0\ud800")

    async with running(app, **NOTIFIED):
        job_id = await task.defer_async(text="x" * 1000)
        await until(aconn, job_id, "succeeded")
    assert len((await job(aconn, job_id))["progress_message"]) <= 200


# Which job


async def test_log_records_carry_the_job_they_were_written_for(
    app: App, aconn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("some.library")

    def work() -> None:
        logger.warning("from inside")

    @app.task
    def in_thread() -> None:
        work()

    @app.task
    async def in_loop() -> None:
        await asyncio.create_task(asyncio.to_thread(work))

    caplog.handler.addFilter(JobLogFilter())
    async with running(app, concurrency=2, **NOTIFIED):
        ids = [await task.defer_async() for task in (in_thread, in_loop)]
        for job_id in ids:
            await until(aconn, job_id, "succeeded")
    logger.warning("from outside")
    found = [
        (r.__dict__["job_id"], r.__dict__["task_name"]) for r in caplog.records if r.name == "some.library"
    ]
    assert sorted(found[:2]) == [(ids[0], in_thread.name), (ids[1], in_loop.name)]
    assert found[2:] == [(None, None)]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_who_has_ended_is_not_called_back(app: App, aconn: Conn, admin_url: str, kind: str) -> None:
    """The abort comes in between: when the body has returned, and its end could not be written yet."""
    began, go_on, called = threading.Event(), threading.Event(), []

    def body(context: JobContext) -> None:
        context.on_abort(lambda: called.append(context.abort_reason()))
        began.set()

    @app.task(name="async", pass_context=True)
    async def ends(context: JobContext) -> None:
        body(context)
        await asyncio.to_thread(go_on.wait, DEADLINE)

    @app.task(name="sync", pass_context=True)
    def ends_too(context: JobContext) -> None:
        body(context)
        go_on.wait(DEADLINE)

    async with running(app, **NOTIFIED) as worker:
        job_id = await app.configure_task(kind).defer_async()
        await wait_until_async(began.is_set, DEADLINE)
        async with await psycopg.AsyncConnection.connect(admin_url) as person:
            await person.execute("SELECT pljobs.cancel_job(%s, abort => true)", [job_id])
            go_on.set()
            await wait_until_async(lambda: all(run and run.ended for run in worker._runs.values()), DEADLINE)
            await person.commit()
        await until(aconn, job_id, "succeeded")
        assert (await request(aconn, job_id))["resolution"] == "finished_first"
    assert called == []
