"""The how-to of cancelling, sentence by sentence: from Python, sync and async, and from psql."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from pljobs import App, BaseRetryStrategy, JobAborted, JobContext, RetryDecision, calls, exceptions
from pljobs.control import Control
from pljobs.embedded import Server
from pljobs.jobs import Job, Status
from waiting import wait_until_async
from workers import DEADLINE, NOTIFIED, POLLING, job, psql, request, running, until

Conn = psycopg.AsyncConnection[Any]
Cancel = Callable[..., Awaitable[bool]]

# Words of the answer that mean: it is, or is asked to be, stopped.
YES = {"cancelled", "deleted", "abort_requested", "abort_already_requested", "aborted"}

WORKERS = pytest.mark.parametrize("options", [NOTIFIED, POLLING], ids=["notified", "polling"])
KINDS = pytest.mark.parametrize("kind", ["async", "sync"])


@pytest.fixture(params=["sync", "async", "psql"])
def cancel(request: pytest.FixtureRequest, app: App, server: Server, db_url: str) -> Cancel:
    """The three ways to cancel a job; True where it is, or is asked to be, stopped."""

    async def from_sync(job_id: int, **flags: Any) -> bool:
        return await asyncio.to_thread(lambda: app.job_manager.cancel_job_by_id(job_id, **flags))

    async def from_psql(job_id: int, **flags: bool) -> bool:
        named = "".join(f", {name} => {str(value).lower()}" for name, value in flags.items())
        said = await psql(server, db_url, f"SELECT cancel_job({job_id}{named});")
        return said.splitlines()[-1] in YES

    ways: dict[str, Cancel] = {
        "sync": from_sync,
        "async": app.job_manager.cancel_job_by_id_async,
        "psql": from_psql,
    }
    return ways[request.param]


class Body:
    """What became of the body of a task: has it started, and what did it see?"""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.go = threading.Event()
        self.seen: list[object] = []

    async def until_started(self) -> None:
        await wait_until_async(self.started.is_set, DEADLINE, "the body starts")


def abortable(app: App, kind: str, **options: Any) -> Body:
    """Register the task 'abortable': it runs until it is aborted."""
    body = Body()
    if kind == "async":

        @app.task(name="abortable", **options)
        async def abortable_async() -> None:
            body.started.set()
            await asyncio.get_running_loop().create_future()

    else:

        @app.task(name="abortable", pass_context=True, **options)
        def abortable_sync(context: JobContext) -> None:
            body.started.set()
            while not context.should_abort():
                time.sleep(0.005)
            raise exceptions.JobAborted

    return body


# 1. A job not yet processed


async def test_a_waiting_job_is_cancelled_and_no_worker_ever_runs_it(
    app: App, aconn: Conn, cancel: Cancel
) -> None:
    ran = []

    @app.task(name="record")
    async def record(number: int) -> None:
        ran.append(number)

    first, second = await record.batch_defer_async({"number": 1}, {"number": 2})
    assert await cancel(first) is True
    await app.run_worker_async(wait=False)
    assert ran == [2]
    assert (await job(aconn, first))["status"] == "cancelled"
    assert (await job(aconn, second))["status"] == "succeeded"
    assert await app.job_manager.get_job_status_async(first) is Status.CANCELLED


async def test_a_scheduled_job_is_cancelled_too(app: App, aconn: Conn, cancel: Cancel) -> None:
    job_id = await app.configure_task("later", schedule_in={"hours": 1}).defer_async()
    assert await cancel(job_id) is True
    assert (await job(aconn, job_id))["status"] == "cancelled"


async def test_a_running_job_is_left_alone_without_abort(app: App, aconn: Conn, cancel: Cancel) -> None:
    body = abortable(app, "async")
    job_id = await app.configure_task("abortable").defer_async()
    async with running(app, **NOTIFIED):
        await body.until_started()
        assert await cancel(job_id) is False
        assert (await job(aconn, job_id))["abort_requested"] is False
        assert (await job(aconn, job_id))["status"] == "doing"


# 2. Deletion


async def test_a_cancelled_job_is_deleted_on_demand(app: App, aconn: Conn, cancel: Cancel) -> None:
    job_id = await app.configure_task("later").defer_async()
    assert await cancel(job_id, delete_job=True) is True
    assert (await job(aconn, job_id))["status"] == "gone"
    with pytest.raises(exceptions.JobNotFound):
        await app.job_manager.get_job_status_async(job_id)


async def test_a_job_that_is_already_cancelled_can_be_deleted(app: App, aconn: Conn, cancel: Cancel) -> None:
    job_id = await app.configure_task("later").defer_async()
    assert await cancel(job_id) is True
    assert await cancel(job_id) is False
    assert (await job(aconn, job_id))["status"] == "cancelled"
    assert await cancel(job_id, delete_job=True) is True
    assert (await job(aconn, job_id))["status"] == "gone"


@KINDS
async def test_a_running_job_can_be_aborted_and_deleted(
    app: App, aconn: Conn, cancel: Cancel, kind: str
) -> None:
    body = abortable(app, kind)
    job_id = await app.configure_task("abortable").defer_async()
    async with running(app, **NOTIFIED):
        await body.until_started()
        assert await cancel(job_id, abort=True, delete_job=True) is True
        await until(aconn, job_id, "gone")
    assert (await request(aconn, job_id))["resolution"] == "aborted"


# 3. Abort


async def test_abort_cancels_a_job_that_no_worker_has_picked_up(
    app: App, aconn: Conn, cancel: Cancel
) -> None:
    job_id = await app.configure_task("later").defer_async()
    assert await cancel(job_id, abort=True) is True
    assert (await job(aconn, job_id))["status"] == "cancelled"
    job_id = await app.configure_task("later").defer_async()
    assert await cancel(job_id, abort=True, delete_job=True) is True
    assert (await job(aconn, job_id))["status"] == "gone"


@WORKERS
@KINDS
async def test_abort_marks_a_running_job_and_its_worker_aborts_it(
    app: App, aconn: Conn, cancel: Cancel, kind: str, options: dict[str, Any]
) -> None:
    body = abortable(app, kind)
    job_id = await app.configure_task("abortable").defer_async()
    async with running(app, **options):
        await body.until_started()
        assert await cancel(job_id, abort=True) is True
        assert (await until(aconn, job_id))["status"] == "aborted"
        assert await cancel(job_id, abort=True) is False
    asked = await request(aconn, job_id)
    assert asked["kind"] == "abort"
    assert asked["delivered_at"] is not None
    assert asked["resolution"] == "aborted"


async def test_a_running_job_is_marked_for_abortion_until_it_ends(
    app: App, aconn: Conn, cancel: Cancel
) -> None:
    body = Body()

    @app.task(name="deaf")
    def deaf() -> None:
        body.started.set()
        body.go.wait(DEADLINE)

    job_id = await deaf.defer_async()
    async with running(app, **NOTIFIED):
        await body.until_started()
        assert await cancel(job_id, abort=True) is True
        marked = await job(aconn, job_id)
        assert (marked["status"], marked["abort_requested"]) == ("doing", True)
        assert marked["abort_requested_at"] is not None
        assert await cancel(job_id, abort=True) is True  # again: it already is
        body.go.set()
        await until(aconn, job_id)


# 4. Notification and polling


class Counted:
    """Every call that the workers of this process make, by name, with the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times: dict[str, list[float]] = {"heartbeat": [], "fetch_jobs": []}
        for name in self.times:
            monkeypatch.setattr(calls, name, self._counting(name, getattr(calls, name)))

    def _counting(self, name: str, original: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **kwargs: object) -> object:
            self.times[name].append(time.monotonic())
            return original(*args, **kwargs)

        return counted

    def count(self, name: str) -> int:
        return len(self.times[name])

    async def until_more(self, name: str, more: int) -> None:
        wanted = self.count(name) + more
        await wait_until_async(lambda: self.count(name) >= wanted, DEADLINE, f"{more} more {name}")


