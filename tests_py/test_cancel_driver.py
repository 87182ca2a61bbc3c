"""How the driver passes an abort on, and what it records: the rules that SQL can't keep."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pljobs import App, BaseRetryStrategy, JobAborted, JobContext, calls
from pljobs.answers import Call
from pljobs.jobs import AbortReason, Job
from pljobs.link import Link
from pljobs.retry import RetryDecision
from pljobs.worker import Worker
from waiting import wait_until_async
from workers import DEADLINE, HASTY, LASTING, NOTIFIED, POLLING, job, request, row, running, until

Conn = psycopg.AsyncConnection[Any]


async def wait_for(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), DEADLINE)


async def abort(app: App, job_id: int, **flags: Any) -> None:
    assert await app.job_manager.cancel_job_by_id_async(job_id, abort=True, **flags)


class Gate:
    """Hold back the answers to calls of one kind, after the database has given them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
        self.answered = asyncio.Event()
        self.open = asyncio.Event()
        self.names: list[str] = []
        original = Link.execute

        async def execute(link: Link, call: Call[Any]) -> Any:
            answer = await original(link, call)
            if function in call.statement and answer:
                self.answered.set()
                await self.open.wait()
            return answer

        monkeypatch.setattr(Link, "execute", execute)


# Before the first step, and before the worker knows the run


@pytest.mark.parametrize("options", [NOTIFIED, POLLING], ids=["notified", "polling"])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_an_abort_that_overtakes_the_fetch_reaches_the_body_at_its_first_await(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], kind: str
) -> None:
    gate = Gate(monkeypatch, "fetch_jobs_v1")
    seen = []

    if kind == "async":

        @app.task(name="starts")
        async def starts_async() -> None:
            seen.append("first line")
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                seen.append("finally")

    else:

        @app.task(name="starts", pass_context=True)
        def starts_sync(context: JobContext) -> None:
            seen.append("first line")
            if context.abort_flag.wait(DEADLINE):
                seen.append("finally")
                raise JobAborted

    job_id = await app.configure_task("starts").defer_async()
    async with running(app, **options) as worker:
        await wait_for(gate.answered)
        await abort(app, job_id)
        if options is NOTIFIED:
            # The worker has heard of it before it knows the run: what the request says of its delivery is
            # committed before the heartbeat's answer is here.
            await wait_until_async(lambda: bool(worker._control._early), DEADLINE, "it has heard")
        gate.open.set()
        assert (await until(aconn, job_id))["status"] == "aborted"
        # A poll may see it between the fetch and the first line: then there is none.
        assert seen == ["first line", "finally"] or (not seen and options is POLLING)
    assert (await request(aconn, job_id))["resolution"] == "aborted"


async def _delivered(aconn: Conn, job_id: int) -> bool:
    return (await request(aconn, job_id)).get("delivered_at") is not None


async def test_a_worker_that_stops_before_a_body_began_gives_its_job_back(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "fetch_jobs_v1")
    seen = []

    @app.task(name="starts")
    async def starts() -> None:
        seen.append("first line")
        await asyncio.get_running_loop().create_future()

    job_id = await starts.defer_async()
    async with running(app, **NOTIFIED) as worker:
        await wait_for(gate.answered)
        worker.abort()
        gate.open.set()
        found = await until(aconn, job_id, "todo")
    assert seen == []
    assert found["attempts"] == 0


# Once, and only once


