"""What a worker does with jobs: which it takes, how many at once, and what it records of them."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import psycopg
import pytest

from pljobs import App, BaseRetryStrategy, JobContext, RetryDecision, RetryStrategy, exceptions
from pljobs.jobs import Job
from pljobs.worker import Worker
from waiting import wait_until_async
from workers import DEADLINE, NOTIFIED, POLLING, job, row, running, until

Conn = psycopg.AsyncConnection[Any]


async def run_out(app: App, **options: Any) -> None:
    """Run a worker until no job is left."""
    async with asyncio.timeout(DEADLINE):
        await app.run_worker_async(wait=False, install_signal_handlers=False, **options)


class AtOnce:
    """Count how many bodies run at once, and keep the order in which they began."""

    def __init__(self) -> None:
        self.order: list[object] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def enter(self, name: object) -> None:
        with self._lock:
            self.order.append(name)
            self._now += 1
            self.most = max(self.most, self._now)

    def leave(self) -> None:
        with self._lock:
            self._now -= 1


# Which jobs, when, how many


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_as_many_jobs_run_at_once_as_concurrency_says(app: App, aconn: Conn, kind: str) -> None:
    at_once = AtOnce()
    full = threading.Barrier(3)

    def meet() -> None:
        full.wait(DEADLINE)  # passes only when three are in it

    if kind == "async":

        @app.task(name="meets")
        async def meets_async(number: int) -> None:
            at_once.enter(number)
            await asyncio.to_thread(meet)
            at_once.leave()

    else:

        @app.task(name="meets")
        def meets_sync(number: int) -> None:
            at_once.enter(number)
            meet()
            at_once.leave()

    await app.configure_task("meets").batch_defer_async(*({"number": n} for n in range(9)))
    await run_out(app, concurrency=3)
    assert at_once.most == 3
    assert sorted(map(str, at_once.order)) == [str(n) for n in range(9)]
    assert await row(aconn, "SELECT count(*) AS n FROM pljobs.jobs WHERE status = 'succeeded'") == {"n": 9}


async def test_a_slot_that_gets_free_is_filled_though_another_job_goes_on(app: App, aconn: Conn) -> None:
    go = asyncio.Event()

    @app.task(name="long")
    async def long() -> None:
        await go.wait()

    @app.task(name="short")
    async def short() -> None: ...

    long_id = await long.defer_async()
    shorts = await short.batch_defer_async(*({} for _ in range(5)))
    async with running(app, **NOTIFIED, concurrency=2):
        for each in shorts:
            await until(aconn, each, "succeeded")
        assert (await job(aconn, long_id))["status"] == "doing"
        go.set()
        await until(aconn, long_id, "succeeded")


async def test_only_the_workers_queues_are_served(app: App, aconn: Conn) -> None:
    ran: list[str] = []

    @app.task(name="record")
    async def record(queue: str) -> None:
        ran.append(queue)

    for queue in ("a", "b", "c"):
        await record.configure(queue=queue).defer_async(queue=queue)
    await run_out(app, queues=["a", "c"])
    assert sorted(ran) == ["a", "c"]


async def test_a_paused_queue_waits_until_it_is_resumed(app: App, aconn: Conn) -> None:
    @app.task(name="runs")
    async def runs() -> None: ...

    await app.job_manager.pause_queue_async("default")
    job_id = await runs.defer_async()
    await run_out(app)
    assert (await job(aconn, job_id))["status"] == "todo"
    async with running(app, **NOTIFIED):
        await app.job_manager.resume_queue_async("default")
        await until(aconn, job_id, "succeeded")


async def test_higher_priority_first_then_the_older_job(app: App) -> None:
    ran: list[int] = []

    @app.task(name="record")
    async def record(number: int) -> None:
        ran.append(number)

    for number, priority in enumerate([0, 5, -1, 5, 0]):
        await record.configure(priority=priority).defer_async(number=number)
    await run_out(app)
    assert ran == [1, 3, 0, 4, 2]


async def test_two_jobs_of_one_lock_never_run_at_once_and_run_in_order(app: App) -> None:
    at_once = {"one": AtOnce(), "two": AtOnce(), None: AtOnce()}

    @app.task(name="locked", pass_context=True)
    async def locked(context: JobContext) -> None:
        mine = at_once[context.job.lock]
        mine.enter(context.job.id)
        for _ in range(3):
            await asyncio.sleep(0)
        mine.leave()

    for _ in range(6):
        for lock in at_once:
            await locked.configure(lock=lock).defer_async()
    other = app.with_connector(app.connector)
    await asyncio.gather(run_out(app, concurrency=4), run_out(other, concurrency=4))
    # A worker may find all lanes busy, and stop: the rest is for the next.
    await run_out(app)
    for lock in ("one", "two"):
        assert at_once[lock].most == 1
        assert len(at_once[lock].order) == 6
        assert at_once[lock].order == sorted(map(int, at_once[lock].order))  # type: ignore[arg-type]
    assert len(at_once[None].order) == 6


async def test_a_scheduled_job_waits_for_its_time(app: App, aconn: Conn) -> None:
    @app.task(name="later")
    async def later() -> None: ...

    job_id = await later.configure(schedule_in={"hours": 1}).defer_async()
    past = await later.configure(schedule_at=datetime.now(UTC) - timedelta(days=1)).defer_async()
    await run_out(app)
    assert (await job(aconn, job_id))["status"] == "todo"
    assert (await job(aconn, past))["status"] == "succeeded"
    await aconn.execute("UPDATE pljobs.job SET scheduled_at = now() WHERE id = %s", [job_id])
    await run_out(app)
    assert (await job(aconn, job_id))["status"] == "succeeded"


@pytest.mark.parametrize("options", [NOTIFIED, POLLING], ids=["notified", "polling"])
async def test_a_worker_that_waits_sees_new_jobs(app: App, aconn: Conn, options: dict[str, Any]) -> None:
    @app.task(name="runs")
    async def runs() -> None: ...

    async with running(app, **options):
        for _ in range(3):
            await until(aconn, await runs.defer_async(), "succeeded")


async def test_a_worker_that_does_not_wait_ends_when_nothing_is_left(app: App, aconn: Conn) -> None:
    @app.task(name="again")
    async def again(more: int) -> None:
        if more:
            await again.defer_async(more=more - 1)

    await again.defer_async(more=3)
    await run_out(app, **NOTIFIED)
    assert await row(aconn, "SELECT count(*) AS n FROM pljobs.jobs WHERE status = 'succeeded'") == {"n": 4}
    assert await row(aconn, "SELECT state, running FROM pljobs.workers") == {"state": "stopped", "running": 0}


# Jobs that can't be run


async def test_a_job_of_an_unknown_task_fails_and_says_why(app: App, aconn: Conn) -> None:
    job_id = await app.configure_task("nowhere").defer_async()
    await run_out(app)
    found = await job(aconn, job_id)
    assert found["status"] == "failed"
    assert "task 'nowhere' is not registered in this worker" in found["message"]


async def test_a_worker_can_leave_unknown_tasks_to_others(app: App, aconn: Conn) -> None:
    @app.task(name="known", aliases=["formerly"])
    async def known() -> None: ...

    unknown = await app.configure_task("nowhere").defer_async()
    ours = [await app.configure_task(name).defer_async() for name in ("known", "formerly")]
    await run_out(app, unknown_tasks="leave")
    assert (await job(aconn, unknown))["status"] == "todo"
    assert {(await job(aconn, each))["status"] for each in ours} == {"succeeded"}


async def test_arguments_that_python_cant_read_fail_their_own_job_only(app: App, aconn: Conn) -> None:
    @app.task(name="runs")
    async def runs(number: int = 0) -> None: ...

    digits = "1" + "0" * 5000
    odd = await row(aconn, f"""SELECT pljobs.defer_job('runs', '{{"number": {digits}}}') AS id""")
    good = await runs.defer_async(number=1)
    await run_out(app, concurrency=2)
    assert odd is not None
    found = await row(aconn, "SELECT status, message FROM pljobs.jobs WHERE id = %s", odd["id"])
    assert found == {"status": "failed", "message": "the arguments can't be read: ValueError"}
    assert (await job(aconn, good))["status"] == "succeeded"


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_arguments_that_dont_fit_the_function_are_a_failure(app: App, aconn: Conn, kind: str) -> None:
    if kind == "async":

        @app.task(name="runs")
        async def runs_async(number: int) -> None: ...

    else:

        @app.task(name="runs")
        def runs_sync(number: int) -> None: ...

    job_id = await app.configure_task("runs").defer_async(wrong=1)
    await run_out(app)
    found = await job(aconn, job_id)
    assert found["status"] == "failed"
    assert found["message"].startswith("TypeError")


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"fetch_job_polling_interval": 0},
        {"abort_job_polling_interval": -1},
        {"update_heartbeat_interval": 0},
        {"update_heartbeat_interval": 10, "stalled_worker_timeout": 15},
        {"update_heartbeat_interval": 0.1, "stalled_worker_timeout": 0.5},
        {"delete_jobs": "sometimes"},
        {"concurrency": 2.5},
        {"concurrency": True},
        {"fetch_job_polling_interval": "5"},
        {"fetch_job_polling_interval": float("nan")},
        {"stalled_worker_timeout": "30"},
        {"shutdown_graceful_timeout": "30"},
        {"shutdown_graceful_timeout": -1},
        {"unknown_tasks": "ignore"},
        {"queues": "mail"},
        {"queues": [5]},
        {"queues": [""]},
        {"name": 5},
        {"name": "a\0"},
        {"retention": 5},
    ],
)
def test_a_worker_that_can_never_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(reversed(wrong)))):
        Worker(App("postgresql:///nowhere"), **wrong)


class Two:
    """An int of somebody's, as numpy's are."""

    def __index__(self) -> int:
        return 2


def test_other_numbers_than_pythons_own_are_taken() -> None:
    app = App("postgresql:///nowhere")
    worker = Worker(app, concurrency=Two(), shutdown_graceful_timeout=Fraction(1, 2))  # type: ignore[arg-type]
    assert (worker.concurrency, worker.graceful_timeout) == (2, 0.5)


async def test_a_worker_without_a_database_says_so_at_once() -> None:
    with pytest.raises(exceptions.DatabaseUnavailable):
        await App("host=/nowhere dbname=x").run_worker_async()


async def test_a_worker_without_a_schema_says_so_at_once(empty_db_url: str) -> None:
    with pytest.raises(exceptions.SchemaMissing):
        await App(empty_db_url).run_worker_async(install_signal_handlers=False)


# Results and errors


@pytest.mark.parametrize(
    ("result", "stored", "message"),
    [
        (None, None, None),
        ({"a": [1, "é", None, 1.5, True]}, {"a": [1, "é", None, 1.5, True]}, None),
        (object(), None, "result not stored"),
        ("NUL \0", None, "result not stored"),
        (float("nan"), None, "result not stored"),
        ([float("inf")], None, "result not stored"),
        ("surrogate \ud800", None, "result not stored"),
        ({1: 2}, None, "result not stored"),
        ("x" * (1024 * 1024 + 1), None, "result not stored"),
        ("x" * (1024 * 1024 - 2), "x" * (1024 * 1024 - 2), None),
    ],
    ids=["none", "json", "object", "NUL", "NaN", "inf", "surrogate", "key", "too large", "just fits"],
)
async def test_no_result_keeps_a_job_from_succeeding(
    app: App, aconn: Conn, result: object, stored: object, message: str | None
) -> None:
    @app.task(name="returns")
    async def returns() -> object:
        return result

    job_id = await returns.defer_async()
    await run_out(app)
    found = await job(aconn, job_id)
    assert found["status"] == "succeeded"
    assert found["result"] == stored
    assert found["message"] is None if message is None else found["message"].startswith(message)


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class ImpoliteError(Exception):
    def __str__(self) -> str:
        raise ValueError

    __repr__ = __str__


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("plain"), "ValueError: plain"),
        (ValueError("two\nlines"), "ValueError: two"),
        (ValueError("NUL \0"), "ValueError: NUL \ufffd"),
        (ValueError("lone \ud800 surrogate"), "ValueError: lone \ufffd surrogate"),
        (ValueError("long " * 100_000), None),
        (UnprintableError(), "UnprintableError: (its text can't be had)"),
        (ImpoliteError(), "ImpoliteError: (its text can't be had)"),
        (
            ExceptionGroup("group", [ValueError("one"), KeyError("two")]),
            "ExceptionGroup: group (2 sub-exceptions)",
        ),
        (GeneratorExit(), "GeneratorExit:  (a task can't end its worker)"),
    ],
    ids=["plain", "lines", "NUL", "surrogate", "huge", "unprintable", "impolite", "group", "GeneratorExit"],
)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_no_error_keeps_a_job_from_failing(
    app: App,
    aconn: Conn,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    error: BaseException,
    message: str | None,
) -> None:
    # pytest's own log handler can't print all of this, and makes that a failure of the test.
    monkeypatch.setattr("_pytest.logging.LogCaptureHandler.handleError", lambda *_: None)

    if kind == "async":

        @app.task(name="fails")
        async def fails_async() -> None:
            raise error

    else:

        @app.task(name="fails")
        def fails_sync() -> None:
            raise error

    job_id = await app.configure_task("fails").defer_async()
    await run_out(app)
    found = await job(aconn, job_id)
    assert found["status"] == "failed"
    assert message is None or found["message"] == message
    assert len(found["message"]) <= 1000
    assert len(found["error"]) <= 16_384


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), BaseExceptionGroup("group", [ValueError(), SystemExit(3)])],
    ids=["sys.exit", "Ctrl-C", "group"],
)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_task_cant_end_its_worker_and_is_not_run_again_for_it(
    app: App, aconn: Conn, kind: str, error: BaseException
) -> None:
    ran = []

    @app.task(name="fine")
    async def fine() -> None: ...

    if kind == "async":

        @app.task(name="exits", retry=True)
        async def exits_async() -> None:
            ran.append(1)
            raise error

    else:

        @app.task(name="exits", retry=True)
        def exits_sync() -> None:
            ran.append(1)
            raise error

    job_id = await app.configure_task("exits").defer_async()
    after = await fine.defer_async()
    await run_out(app)
    found = await job(aconn, job_id)
    assert (found["status"], ran) == ("failed", [1])
    assert "a task can't end its worker" in found["message"]
    assert (await job(aconn, after))["status"] == "succeeded"


async def test_sys_exit_in_a_thread_is_that(app: App, aconn: Conn) -> None:
    @app.task(name="exits")
    def exits() -> None:
        sys.exit("enough")

    job_id = await exits.defer_async()
    await run_out(app)
    assert (await job(aconn, job_id))["message"].startswith("SystemExit: enough")


async def test_the_error_of_a_job_shows_the_tasks_own_frames_only(app: App, aconn: Conn) -> None:
    @app.task(name="fails")
    async def fails() -> None:
        raise ValueError("plain")

    job_id = await fails.defer_async()
    await run_out(app)
    error = (await job(aconn, job_id))["error"]
    assert "in fails" in error
    assert "execution.py" not in error


@pytest.mark.parametrize(
    ("condition", "gone"),
    [("never", set()), ("successful", {"succeeds"}), ("always", {"succeeds", "fails", "aborted"})],
)
async def test_ended_jobs_are_deleted_as_told(app: App, aconn: Conn, condition: Any, gone: set[str]) -> None:
    @app.task(name="succeeds")
    async def succeeds() -> None: ...

    @app.task(name="fails")
    async def fails() -> None:
        raise ValueError

    @app.task(name="aborted", pass_context=True)
    async def aborted(context: JobContext) -> None:
        assert context.job.id is not None
        await app.job_manager.cancel_job_by_id_async(context.job.id, abort=True)
        await asyncio.sleep(60)

    ids = {name: await app.configure_task(name).defer_async() for name in ("succeeds", "fails", "aborted")}
    await run_out(app, delete_jobs=condition)
    assert {name for name, each in ids.items() if (await job(aconn, each))["status"] == "gone"} == gone


async def test_the_context_knows_the_job_and_what_the_worker_was_given(app: App, aconn: Conn) -> None:
    seen: list[JobContext] = []

    @app.task(name="looks", pass_context=True)
    async def looks(context: JobContext, number: int) -> None:
        seen.append(context)

    job_id = await looks.configure(priority=3).defer_async(number=7)
    await run_out(app, name="mine", queues=["default"], additional_context={"key": "value"})
    context = seen[0]
    assert context.additional_context == {"key": "value"}
    assert (context.worker, context.worker_name, context.worker_queues) == ("mine", "mine", ["default"])
    assert (context.job.id, context.job.task_kwargs, context.job.priority) == (job_id, {"number": 7}, 3)
    assert (context.app, context.task.name, context.job.attempts) == (app, "looks", 0)


async def test_what_a_job_adds_to_its_context_no_other_job_sees(app: App) -> None:
    seen: list[dict[str, object]] = []

    @app.task(name="adds", pass_context=True)
    async def adds(context: JobContext, number: int) -> None:
        seen.append(dict(context.additional_context))
        context.additional_context[f"of {number}"] = number

    given = {"key": "value"}
    await adds.batch_defer_async({"number": 1}, {"number": 2})
    await run_out(app, concurrency=1, additional_context=given)
    assert seen == [given, given] == [{"key": "value"}] * 2


# What the log says


async def test_a_retried_failure_is_a_warning_and_the_last_one_an_error_once(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(name="fails", retry=1)
    async def fails() -> None:
        raise ValueError("bad")

    @app.task(name="succeeds")
    async def succeeds() -> None:
        pass

    @app.task(name="aborted", pass_context=True)
    async def aborted(context: JobContext) -> None:
        assert context.job.id is not None
        await app.job_manager.cancel_job_by_id_async(context.job.id, abort=True)
        await asyncio.sleep(60)

    said: dict[str, list[tuple[str, str | None]]] = {}
    others: dict[str, list[str]] = {}
    caplog.set_level(logging.INFO, "pljobs.jobs")
    for name in ("fails", "succeeds", "aborted"):
        caplog.clear()
        await app.configure_task(name).defer_async()
        await run_out(app)
        records = [(r.levelname, vars(r).get("action")) for r in caplog.records if r.name == "pljobs.jobs"]
        said[name] = [(level, action) for level, action in records if action is not None]
        # What became of a job is told when the reply is here: by then it may have started again.
        others[name] = [level for level, action in records if action is None]
    assert said == {
        "fails": [
            ("INFO", "start_job"), ("WARNING", "job_error_retry"),
            ("INFO", "start_job"), ("ERROR", "job_error"),
        ],
        "succeeds": [("INFO", "start_job"), ("INFO", "job_success")],
        "aborted": [("INFO", "start_job"), ("INFO", "abort_job"), ("WARNING", "job_aborted")],
    }  # fmt: skip
    assert others == {"fails": ["INFO"] * 2, "succeeds": [], "aborted": ["INFO"]}


# Retries


class Moves(BaseRetryStrategy):
    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        return (
            RetryDecision(retry_in=0, queue="slow", priority=7, lock="moved") if job.attempts == 0 else None
        )


class Raises(BaseRetryStrategy):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        raise self.error


class Nonsense(BaseRetryStrategy):
    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        return "tomorrow"  # type: ignore[return-value]


class FarAway(BaseRetryStrategy):
    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        return RetryDecision(retry_at=datetime.max.replace(tzinfo=UTC))


@pytest.mark.parametrize(
    ("retry", "status", "attempts"),
    [
        (False, "failed", 1),
        (2, "failed", 3),
        (RetryStrategy(max_attempts=1), "failed", 2),
        (RetryStrategy(max_attempts=9, retry_exceptions=[KeyError]), "failed", 1),
        (RetryStrategy(max_attempts=1, retry_exceptions=[ValueError]), "failed", 2),
        (RetryStrategy(max_attempts=9, wait=3600), "todo", 1),
        (Moves(), "failed", 2),
        (Raises(RuntimeError()), "failed", 1),
        (Raises(SystemExit()), "failed", 1),
        (Raises(asyncio.CancelledError()), "failed", 1),
        (Nonsense(), "failed", 1),
        (FarAway(), "todo", 1),
    ],
    ids=[
        "no", "twice", "once", "other exception", "this exception", "in an hour", "moves", "raises", "exits",
        "cancels", "nonsense", "far away",
    ],
)  # fmt: skip
async def test_a_failure_is_retried_as_the_strategy_says(
    app: App, aconn: Conn, retry: Any, status: str, attempts: int
) -> None:
    @app.task(name="fails", retry=retry)
    async def fails() -> None:
        raise ValueError

    job_id = await fails.defer_async()
    await run_out(app)
    found = await job(aconn, job_id)
    assert (found["status"], found["attempts"]) == (status, attempts)
    if isinstance(retry, Moves):
        assert (found["queue"], found["priority"], found["lock"]) == ("slow", 7, "moved")


async def test_an_own_json_dumps_that_breaks_keeps_no_job_from_ending(db_url: str, aconn: Conn) -> None:
    from pljobs import PsycopgConnector

    def breaks(value: object) -> str:
        raise OSError("a disk full")

    app = App(PsycopgConnector(db_url, json_dumps=breaks))

    @app.task(name="returns")
    async def returns() -> int:
        return 1

    defined = await row(aconn, "SELECT pljobs.defer_job('returns') AS id")
    assert defined is not None
    async with asyncio.timeout(DEADLINE):
        await app.run_worker_async(wait=False, install_signal_handlers=False)
    found = await job(aconn, defined["id"])
    assert (found["status"], found["result"]) == ("succeeded", None)


# Stopping


async def test_what_runs_too_long_after_a_stop_is_asked_to_abort(app: App, aconn: Conn) -> None:
    started = asyncio.Event()

    @app.task(name="long")
    async def long() -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    job_id = await long.defer_async()
    async with running(app, **NOTIFIED, shutdown_graceful_timeout=0.05) as worker:
        await asyncio.wait_for(started.wait(), DEADLINE)
        worker.stop()
        found = await until(aconn, job_id, "todo")
    assert found["attempts"] == 0


async def test_a_fetch_without_an_answer_does_not_put_that_off(app: App, aconn: Conn) -> None:
    started, told = asyncio.Event(), asyncio.Event()

    @app.task(name="long")
    async def long() -> None:
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            told.set()

    await long.defer_async()
    async with running(app, **NOTIFIED, concurrency=2, shutdown_graceful_timeout=0.05) as worker:
        await asyncio.wait_for(started.wait(), DEADLINE)
        async with await psycopg.AsyncConnection.connect(aconn.info.dsn) as holder:
            await holder.execute("LOCK TABLE pljobs.queue")
            await aconn.execute("SELECT pljobs.notify_queues_v1(ARRAY['default'])")
            waits = "SELECT pid FROM pg_locks WHERE relation = 'pljobs.queue'::regclass AND NOT granted"
            async with asyncio.timeout(DEADLINE):
                while await row(aconn, waits) is None:  # noqa: ASYNC110 - the database tells
                    await asyncio.sleep(0.01)
            worker.stop()
            await asyncio.wait_for(told.wait(), DEADLINE)
            assert await row(aconn, waits) is not None


async def test_a_stop_lets_jobs_end_and_says_what_it_waits_for(
    app: App, aconn: Conn, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pljobs.worker.REMIND_EVERY", 0.05)
    started, go = threading.Event(), threading.Event()

    @app.task(name="never_returns")
    def never_returns() -> str:
        started.set()
        go.wait(DEADLINE)
        return "after all"

    job_id = await never_returns.defer_async()
    async with running(app, **NOTIFIED) as worker:
        await wait_until_async(started.is_set)
        worker.stop()
        worker.stop()  # a thread can't be stopped
        await wait_until_async(lambda: f"still waits for: never_returns[{job_id}]" in caplog.text, DEADLINE)
        go.set()
        found = await until(aconn, job_id)
    assert (found["status"], found["result"]) == ("succeeded", "after all")
