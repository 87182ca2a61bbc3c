"""The ladder where its steps come all at once, late, or while something else goes on."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pljobs import App, JobAborted, JobContext, execution
from pljobs.answers import RunEnd
from pljobs.endings import Ended
from pljobs.exceptions import WorkerTainted
from pljobs.job_context import current
from pljobs.jobs import AbortReason, Job
from pljobs.run import KILL, LAST_WORDS, TERM, Run
from pljobs.signals import Interrupter
from pljobs.tasks import AnyTask
from pljobs.threads import Threads
from pljobs.worker import Worker
from waiting import wait_until, wait_until_async
from workers import DEADLINE, NOTIFIED, job, request, running, until

Conn = psycopg.AsyncConnection[Any]


async def ask(conn: Conn, job_id: int, *, grace: str, term_grace: str) -> None:
    await conn.execute(
        "SELECT pljobs.cancel_job(%s, abort => true, grace => %s, term_grace => %s)",
        [job_id, grace, term_grace],
    )


async def beats(conn: Conn) -> bool:
    """Say whether the worker has called its heartbeat within a minute."""
    cursor = await conn.execute(
        "SELECT FROM pljobs.worker WHERE heartbeat_at > clock_timestamp() - interval '1 min'"
    )
    return cursor.rowcount > 0


# All levels at once: both graces are 0, or the database was away for as long


async def test_an_async_task_is_told_before_it_is_given_up(app: App, aconn: Conn) -> None:
    begun = asyncio.Event()

    @app.task
    async def willing() -> None:
        begun.set()
        try:
            await asyncio.sleep(DEADLINE)
        finally:
            await asyncio.sleep(0.01)

    async with running(app, **NOTIFIED):
        job_id = await willing.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        await ask(aconn, job_id, grace="0", term_grace="0")
        await until(aconn, job_id)
    assert (await request(aconn, job_id))["resolution"] == "aborted"


async def test_an_async_task_that_swallowed_is_cancelled_again_before_it_is_given_up(
    app: App, aconn: Conn
) -> None:
    begun = asyncio.Event()

    @app.task
    async def once() -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(DEADLINE)
        await asyncio.sleep(DEADLINE)

    async with running(app, **NOTIFIED):
        job_id = await once.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        await ask(aconn, job_id, grace="0", term_grace="0")
        await until(aconn, job_id)
    assert (await request(aconn, job_id))["resolution"] == "aborted"


async def test_a_thread_that_looks_is_not_given_up(app: App, aconn: Conn) -> None:
    begun = threading.Event()

    @app.task(pass_context=True)
    def willing(context: JobContext) -> None:
        begun.set()
        context.abort_flag.wait(DEADLINE)
        raise JobAborted

    async with running(app, **NOTIFIED):
        job_id = await willing.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        await ask(aconn, job_id, grace="0", term_grace="0")
        await until(aconn, job_id)
    assert (await request(aconn, job_id))["resolution"] == "aborted"


# Giving up while the worker stops


@pytest.mark.parametrize("first", ["the stop", "the giving up"])
async def test_giving_a_job_up_while_the_worker_drains_lets_the_others_end(
    app: App, aconn: Conn, first: str
) -> None:
    let_go, stuck_began = threading.Event(), threading.Event()
    go_on, other_began = asyncio.Event(), asyncio.Event()

    @app.task
    def stuck() -> None:
        stuck_began.set()
        let_go.wait(DEADLINE)

    @app.task
    async def other() -> str:
        other_began.set()
        await go_on.wait()
        return "done"

    worker = Worker(app, install_signal_handlers=False, concurrency=2, **NOTIFIED)
    ended = asyncio.create_task(worker.run())
    try:
        stuck_id, other_id = await stuck.defer_async(), await other.defer_async()
        # What was fetched only would be given back.
        await wait_until_async(lambda: stuck_began.is_set() and other_began.is_set(), DEADLINE)
        if first == "the stop":
            worker.stop()
        await ask(aconn, stuck_id, grace="0", term_grace="10 ms")
        await until(aconn, stuck_id, "aborted")
        if first == "the giving up":
            worker.stop()
        go_on.set()
        with pytest.raises(WorkerTainted):
            await asyncio.wait_for(ended, DEADLINE)
    finally:
        let_go.set()
    assert (await job(aconn, other_id))["status"] == "succeeded"


# Async tasks that block the event loop


def ask_when_started(db_url: str, started: threading.Event) -> None:
    """Be a person who stops the job, while the event loop that runs it, and deferred it, is blocked."""
    started.wait(DEADLINE)
    with psycopg.connect(db_url, autocommit=True) as conn:
        conn.execute(
            "SELECT pljobs.cancel_job(id, abort => true, grace => '10 ms')"
            " FROM pljobs.jobs WHERE status = 'doing'"
        )


def how_it_ended(db_url: str) -> tuple[object, ...] | None:
    with psycopg.connect(db_url) as conn:
        return conn.execute("SELECT status, message FROM pljobs.jobs").fetchone()


INTERRUPTED = ("aborted", "terminated: it blocked the event loop")


def test_a_task_of_a_job_that_blocks_the_loop_is_interrupted(db_url: str) -> None:
    app = App(db_url)
    started = threading.Event()

    interrupted = []

    async def child() -> None:
        started.set()
        try:
            time.sleep(DEADLINE)  # noqa: ASYNC251
        except JobAborted as error:
            interrupted.append(str(error))
            raise

    @app.task
    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())

    with app.open():
        parent.defer()
    person = threading.Thread(target=ask_when_started, args=[db_url, started])
    person.start()
    app.run_worker(wait=False, fetch_job_polling_interval=0.1)
    person.join()
    assert interrupted == [INTERRUPTED[1]]
    ended = how_it_ended(db_url)
    assert ended is not None
    assert ended[0] == "aborted"


@pytest.mark.parametrize("place", [0, 1])
def test_each_of_two_workers_of_a_loop_can_interrupt(db_url: str, place: int) -> None:
    app = App(db_url)
    started = threading.Event()
    ids: list[int] = []

    @app.task
    async def blocking() -> None:
        started.set()
        time.sleep(DEADLINE)  # noqa: ASYNC251

    async def main() -> None:
        async with app.open_async():
            workers = [Worker(app, queues=[str(number)]) for number in (0, 1)]
            runs = []
            for worker in workers:
                runs.append(asyncio.create_task(worker.run()))
                await wait_until_async(functools.partial(has_started, worker))
            ids.append(await blocking.configure(queue=str(place)).defer_async())
            await wait_until_async(lambda: _ended(app, ids[0]), DEADLINE)
            for worker in workers:
                worker.stop()
            await asyncio.gather(*runs)

    person = threading.Thread(target=ask_when_started, args=[db_url, started])
    person.start()
    asyncio.run(main())
    person.join()
    assert how_it_ended(db_url) == INTERRUPTED


def has_started(worker: Worker) -> bool:
    return worker.worker_id is not None


async def _ended(app: App, job_id: int) -> bool:
    return await app.job_manager.get_job_status_async(job_id) not in {"todo", "doing"}


@pytest.mark.parametrize("first_ends_first", [True, False])
def test_when_two_workers_have_ended_the_applications_signal_handlers_are_there_again(
    db_url: str, first_ends_first: bool
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGURG)

    def own(_number: int, _frame: object) -> None: ...

    async def both() -> None:
        app = App(db_url)
        async with app.open_async():
            workers = [Worker(app), Worker(app)]
            runs = []
            for worker in workers:
                runs.append(asyncio.create_task(worker.run()))
                await wait_until_async(functools.partial(has_started, worker))
            for place in (0, 1) if first_ends_first else (1, 0):
                workers[place].stop()
                await runs[place]

    former = {number: signal.signal(number, own) for number in numbers}
    try:
        asyncio.run(both())
        assert [signal.getsignal(number) for number in numbers] == [own, own, own]
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def elsewhere(app: App, **options: Any) -> Iterator[list[BaseException]]:
    """Run a worker in a thread, where no signal can interrupt its loop; collect what it raises."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(app.run_worker_async(fetch_job_polling_interval=0.1, **options))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield raised
    finally:
        thread.join(DEADLINE)
    assert not thread.is_alive()


