"""Jobs that a worker has fetched ahead of its slots, and when it fetches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pljobs import App, JobContext, RetryStrategy, fetching
from pljobs.worker import Worker
from waiting import wait_until_async
from workers import DEADLINE, NOTIFIED, POLLING, job, request, row, running, until

Conn = psycopg.AsyncConnection[Any]


class Held:
    """Some short jobs, one that holds the only slot until `go`, and three that are fetched and wait."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.started: list[int] = []
        self.go, self.on = asyncio.Event(), asyncio.Event()
        self.on.set()

        @app.task(name="short", pass_context=True)
        async def short(context: JobContext) -> None:
            self.started.append(context.job.id or 0)
            await self.on.wait()

        @app.task(name="long")
        async def long() -> None:
            await self.go.wait()

        self.short, self.long = short, long

    @asynccontextmanager
    async def waiting(self, **options: Any) -> AsyncIterator[tuple[Worker, list[int]]]:
        """Run a worker; yield it and the ids of those that wait, once they do."""
        await self.short.batch_defer_async(*({} for _ in range(4)))
        await self.long.defer_async()
        last = await self.short.batch_defer_async(*({} for _ in range(3)))
        async with running(self.app, **(NOTIFIED | options)) as worker:
            await wait_until_async(lambda: len(self.held(worker)) == 3, DEADLINE, "three jobs wait")
            yield worker, last

    @staticmethod
    def held(worker: Worker) -> list[int]:
        return [run.job.id or 0 for run in worker._runs.values() if run is not None and run.waiting]


@pytest.fixture
def held(app: App, monkeypatch: pytest.MonkeyPatch) -> Held:
    # Enough for the worker to fetch all that there is, and no end to its patience.
    monkeypatch.setattr(fetching, "AHEAD", 600.0)
    monkeypatch.setattr(fetching, "GIVE_BACK_AFTER", 600.0)
    return Held(app)


async def test_what_is_fetched_ahead_runs_once_there_is_a_slot_and_never_more_at_once(
    held: Held, aconn: Conn
) -> None:
    async with held.waiting() as (_, last):
        assert [(await job(aconn, each))["status"] for each in last] == ["doing"] * 3
        assert not set(last) & set(held.started)
        held.go.set()
        for each in last:
            await until(aconn, each, "succeeded")
    assert held.started[-3:] == last