async def test_neither_a_second_abort_nor_a_shutdown_cancels_a_second_time(app: App, aconn: Conn) -> None:
    shielding, go = asyncio.Event(), asyncio.Event()
    seen: list[object] = []

    async def important() -> None:
        await go.wait()
        seen.append("important")

    @app.task(name="shields")
    async def shields() -> None:
        saved = asyncio.create_task(important())
        try:
            seen.append("waits")
            await asyncio.shield(saved)
        except asyncio.CancelledError:
            shielding.set()
            await saved
            raise

    job_id = await shields.defer_async()
    async with running(app, **POLLING) as worker:
        await wait_until_async(lambda: seen == ["waits"])
        await abort(app, job_id)
        await wait_for(shielding)
        await abort(app, job_id)
        await abort(app, job_id, reason="again")
        worker.stop()
        worker.stop()
        beat = (await row(aconn, "SELECT heartbeat_at FROM pljobs.workers"))["heartbeat_at"]  # type: ignore[index]

        async def beaten() -> bool:
            found = await row(aconn, "SELECT heartbeat_at - %s AS since FROM pljobs.workers", beat)
            return found is not None and found["since"] > timedelta(seconds=0.2)

        await wait_until_async(beaten, DEADLINE, "several heartbeats since")
        go.set()
        assert (await until(aconn, job_id))["status"] == "aborted"
    assert seen == ["waits", "important"]
    requests = await row(aconn, "SELECT count(*) AS n FROM pljobs.requests")
    assert requests == {"n": 1}