async def test_a_task_that_blocks_a_loop_which_cant_be_interrupted_is_given_up(
    app: App, aconn: Conn, db_url: str
) -> None:
    """Not in the main thread: no signal gets there."""
    let_go = threading.Event()
    started = threading.Event()
    other_app = App(db_url)

    @other_app.task
    async def blocking() -> None:
        started.set()
        let_go.wait(DEADLINE)

    with elsewhere(other_app) as raised:
        try:
            job_id = await app.configure_task(blocking.name).defer_async()
            await wait_until_async(started.is_set, DEADLINE)
            await ask(aconn, job_id, grace="0", term_grace="10 ms")
            await until(aconn, job_id, "aborted", deadline=DEADLINE / 2)
            # It is told after the database: at the next heartbeat it has been.
            await aconn.execute("UPDATE pljobs.worker SET heartbeat_at = heartbeat_at - interval '1 h'")
            await wait_until_async(lambda: beats(aconn), DEADLINE)
        finally:
            let_go.set()
    assert (await request(aconn, job_id))["resolution"] == "abandoned"
    assert str(raised[0]).count(blocking.name) == 1
    assert isinstance(raised[0], WorkerTainted)


def add_blocking(app: App, started: threading.Event, let_go: threading.Event) -> AnyTask:
    """Add a task that blocks the event loop, from when another has started until it is let go."""

    @app.task
    async def blocking() -> None:
        await asyncio.to_thread(started.wait, DEADLINE)
        let_go.wait(DEADLINE)

    return blocking


