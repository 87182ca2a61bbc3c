"""What keeps the queue in order: rescue, lanes, periodic tasks, pruning; in any number at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pljobs import App, calls, maintenance, periodic
from pljobs.exceptions import DatabaseUnavailable, InvalidArgument, PljobsException
from pljobs.maintenance import PRUNE_EVERY, Maintenance, Manager, Retention
from waiting import wait_until_async
from workers import DEADLINE, HASTY, LASTING, job, row, running, until

Conn = psycopg.AsyncConnection[Any]


@contextlib.asynccontextmanager
async def managing(app: App, count: int = 1, **options: Any) -> AsyncIterator[None]:
    """Run so many managers."""
    managers = [Manager(app, interval=0.05, install_signal_handlers=False, **options) for _ in range(count)]
    tasks = [asyncio.create_task(manager.run()) for manager in managers]
    try:
        yield
    finally:
        for manager in managers:
            manager.stop()
        await asyncio.wait_for(asyncio.gather(*tasks), DEADLINE)


async def orphans(app: App, aconn: Conn, count: int) -> list[int]:
    """Make jobs that run under a worker which is no more."""
    ids = await app.configure_task("runs").batch_defer_async(*({} for _ in range(count)))
    worker = await app.connector.execute_async(calls.register_worker("dead", host="h", pid=1))
    await app.connector.execute_async(calls.fetch_jobs(worker, max_jobs=count))
    await aconn.execute(
        "UPDATE pljobs.worker SET expires_at = now() - interval '1 s' WHERE id = %s", [worker]
    )
    return ids


async def count(aconn: Conn, query: str) -> int:
    found = await row(aconn, query)
    assert found is not None
    return int(next(iter(found.values())))


async def test_many_managers_at_once_rescue_each_job_once(app: App, aconn: Conn) -> None:
    await orphans(app, aconn, 100)
    async with managing(app, 3):

        async def rescued() -> bool:
            return await count(aconn, "SELECT count(*) FROM pljobs.jobs WHERE status = 'todo'") == 100

        await wait_until_async(rescued, DEADLINE)
    assert await count(aconn, "SELECT count(*) FROM pljobs.history WHERE event = 'rescued'") == 100
    assert await count(aconn, "SELECT count(*) FROM pljobs.jobs WHERE crashes <> 1") == 0


async def test_workers_rescue_too_and_run_what_they_rescued(app: App, aconn: Conn) -> None:
    ran: list[int] = []

    @app.task(name="runs")
    async def runs() -> None:
        ran.append(1)

    ids = await orphans(app, aconn, 5)
    async with running(app, **LASTING, concurrency=2), running(app, **LASTING, concurrency=2):
        for each in ids:
            await until(aconn, each, "succeeded")
    assert len(ran) == 5


async def test_a_worker_that_drains_goes_on_rescuing(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Maintenance, "_pause", lambda _: 0.05)
    started, go = asyncio.Event(), asyncio.Event()

    @app.task(name="long")
    async def long() -> None:
        started.set()
        await go.wait()

    job_id = await long.defer_async()
    async with running(app, **LASTING) as draining:
        await asyncio.wait_for(started.wait(), DEADLINE)
        draining.stop()
        for each in await orphans(app, aconn, 2):
            await until(aconn, each, "todo")
        assert (await job(aconn, job_id))["status"] == "doing"
        go.set()
        await until(aconn, job_id, "succeeded")


async def test_while_a_worker_drains_it_makes_no_new_work_and_prunes_nothing(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pljobs.maintenance.PRUNE_EVERY", 0.01)

    @app.periodic(cron="* * * * * *")
    @app.task(name="each_second")
    async def each_second(timestamp: int) -> None: ...

    made: list[str] = []

    async def execute(call: Any) -> Any:
        made.append(call.statement)
        return await app.connector.execute_async(call)

    stopping, drained = asyncio.Event(), asyncio.Event()
    duties = Maintenance(app, execute, interval=0.01, retention=Retention(timedelta(0)))
    task = asyncio.create_task(duties.run(stopping, until=drained))

    def number_of(function: str) -> int:
        return sum(function in each for each in made)

    await wait_until_async(lambda: number_of("prune_history") and number_of("defer_periodic"), DEADLINE)
    stopping.set()
    await wait_until_async(lambda: "rescue_jobs" in made[-1], DEADLINE)
    made.clear()
    await wait_until_async(lambda: number_of("wake_lanes") >= 150, DEADLINE)
    drained.set()
    await asyncio.wait_for(task, DEADLINE)
    assert number_of("rescue_jobs") + number_of("enforce_limits") + number_of("wake_lanes") == len(made)


async def test_of_a_duty_that_is_under_way_when_the_worker_has_drained_no_more_is_begun(app: App) -> None:
    made: list[str] = []
    stopping, drained = asyncio.Event(), asyncio.Event()

    async def execute(call: Any) -> Any:
        made.append(call.statement)
        drained.set()
        return await app.connector.execute_async(call)

    stopping.set()
    duties = Maintenance(app, execute, interval=0.01)
    await asyncio.wait_for(duties.run(stopping, until=drained), DEADLINE)
    assert len(made) == 1


async def test_a_job_that_kills_every_worker_fails_in_the_end(app: App, aconn: Conn) -> None:
    (job_id,) = await orphans(app, aconn, 1)
    async with managing(app, max_crashes=1):
        found = await until(aconn, job_id)
    assert (found["status"], found["message"]) == ("failed", "worker lost 1 times")


async def test_finished_jobs_and_their_trail_are_kept_as_long_as_told(app: App, aconn: Conn) -> None:
    old = await app.configure_task("gone").defer_async()
    young = await app.configure_task("gone").defer_async()
    for each in (old, young):
        await app.job_manager.cancel_job_by_id_async(each)
    await aconn.execute("UPDATE pljobs.job SET finished_at = now() - interval '2 days' WHERE id = %s", [old])
    await aconn.execute(
        "UPDATE pljobs.request SET resolved_at = now() - interval '2 days' WHERE job_id = %s", [old]
    )
    async with managing(app, retention=timedelta(days=1)):
        await until(aconn, old, "gone")

        async def pruned() -> bool:
            return await count(aconn, "SELECT count(*) FROM pljobs.requests") == 1

        await wait_until_async(pruned, DEADLINE)
    assert (await job(aconn, young))["status"] == "cancelled"


async def finished(app: App, aconn: Conn, count: int, *, days_ago: int) -> list[int]:
    """Make jobs that finished so long ago."""
    ids = await app.configure_task("gone").batch_defer_async(*({} for _ in range(count)))
    await aconn.execute(
        "UPDATE pljobs.job SET status = 'cancelled',"
        " finished_at = now() - %s * interval '1 day' - id * interval '1 s' WHERE id = ANY (%s)",
        [days_ago, ids],
    )
    return ids


async def test_finished_jobs_are_archived_where_that_is_wanted(app: App, aconn: Conn) -> None:
    (old,) = await finished(app, aconn, 1, days_ago=2)
    (young,) = await finished(app, aconn, 1, days_ago=0)
    async with running(app, **HASTY, retention=timedelta(days=1), archive=True):
        await until(aconn, old, "gone")
    async with managing(app, retention=timedelta(0), archive=True):
        await until(aconn, young, "gone")
    archived = await (await aconn.execute("SELECT id, status FROM pljobs.archive ORDER BY id")).fetchall()
    assert archived == [(old, "cancelled"), (young, "cancelled")]


async def test_a_prune_goes_on_where_it_was_batch_by_batch_and_begins_anew_at_times(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pljobs.maintenance.PRUNE_BATCH", 10)
    await finished(app, aconn, 25, days_ago=2)
    prunes: list[dict[str, Any]] = []
    answered: list[Any] = []

    async def execute(call: Any) -> Any:
        answer = await app.connector.execute_async(call)
        if "prune_jobs" in call.statement:
            prunes.append(dict(call.params))
            answered.append(answer)
        return answer

    maintenance = Maintenance(app, execute, interval=60, retention=Retention(timedelta(days=1)))
    assert await maintenance._prune() < PRUNE_EVERY
    assert await maintenance._prune() < PRUNE_EVERY
    assert await maintenance._prune() == PRUNE_EVERY
    assert [answer.pruned for answer in answered] == [10, 10, 5]
    assert await count(aconn, "SELECT count(*) FROM pljobs.jobs") == 0
    assert [prune["since"] for prune in prunes] == [None, *(answer.reached_at for answer in answered[:2])]
    # What somebody held when it was passed by.
    await finished(app, aconn, 1, days_ago=9)
    await maintenance._prune()
    assert await count(aconn, "SELECT count(*) FROM pljobs.jobs") == 1
    monkeypatch.setattr(maintenance, "_anew_at", 0.0)
    await maintenance._prune()
    assert await count(aconn, "SELECT count(*) FROM pljobs.jobs") == 0
    assert prunes[-1]["since"] is None


async def test_without_retention_nothing_is_pruned(app: App, aconn: Conn) -> None:
    old = await app.configure_task("gone").defer_async()
    await app.job_manager.cancel_job_by_id_async(old)
    await aconn.execute("UPDATE pljobs.job SET finished_at = now() - interval '20 years'")
    (rescued,) = await orphans(app, aconn, 1)
    async with managing(app):
        await until(aconn, rescued, "todo")
    assert (await job(aconn, old))["status"] == "cancelled"


async def test_each_tick_of_a_periodic_task_is_one_job_however_many_managers(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.periodic(cron="* * * * * *")
    @app.task(name="each_second")
    async def each_second(timestamp: int) -> None: ...

    # Who looks for the first time begins with the latest tick: those before it are left out, where nobody
    # else has deferred them yet.
    begun: list[float] = []

    def noting(*args: Any, since: datetime | None, now: datetime, **more: Any) -> list[periodic.Tick]:
        if since is None:
            begun.append(now.timestamp())
        return periodic.due_ticks(*args, since=since, now=now, **more)

    monkeypatch.setattr(maintenance, "due_ticks", noting)
    ticks = "SELECT count(*) FROM pljobs.jobs WHERE (args ->> 'timestamp')::int >= {}"

    async def ticked() -> bool:
        return len(begun) == 3 and await count(aconn, ticks.format(int(max(begun)))) >= 3

    async with managing(app, 3):
        await wait_until_async(ticked, DEADLINE)
    assert await count(aconn, "SELECT count(*) FROM pljobs.jobs") == await count(
        aconn, "SELECT count(DISTINCT args ->> 'timestamp') FROM pljobs.jobs"
    )
    # One after the other, with none left out.
    gaps = (
        "SELECT max(n) - min(n) + 1 - count(*)"
        " FROM (SELECT (args ->> 'timestamp')::int AS n FROM pljobs.jobs) AS t WHERE n >= {}"
    )
    assert await count(aconn, gaps.format(int(max(begun)))) == 0


async def test_workers_defer_and_run_periodic_tasks(app: App, aconn: Conn) -> None:
    seen: list[int] = []

    @app.periodic(cron="* * * * * *", periodic_id="first", queue="ticks", task_kwargs={"more": 1})
    @app.task(name="each_second")
    async def each_second(timestamp: int, more: int) -> None:
        seen.append(timestamp)

    async with running(app, **LASTING, queues=["ticks"]), running(app, **LASTING, queues=["ticks"]):
        await wait_until_async(lambda: len(seen) >= 2, DEADLINE)
    assert len(seen) == len(set(seen))


async def test_maintenance_goes_on_after_whatever_failed(app: App, caplog: pytest.LogCaptureFixture) -> None:
    done = asyncio.Event()
    failures: list[Exception] = [
        DatabaseUnavailable("said elsewhere"),
        PljobsException("odd"),
        ZeroDivisionError("a bug"),
    ]

    async def execute(call: Any) -> Any:
        if failures:
            raise failures.pop()
        done.set()
        return await app.connector.execute_async(call)

    stopping = asyncio.Event()
    maintenance = Maintenance(app, execute, interval=0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pljobs.maintenance.LONGEST_PAUSE", 0.01)
        task = asyncio.create_task(maintenance.run(stopping))
        await asyncio.wait_for(done.wait(), DEADLINE)
    stopping.set()
    await asyncio.wait_for(task, DEADLINE)
    assert caplog.text.count("Maintenance failed") == 2


def test_a_manager_without_an_interval_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        Manager(App("postgresql:///nowhere"), interval=0)


async def test_a_periodic_task_that_cant_be_deferred_keeps_no_other_waiting(
    app: App, aconn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    @app.periodic(cron="* * * * * *", task_kwargs={"folder": Path("/data")})
    @app.task(name="bad")
    def bad(timestamp: int, folder: object) -> None: ...

    @app.periodic(cron="* * * * * *")
    @app.task(name="good")
    def good(timestamp: int) -> None: ...

    async def is_deferred() -> bool:
        cursor = await aconn.execute("SELECT FROM pljobs.jobs WHERE task = 'good'")
        return cursor.rowcount >= 2

    async with managing(app):
        await wait_until_async(is_deferred, DEADLINE)
    assert "Periodic task bad, planned for" in caplog.text


async def test_a_periodic_task_of_a_queue_that_is_others_keeps_none_of_ones_own_waiting(
    admin_url: str, aconn: Conn
) -> None:
    await aconn.execute("DROP ROLE IF EXISTS pljobs_mail_only")
    await aconn.execute("CREATE ROLE pljobs_mail_only LOGIN; GRANT pljobs_worker TO pljobs_mail_only")
    await aconn.execute("SELECT pljobs.limit_queues('pljobs_mail_only', 'fetch', '{mail}')")
    app = App(make_conninfo(admin_url, user="pljobs_mail_only"))

    @app.periodic(cron="* * * * * *", queue="reports")
    @app.task(name="theirs")
    def theirs(timestamp: int) -> None: ...

    @app.periodic(cron="* * * * * *", queue="mail")
    @app.task(name="ours")
    def ours(timestamp: int) -> None: ...

    async def is_deferred() -> bool:
        cursor = await aconn.execute("SELECT FROM pljobs.jobs WHERE task = 'ours'")
        return cursor.rowcount >= 2

    try:
        async with app.open_async(), managing(app):
            await wait_until_async(is_deferred, DEADLINE)
        cursor = await aconn.execute("SELECT FROM pljobs.jobs WHERE task = 'theirs'")
        assert cursor.rowcount == 0
    finally:
        await aconn.execute("SELECT pljobs.limit_queues('pljobs_mail_only', 'fetch', NULL)")
        await aconn.execute("DROP ROLE pljobs_mail_only")
