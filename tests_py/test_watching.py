"""Waiting until jobs have ended: what is returned, and that however many wait, few questions are asked."""

from __future__ import annotations

import asyncio
import contextlib
import dis
import os
import sys
import threading
import types
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Self

import psycopg
import pytest

from pljobs import App, Job, JobManager, Status, calls, db, watching
from pljobs.answers import RunEnd
from pljobs.exceptions import AppNotOpen, DatabaseUnavailable, InvalidArgument, JobNotFound
from waiting import DEADLINE, wait_until, wait_until_async


class Run:
    """A job that runs, to be ended by the test."""

    def __init__(self, conn: psycopg.Connection[Any], queue: str = "run") -> None:
        self.conn = conn
        (self.job_id,) = db.run(conn, calls.defer_jobs([Job(task_name="t", queue=queue)]))
        worker_id = db.run(conn, calls.register_worker("w", host="h", pid=1))
        (job,) = db.run(conn, calls.fetch_jobs(worker_id, queues=[queue]))
        assert job.run_id is not None
        self.run_id = job.run_id

    def end(self, outcome: Any = "succeeded", *, delete_job: bool = False) -> None:
        """End the run as a worker does."""
        end = RunEnd(job_id=self.job_id, run_id=self.run_id, outcome=outcome, delete_job=delete_job)
        db.run(self.conn, calls.finish_jobs([end]))


@pytest.fixture
def run(conn: psycopg.Connection) -> Run:
    return Run(conn)


@pytest.fixture
def manager(db_url: str) -> Iterator[JobManager]:
    with App(db_url).open() as app:
        yield app.job_manager


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(50) as threads:
        yield threads