@pytest.mark.parametrize("how", ["a second stop", "cancelled twice"])
async def test_nothing_eats_the_report_of_a_job_that_has_ended(
    app: App, aconn: Conn, admin_url: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pljobs")
    go = asyncio.Event()

    @app.task(name="ends")
    async def ends() -> str:
        await go.wait()
        return "done"

    job_id = await ends.defer_async()
    worker = Worker(app, install_signal_handlers=False, **NOTIFIED)
    working = asyncio.create_task(worker.run())
    await until(aconn, job_id, "doing")
    async with await psycopg.AsyncConnection.connect(admin_url) as person:
        await person.execute("SELECT FROM pljobs.job WHERE id = %s FOR UPDATE", [job_id])
        go.set()
        held = "somebody's open transaction holds it"
        await wait_until_async(lambda: held in caplog.text, DEADLINE, "the report waits for the row")
        if how == "a second stop":
            worker.stop()
            worker.stop()
        else:
            for _ in range(2):
                working.cancel()
                await asyncio.sleep(0)
        await person.rollback()
    found = await until(aconn, job_id)
    assert (found["status"], found["result"]) == ("succeeded", "done")
    async with asyncio.timeout(DEADLINE):
        await asyncio.wait([working])
    assert working.cancelled() == (how == "cancelled twice")


# Stopping


async def test_a_draining_worker_hears_aborts_and_keeps_its_lease(app: App, aconn: Conn) -> None:
    started = asyncio.Event()

    @app.task(name="long")
    async def long() -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    job_id = await long.defer_async()
    async with running(app, **HASTY | {"stalled_worker_timeout": 30.0}, name="draining") as draining:
        await wait_for(started)
        draining.stop()
        await long.defer_async()  # fetched by nobody that stops
        stopped = await row(aconn, "SELECT expires_at FROM pljobs.worker")
        assert stopped is not None

        async def is_renewed() -> bool:
            # Not until a lease is over: one short enough to wait for, a busy machine loses. No heartbeat that
            # was under way when it stopped: one that it sent since.
            query = "SELECT expires_at > %s + interval '1 s' AS is_so FROM pljobs.worker"
            found = await row(aconn, query, stopped["expires_at"])
            return found is not None and bool(found["is_so"])

        await wait_until_async(is_renewed, DEADLINE, "the worker that stops renews its lease")
        rescued = await row(aconn, "SELECT pljobs.rescue_jobs() AS n")
        assert rescued == {"n": 0}
        await abort(app, job_id)
        assert (await until(aconn, job_id))["status"] == "aborted"
    waiting = await row(aconn, "SELECT count(*) AS n FROM pljobs.jobs WHERE status = 'todo'")
    assert waiting == {"n": 1}


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_shutdown_puts_the_job_back_and_charges_no_attempt(app: App, aconn: Conn, kind: str) -> None:
    started = threading.Event()
    reasons = []

    if kind == "async":

        @app.task(name="runs", pass_context=True)
        async def runs_async(context: JobContext) -> None:
            started.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                reasons.append(context.abort_reason())

    else:

        @app.task(name="runs", pass_context=True)
        def runs_sync(context: JobContext) -> None:
            started.set()
            context.abort_flag.wait(DEADLINE)
            reasons.append(context.abort_reason())
            raise JobAborted

    job_id = await app.configure_task("runs").defer_async()
    async with running(app, **NOTIFIED) as worker:
        await wait_until_async(started.is_set)
        worker.stop()
        worker.stop()
        found = await until(aconn, job_id, "todo")
    assert reasons == [AbortReason.SHUTDOWN]
    assert (found["attempts"], found["crashes"]) == (0, 0)
    assert await request(aconn, job_id) == {}


async def test_a_worker_task_that_is_cancelled_drains_as_on_a_shutdown(app: App, aconn: Conn) -> None:
    started = asyncio.Event()

    @app.task(name="runs")
    async def runs() -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    job_id = await runs.defer_async()
    working = asyncio.create_task(app.run_worker_async(install_signal_handlers=False, **NOTIFIED))
    await wait_for(started)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(working, DEADLINE)
    found = await job(aconn, job_id)
    assert (found["status"], found["attempts"]) == ("todo", 0)
    assert await row(aconn, "SELECT state FROM pljobs.workers") == {"state": "stopped"}


@pytest.mark.parametrize("first", ["the user's", "the shutdown's"])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_users_abort_counts_as_the_users_during_a_shutdown(
    app: App, aconn: Conn, first: str, kind: str
) -> None:
    started, go = threading.Event(), threading.Event()
    reasons = []

    if kind == "async":

        @app.task(name="runs", pass_context=True)
        async def runs_async(context: JobContext) -> None:
            started.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await wait_until_async(go.is_set, DEADLINE)
                reasons.append(context.abort_reason())

    else:

        @app.task(name="runs", pass_context=True)
        def runs_sync(context: JobContext) -> None:
            started.set()
            go.wait(DEADLINE)
            reasons.append(context.abort_reason())
            raise JobAborted

    job_id = await app.configure_task("runs").defer_async()
    async with running(app, **NOTIFIED) as worker:
        await wait_until_async(started.is_set)
        if first == "the shutdown's":
            worker.abort()
        await abort(app, job_id)
        await wait_until_async(lambda: _delivered(aconn, job_id), DEADLINE)
        worker.abort()
        context = next(iter(worker._runs.values())).context  # type: ignore[union-attr]
        await wait_until_async(lambda: context.abort_reason() is AbortReason.USER_REQUEST, DEADLINE)
        go.set()
        assert (await until(aconn, job_id))["status"] == "aborted"
    assert reasons == [AbortReason.USER_REQUEST]


# Who cancelled?


class Once(BaseRetryStrategy):
    """Retry once, and remember what was asked."""

    def __init__(self) -> None:
        self.asked: list[BaseException] = []

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        self.asked.append(exception)
        return RetryDecision(retry_in=0) if job.attempts == 0 else None


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_cancel_from_inside_is_a_failure_with_the_retry_policy(
    app: App, aconn: Conn, kind: str
) -> None:
    strategy = Once()

    if kind == "async":

        @app.task(name="cancels", retry=strategy)
        async def cancels_async() -> None:
            inner = asyncio.create_task(asyncio.sleep(1000))
            inner.cancel()
            await inner

    else:

        @app.task(name="cancels", retry=strategy)
        def cancels_sync() -> None:
            raise JobAborted("out of my own will")

    job_id = await app.configure_task("cancels").defer_async()
    await app.run_worker_async(wait=False)
    found = await job(aconn, job_id)
    assert (found["status"], found["attempts"]) == ("failed", 2)
    assert found["message"].startswith("cancelled from inside, nobody asked")
    assert len(strategy.asked) == 2


@pytest.mark.parametrize("when", ["running", "not begun"])
async def test_a_body_cancelled_by_a_stranger_is_a_failure(app: App, aconn: Conn, when: str) -> None:
    started = asyncio.Event()

    @app.task(name="runs")
    async def runs() -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    def bodies() -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() if task.get_name().startswith("pljobs runs[")]

    job_id = await runs.defer_async()
    async with running(app, **NOTIFIED):
        if when == "running":
            await wait_for(started)
        await wait_until_async(bodies)
        for body in bodies():
            body.cancel()
        assert (await until(aconn, job_id))["status"] == "failed"
    assert started.is_set() or when == "not begun"