async def until_first_heartbeat(aconn: Conn) -> None:
    """Wait for the one that every worker makes when it begins."""

    async def made() -> bool:
        cursor = await aconn.execute("SELECT FROM pljobs.workers WHERE heartbeat_at > started_at")
        return await cursor.fetchone() is not None

    await wait_until_async(made, DEADLINE)


async def test_it_polls_for_requests_only_while_it_runs_a_job(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = Body()

    @app.task(name="held")
    async def held() -> None:
        body.started.set()
        await asyncio.to_thread(body.go.wait, DEADLINE)

    counted = Counted(monkeypatch)
    async with running(app, **POLLING | {"fetch_job_polling_interval": 0.02}) as worker:
        await until_first_heartbeat(aconn)
        await counted.until_more("fetch_jobs", 10)
        assert counted.count("heartbeat") == 1  # the one when it began
        job_id = await held.defer_async()
        await body.until_started()
        await counted.until_more("heartbeat", 10)
        body.go.set()
        await until(aconn, job_id, "succeeded")
        # The job is done before its worker hears so: until then it polls.
        await wait_until_async(lambda: not worker.is_busy, DEADLINE, "the worker is idle")
        before = counted.count("heartbeat")
        await counted.until_more("fetch_jobs", 10)
        assert counted.count("heartbeat") <= before + 1  # one may have been under way


@pytest.mark.parametrize(
    "intervals",
    [
        {"fetch_job_polling_interval": 0.1},
        {"fetch_job_polling_interval": 0.1, "abort_job_polling_interval": None},
        {"fetch_job_polling_interval": 600.0, "abort_job_polling_interval": 0.1},
    ],
    ids=["the fetch interval by default", "None means the same", "an interval of its own"],
)
async def test_the_poll_for_requests_respects_its_interval(
    app: App, monkeypatch: pytest.MonkeyPatch, intervals: dict[str, Any]
) -> None:
    body = abortable(app, "async")
    await app.configure_task("abortable").defer_async()
    # As the thread itself reads its clock: a moment that anything else takes, the machine may make long.
    polls: list[float] = []
    beat = Control._beat

    def recorded(control: Control, conn: psycopg.Connection[Any]) -> None:
        beat(control, conn)
        polls.append(control.renewed_at)

    monkeypatch.setattr(Control, "_beat", recorded)
    async with running(app, **POLLING | intervals):
        await body.until_started()
        wanted = len(polls) + 5
        await wait_until_async(lambda: len(polls) >= wanted, DEADLINE, "five more heartbeats")
    assert all(later - earlier > 0.1 - 1e-6 for earlier, later in itertools.pairwise(polls))


async def test_a_long_interval_for_requests_is_respected_too(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = abortable(app, "async")
    counted = Counted(monkeypatch)
    options = POLLING | {
        "concurrency": 2,
        "fetch_job_polling_interval": 0.02,
        "abort_job_polling_interval": 500.0,
    }
    async with running(app, **options):
        await until_first_heartbeat(aconn)
        job_id = await app.configure_task("abortable").defer_async()
        await body.until_started()
        await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
        await counted.until_more("fetch_jobs", 20)
        assert (await job(aconn, job_id))["status"] == "doing"
        assert (await request(aconn, job_id))["delivered_at"] is None


async def test_the_worker_is_notified_each_time_a_job_is_asked_to_abort(app: App, aconn: Conn) -> None:
    body = abortable(app, "async")
    async with running(app, **NOTIFIED):
        for _ in range(3):
            body.started.clear()
            job_id = await app.configure_task("abortable").defer_async()
            await body.until_started()
            await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
            await until(aconn, job_id, "aborted")


# 5. No retry after an abort request


class Always(BaseRetryStrategy):
    """Retry whatever happened."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision:
        return RetryDecision(retry_in=0)


@pytest.mark.parametrize("retry", [True, 5, Always()], ids=["True", "a number", "own strategy"])
@pytest.mark.parametrize("ending", ["fails", "aborts"])
@KINDS
async def test_a_job_asked_to_abort_that_fails_is_not_retried(
    app: App, aconn: Conn, cancel: Cancel, kind: str, ending: str, retry: Any
) -> None:
    started = threading.Event()
    runs = []

    def end() -> None:
        if ending == "fails":
            raise ValueError("failed while asked to abort")
        raise JobAborted

    if kind == "async":

        @app.task(name="fails", retry=retry)
        async def fails_async() -> None:
            runs.append(1)
            started.set()
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                end()

    else:

        @app.task(name="fails", pass_context=True, retry=retry)
        def fails_sync(context: JobContext) -> None:
            runs.append(1)
            started.set()
            context.abort_flag.wait(DEADLINE)
            end()

    job_id = await app.configure_task("fails").defer_async()
    async with running(app, **NOTIFIED):
        await wait_until_async(started.is_set)
        await cancel(job_id, abort=True)
        ended = await until(aconn, job_id)
    await app.run_worker_async(wait=False)
    assert ended["status"] == ("failed" if ending == "fails" else "aborted")
    assert runs == [1]
    assert (await request(aconn, job_id))["resolution"] == (
        "failed_first" if ending == "fails" else "aborted"
    )


async def test_the_same_failure_is_retried_where_nobody_asked(app: App, aconn: Conn) -> None:
    runs = []

    @app.task(name="fails_once", retry=True)
    async def fails_once() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError

    job_id = await fails_once.defer_async()
    await app.run_worker_async(wait=False)
    assert runs == [1, 1]
    assert (await job(aconn, job_id))["status"] == "succeeded"


# 6. Sync tasks


@pytest.mark.parametrize("ends", ["aborts", "aborts with a message", "ignores it", "fails"])
async def test_a_sync_task_ends_as_it_ends(
    app: App, aconn: Conn, cancel: Cancel, caplog: pytest.LogCaptureFixture, ends: str
) -> None:
    caplog.set_level("INFO", "pljobs")
    started = threading.Event()
    seen = []

    @app.task(pass_context=True, name="loops")
    def loops(context: JobContext) -> str:
        started.set()
        seen.append(context.should_abort())
        while not context.should_abort():
            time.sleep(0.005)
        seen.append(context.should_abort())
        if ends == "aborts":
            raise exceptions.JobAborted
        if ends == "aborts with a message":
            raise exceptions.JobAborted("custom message")
        if ends == "fails":
            raise ValueError("other")
        return "kept on"

    job_id = await loops.defer_async()
    async with running(app, **NOTIFIED):
        await wait_until_async(started.is_set)
        await cancel(job_id, abort=True)
        ended = await until(aconn, job_id)
    assert seen == [False, True]
    if ends == "aborts":
        assert (ended["status"], ended["message"]) == ("aborted", None)
    elif ends == "aborts with a message":
        assert (ended["status"], ended["message"]) == ("aborted", "custom message")
        assert any("custom message" in record.getMessage() for record in caplog.records)
    elif ends == "fails":
        assert (ended["status"], ended["message"]) == ("failed", "ValueError: other")
    else:
        assert (ended["status"], ended["result"]) == ("succeeded", "kept on")
        assert (await request(aconn, job_id))["resolution"] == "finished_first"


async def test_the_reason_of_the_request_is_the_message_where_the_task_gives_none(
    app: App, aconn: Conn, server: Server, db_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pljobs")
    body = abortable(app, "sync")
    job_id = await app.configure_task("abortable").defer_async()
    async with running(app, **NOTIFIED):
        await body.until_started()
        sql = f"SELECT cancel_job({job_id}, abort => true, reason => 'too slow', actor => 'ann')"
        assert await psql(server, db_url, sql) == "abort_requested"
        ended = await until(aconn, job_id, "aborted")
    assert ended["message"] == "too slow"
    asked = await request(aconn, job_id)
    assert (asked["actor"], asked["reason"]) == ("ann", "too slow")
    assert any("for ann: too slow" in record.getMessage() for record in caplog.records)


# 7. Async tasks


@pytest.mark.parametrize("then", ["re-raises", "swallows", "own handler is missing", "raises JobAborted"])
async def test_an_async_task_gets_a_cancelled_error_at_its_await(
    app: App, aconn: Conn, cancel: Cancel, caplog: pytest.LogCaptureFixture, then: str
) -> None:
    caplog.set_level("INFO", "pljobs")
    started = asyncio.Event()
    seen: list[object] = []

    async def important() -> None:
        await asyncio.sleep(0.05)
        seen.append("important thing done")

    @app.task(name="shields", pass_context=True)
    async def shields(context: JobContext) -> str:
        if then == "own handler is missing":
            started.set()
            await asyncio.get_running_loop().create_future()
        saved = asyncio.create_task(important())
        try:
            started.set()
            await asyncio.shield(saved)
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            seen.append(context.should_abort())
            await saved
            if then == "re-raises":
                raise
            if then == "raises JobAborted":
                raise exceptions.JobAborted("custom message") from None
        return "goes on"

    job_id = await shields.defer_async()
    async with running(app, **NOTIFIED):
        await asyncio.wait_for(started.wait(), DEADLINE)
        assert await cancel(job_id, abort=True) is True
        ended = await until(aconn, job_id)
    if then != "own handler is missing":
        assert sorted(map(str, seen)) == ["True", "important thing done"]
    if then == "swallows":
        assert (ended["status"], ended["result"]) == ("succeeded", "goes on")
    else:
        assert ended["status"] == "aborted"
    if then == "raises JobAborted":
        assert ended["message"] == "custom message"
        assert any("custom message" in record.getMessage() for record in caplog.records)


# 8. psql


async def test_the_word_that_psql_is_answered(app: App, aconn: Conn, server: Server, db_url: str) -> None:
    async def ask(job_id: int, flags: str = "") -> str:
        return (await psql(server, db_url, f"SELECT cancel_job({job_id}{flags});")).splitlines()[-1]

    body = abortable(app, "async")
    waiting = await app.configure_task("later", queue="elsewhere").defer_async()
    runs = await app.configure_task("abortable").defer_async()
    async with running(app, **NOTIFIED, queues=["default"]):
        await body.until_started()
        assert await ask(999_999) == "not_found"
        assert await ask(-1) == "not_found"
        assert await ask(waiting) == "cancelled"
        assert await ask(waiting, ", abort => true") == "already_cancelled"
        assert await ask(waiting, ", delete_job => true") == "deleted"
        assert await ask(waiting) == "not_found"
        said = await psql(server, db_url, f"SELECT cancel_job({runs})")
        assert said.splitlines()[-1] == "running"
        assert f"cancel_job({runs}, abort => true)" in said  # the NOTICE says how
        assert await ask(runs, ", abort => NULL") == "running"
        assert await ask(runs, ", abort => true") == "abort_requested"
        await until(aconn, runs, "aborted")
        assert await ask(runs, ", abort => true") == "already_cancelled"


@WORKERS
async def test_rolled_back_it_never_happened(
    app: App, aconn: Conn, server: Server, db_url: str, options: dict[str, Any]
) -> None:
    started = asyncio.Event()
    go = asyncio.Event()

    @app.task(name="held", pass_context=True)
    async def held(context: JobContext) -> bool:
        started.set()
        await go.wait()
        return context.should_abort()

    waiting = await app.configure_task("later", queue="elsewhere").defer_async()
    runs = await held.defer_async()
    async with running(app, **options, queues=["default"]):
        await asyncio.wait_for(started.wait(), DEADLINE)
        for flags in ("", ", delete_job => true"):
            said = await psql(server, db_url, f"BEGIN; SELECT cancel_job({waiting}{flags}); ROLLBACK")
            assert said in {"cancelled", "deleted"}
        for flags in (", abort => true", ", abort => true, delete_job => true", ", force => true"):
            said = await psql(server, db_url, f"BEGIN; SELECT cancel_job({runs}{flags}); ROLLBACK")
            assert said in {"abort_requested", "aborted"}
        assert (await job(aconn, waiting))["status"] == "todo"
        assert (await job(aconn, runs))["abort_requested"] is False
        go.set()
        ended = await until(aconn, runs)
    assert (ended["status"], ended["result"]) == ("succeeded", False)
    assert await request(aconn, runs) == {}
    assert await request(aconn, waiting) == {}