class Questions:
    """Count what is asked, and of how many ids."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[int] = []
        question = watching._question

        def counted(keys: set[watching.Key]) -> Any:
            self.asked.append(len(keys))
            return question(keys)

        monkeypatch.setattr(watching, "_question", counted)


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> Questions:
    return Questions(monkeypatch)


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "aborted"])
def test_the_status_at_the_end_is_returned(
    manager: JobManager, run: Run, pool: ThreadPoolExecutor, questions: Questions, outcome: str
) -> None:
    if outcome == "aborted":
        manager.cancel_job_by_id(run.job_id, abort=True)
    waiter = pool.submit(manager.wait_for_job, run.job_id)
    wait_until(lambda: len(questions.asked) > 1)
    run.end(outcome)
    assert waiter.result(DEADLINE) is Status(outcome)
    assert manager.wait_for_job(run.job_id, timeout=0) is Status(outcome)


async def test_the_status_at_the_end_is_returned_async(app: App, run: Run, questions: Questions) -> None:
    waiter = asyncio.create_task(app.job_manager.wait_for_job_async(run.job_id))
    await wait_until_async(lambda: len(questions.asked) > 1)
    run.end()
    assert await waiter is Status.SUCCEEDED


async def test_a_job_that_is_deleted_is_none_and_one_that_never_was_raises(
    app: App, run: Run, questions: Questions
) -> None:
    manager = app.job_manager
    waiter = asyncio.create_task(manager.wait_for_job_async(run.job_id))
    asked = await app.configure_task("t").defer_async()
    other = asyncio.create_task(manager.wait_for_job_async(asked))
    # The second about both is asked once the first was answered: both have been seen.
    await wait_until_async(lambda: questions.asked.count(2) >= 2)
    # Its worker deletes one at its end, which leaves no request; a person the other.
    run.end(delete_job=True)
    await manager.cancel_job_by_id_async(asked, delete_job=True)
    assert await waiter is None
    assert await other is None
    assert await manager.wait_for_job_async(asked) is None
    with pytest.raises(JobNotFound):
        await manager.wait_for_job_async(run.job_id)
    with pytest.raises(JobNotFound):
        await manager.wait_for_job_async(-1, timeout=DEADLINE)


async def test_a_timeout_raises_and_nothing_is_left_behind(
    app: App, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without an answer it could not say what the job does.
    monkeypatch.setattr(watching, "PATIENCE", DEADLINE)
    manager, watches = app.job_manager, app.connector.watches
    waiting = "JobManager.wait_for_job_async"
    for timeout in (0, 0.05):
        with pytest.raises(TimeoutError, match=rf"job {run.job_id} has not ended \(doing\) after"):
            await manager.wait_for_job_async(run.job_id, timeout=timeout)
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(manager.wait_for_job, run.job_id, timeout=timeout)
    assert not [task for task in asyncio.all_tasks() if waiting in repr(task)]
    assert watches._of_loops == {}


@pytest.mark.parametrize(
    ("bad", "error"), [(-1, InvalidArgument), ("soon", InvalidArgument), (float("nan"), InvalidArgument)]
)
async def test_a_timeout_that_makes_no_sense_is_refused(app: App, bad: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await app.job_manager.wait_for_job_async(1, timeout=bad)
    with pytest.raises(TypeError):
        await app.job_manager.wait_for_job_async("1")  # type: ignore[arg-type]


async def test_many_waiters_are_one_question_at_a_time(
    app: App, conn: psycopg.Connection, questions: Questions
) -> None:
    ids = await app.configure_task("t").batch_defer_async(*({"n": n} for n in range(500)))
    waiters = [asyncio.create_task(app.job_manager.wait_for_job_async(job_id)) for job_id in ids * 2]
    await wait_until_async(lambda: questions.asked and questions.asked[-1] == 500)
    conn.execute("SELECT pljobs.cancel_jobs_v1(task => 't', dry_run => false)")
    assert set(await asyncio.gather(*waiters)) == {Status.CANCELLED}
    assert len(questions.asked) < len(ids)


async def test_the_pauses_grow_and_a_new_waiter_is_asked_for_at_once(
    app: App, run: Run, questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LONGEST_PAUSE", 30.0)
    monkeypatch.setattr(watching, "FIRST_PAUSE", 30.0)
    first = asyncio.create_task(app.job_manager.wait_for_job_async(run.job_id))
    await wait_until_async(lambda: questions.asked)
    done = await app.configure_task("t").defer_async()
    await app.job_manager.cancel_job_by_id_async(done)
    assert await app.job_manager.wait_for_job_async(done) is Status.CANCELLED
    assert questions.asked == [1, 2]
    first.cancel()
    await asyncio.wait([first])


async def test_when_the_one_who_asks_is_cancelled_another_goes_on(
    app: App, run: Run, questions: Questions
) -> None:
    waiters = [asyncio.create_task(app.job_manager.wait_for_job_async(run.job_id)) for _ in range(10)]
    for waiter in waiters[:-1]:
        seen = len(questions.asked)
        await wait_until_async(lambda seen=seen: len(questions.asked) > seen)  # type: ignore[misc]
        waiter.cancel()
    run.end()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert results[-1] is Status.SUCCEEDED
    assert all(isinstance(result, asyncio.CancelledError) for result in results[:-1])
    assert app.connector.watches._of_loops == {}


async def test_cancelled_in_the_middle_of_everything_the_others_are_told(app: App, run: Run) -> None:
    waiters = [asyncio.create_task(app.job_manager.wait_for_job_async(run.job_id)) for _ in range(40)]
    for number, waiter in enumerate(waiters[:-1]):
        await asyncio.sleep(0 if number % 3 else 0.003)
        waiter.cancel()
    run.end()
    assert await asyncio.wait_for(waiters[-1], DEADLINE) is Status.SUCCEEDED


def test_threads_share_their_questions_and_hand_them_on(
    manager: JobManager, run: Run, pool: ThreadPoolExecutor, questions: Questions
) -> None:
    brief = pool.submit(manager.wait_for_job, run.job_id, timeout=0.1)
    waiters = [pool.submit(manager.wait_for_job, run.job_id, timeout=DEADLINE) for _ in range(40)]
    with pytest.raises(TimeoutError):
        brief.result(DEADLINE)
    run.end()
    assert {waiter.result(DEADLINE) for waiter in waiters} == {Status.SUCCEEDED}
    # None, where all were told while one was about to ask.
    assert all(asked <= 1 for asked in questions.asked)
    assert len(questions.asked) < 100


class AlarmError(Exception):
    pass


class Interruption:
    """Raises at one point in this thread's waiting, as a signal handler may: as a loop goes round, too."""

    def __init__(self, point: int, *, after: str = "") -> None:
        self._left = point
        self._after = after  # a built-in function: points are only where this has returned
        self.raised = False

    def __enter__(self) -> Self:
        self._former = sys.gettrace()
        sys.setprofile(self._look)
        sys.settrace(self._trace)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        sys.setprofile(None)
        sys.settrace(self._former)
        return kind is AlarmError

    # Where the interpreter looks for signals: as a function begins, after calls, and where a loop jumps back.

    def _look(self, frame: types.FrameType, event: str, what: Any) -> None:
        if event not in {"call", "c_return"} or frame.f_code.co_filename != watching.__file__:
            return
        if not self._after or (event == "c_return" and what.__name__ == self._after):
            self._point()

    def _trace(self, frame: types.FrameType, event: str, _what: object) -> Any:
        if frame.f_code.co_filename != watching.__file__:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        if event == "opcode" and not self._after:
            name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if name == "JUMP_BACKWARD":
                self._point()
        return self._trace

    def _point(self) -> None:
        self._left -= 1
        if self._left == 0:
            sys.setprofile(None)
            sys.settrace(self._former)
            self.raised = True
            raise AlarmError