async def test_a_body_that_cancels_every_task_of_the_worker_ends_it_and_loses_no_job(
    app: App, aconn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    calls_so_far = []

    @app.task(name="vandal")
    async def vandal() -> str:
        calls_so_far.append(1)
        if len(calls_so_far) == 1:
            for task in asyncio.all_tasks():
                if task is working or task.get_name().startswith("pljobs"):
                    task.cancel()
            await asyncio.sleep(0)
        return "survived"

    job_id = await vandal.defer_async()
    working = asyncio.create_task(app.run_worker_async(install_signal_handlers=False, **NOTIFIED))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(working, DEADLINE)
    # The worker does not go on half alive: it gave its lease up, so that its jobs are free at once.
    assert "leaves at once" not in caplog.text
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pljobs-control")]
    assert await row(aconn, "SELECT state FROM pljobs.workers") == {"state": "stopped"}
    await aconn.execute("SELECT pljobs.rescue_jobs()")
    await app.run_worker_async(wait=False)
    assert (await job(aconn, job_id))["status"] == "succeeded"


# After a swallowed abort, the task's own tools work as if there had been none


@contextlib.asynccontextmanager
async def aborted_run(app: App, body: Callable[[asyncio.Event], Awaitable[object]], **options: Any) -> Any:
    """Run a body as a job; abort it once it sets its event; yield the job's id."""
    ready = asyncio.Event()

    @app.task(name="body")
    async def task() -> object:
        return await body(ready)

    job_id = await task.defer_async()
    async with running(app, **(POLLING | options)):
        await wait_for(ready)
        await abort(app, job_id)
        yield job_id


async def swallow(ready: asyncio.Event) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        ready.set()
        await asyncio.get_running_loop().create_future()


async def swallow_inside(ready: asyncio.Event) -> None:
    """Await a task that swallows: the abort never reaches the body itself."""
    await asyncio.create_task(swallow(ready))


async def swallow_under_timeout(ready: asyncio.Event) -> None:
    async with asyncio.timeout(DEADLINE):
        await swallow(ready)


SWALLOW = pytest.mark.parametrize("swallowing", [swallow, swallow_inside, swallow_under_timeout])


@SWALLOW
async def test_a_timeout_after_a_swallowed_abort_is_a_timeout(
    app: App, aconn: Conn, swallowing: Callable[[asyncio.Event], Awaitable[None]]
) -> None:
    async def body(ready: asyncio.Event) -> object:
        await swallowing(ready)
        try:
            async with asyncio.timeout(0.01):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            current = asyncio.current_task()
            return "timeout", current.cancelling() if current else None
        return "nothing"

    async with aborted_run(app, body) as job_id:
        found = await until(aconn, job_id)
    assert (found["status"], found["result"]) == ("succeeded", ["timeout", 0])


@SWALLOW
async def test_a_task_group_after_a_swallowed_abort_fails_as_a_group(
    app: App, aconn: Conn, swallowing: Callable[[asyncio.Event], Awaitable[None]]
) -> None:
    async def fails() -> None:
        raise ValueError("one of the group")

    async def body(ready: asyncio.Event) -> None:
        await swallowing(ready)
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            await asyncio.sleep(1000)

    async with aborted_run(app, body) as job_id:
        found = await until(aconn, job_id)
    assert found["status"] == "failed"
    assert found["message"].startswith("ExceptionGroup")


async def test_a_timeout_of_the_bodys_own_before_any_abort_is_a_timeout(app: App, aconn: Conn) -> None:
    @app.task(name="times_out")
    async def times_out() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            return "timeout"
        return "nothing"

    job_id = await times_out.defer_async()
    await app.run_worker_async(wait=False)
    assert (await job(aconn, job_id))["result"] == "timeout"


async def test_an_abort_inside_of_a_timeout_is_no_timeout(app: App, aconn: Conn) -> None:
    async def body(ready: asyncio.Event) -> None:
        async with asyncio.timeout(DEADLINE):
            ready.set()
            await asyncio.get_running_loop().create_future()

    async with aborted_run(app, body) as job_id:
        assert (await until(aconn, job_id))["status"] == "aborted"


# Being handled, or swallowed: psql tells


async def _forever() -> None:
    await asyncio.get_running_loop().create_future()


async def shield_recipe(ready: asyncio.Event, go: asyncio.Event) -> None:
    important = asyncio.create_task(go.wait())
    try:
        ready.set()
        await asyncio.shield(important)
    except asyncio.CancelledError:
        await important
        raise


async def finally_awaits(ready: asyncio.Event, go: asyncio.Event) -> None:
    try:
        ready.set()
        await _forever()
    finally:
        await go.wait()


async def passes_over(ready: asyncio.Event, go: asyncio.Event) -> None:
    try:
        ready.set()
        await _forever()
    except asyncio.CancelledError:
        pass
    await go.wait()


async def catches_everything(ready: asyncio.Event, go: asyncio.Event) -> None:
    try:
        ready.set()
        await _forever()
    except BaseException as error:
        str(error)
    await go.wait()


async def library_eats_it(ready: asyncio.Event, go: asyncio.Event) -> None:
    async def library() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            ready.set()
            await _forever()

    await library()
    await go.wait()


async def inner_task_eats_it(ready: asyncio.Event, go: asyncio.Event) -> None:
    await swallow_inside(ready)
    await go.wait()


async def inner_task_handles_it(ready: asyncio.Event, go: asyncio.Event) -> None:
    await asyncio.create_task(finally_awaits(ready, go))


async def inside_timeout(ready: asyncio.Event, go: asyncio.Event) -> None:
    async with asyncio.timeout(DEADLINE):
        ready.set()
        await _forever()


async def inside_task_group(ready: asyncio.Event, go: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_forever())
        ready.set()


@pytest.mark.parametrize(
    ("shape", "handling", "status"),
    [
        (shield_recipe, "handling", "aborted"),
        (finally_awaits, "handling", "aborted"),
        (inner_task_handles_it, "handling", "aborted"),
        (passes_over, "swallowed", "succeeded"),
        (catches_everything, "swallowed", "succeeded"),
        (library_eats_it, "swallowed", "succeeded"),
        (inner_task_eats_it, "swallowed", "succeeded"),
        (inside_timeout, None, "aborted"),
        (inside_task_group, None, "aborted"),
    ],
)
async def test_what_a_task_does_with_its_abort_is_seen(
    app: App,
    aconn: Conn,
    shape: Callable[[asyncio.Event, asyncio.Event], Awaitable[None]],
    handling: str | None,
    status: str,
) -> None:
    go = asyncio.Event()
    async with aborted_run(app, lambda ready: shape(ready, go)) as job_id:

        async def reported() -> bool:
            return bool((await request(aconn, job_id))["handling"] == handling)

        if handling is not None:
            await wait_until_async(reported, DEADLINE, f"the request is seen as {handling}")
            assert (await job(aconn, job_id))["status"] == "doing"
        go.set()
        assert (await until(aconn, job_id))["status"] == status
    found = await request(aconn, job_id)
    # A heartbeat may fall into the moment in which the exception passes out of the body.
    assert found["handling"] == handling or (handling is None and found["handling"] == "handling")
    assert found["resolution"] == ("aborted" if status == "aborted" else "finished_first")


# No poll is near: neither of a worker that listens, nor of one behind a transaction pooler.
FAR_POLLS = [NOTIFIED, POLLING | {"abort_job_polling_interval": 600.0}]


@pytest.mark.parametrize("options", FAR_POLLS, ids=["notified", "polling"])
@pytest.mark.parametrize("inside", [False, True], ids=["itself", "a task of its"])
async def test_what_a_task_does_with_its_abort_is_seen_long_before_the_next_poll(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], inside: bool
) -> None:
    ready, clean, go = asyncio.Event(), asyncio.Event(), asyncio.Event()
    beats: list[int] = []
    heartbeat = calls.heartbeat

    def counted(*args: Any, **named: Any) -> Any:
        beats.append(1)
        return heartbeat(*args, **named)

    monkeypatch.setattr(calls, "heartbeat", counted)

    async def cleans_up() -> None:
        try:
            ready.set()
            await _forever()
        except asyncio.CancelledError:
            await clean.wait()

    @app.task(name="body")
    async def body() -> None:
        await (asyncio.create_task(cleans_up()) if inside else cleans_up())
        await go.wait()

    async def seen(handling: str) -> None:
        async def reported() -> bool:
            return bool((await request(aconn, job_id))["handling"] == handling)

        await wait_until_async(reported, DEADLINE, f"the request is seen as {handling}")

    job_id = await body.defer_async()
    async with running(app, **options) as worker:
        await wait_for(ready)
        await wait_until_async(lambda: beats, DEADLINE, "the worker's first heartbeat")
        before = len(beats)
        await abort(app, job_id)
        if options is not NOTIFIED:
            worker._control.look_now()  # the poll that finds the request
        await seen("handling")
        clean.set()
        await seen("swallowed")
        go.set()
        await until(aconn, job_id, "succeeded")
        # For the request and for each news; fewer, where one beat was late enough to serve for two.
        assert len(beats) - before <= 3


