"""Aborts and odd ends, in the shapes that asyncio gives them: on each Python."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
import weakref
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from pljobs import App, JobAborted, JobContext, Status
from pljobs.worker import Worker
from waiting import wait_until_async

Body = Callable[[], Awaitable[object]]


async def running(app: App, job_id: int) -> bool:
    return await app.job_manager.get_job_status_async(job_id) is Status.DOING


async def end_of(app: App, job_id: int) -> Status:
    async def ended() -> bool:
        return (await app.job_manager.get_job_status_async(job_id)).is_final

    await wait_until_async(ended)
    return await app.job_manager.get_job_status_async(job_id)


async def in_a_task_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(1000))
        await asyncio.sleep(1000)


async def caught_around_a_task_group() -> None:
    try:
        await in_a_task_group()
    except asyncio.CancelledError:
        raise JobAborted("caught") from None


async def under_a_timeout() -> None:
    async with asyncio.timeout(1000):
        await asyncio.sleep(1000)


async def gathered() -> None:
    await asyncio.gather(asyncio.sleep(1000), asyncio.sleep(1000))


async def a_group_of_aborts() -> None:
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError as error:
        raise BaseExceptionGroup("both", [error, JobAborted("child")]) from None


@pytest.mark.parametrize(
    "body", [in_a_task_group, caught_around_a_task_group, under_a_timeout, gathered, a_group_of_aborts]
)
async def test_an_abort_ends_as_aborted_whatever_it_passes_through(app: App, body: Body) -> None:
    task = app.task(name="body")(body)
    job_id = await task.defer_async()
    worker = asyncio.create_task(app.run_worker_async(install_signal_handlers=False))
    await wait_until_async(lambda: running(app, job_id))
    assert await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
    assert await end_of(app, job_id) is Status.ABORTED
    worker.cancel()
    await asyncio.wait([worker])


async def test_a_stopped_task_group_runs_again(app: App) -> None:
    job_id = await app.task(name="group")(in_a_task_group).defer_async()
    worker = asyncio.create_task(app.run_worker_async(install_signal_handlers=False))
    await wait_until_async(lambda: running(app, job_id))
    worker.cancel()
    await asyncio.wait([worker])
    assert await app.job_manager.get_job_status_async(job_id) is Status.TODO


async def test_a_group_that_holds_a_failure_is_a_failure(app: App) -> None:
    @app.task(name="mixed")
    async def mixed() -> None:
        raise BaseExceptionGroup("both", [JobAborted("one"), ValueError("other")])

    job_id = await mixed.defer_async()
    await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert await end_of(app, job_id) is Status.FAILED


async def test_a_thread_that_cannot_start_fails_its_job_alone(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task(name="sync")
    def sync() -> int:
        return 1

    start, refused = threading.Thread.start, iter([True])

    def refuse_once(thread: threading.Thread) -> None:
        if thread.name.startswith("pljobs-job") and next(refused, False):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_once)
    ids = [await sync.defer_async() for _ in range(3)]
    await app.run_worker_async(wait=False, concurrency=3, install_signal_handlers=False)
    ends = [await end_of(app, job_id) for job_id in ids]
    assert sorted(ends) == [Status.FAILED, Status.SUCCEEDED, Status.SUCCEEDED]


class Raises(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise RuntimeError(f"a filter that raises: {record.name}")


async def test_a_log_that_raises_keeps_no_job_from_ending(app: App) -> None:
    @app.task(name="fails")
    async def fails() -> None:
        raise ValueError("bad")

    raised: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    log, unlucky = logging.getLogger("pljobs.jobs"), Raises()
    ids = [await fails.defer_async() for _ in range(3)]
    log.addFilter(unlucky)
    try:
        await app.run_worker_async(wait=False, concurrency=3, install_signal_handlers=False)
    finally:
        log.removeFilter(unlucky)
    assert [await end_of(app, job_id) for job_id in ids] == [Status.FAILED] * 3
    assert raised


def test_the_end_of_the_program_gives_running_jobs_back(db_url: str) -> None:
    app = App(db_url)

    @app.task(name="long")
    async def long() -> None:
        await asyncio.sleep(1000)

    async def main() -> None:
        await app.open_async()
        job_id = await long.defer_async()
        app.keep = asyncio.create_task(  # type: ignore[attr-defined]
            app.run_worker_async(install_signal_handlers=False)
        )
        await wait_until_async(lambda: running(app, job_id))

    asyncio.run(main())  # cancels every task there is
    with psycopg.connect(db_url) as conn:
        found = conn.execute("SELECT status, attempts, crashes FROM pljobs.jobs").fetchall()
    assert found == [("todo", 0, 0)]


async def test_a_signal_stops_both_workers_of_a_loop(app: App) -> None:
    workers = [Worker(app), Worker(app)]
    running_both = [asyncio.create_task(worker.run()) for worker in workers]
    await wait_until_async(lambda: all(worker.worker_id is not None for worker in workers))
    before = signal.getsignal(signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(20):
        await asyncio.wait(running_both)
    assert signal.getsignal(signal.SIGTERM) is not before


async def test_an_applications_own_signal_handler_is_there_again(app: App) -> None:
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, heard.set)
    try:
        await app.run_worker_async(wait=False)
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(20):
            await heard.wait()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


class Big:
    """Something that can be watched."""


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_failed_jobs_locals_go_without_a_collection(app: App, kind: str) -> None:
    watched: list[weakref.ref[Big]] = []

    def fail() -> None:
        big = Big()
        watched.append(weakref.ref(big))
        raise ValueError("bad")

    async def fail_async() -> None:
        fail()

    task = app.task(name="fails")(fail_async if kind == "async" else fail)
    gc.collect()
    gc.disable()
    try:
        logging.getLogger("pljobs.jobs").disabled = True  # a handler may keep the exception of its record
        await task.defer_async()
        await app.run_worker_async(wait=False, install_signal_handlers=False)
        await wait_until_async(lambda: watched[0]() is None)
    finally:
        logging.getLogger("pljobs.jobs").disabled = False
        gc.enable()


async def test_should_abort_is_seen_by_a_method_that_is_a_task(app: App) -> None:
    class Service:
        def work(self, context: JobContext) -> None:
            while not context.should_abort():
                context.abort_flag.wait(0.05)
            raise JobAborted("seen")

    task = app.task(name="method", pass_context=True)(Service().work)
    job_id = await task.defer_async()
    worker = asyncio.create_task(app.run_worker_async(install_signal_handlers=False))
    await wait_until_async(lambda: running(app, job_id))
    assert await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
    assert await end_of(app, job_id) is Status.ABORTED
    worker.cancel()
    await asyncio.wait([worker])