@pytest.mark.parametrize("is_first", [True, False])
def test_a_signal_handler_that_raises_leaves_nothing_behind(
    manager: JobManager, run: Run, pool: ThreadPoolExecutor, questions: Questions, is_first: bool
) -> None:
    def waiters() -> int:
        circle = manager.connector.watches._of_threads
        return 0 if circle is None else len(circle[1].waiters)

    others = [] if is_first else [pool.submit(manager.wait_for_job, run.job_id, timeout=DEADLINE)]
    wait_until(lambda: is_first or questions.asked)
    for point in range(1, 1000):
        with Interruption(point) as interruption, contextlib.suppress(TimeoutError):
            manager.wait_for_job(run.job_id, timeout=0.001)
        assert waiters() == len(others)
        if not interruption.raised:
            break
    else:
        pytest.fail("it never ends")
    assert point > 20
    others.append(pool.submit(manager.wait_for_job, run.job_id, timeout=DEADLINE))
    run.end()
    assert {other.result(DEADLINE) for other in others} == {Status.SUCCEEDED}


def test_when_the_one_who_asks_is_interrupted_as_it_leaves_another_goes_on(
    manager: JobManager, run: Run, pool: ThreadPoolExecutor, questions: Questions
) -> None:
    others: list[Future[Status | None]] = []

    def another_waits() -> None:
        wait_until(lambda: questions.asked)
        others.append(pool.submit(manager.wait_for_job, run.job_id, timeout=DEADLINE))

    starter = pool.submit(another_waits)
    with Interruption(1, after="pop") as interruption, contextlib.suppress(TimeoutError):
        manager.wait_for_job(run.job_id, timeout=1)
    assert interruption.raised
    starter.result(DEADLINE)
    run.end()
    assert others[0].result(DEADLINE) is Status.SUCCEEDED


def test_one_may_wait_for_longer_than_threads_can(
    manager: JobManager, run: Run, pool: ThreadPoolExecutor, questions: Questions
) -> None:
    first = pool.submit(manager.wait_for_job, run.job_id, timeout=timedelta(days=365_000))
    wait_until(lambda: questions.asked)
    second = pool.submit(manager.wait_for_job, run.job_id, timeout=timedelta(days=365_000))
    wait_until(lambda: len(questions.asked) > 2 or second.done())
    run.end()
    assert [each.result(DEADLINE) for each in (first, second)] == [Status.SUCCEEDED] * 2


def test_each_event_loop_has_its_own(db_url: str, run: Run) -> None:
    app = App(db_url)

    async def wait() -> Status | None:
        async with app.open_async():
            return await app.job_manager.wait_for_job_async(run.job_id, timeout=DEADLINE)

    run.end()
    assert [asyncio.run(wait()) for _ in range(3)] == [Status.SUCCEEDED] * 3
    assert app.connector.watches._of_loops == {}


def test_a_forked_process_does_not_wait_for_its_parents_threads(
    manager: JobManager, run: Run, pool: ThreadPoolExecutor, questions: Questions
) -> None:
    waiter = pool.submit(manager.wait_for_job, run.job_id, timeout=DEADLINE)
    wait_until(lambda: questions.asked)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            manager.wait_for_job(run.job_id, timeout=0)
        except TimeoutError:
            code = 0
        finally:
            os._exit(code)
    deadline = threading.Timer(DEADLINE, os.kill, (pid, 9))
    deadline.start()
    _, status = os.waitpid(pid, 0)
    deadline.cancel()
    run.end()
    assert status == 0
    assert waiter.result(DEADLINE) is Status.SUCCEEDED


async def test_what_the_database_refuses_reaches_everybody(
    app: App, run: Run, conn: psycopg.Connection
) -> None:
    waiters = [asyncio.create_task(app.job_manager.wait_for_job_async(run.job_id)) for _ in range(5)]
    await asyncio.sleep(0.1)
    await app.close_async()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert {type(result) for result in results} <= {AppNotOpen, DatabaseUnavailable}
    with pytest.raises(AppNotOpen):
        await app.job_manager.wait_for_job_async(run.job_id)