async def test_a_swallowed_abort_is_in_the_log(
    app: App, aconn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    go = asyncio.Event()
    async with aborted_run(app, lambda ready: passes_over(ready, go)) as job_id:
        await wait_until_async(lambda: "swallowed its abort" in caplog.text)
        go.set()
        await until(aconn, job_id, "succeeded")
    assert [r.levelname for r in caplog.records if "swallowed its abort" in r.getMessage()] == ["WARNING"]


async def test_an_abort_beats_a_broad_except_in_a_loop(app: App, aconn: Conn) -> None:
    started = threading.Event()

    @app.task(name="loops", pass_context=True)
    def loops(context: JobContext) -> str:
        for _ in range(1000):
            try:
                started.set()
                if context.abort_flag.wait(0.05):
                    raise JobAborted("stops here")  # noqa: TRY301
            except Exception:
                pass
        return "never heard"

    job_id = await loops.defer_async()
    async with running(app, **NOTIFIED):
        await wait_until_async(started.is_set)
        await abort(app, job_id)
        found = await until(aconn, job_id)
    assert (found["status"], found["message"]) == ("aborted", "stops here")


# What is async


class Tasks:
    """Ways to write a task that awaits."""

    def __init__(self) -> None:
        self.started = asyncio.Event()

    async def method(self) -> None:
        self.started.set()
        await _forever()

    async def __call__(self) -> None:
        await self.method()

    def returns_awaitable(self) -> Awaitable[None]:
        return self.method()

    def returns_custom_awaitable(self) -> Awaitable[None]:
        tasks = self

        class Custom:
            def __await__(self) -> Any:
                return tasks.method().__await__()

        return Custom()


@pytest.mark.parametrize(
    "make",
    [
        lambda tasks: tasks.method,
        lambda tasks: functools.partial(tasks.method),
        lambda tasks: functools.partial(functools.partial(tasks.method)),
        lambda tasks: tasks,
        lambda tasks: tasks.returns_awaitable,
        lambda tasks: functools.partial(tasks.returns_awaitable),
        lambda tasks: tasks.returns_custom_awaitable,
        lambda tasks: lambda: tasks.method(),  # noqa: PLW0108
    ],
    ids=[
        "method",
        "partial",
        "partial of partial",
        "object",
        "returns",
        "partial returns",
        "custom",
        "lambda",
    ],
)
async def test_whatever_can_be_awaited_can_be_aborted(
    app: App, aconn: Conn, make: Callable[[Tasks], Callable[[], Awaitable[None]]]
) -> None:
    tasks = Tasks()
    task = app.task(make(tasks), name="made")  # type: ignore[call-overload]
    job_id = await task.defer_async()
    async with running(app, **NOTIFIED):
        await wait_for(tasks.started)
        await abort(app, job_id)
        assert (await until(aconn, job_id))["status"] == "aborted"


# Runs that are no longer the job's


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_run_rescued_elsewhere_is_stopped_and_not_recorded(
    app: App, aconn: Conn, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[object] = []

    if kind == "async":

        @app.task(name="runs", pass_context=True)
        async def runs_async(context: JobContext) -> str:
            runs.append(context.job.run_id)
            if len(runs) == 1:
                try:
                    await _forever()
                finally:
                    runs.append(context.abort_reason())
            return "second run"

    else:

        @app.task(name="runs", pass_context=True)
        def runs_sync(context: JobContext) -> str:
            runs.append(context.job.run_id)
            if len(runs) == 1:
                context.abort_flag.wait(DEADLINE)
                runs.append(context.abort_reason())
                return "first run"
            return "second run"

    job_id = await app.configure_task("runs").defer_async()
    async with running(app, **POLLING):
        await wait_until_async(lambda: len(runs) == 1)
        # In one transaction, so that no heartbeat comes in between.
        async with aconn.transaction():
            await aconn.execute("UPDATE pljobs.worker SET expires_at = now() - interval '1 s'")
            await aconn.execute("SELECT pljobs.rescue_jobs()")
        found = await until(aconn, job_id)
    assert (found["status"], found["result"], found["crashes"]) == ("succeeded", "second run", 1)
    assert found["attempts"] == 2
    assert runs[1] is AbortReason.RUN_LOST
    assert len(set(runs)) == 3
    assert "nothing was recorded" in caplog.text


@pytest.mark.parametrize("delete", [False, True])
@pytest.mark.parametrize("options", [NOTIFIED, POLLING], ids=["notified", "polling"])
async def test_force_from_sql_ends_the_job_now_and_stops_its_body(
    app: App, aconn: Conn, options: dict[str, Any], delete: bool
) -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    @app.task(name="stubborn", pass_context=True)
    async def stubborn(context: JobContext) -> None:
        started.set()
        try:
            await _forever()
        except asyncio.CancelledError:
            assert context.abort_reason() is AbortReason.RUN_LOST
            stopped.set()

    job_id = await stubborn.defer_async()
    async with running(app, **options):
        await wait_for(started)
        cursor = await aconn.execute(
            "SELECT pljobs.cancel_job(%s, force => true, delete_job => %s)", [job_id, delete]
        )
        assert await cursor.fetchone() == ("deleted" if delete else "aborted",)
        await wait_for(stopped)
    assert (await job(aconn, job_id))["status"] == ("gone" if delete else "aborted")
    assert (await request(aconn, job_id))["resolution"] == "forced"


async def test_an_abort_outlives_the_worker(app: App, aconn: Conn) -> None:
    job_id = await app.configure_task("runs").defer_async()
    worker = await app.connector.execute_async(calls.register_worker("dies", host="h", pid=1))
    await app.connector.execute_async(calls.fetch_jobs(worker))
    await abort(app, job_id)
    await aconn.execute("UPDATE pljobs.worker SET expires_at = now() - interval '1 s'")
    async with running(app, **HASTY):
        assert (await until(aconn, job_id))["status"] == "aborted"
    assert (await request(aconn, job_id))["resolution"] == "worker_lost"


@pytest.mark.parametrize("ending", ["aborted", "failed"])
async def test_a_job_that_was_aborted_can_be_retried_by_hand_and_runs_clean(
    app: App, aconn: Conn, ending: str
) -> None:
    started = asyncio.Event()
    seen = []

    @app.task(name="runs", pass_context=True, retry=True)
    async def runs(context: JobContext) -> None:
        seen.append(context.should_abort())
        if len(seen) > 1:
            return
        started.set()
        try:
            await _forever()
        except asyncio.CancelledError:
            if ending == "failed":
                raise ValueError from None
            raise

    job_id = await runs.defer_async()
    async with running(app, **NOTIFIED):
        await wait_for(started)
        await abort(app, job_id)
        assert (await until(aconn, job_id))["status"] == ending
        assert await app.job_manager.retry_job_by_id_async(job_id)
        found = await until(aconn, job_id, "succeeded")
    assert found["abort_requested"] is False
    assert seen == [False, False]


# A blocked event loop


async def test_a_blocked_event_loop_keeps_its_lease_and_threads_hear_of_aborts(
    app: App, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    in_thread, done = threading.Event(), threading.Event()
    reasons: list[object] = []

    @app.task(name="listens", pass_context=True)
    def listens(context: JobContext) -> None:
        in_thread.set()
        if context.abort_flag.wait(DEADLINE):
            reasons.append(context.abort_reason())
        done.set()
        raise JobAborted

    @app.task(name="blocks")
    async def blocks(job_id: int) -> str:
        # All of this blocks the event loop, as everybody's code does once.
        before = heartbeat()
        conn.execute("SELECT pljobs.cancel_job(%s, abort => true)", [job_id])
        if not done.wait(DEADLINE):
            return "the thread never heard"
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            beat, lag, state = heartbeat()
            assert state == "alive"
            if beat - before[0] > timedelta(seconds=1.5) and lag > timedelta(seconds=1):
                return "seen"
            time.sleep(0.05)  # noqa: ASYNC251
        return "the lag was not seen"

    def heartbeat() -> tuple[Any, Any, str]:
        found = conn.execute("SELECT heartbeat_at, loop_lag, state FROM pljobs.workers").fetchone()
        assert found is not None
        return found[0], found[1], found[2]

    listening = await listens.defer_async()
    async with (
        running(app, **LASTING, concurrency=2),
        await psycopg.AsyncConnection.connect(conn.info.dsn, autocommit=True) as aconn,
    ):
        await wait_until_async(in_thread.is_set)
        blocking = await blocks.defer_async(job_id=listening)
        found = await until(aconn, blocking)
        assert (found["status"], found["result"], found["crashes"]) == ("succeeded", "seen", 0)
        assert (await until(aconn, listening))["status"] == "aborted"
    assert reasons == [AbortReason.USER_REQUEST]
    assert "has been blocked" in caplog.text


# What a message may hold


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text to be had")


@pytest.mark.parametrize(
    "given",
    ["NUL \0", "surrogate \ud800", "long " * 1000, "two\nlines", Unprintable(), 3],
    ids=["NUL", "surrogate", "long", "lines", "unprintable", "number"],
)
@pytest.mark.usefixtures("_quiet")
async def test_no_abort_message_keeps_a_job_from_ending(app: App, aconn: Conn, given: object) -> None:
    started = threading.Event()

    @app.task(name="aborts", pass_context=True)
    def aborts(context: JobContext) -> None:
        started.set()
        context.abort_flag.wait(DEADLINE)
        raise JobAborted(given)

    job_id = await aborts.defer_async()
    async with running(app, **NOTIFIED):
        await wait_until_async(started.is_set)
        await abort(app, job_id)
        found = await until(aconn, job_id)
    assert found["status"] == "aborted"
    assert found["message"] is None or len(found["message"]) <= 1000


@pytest.fixture
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let logging print what it can't write, as it does outside of tests."""
    monkeypatch.setattr("_pytest.logging.LogCaptureHandler.handleError", lambda *_: None)


async def test_a_swallowed_abort_is_undone_whichever_thread_collects_it(app: App, aconn: Conn) -> None:
    """Else the task's next group would take the abort for its own, and pass it on (as Python 3.13 does)."""

    def keep(error: BaseException) -> None:
        error.me = error  # type: ignore[attr-defined]

    async def body(ready: asyncio.Event) -> int:
        me = asyncio.current_task()
        assert me is not None
        gc.disable()
        try:
            try:
                ready.set()
                await asyncio.sleep(DEADLINE)
            except asyncio.CancelledError as error:
                keep(error)
            await asyncio.sleep(0)
            thread = threading.Thread(target=gc.collect)
            thread.start()
            thread.join()
            await asyncio.sleep(0.01)
        finally:
            gc.enable()
        return me.cancelling()

    async with aborted_run(app, body) as job_id:
        found = await until(aconn, job_id)
    assert (found["status"], found["result"]) == ("succeeded", 0)
