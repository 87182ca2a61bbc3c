"""An abort with a deadline: what happens at each level, to each kind of task, and what is recorded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from typing import Any

import psycopg
import pytest

from pljobs import App, JobAborted, JobContext
from pljobs.exceptions import WorkerTainted
from pljobs.jobs import AbortReason
from pljobs.worker import Worker
from waiting import wait_until_async
from workers import DEADLINE, NOTIFIED, POLLING, job, look, request, row, running, until

Conn = psycopg.AsyncConnection[Any]


async def ask(conn: Conn, job_id: int, **options: str) -> dict[str, Any]:
    """Ask in SQL, as a person does: grace, term_grace as intervals."""
    given = "".join(f", {name} => %({name})s" for name in options)
    statement = f"SELECT * FROM pljobs.cancel_job_v1(%(job_id)s, abort => true{given})"
    cursor = await conn.execute(statement.encode(), {"job_id": job_id, **options})
    names = [column.name for column in cursor.description or ()]
    found = await cursor.fetchone()
    assert found is not None
    return dict(zip(names, found, strict=True))


async def is_at(conn: Conn, job_id: int, level: int) -> None:
    async def reached() -> bool:
        return ((await request(conn, job_id)).get("level") or 0) >= level

    await wait_until_async(reached, DEADLINE, f"the abort of job {job_id} is at level {level}")


@pytest.mark.parametrize("options", [NOTIFIED, POLLING], ids=["notified", "polling"])
async def test_without_a_grace_an_abort_stays_at_level_1(
    app: App, aconn: Conn, options: dict[str, Any]
) -> None:
    begun = asyncio.Event()
    told = asyncio.Event()
    go_on = asyncio.Event()

    @app.task
    async def stubborn() -> str:
        begun.set()
        try:
            await asyncio.sleep(DEADLINE)
        except asyncio.CancelledError:
            told.set()
        await go_on.wait()
        return "done"

    async with running(app, **options):
        job_id = await stubborn.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        await ask(aconn, job_id)
        await asyncio.wait_for(told.wait(), DEADLINE)
        asked = await request(aconn, job_id)
        assert (asked["level"], asked["sql_at"], asked["term_at"], asked["kill_at"]) == (1, None, None, None)
        go_on.set()
        await until(aconn, job_id, "succeeded")
    assert (await request(aconn, job_id))["resolution"] == "finished_first"


@pytest.mark.parametrize("options", [NOTIFIED, POLLING], ids=["notified", "polling"])
async def test_an_async_task_that_swallows_its_abort_is_cancelled_again_when_its_grace_is_over(
    app: App, aconn: Conn, options: dict[str, Any]
) -> None:
    begun = asyncio.Event()
    cancels: list[AbortReason | None] = []

    @app.task(pass_context=True)
    async def stubborn(context: JobContext) -> None:
        begun.set()
        while len(cancels) < 2:
            try:
                await asyncio.sleep(DEADLINE)
            except asyncio.CancelledError:
                cancels.append(context.abort_reason())
        await asyncio.sleep(DEADLINE)

    async with running(app, **options):
        job_id = await stubborn.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        await ask(aconn, job_id, grace="1 h", term_grace="1 min", reason="enough", actor="ann")
        await wait_until_async(lambda: len(cancels) == 1, DEADLINE)
        await look(aconn, job_id)

        async def is_known() -> bool:
            return bool((await request(aconn, job_id))["handling"] == "swallowed")

        await wait_until_async(is_known, DEADLINE, "it is known that the abort was swallowed")
        await aconn.execute("UPDATE pljobs.request SET sql_at = requested_at, term_at = clock_timestamp()")
        await look(aconn, job_id)
        await until(aconn, job_id, "aborted")
    assert cancels == [AbortReason.USER_REQUEST, AbortReason.USER_REQUEST]
    asked = await request(aconn, job_id)
    # That it was swallowed has been seen; of the cancels after that, the last beat may have seen any.
    assert (asked["resolution"], asked["level"]) == ("aborted", 3)


async def test_the_task_knows_its_deadline(app: App, aconn: Conn) -> None:
    begun = asyncio.Event()
    seen: list[object] = []

    async def watch(context: JobContext) -> None:
        reason = await context.aborted()
        asked = context.abort_request()
        assert asked is not None
        seen.extend([reason, asked.reason, asked.actor, asked.request_id, asked.deadline])

    @app.task(pass_context=True)
    async def task(context: JobContext) -> None:
        begun.set()
        watching = asyncio.create_task(watch(context))
        try:
            await asyncio.sleep(DEADLINE)
        finally:
            await watching

    async with running(app, **NOTIFIED):
        job_id = await task.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        await ask(aconn, job_id, grace="1 h", reason="why not", actor="ann")
        await until(aconn, job_id, "aborted")
    asked = await request(aconn, job_id)
    assert seen == [AbortReason.USER_REQUEST, "why not", "ann", asked["id"], asked["term_at"]]


@pytest.mark.parametrize("grace", ["0", "10 ms"])
async def test_a_task_that_can_not_be_stopped_is_given_up_and_its_worker_leaves(
    app: App, aconn: Conn, grace: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun = threading.Event()
    let_go = threading.Event()

    @app.task(queue="stuck")
    def stuck() -> None:
        begun.set()
        let_go.wait(DEADLINE)

    @app.task
    async def other() -> str:
        await asyncio.sleep(0)
        return "done"

    worker = Worker(app, install_signal_handlers=False, concurrency=2, **NOTIFIED)
    ended = asyncio.create_task(worker.run())
    try:
        job_id = await stuck.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        await ask(aconn, job_id, grace=grace, term_grace="10 ms")
        await until(aconn, job_id, "aborted")
        with pytest.raises(WorkerTainted, match=r"stuck\[\d+\]"):
            await asyncio.wait_for(ended, DEADLINE)
    finally:
        let_go.set()
    asked = await request(aconn, job_id)
    assert (asked["resolution"], asked["level"]) == ("abandoned", 4)
    found = await row(aconn, "SELECT * FROM pljobs.workers WHERE id = %s", worker.worker_id)
    assert found is not None
    assert found["tainted_at"] is not None
    escalations = [
        record.__dict__["level"] for record in caplog.records if "has not stopped" in record.message
    ]
    assert escalations[-1] == 4
    left = await other.defer_async()
    answer = await row(
        aconn, "SELECT pljobs.register_worker_v1('w', 'h', 1, worker_id => %s)", worker.worker_id
    )
    assert answer is not None
    assert await row(aconn, "SELECT * FROM pljobs.fetch_jobs_v1(%s)", worker.worker_id) is None
    assert (await job(aconn, left))["status"] == "todo"


async def test_an_async_task_that_ignores_every_cancel_is_given_up(app: App, aconn: Conn) -> None:
    begun = asyncio.Event()
    stop = asyncio.Event()
    stopped = asyncio.Event()

    @app.task
    async def stubborn() -> None:
        begun.set()
        while not stop.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await stop.wait()
        stopped.set()

    worker = Worker(app, install_signal_handlers=False, **NOTIFIED)
    ended = asyncio.create_task(worker.run())
    job_id = await stubborn.defer_async()
    await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
    await ask(aconn, job_id, grace="50 ms", term_grace="50 ms")
    with pytest.raises(WorkerTainted):
        await asyncio.wait_for(ended, DEADLINE)
    stop.set()
    await asyncio.wait_for(stopped.wait(), DEADLINE)
    assert (await job(aconn, job_id))["status"] == "aborted"
    assert (await request(aconn, job_id))["resolution"] == "abandoned"


async def test_two_people_ask_and_the_earlier_deadline_wins(app: App, aconn: Conn) -> None:
    begun = asyncio.Event()

    @app.task
    async def stubborn() -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(DEADLINE)
        await asyncio.sleep(DEADLINE)

    async with running(app, **NOTIFIED):
        job_id = await stubborn.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        assert (await ask(aconn, job_id, grace="1 year"))["outcome"] == "abort_requested"
        assert (await ask(aconn, job_id, grace="10 ms"))["outcome"] == "abort_already_requested"
        await until(aconn, job_id, "aborted")
    assert (await request(aconn, job_id))["level"] == 3


async def test_forced_after_an_abort_with_a_deadline_the_worker_goes_on(app: App, aconn: Conn) -> None:
    begun = asyncio.Event()
    went_on = asyncio.Event()

    @app.task
    async def stubborn() -> None:
        begun.set()
        try:
            await asyncio.sleep(DEADLINE)
        finally:
            await went_on.wait()

    @app.task
    async def other() -> None:
        went_on.set()

    async with running(app, concurrency=2, **NOTIFIED):
        job_id = await stubborn.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        await ask(aconn, job_id, grace="1 h")
        await is_at(aconn, job_id, 1)
        await aconn.execute("SELECT pljobs.cancel_job(%s, force => true)", [job_id])
        assert (await job(aconn, job_id))["status"] == "aborted"
        next_id = await other.defer_async()
        await until(aconn, next_id, "succeeded")
    assert (await request(aconn, job_id))["resolution"] == "forced"


async def test_a_person_holding_the_jobs_row_delays_the_ladder_and_nothing_else(
    app: App, aconn: Conn, admin_url: str
) -> None:
    begun = asyncio.Event()

    @app.task(queue="a")
    async def stubborn() -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(DEADLINE)
        await asyncio.sleep(DEADLINE)

    @app.task(queue="b")
    async def other() -> None: ...

    async with (
        running(app, concurrency=2, **NOTIFIED),
        await psycopg.AsyncConnection.connect(admin_url) as person,
    ):
        job_id = await stubborn.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        await ask(aconn, job_id, grace="20 ms", term_grace="1 h")
        await is_at(aconn, job_id, 1)
        await person.execute("SELECT FROM pljobs.request WHERE job_id = %s FOR UPDATE", [job_id])
        next_id = await other.defer_async()
        await until(aconn, next_id, "succeeded")
        await person.rollback()
        await until(aconn, job_id, "aborted")


async def test_a_callback_that_raises_is_logged_and_stops_nothing(
    app: App, aconn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    begun = asyncio.Event()

    @app.task(pass_context=True)
    async def task(context: JobContext) -> None:
        @context.on_abort
        def broken() -> None:
            raise ValueError("broken callback")

        begun.set()
        await asyncio.sleep(DEADLINE)

    async with running(app, **NOTIFIED):
        job_id = await task.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        await ask(aconn, job_id)
        await until(aconn, job_id, "aborted")
    assert any("callback of on_abort raised" in record.message for record in caplog.records)


# Time limits


async def test_a_run_over_its_timeout_is_aborted_and_fails(app: App, aconn: Conn) -> None:
    seen: list[AbortReason | None] = []

    @app.task(pass_context=True, timeout=0.05)
    async def slow(context: JobContext) -> None:
        try:
            await asyncio.sleep(DEADLINE)
        finally:
            seen.append(context.abort_reason())

    async with running(app, **NOTIFIED):
        job_id = await slow.defer_async()
        await until(aconn, job_id, "failed")
    assert seen == [AbortReason.DEADLINE]
    found, asked = await job(aconn, job_id), await request(aconn, job_id)
    assert (found["attempts"], found["message"].split(":")[0]) == (1, "timeout")
    assert (asked["source"], asked["resolution"], asked["level"]) == ("deadline", "timeout", 1)


async def test_a_timeout_is_retried_as_the_strategy_says_and_counts_as_an_attempt(
    app: App, aconn: Conn
) -> None:
    runs: list[int] = []

    @app.task(timeout=0.05, retry=2)
    async def slow() -> None:
        runs.append(1)
        await asyncio.sleep(DEADLINE)

    async with running(app, **NOTIFIED):
        job_id = await slow.defer_async()
        await until(aconn, job_id, "failed")
    assert len(runs) == 3
    assert (await job(aconn, job_id))["attempts"] == 3
    cursor = await aconn.execute("SELECT resolution FROM pljobs.requests WHERE job_id = %s", [job_id])
    assert await cursor.fetchall() == [("timeout",)] * 3


async def test_a_thread_over_its_timeout_is_given_up_after_its_grace(app: App, aconn: Conn) -> None:
    let_go = threading.Event()

    @app.task(timeout=0.05, grace=0.05, retry=True)
    def stuck() -> None:
        let_go.wait(DEADLINE)

    worker = Worker(app, install_signal_handlers=False, **NOTIFIED)
    ended = asyncio.create_task(worker.run())
    job_id = await stuck.defer_async()
    try:
        with pytest.raises(WorkerTainted):
            await asyncio.wait_for(ended, DEADLINE)
    finally:
        let_go.set()
    # Its code may still run: it must not run twice.
    assert (await job(aconn, job_id))["status"] == "failed"
    assert (await request(aconn, job_id))["resolution"] == "abandoned"


async def test_a_user_who_asks_a_late_run_to_abort_is_heard(app: App, aconn: Conn) -> None:
    reasons: list[AbortReason | None] = []

    @app.task(pass_context=True, timeout=0.05, grace=3600, retry=True)
    async def slow(context: JobContext) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(DEADLINE)
        await wait_until_async(lambda: context.abort_reason() is AbortReason.USER_REQUEST)
        reasons.append(context.abort_reason())
        raise JobAborted("by the user")

    async with running(app, **NOTIFIED):
        job_id = await slow.defer_async()
        await is_at(aconn, job_id, 1)
        answer = await ask(aconn, job_id, reason="too late", actor="ann")
        assert answer["outcome"] == "abort_already_requested"
        await until(aconn, job_id, "aborted")
    asked = await request(aconn, job_id)
    assert (asked["source"], asked["resolution"], asked["actor"]) == ("user", "aborted", "ann")


async def test_a_job_not_started_in_time_is_cancelled(app: App, aconn: Conn) -> None:
    @app.task
    async def task() -> None: ...

    job_id = await task.configure(start_by=0).defer_async()
    later = await task.configure(start_by=3600).defer_async()
    async with running(app, **NOTIFIED):
        await until(aconn, later, "succeeded")
        await until(aconn, job_id, "cancelled")
    asked = await request(aconn, job_id)
    assert (asked["source"], asked["resolution"]) == ("deadline", "expired")


# An async task that blocks the loop


def test_an_async_task_that_blocks_the_loop_is_interrupted_when_its_grace_is_over(db_url: str) -> None:
    """In the main thread: nothing else can be interrupted."""
    app = App(db_url)
    started = threading.Event()

    @app.task
    async def blocking() -> None:
        started.set()
        time.sleep(DEADLINE)  # noqa: ASYNC251 - what everybody writes once

    with app.open():
        job_id = blocking.defer()

    def ask_when_started() -> None:
        started.wait(DEADLINE)
        with psycopg.connect(db_url, autocommit=True) as conn:
            conn.execute(
                "SELECT pljobs.cancel_job(%s, abort => true, grace => '10 ms', term_grace => '1 h')", [job_id]
            )

    person = threading.Thread(target=ask_when_started)
    person.start()
    app.run_worker(wait=False, fetch_job_polling_interval=0.1)
    person.join()
    with psycopg.connect(db_url) as conn:
        found = conn.execute("SELECT status, message FROM pljobs.jobs WHERE id = %s", [job_id]).fetchone()
    assert found == ("aborted", "terminated: it blocked the event loop")


# Logs


async def test_each_step_is_one_line_with_the_ids(
    app: App, aconn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pljobs.jobs")

    begun = asyncio.Event()

    @app.task
    async def stubborn() -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(DEADLINE)
        await asyncio.sleep(DEADLINE)

    async with running(app, **NOTIFIED):
        job_id = await stubborn.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        answer = await ask(aconn, job_id, grace="50 ms", term_grace="1 h")
        await until(aconn, job_id, "aborted")
    lines = [record for record in caplog.records if record.name == "pljobs.jobs"]
    assert all(record.__dict__["job_id"] == job_id for record in lines)
    assert all(record.__dict__["run_id"] == answer["run_id"] for record in lines)
    heads = ("starts", "is asked to abort", "has not stopped", "swallowed", "was asked to stop")
    steps = [next((head for head in heads if head in record.message), record.message) for record in lines]
    found = [step for step in dict.fromkeys(steps) if step in heads]
    # What is seen in the event loop, and what the clock says, come in any order.
    assert [*found[:2], *sorted(found[2:4]), *found[4:]] == list(heads)
    told = [
        r.__dict__["request_id"] for r in lines if "asked to abort" in r.message or "not stopped" in r.message
    ]
    assert set(told) == {answer["request_id"]}