async def test_an_answer_that_never_comes_ends_with_the_timeout(
    app: App, run: Run, admin_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PATIENCE", 0.2)
    with psycopg.connect(admin_url) as blocker:
        blocker.execute("LOCK TABLE pljobs.job IN ACCESS EXCLUSIVE MODE")
        waiters = [
            asyncio.create_task(app.job_manager.wait_for_job_async(run.job_id, timeout=timeout))
            for timeout in (0.3, 0.1, 0)
        ]
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert [type(result) for result in results] == [TimeoutError] * 3
    with pytest.raises(TimeoutError):
        await app.job_manager.wait_for_job_async(run.job_id, timeout=0)


# cancel_job_by_id(wait=...)


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (lambda run, _: run.end("aborted"), True),
        (lambda run, _: run.end("succeeded"), False),
        (lambda run, _: run.end("failed"), False),
        (lambda run, manager: manager.cancel_job_by_id(run.job_id, force=True), True),
        (lambda run, manager: manager.cancel_job_by_id(run.job_id, force=True, delete_job=True), True),
        (lambda run, manager: manager.rescind_request_by_id(run.job_id), False),
    ],
    ids=["aborted", "succeeded", "failed", "forced", "deleted", "rescinded"],
)
def test_cancel_and_wait_tells_whether_it_was_stopped(
    manager: JobManager, run: Run, pool: ThreadPoolExecutor, questions: Questions, end: Any, told: bool
) -> None:
    waiter = pool.submit(manager.cancel_job_by_id, run.job_id, abort=True, wait=DEADLINE)
    wait_until(lambda: questions.asked)
    end(run, manager)
    assert waiter.result(DEADLINE) is told


def test_cancel_and_wait_is_about_that_run_not_the_next(
    manager: JobManager, run: Run, pool: ThreadPoolExecutor, questions: Questions, conn: psycopg.Connection
) -> None:
    waiter = pool.submit(manager.cancel_job_by_id, run.job_id, abort=True, wait=DEADLINE)
    wait_until(lambda: questions.asked)
    with conn.transaction():  # between two looks
        run.end("aborted")
        conn.execute("SELECT pljobs.retry_job(%s)", [run.job_id])
    assert waiter.result(DEADLINE) is True
    assert manager.get_job_status(run.job_id) is Status.TODO


async def test_cancel_and_wait_answers_at_once_where_there_is_nothing_to_wait_for(
    app: App, run: Run, questions: Questions
) -> None:
    manager = app.job_manager
    job_id = await app.configure_task("t").defer_async()
    assert (
        await manager.cancel_job_by_id_async(run.job_id, wait=30) is False
    )  # runs, and was not asked to abort
    assert await manager.cancel_job_by_id_async(job_id, wait=30) is True
    assert await manager.cancel_job_by_id_async(job_id, wait=30) is True  # it is cancelled, as was asked
    assert await manager.cancel_job_by_id_async(job_id, delete_job=True, wait=0) is True
    assert await manager.cancel_job_by_id_async(job_id, wait=0) is False  # unknown
    run.end()
    assert await manager.cancel_job_by_id_async(run.job_id, abort=True, wait=30) is False
    assert questions.asked == []


async def test_cancel_and_wait_raises_after_its_time_and_the_request_stays(app: App, run: Run) -> None:
    with pytest.raises(TimeoutError, match="the request to abort it stays"):
        await app.job_manager.cancel_job_by_id_async(run.job_id, abort=True, wait=0.05)
    assert (await app.job_manager.get_job_async(run.job_id)).abort_requested is True


def test_cancel_and_wait_is_not_for_a_transaction_of_the_callers(
    manager: JobManager, run: Run, db_url: str
) -> None:
    with psycopg.connect(db_url) as connection, pytest.raises(InvalidArgument, match="not with connection"):
        manager.cancel_job_by_id(run.job_id, abort=True, wait=1, connection=connection)
    assert manager.get_job(run.job_id).abort_requested is False


async def test_a_real_worker_stops_and_the_waiter_hears_of_it(app: App) -> None:
    began = asyncio.Event()

    @app.task(name="sleep")
    async def sleep() -> None:
        began.set()
        await asyncio.sleep(3600)

    job_id = await sleep.defer_async()
    worker = asyncio.create_task(app.run_worker_async(install_signal_handlers=False))
    await asyncio.wait_for(began.wait(), DEADLINE)
    assert await app.job_manager.cancel_job_by_id_async(job_id, abort=True, wait=DEADLINE) is True
    assert await app.job_manager.wait_for_job_async(job_id, timeout=DEADLINE) is Status.ABORTED
    worker.cancel()
    await asyncio.wait([worker])
