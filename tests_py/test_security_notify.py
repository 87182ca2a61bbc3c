"""Anybody can notify: nothing happens that the tables don't say, and a flood costs little."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pljobs import App, calls
from pljobs.embedded import Server
from waiting import wait_until_async
from workers import NOTIFIED, job, row, running, until

Conn = psycopg.AsyncConnection[Any]
LOGIN = "notify_nobody"
DEFAULT_QUEUE = hashlib.md5(b"default").hexdigest()


@pytest.fixture
def nobody(server: Server, template: str, admin_url: str) -> Iterator[psycopg.Connection]:
    """A login that has no rights, but may connect."""
    server.run_sql(f"CREATE ROLE {LOGIN} LOGIN")
    with psycopg.connect(make_conninfo(admin_url, user=LOGIN), autocommit=True) as conn:
        yield conn
    server.run_sql(f"DROP ROLE {LOGIN}")


FORGED = [
    "",
    "1",
    "abort",
    '{"job_id": 1, "abort": true}',
    "kill",
    "'; DROP TABLE x; --",
    "\u202e" * 100,
    "x" * 7999,
]


async def test_a_forged_notification_makes_nothing_happen(
    app: App, aconn: Conn, nobody: psycopg.Connection
) -> None:
    go = asyncio.Event()

    @app.task(name="runs")
    async def runs() -> str:
        await go.wait()
        return "undisturbed"

    @app.task(name="waits")
    async def waits() -> None: ...

    async with running(app, concurrency=2, **NOTIFIED) as worker:
        running_id = await runs.defer_async()
        waiting_id = await app.configure_task("waits", schedule_in={"hours": 1}).defer_async()
        await until(aconn, running_id, "doing")
        before = await row(aconn, "SELECT heartbeat_at FROM pljobs.workers WHERE id = %s", worker.worker_id)
        for payload in FORGED:
            for channel in (f"pljobs_worker_{worker.worker_id}", "pljobs_todo"):
                nobody.execute("SELECT pg_notify(%s, %s)", [channel, payload])

        async def looked() -> bool:
            now = await row(aconn, "SELECT heartbeat_at FROM pljobs.workers WHERE id = %s", worker.worker_id)
            return now is not None and before is not None and now["heartbeat_at"] > before["heartbeat_at"]

        await wait_until_async(looked, what="the worker has looked")
        assert (await job(aconn, running_id))["status"] == "doing"
        assert (await job(aconn, running_id))["abort_requested"] is False
        assert (await job(aconn, waiting_id))["status"] == "todo"
        go.set()
        assert (await until(aconn, running_id))["result"] == "undisturbed"
    assert await row(aconn, "SELECT 1 FROM pljobs.requests") is None


class Calls:
    """Count how often the worker asks the database."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.count = 0
        original = getattr(calls, name)

        def counted(*args: Any, **kwargs: Any) -> object:
            self.count += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(calls, name, counted)


@pytest.mark.parametrize(("channel", "aborting"), [("worker", False), ("worker", True), ("todo", False)])
async def test_a_flood_of_notifications_costs_a_look_in_a_while(
    app: App,
    aconn: Conn,
    nobody: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    channel: str,
    aborting: bool,
) -> None:
    heartbeats, fetches = Calls(monkeypatch, "heartbeat"), Calls(monkeypatch, "fetch_jobs")
    swallowing = asyncio.Event()

    @app.task(name="runs")
    async def runs() -> None:
        while not swallowing.is_set():
            try:
                await swallowing.wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)

    @app.task(name="quick")
    async def quick() -> None: ...

    async with running(app, concurrency=2, **NOTIFIED) as worker:
        try:
            job_id = await runs.defer_async()
            await until(aconn, job_id, "doing")
            if aborting:
                await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
                await wait_until_async(lambda: _handled(aconn, job_id), what="it is asked to abort")
            name = f"pljobs_worker_{worker.worker_id}" if channel == "worker" else "pljobs_todo"
            counted = heartbeats if channel == "worker" else fetches
            began, before = time.monotonic(), counted.count

            def flood() -> int:
                sent = 0
                while sent < 200 or time.monotonic() < began + 1.5:
                    nobody.execute("SELECT pg_notify(%s, %s)", [name, DEFAULT_QUEUE])
                    sent += 1
                return sent

            sent = await asyncio.to_thread(flood)
            await wait_until_async(lambda: counted.count > before, what="it has looked")
            looks, took = counted.count - before, time.monotonic() - began
            # One at once, then one each 50 ms; and what the flood's end and a heartbeat of its own add.
            assert 1 <= looks <= took / 0.05 + 5, f"{looks} looks for {sent} notifications in {took} s"

            # And it still hears what is meant.
            assert (await until(aconn, await quick.defer_async()))["status"] == "succeeded"
            if not aborting:
                await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
                await wait_until_async(lambda: _handled(aconn, job_id), what="it is asked to abort")
        finally:
            swallowing.set()
        await until(aconn, job_id)


async def _handled(aconn: Conn, job_id: int) -> bool:
    found = await row(aconn, "SELECT delivered_at FROM pljobs.requests WHERE job_id = %s", job_id)
    return found is not None and found["delivered_at"] is not None
