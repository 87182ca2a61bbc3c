"""Aborts and odd ends, in the shapes that asyncio gives them: on each Python."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import psycopg
import pytest

import workers
from pljobs import App, JobAborted, JobContext, Status, fetching
from pljobs.careful import careful_logger
from pljobs.control import Control
from pljobs.worker import Worker
from waiting import DEADLINE, wait_until_async

Conn = psycopg.AsyncConnection[Any]
Body = Callable[[], Awaitable[object]]


async def running(app: App, job_id: int) -> bool:
    return await app.job_manager.get_job_status_async(job_id) is Status.DOING


async def all_run(app: App, job_ids: Iterable[int]) -> bool:
    return all([await running(app, job_id) for job_id in job_ids])


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


class NoMore:
    """No thread for jobs can be started but so many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allowed = self.refused = 0
        start = threading.Thread.start

        def start_if_allowed(thread: threading.Thread) -> None:
            if thread.name.startswith("pljobs-job"):
                if self.allowed <= 0:
                    self.refused += 1
                    raise RuntimeError("can't start new thread")
                self.allowed -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_if_allowed)


async def test_without_a_thread_jobs_go_back_uncharged_and_run_once_there_is_one(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(name="sync", retry=False)
    def sync() -> int:
        return 1

    monkeypatch.setattr(fetching, "MAKE_DO", 0.05)
    threads = NoMore(monkeypatch)
    ids = await sync.batch_defer_async(*({} for _ in range(20)))
    async with workers.running(app, concurrency=3):
        await wait_until_async(lambda: threads.refused > 4)
        async for row in await aconn.execute("SELECT status, attempts FROM pljobs.jobs"):
            assert row[0] in {"todo", "doing"}
            assert row[1] == (row[0] == "doing")
        threads.allowed = 3
        assert {await end_of(app, job_id) for job_id in ids} == {Status.SUCCEEDED}
        assert {(await app.job_manager.get_job_async(job_id)).attempts for job_id in ids} == {1}
    said = [each for each in caplog.messages if "can't start new thread" in each]
    assert len(said) == 1
    assert "gives others back" in said[0]


async def test_with_fewer_threads_than_slots_a_worker_makes_do_with_these(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task(name="sync", retry=False)
    def sync() -> str:
        return threading.current_thread().name

    monkeypatch.setattr(fetching, "MAKE_DO", 3600.0)
    threads = NoMore(monkeypatch)
    threads.allowed = 2
    ids = await sync.batch_defer_async(*({} for _ in range(100)))
    await app.run_worker_async(wait=False, concurrency=5, install_signal_handlers=False)
    jobs = [await app.job_manager.get_job_async(job_id) for job_id in ids]
    assert {job.status for job in jobs} == {Status.SUCCEEDED}
    assert len({job.result for job in jobs}) <= 2
    # It was left at what there were threads for: from five at once it came down to two, by one or more.
    assert 1 <= threads.refused <= 3


class Raises(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise RuntimeError(f"a filter that raises: {record.name}")


@pytest.fixture
def unlucky() -> Iterator[None]:
    """Every logger of pljobs that there is has a filter that raises."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("pljobs")]
    raises = Raises()
    for name in names:
        logging.getLogger(name).addFilter(raises)
    yield
    for name in names:
        logging.getLogger(name).removeFilter(raises)


@pytest.mark.usefixtures("unlucky")
async def test_a_log_that_raises_keeps_no_job_from_starting_or_ending(
    app: App, capfd: pytest.CaptureFixture[str]
) -> None:
    @app.task(name="fails")
    async def fails() -> None:
        raise ValueError("bad")

    ids = [
        await fails.defer_async(),
        await app.configure_task("unknown").defer_async(),
        await fails.defer_async(),
    ]
    await app.run_worker_async(wait=False, concurrency=3, install_signal_handlers=False)
    assert [await end_of(app, job_id) for job_id in ids] == [Status.FAILED] * 3
    assert "a filter that raises: pljobs.jobs" in capfd.readouterr().err


def test_a_record_tells_who_wrote_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pljobs.a_test")
    logger = careful_logger("pljobs.a_test")
    logger.info("hello %s", "you", extra={"job_id": 7})
    logger.debug("not this")
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logger.exception("and that")
    first, second = caplog.records
    assert (first.getMessage(), first.funcName) == ("hello you", "test_a_record_tells_who_wrote_it")
    assert vars(first)["job_id"] == 7
    assert second.levelno == logging.ERROR
    assert second.exc_info is not None


@pytest.mark.parametrize("late", [False, True])
async def test_a_callback_that_can_not_be_called_keeps_no_other_job_from_its_abort(
    app: App, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "pljobs-on-abort":
            raise RuntimeError("can't start new thread")
        start(thread)

    @app.task(name="t", pass_context=True)
    def t(context: JobContext) -> None:
        if not late:
            context.on_abort(lambda: None)
        context.abort_flag.wait(60)
        context.on_abort(lambda: None)
        raise JobAborted("seen")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    async with workers.running(app, concurrency=3) as worker:
        ids = [await t.defer_async() for _ in range(3)]
        await wait_until_async(lambda: all_run(app, ids))
        worker.abort()
        # By a shutdown: they go back.
        await wait_until_async(lambda: not worker.is_busy)
    for job_id in ids:
        assert await app.job_manager.get_job_status_async(job_id) is Status.TODO


async def test_a_worker_whose_control_thread_dies_ends(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Control, "_run", lambda control: None)
    with pytest.raises(ExceptionGroup) as raised:
        await app.run_worker_async(install_signal_handlers=False)
    assert raised.group_contains(RuntimeError, match="control thread has died")


async def test_the_one_who_cancels_a_worker_knows_its_cancel_again(app: App) -> None:
    worker = Worker(app, install_signal_handlers=False)
    task = asyncio.create_task(worker.run())
    await wait_until_async(lambda: worker.worker_id is not None)
    task.cancel("by me")
    with pytest.raises(asyncio.CancelledError, match="by me"):
        await task


async def test_who_cancels_every_task_again_and_again_leaves_no_lease_behind(
    app: App, aconn: psycopg.AsyncConnection[Any]
) -> None:
    go_on = threading.Event()

    @app.task(name="t")
    def t() -> None:
        go_on.wait(60)

    job_id = await t.defer_async()
    others = asyncio.all_tasks()
    worker = Worker(app, install_signal_handlers=False, **workers.HASTY)
    task = asyncio.create_task(worker.run())
    await wait_until_async(lambda: running(app, job_id))
    while not task.done():
        for each in asyncio.all_tasks() - others:
            each.cancel()
        await asyncio.sleep(0.2)
    await asyncio.gather(task, return_exceptions=True)
    state = "SELECT state FROM pljobs.workers WHERE id = %s"

    async def is_stalled() -> bool:
        return await workers.row(aconn, state, worker.worker_id) == {"state": "stalled"}

    await wait_until_async(is_stalled)
    go_on.set()


async def test_an_app_stays_open_for_the_last_of_its_workers(db_url: str) -> None:
    app = App(db_url)

    @app.task(name="t")
    async def t() -> None:
        await app.configure_task("none").defer_async()

    first = asyncio.create_task(app.run_worker_async(queues=["a"], install_signal_handlers=False))
    await wait_until_async(lambda: app.connector.is_open_async)
    await app.run_worker_async(queues=["b"], wait=False, install_signal_handlers=False)
    job_id = await t.configure(queue="a").defer_async()
    assert await end_of(app, job_id) is Status.SUCCEEDED
    first.cancel()
    await asyncio.wait([first])
    assert not app.connector.is_open_async


async def test_a_job_that_runs_a_loop_of_its_own_closes_the_app_for_nobody(app: App) -> None:
    @app.task(name="t")
    def t() -> int:
        async def inner() -> int:
            async with app.open_async():
                return 1

        return asyncio.run(inner())

    ids = [await t.defer_async() for _ in range(2)]
    await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert [await end_of(app, job_id) for job_id in ids] == [Status.SUCCEEDED] * 2


async def test_who_no_longer_waits_for_an_abort_leaves_nothing_behind(app: App) -> None:
    left: list[int] = []

    @app.task(name="t", pass_context=True)
    async def t(context: JobContext) -> None:
        for _ in range(3):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await context.aborted()
        left.append(len(context.abort_flag._callbacks))

    job_id = await t.defer_async()
    await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert await end_of(app, job_id) is Status.SUCCEEDED
    assert left == [0]


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
    async with asyncio.timeout(DEADLINE):
        await asyncio.wait(running_both)
    assert signal.getsignal(signal.SIGTERM) is not before


async def test_an_applications_own_signal_handler_is_there_again(app: App) -> None:
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, heard.set)
    try:
        await app.run_worker_async(wait=False)
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(DEADLINE):
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


async def slow_to_clean_up(cleaning: asyncio.Event, go_on: asyncio.Event) -> None:
    try:
        await asyncio.sleep(1000)
    finally:
        cleaning.set()
        await go_on.wait()


async def fails() -> None:
    raise ValueError("a child fails by itself")


async def a_timeout_is_over(cleaning: asyncio.Event, go_on: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05), asyncio.TaskGroup() as group:
            group.create_task(slow_to_clean_up(cleaning, go_on))


async def a_child_has_failed(cleaning: asyncio.Event, go_on: asyncio.Event) -> None:
    with contextlib.suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(slow_to_clean_up(cleaning, go_on))
            await asyncio.sleep(0)
            group.create_task(fails())


OWN_CANCELS = [a_timeout_is_over]
if sys.version_info >= (3, 13):  # before, a group forgets what came from outside; asyncio says so itself
    OWN_CANCELS.append(a_child_has_failed)


@pytest.mark.parametrize("own_cancel", OWN_CANCELS)
async def test_an_abort_that_meets_a_cancel_of_the_bodys_own_is_not_lost(
    app: App, own_cancel: Callable[[asyncio.Event, asyncio.Event], Awaitable[None]]
) -> None:
    cleaning, go_on, after = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @app.task(name="t", pass_context=True)
    async def t(context: JobContext) -> None:
        context.on_abort(lambda: asyncio.get_running_loop().call_later(0.1, go_on.set))
        await own_cancel(cleaning, go_on)
        await asyncio.sleep(0)
        after.set()

    async with workers.running(app):
        job_id = await t.defer_async()
        await asyncio.wait_for(cleaning.wait(), DEADLINE)
        await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
        assert await end_of(app, job_id) is Status.ABORTED
    assert not after.is_set()


async def test_an_abort_that_is_passed_on_by_a_cancel_in_its_place_is_not_swallowed(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """As a task group of Python 3.13.1 and later does where a child fails when it cleans up."""
    begun, after = asyncio.Event(), asyncio.Event()

    @app.task(name="t")
    async def t() -> None:
        begun.set()
        try:
            await asyncio.sleep(DEADLINE)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            task.cancel()
        await asyncio.sleep(0)
        after.set()

    async with workers.running(app):
        job_id = await t.defer_async()
        await asyncio.wait_for(begun.wait(), DEADLINE)
        await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
        assert await end_of(app, job_id) is Status.ABORTED
    assert not after.is_set()
    assert "swallowed" not in caplog.text


async def test_an_abort_that_is_passed_on_and_then_swallowed_is_told_and_forgotten(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    begun = asyncio.Event()
    counts: list[int] = []

    @app.task(name="t")
    async def t() -> None:
        begun.set()
        task = asyncio.current_task()
        assert task is not None
        try:
            await asyncio.sleep(DEADLINE)
        except asyncio.CancelledError:
            task.uncancel()
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(DEADLINE)
        await asyncio.sleep(0.01)
        counts.append(task.cancelling())

    async with workers.running(app):
        job_id = await t.defer_async()
        await asyncio.wait_for(begun.wait(), DEADLINE)
        await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
        assert await end_of(app, job_id) is Status.SUCCEEDED
    assert counts == [0]
    assert "swallowed" in caplog.text
