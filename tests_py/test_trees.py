"""Jobs that jobs defer: they know their parent, and none of a cancelled tree escapes."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import pytest

from pljobs import App, JobContext, current_context
from pljobs.exceptions import TreeCancelled
from waiting import wait_until_async
from workers import DEADLINE, NOTIFIED, POLLING, job, request, running, until

Conn = psycopg.AsyncConnection[Any]


async def cancel_tree(conn: Conn, root: int, options: str = "abort => true") -> dict[int, str]:
    cursor = await conn.execute(
        f"SELECT job_id, outcome FROM pljobs.cancel_tree(%s, {options})".encode(), [root]
    )
    return dict(await cursor.fetchall())


async def test_a_job_deferred_inside_a_job_knows_its_parent(app: App, aconn: Conn) -> None:
    @app.task
    def leaf() -> None: ...

    @app.task
    def in_thread() -> int:
        return leaf.defer()

    @app.task
    async def in_loop() -> list[int]:
        own = await leaf.defer_async()
        by_helper = await asyncio.create_task(leaf.defer_async())
        by_thread = await asyncio.to_thread(leaf.defer)
        return [own, by_helper, by_thread]

    @app.task
    async def apart() -> int:
        return await leaf.configure(parent=None).defer_async()

    async with running(app, concurrency=4, **NOTIFIED):
        roots = [await task.defer_async() for task in (in_thread, in_loop, apart)]
        ended = [await until(aconn, root, "succeeded") for root in roots]
    parents = [(await job(aconn, child))["parent_id"] for child in (ended[0]["result"], *ended[1]["result"])]
    assert parents == [roots[0], roots[1], roots[1], roots[1]]
    assert (await job(aconn, ended[2]["result"]))["parent_id"] is None
    assert (await job(aconn, roots[0]))["parent_id"] is None
    assert current_context() is None


async def test_a_cancelled_tree_stops_all_of_it(app: App, aconn: Conn) -> None:
    ran: list[str] = []
    grown = asyncio.Event()

    @app.task
    async def leaf() -> None:
        ran.append("leaf")

    @app.task
    async def branch() -> None:
        await leaf.configure(schedule_in={"hours": 1}).defer_async()
        grown.set()
        await asyncio.sleep(DEADLINE)

    @app.task
    async def root() -> None:
        await branch.defer_async()
        await asyncio.sleep(DEADLINE)

    async with running(app, concurrency=4, **NOTIFIED):
        root_id = await root.defer_async()
        await asyncio.wait_for(grown.wait(), DEADLINE)
        answers = await cancel_tree(aconn, root_id, "abort => true, reason => 'bad deploy', actor => 'ann'")
        for job_id in answers:
            await until(aconn, job_id, "aborted", "cancelled")
    assert sorted(answers.values()) == ["abort_requested", "abort_requested", "cancelled"]
    assert ran == []
    sources = [(await request(aconn, each))["source"] for each in sorted(answers)]
    assert sources == ["user", "tree", "tree"]


async def test_a_running_job_of_a_cancelled_tree_can_defer_no_more(app: App, aconn: Conn) -> None:
    begun = threading.Event()
    refused: list[str] = []
    go = threading.Event()

    @app.task
    def leaf() -> None: ...

    @app.task
    def root() -> None:
        begun.set()
        go.wait(DEADLINE)
        with pytest.raises(TreeCancelled) as info:
            leaf.defer()
        refused.append(str(info.value))
        leaf.configure(parent=None).defer()

    async with running(app, **NOTIFIED):
        root_id = await root.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        await cancel_tree(aconn, root_id)
        go.set()
        await until(aconn, root_id, "succeeded")
    assert f"job {root_id} can't defer jobs: its tree was cancelled" in refused[0]


@pytest.mark.parametrize(
    "options", [NOTIFIED, POLLING | {"abort_job_polling_interval": 600.0}], ids=["told", "not told yet"]
)
async def test_a_job_that_ends_because_it_can_defer_no_more_has_stopped_as_it_was_asked_to(
    app: App, aconn: Conn, options: dict[str, Any]
) -> None:
    started, go, cleaned = threading.Event(), threading.Event(), asyncio.Event()

    @app.task(name="clean up")
    async def clean_up(**_: Any) -> None:
        cleaned.set()

    @app.task(on_cancelled="clean up", name="fans out")
    def fans_out() -> None:
        started.set()
        go.wait(DEADLINE)
        leaf.defer()

    @app.task(name="leaf")
    async def leaf() -> None: ...

    async with running(app, **options):
        root_id = await fans_out.defer_async()
        assert await asyncio.to_thread(started.wait, DEADLINE)
        await cancel_tree(aconn, root_id)
        go.set()
        found = await until(aconn, root_id)
        await asyncio.wait_for(cleaned.wait(), DEADLINE)
    assert found["status"] == "aborted"
    assert found["message"] == f"job {root_id} can't defer jobs: its tree was cancelled"
    assert (await request(aconn, root_id))["resolution"] == "aborted"


async def test_a_child_that_is_being_deferred_when_its_tree_is_cancelled_never_runs(
    app: App, aconn: Conn, db_url: str
) -> None:
    ran: list[int] = []

    @app.task(pass_context=True)
    async def child(context: JobContext) -> None:
        ran.append(context.job.id or 0)

    @app.task
    async def root() -> None: ...

    root_id = await root.defer_async()
    async with await psycopg.AsyncConnection.connect(db_url) as late:
        child_id = await child.configure(parent=root_id, connection=late).defer_async()
        assert await cancel_tree(aconn, root_id) == {root_id: "cancelled"}
        await late.commit()
    async with running(app, **NOTIFIED):
        await until(aconn, child_id, "cancelled")
        # Put back by a person it runs, though its parent stays cancelled.
        assert await app.job_manager.retry_job_by_id_async(child_id)
        await until(aconn, child_id, "succeeded")
    assert ran == [child_id]
    assert (await job(aconn, root_id))["status"] == "cancelled"


# What runs after a cancellation


async def test_a_task_can_name_another_to_run_after_it_was_cancelled_or_aborted(
    app: App, aconn: Conn
) -> None:
    seen: dict[int, dict[str, Any]] = {}
    begun = asyncio.Event()

    @app.task(name="clean up")
    async def clean_up(**what: Any) -> None:
        seen[what["job_id"]] = what

    @app.task(on_cancelled="clean up", name="task")
    async def task(n: int) -> None:
        if n:
            begun.set()
        await asyncio.sleep(DEADLINE if n else 0)

    waiting = await task.configure(queue="later").defer_async(n=7)
    deleted = await task.configure(queue="later").defer_async(n=8)
    await app.job_manager.cancel_job_by_id_async(waiting, reason="not needed")
    await app.job_manager.cancel_job_by_id_async(deleted, delete_job=True)
    async with running(app, concurrency=2, **NOTIFIED):
        fine = await task.defer_async(n=0)
        await until(aconn, fine, "succeeded")
        aborted = await task.defer_async(n=9)
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        await app.job_manager.cancel_job_by_id_async(aborted, abort=True, reason="enough")
        await until(aconn, aborted, "aborted")
        await wait_until_async(lambda: len(seen) == 3, DEADLINE, "three follow-ups have run")
    assert seen == {
        waiting: {
            "job_id": waiting,
            "task": "task",
            "args": {"n": 7},
            "status": "cancelled",
            "reason": "not needed",
        },
        deleted: {"job_id": deleted, "task": "task", "args": {"n": 8}, "status": "cancelled", "reason": None},
        aborted: {
            "job_id": aborted,
            "task": "task",
            "args": {"n": 9},
            "status": "aborted",
            "reason": "enough",
        },
    }


async def test_a_cancellation_that_is_rolled_back_leaves_no_follow_up(
    app: App, aconn: Conn, db_url: str
) -> None:
    @app.task(on_cancelled="clean up")
    async def task() -> None: ...

    job_id = await task.defer_async()
    async with await psycopg.AsyncConnection.connect(db_url) as person:
        await app.job_manager.cancel_job_by_id_async(job_id, connection=person)
        await person.rollback()
    assert (await job(aconn, job_id))["status"] == "todo"
    assert len(await app.job_manager.list_jobs_async()) == 1