async def test_a_stop_gives_what_waits_back_at_once_and_does_not_charge_it(
    held: Held, aconn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pljobs")
    async with held.waiting() as (worker, last):
        worker.stop()
        for each in last:
            found = await until(aconn, each, "todo")
            assert found["attempts"] == 0
        assert await row(aconn, "SELECT count(*) AS n FROM pljobs.jobs WHERE status = 'doing'") == {"n": 1}
        held.go.set()
    assert not set(last) & set(held.started)
    said = [r for r in caplog.records if r.__dict__.get("job_id") in last]
    assert [r.levelname for r in said] == ["INFO"] * 3
    assert all(r.getMessage().endswith("is now todo again: given back: it had not started") for r in said)


async def test_a_second_stop_too_gives_it_back_as_not_started(held: Held, aconn: Conn) -> None:
    async with held.waiting() as (worker, last):
        worker.abort()
        for each in last:
            await until(aconn, each, "todo")
            query = "SELECT array_agg(e.kind) AS kinds FROM pljobs.job_event AS e WHERE e.job_id = %s"
            assert await row(aconn, query, each) == {"kinds": ["given_back"]}
    assert not set(last) & set(held.started)


async def test_what_finds_no_slot_soon_goes_back_for_others(
    held: Held, aconn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "GIVE_BACK_AFTER", 2.0)
    async with held.waiting() as (worker, last):
        for each in last:
            await until(aconn, each, "todo")
        assert held.held(worker) == []
        other = App(held.app.connector._conninfo)
        other.tasks.update(held.app.tasks)
        async with running(other, **NOTIFIED, concurrency=3):
            for each in last:
                await until(aconn, each, "succeeded")
        held.go.set()


@pytest.mark.parametrize("options", [NOTIFIED, POLLING], ids=["notified", "polling"])
async def test_an_abort_of_what_waits_ends_it_unstarted(
    held: Held, aconn: Conn, options: dict[str, Any]
) -> None:
    async with held.waiting(**options) as (_, last):
        result = await held.app.job_manager.cancel_job_by_id_async(last[1], abort=True)
        assert result
        assert (await until(aconn, last[1]))["status"] == "aborted"
        assert (await request(aconn, last[1]))["resolution"] == "aborted"
        held.go.set()
        await until(aconn, last[2], "succeeded")
    assert last[1] not in held.started
    assert last[0] in held.started


async def test_what_has_ended_while_it_waited_is_in_nobodys_way(
    held: Held, aconn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "GIVE_BACK_AFTER", 2.0)
    async with held.waiting() as (worker, last):
        for each in last[:2]:
            await held.app.job_manager.cancel_job_by_id_async(each, abort=True)
            await until(aconn, each, "aborted")
        await until(aconn, last[2], "todo")
        assert not worker._fetcher._waiting
        held.go.set()


async def test_what_waits_is_stopped_by_its_timeout_like_what_runs(app: App, held: Held, aconn: Conn) -> None:
    await held.short.batch_defer_async(*({} for _ in range(4)))
    await held.long.defer_async()
    late = await held.short.configure(timeout=timedelta(milliseconds=300)).defer_async()
    async with running(app, **NOTIFIED):
        found = await until(aconn, late)
        held.go.set()
    assert found["status"] == "failed"
    assert found["message"].startswith("timeout")
    assert late not in held.started


async def test_a_forced_end_of_what_waits_keeps_it_from_starting(held: Held, aconn: Conn) -> None:
    async with held.waiting() as (worker, last):
        await held.app.job_manager.cancel_job_by_id_async(last[0], abort=True, force=True)
        await wait_until_async(lambda: last[0] not in held.held(worker), DEADLINE)
        held.go.set()
        await until(aconn, last[2], "succeeded")
        assert (await job(aconn, last[0]))["status"] == "aborted"
    assert last[0] not in held.started


async def test_a_lease_that_runs_out_ends_what_waits_and_it_runs_again(held: Held, aconn: Conn) -> None:
    async with held.waiting() as (worker, last):
        worker._lease.look(worker._control.renewed_at - 0.7 * worker.stalled_timeout)
        # At once: each second the worker looks by itself, and finds a lease that is as good as new.
        assert worker._lease.running_out
        for each in last:
            assert (await until(aconn, each, "todo"))["attempts"] == 0
        worker.stop()
        held.go.set()


async def test_long_jobs_are_not_fetched_ahead(app: App, aconn: Conn) -> None:
    go = asyncio.Event()

    @app.task(name="long")
    async def long() -> None:
        await go.wait()

    ids = await long.batch_defer_async(*({} for _ in range(9)))
    async with running(app, **NOTIFIED, concurrency=3):
        for each in ids[:3]:
            await until(aconn, each, "doing")
        assert {(await job(aconn, each))["status"] for each in ids[3:]} == {"todo"}
        go.set()
        for each in ids:
            await until(aconn, each, "succeeded")


async def test_a_scheduled_job_runs_when_it_is_due_and_not_at_the_next_poll(app: App, aconn: Conn) -> None:
    @app.task(name="scheduled")
    async def scheduled() -> None: ...

    due = await scheduled.configure(schedule_in={"seconds": 1}).defer_async()
    async with running(app, **NOTIFIED):
        await until(aconn, due, "succeeded", deadline=DEADLINE)


async def test_a_retry_runs_when_it_is_due(app: App, aconn: Conn) -> None:
    @app.task(name="fails", retry=RetryStrategy(max_attempts=1, wait=1))
    async def fails() -> None:
        raise ValueError

    failing = await fails.defer_async()
    async with running(app, **NOTIFIED):
        found = await until(aconn, failing, "failed")
    assert found["attempts"] == 2


async def test_a_worker_that_may_not_ask_what_comes_next_polls(app: App, aconn: Conn) -> None:
    @app.task(name="scheduled")
    async def scheduled() -> None: ...

    await aconn.execute("REVOKE EXECUTE ON FUNCTION pljobs.next_fetch_v1 FROM pljobs_worker, pljobs_operator")
    due = await scheduled.configure(schedule_in={"seconds": 1}).defer_async()
    async with running(app, **POLLING):
        await until(aconn, due, "succeeded")


async def test_an_end_is_reported_while_a_fetch_hangs(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, go = asyncio.Event(), asyncio.Event()

    @app.task(name="long")
    async def long() -> None:
        await go.wait()

    first = await long.defer_async()
    async with running(app, **POLLING, concurrency=2) as worker:
        await until(aconn, first, "doing")
        execute = worker._fetch_link.execute

        async def hang(call: Any) -> Any:
            await release.wait()
            return await execute(call)

        monkeypatch.setattr(worker._fetch_link, "execute", hang)
        await asyncio.sleep(3 * POLLING["fetch_job_polling_interval"])
        go.set()
        await until(aconn, first, "succeeded")
        release.set()


async def test_an_end_that_cant_be_written_keeps_its_slot_until_it_is(
    held: Held, admin_url: str, aconn: Conn
) -> None:
    async with held.waiting() as (worker, last):
        async with await psycopg.AsyncConnection.connect(admin_url) as other:
            await other.execute("SELECT FROM pljobs.job WHERE task = 'long' FOR UPDATE")
            held.on.clear()
            held.go.set()
            await wait_until_async(lambda: worker._finisher.held() == 1, DEADLINE)
            # The first started before it was known.
            held.on.set()
            await until(aconn, last[0], "succeeded")
            assert not set(last[1:]) & set(held.started)
            await other.rollback()
        for each in last:
            await until(aconn, each, "succeeded")


async def test_a_worker_that_sleeps_learns_of_a_job_that_is_put_back_for_soon(app: App, aconn: Conn) -> None:
    @app.task(name="fails")
    async def fails() -> None:
        raise ValueError

    async with running(app, **NOTIFIED):
        job_id = await fails.defer_async()
        await until(aconn, job_id, "failed")
        await asyncio.sleep(0.5)  # it has asked what is due, and sleeps for ten minutes
        await aconn.execute("SELECT pljobs.retry_job(%s, clock_timestamp() + interval '1 s')", [job_id])

        async def again() -> bool:
            return bool((await job(aconn, job_id))["attempts"] == 2)

        await wait_until_async(again, DEADLINE / 2)