async def test_what_has_returned_is_not_given_up_though_the_loop_is_blocked(
    app: App, aconn: Conn, db_url: str
) -> None:
    """Its end waits for the loop, which another job blocks."""
    other_app = App(db_url)
    let_go, started, returned = threading.Event(), threading.Event(), threading.Event()

    blocking = add_blocking(other_app, started, let_go)

    @other_app.task(pass_context=True)
    def willing(context: JobContext) -> None:
        started.set()
        context.abort_flag.wait(DEADLINE)
        returned.set()
        raise JobAborted("as asked")

    await app.configure_task(blocking.name).defer_async()
    job_id = await app.configure_task(willing.name).defer_async()
    with elsewhere(other_app, concurrency=2, wait=False) as raised:
        try:
            await wait_until_async(started.is_set, DEADLINE)
            await ask(aconn, job_id, grace="0", term_grace="10 ms")
            await wait_until_async(returned.is_set, DEADLINE)
            await asyncio.sleep(LAST_WORDS + 1)
            await aconn.execute("UPDATE pljobs.worker SET heartbeat_at = heartbeat_at - interval '1 h'")
            await wait_until_async(lambda: beats(aconn), DEADLINE)
        finally:
            let_go.set()
    assert (await job(aconn, job_id))["message"] == "as asked"
    assert (await request(aconn, job_id))["resolution"] == "aborted"
    assert not raised


async def test_what_has_returned_is_not_given_up_by_a_loop_that_hears_of_level_4_first(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "LAST_WORDS", 0.0)

    @app.task(pass_context=True)
    def willing(context: JobContext) -> None:
        context.abort_flag.wait(DEADLINE)

    def watch(run: Run, ended: Ended | RunEnd) -> None:
        ends.append(ended)

    ends: list[Ended | RunEnd] = []
    context = JobContext(app=app, job=Job(id=1, run_id=1, task_name=willing.name), task=willing)
    run = execution.LocalRun(context, threads=Threads("test"), on_end=watch)
    run.start()
    run.abort(AbortReason.USER_REQUEST, level=TERM)
    wait_until(lambda: context.abort_flag.is_closed, DEADLINE)  # and the loop is blocked meanwhile
    run.abort(AbortReason.USER_REQUEST, level=KILL)
    assert not ends
    await wait_until_async(lambda: bool(ends), DEADLINE)
    assert isinstance(ends[0], Ended)


async def test_what_returns_while_the_database_is_told_that_it_is_given_up_ends_its_worker(
    app: App, aconn: Conn, db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the database gives that worker nothing more."""
    other_app = App(db_url)
    let_go, let_return, started = threading.Event(), threading.Event(), threading.Event()

    blocking = add_blocking(other_app, started, let_go)

    @other_app.task
    def stubborn() -> None:
        started.set()
        let_return.wait(DEADLINE)

    def abandoned(run: Run) -> RunEnd:
        let_return.set()
        wait_until(lambda: run.context.abort_flag.is_closed, DEADLINE)
        return as_ever(run)

    as_ever = Run.abandoned
    monkeypatch.setattr(Run, "abandoned", abandoned)
    await app.configure_task(blocking.name).defer_async()
    job_id = await app.configure_task(stubborn.name).defer_async()
    with elsewhere(other_app, concurrency=2) as raised:
        try:
            await wait_until_async(started.is_set, DEADLINE)
            await ask(aconn, job_id, grace="0", term_grace="0")
            await until(aconn, job_id, "aborted")
        finally:
            let_go.set()
    assert (await request(aconn, job_id))["resolution"] == "abandoned"
    assert isinstance(raised[0], WorkerTainted)


def test_of_several_to_be_interrupted_the_one_that_blocks_the_loop_is() -> None:
    """Signals that come close together are handled once."""
    app = App("")

    @app.task
    async def task() -> None: ...

    contexts = [
        JobContext(app=app, job=Job(id=number, run_id=number, task_name=task.name), task=task)
        for number in (1, 2, 3)
    ]

    def body() -> None:
        current.set(contexts[1])
        for context in contexts:
            interrupter.interrupt(context)
        with pytest.raises(JobAborted, match="blocked the event loop"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGURG])

    def other_body() -> None:
        current.set(contexts[0])
        interrupter.interrupt(contexts[2])

    interrupter = Interrupter()
    with interrupter.installed(install=True):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])
        try:
            contextvars.copy_context().run(body)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGURG])
        contextvars.copy_context().run(other_body)  # what is over is over
