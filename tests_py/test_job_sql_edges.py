"""`context.connection()` misused, broken and cut off: no key of a run is left, no error is lost."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import psycopg_pool
import pytest

from pljobs import App, JobAborted, JobContext
from waiting import wait_until_async
from workers import DEADLINE, NOTIFIED, request, running, until

Conn = psycopg.AsyncConnection[Any]
SLEEP = f"SELECT pg_sleep({DEADLINE})".encode()


async def keys(conn: Conn) -> int:
    """How many keys of runs are held."""
    cursor = await conn.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"
        " AND classid >= (1::bigint << 30) AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    found = await cursor.fetchone()
    assert found is not None
    return int(found[0])


async def run(app: App, conn: Conn, task: Any) -> dict[str, Any]:
    """Run a task in a worker; return the job."""
    async with running(app, **NOTIFIED):
        return await until(conn, await task.defer_async())


async def cancel(conn: Conn, job_id: int, options: str = "") -> None:
    await conn.execute(f"SELECT pljobs.cancel_job(%s, abort => true{options})".encode(), [job_id])


# Cut off


async def test_cancelled_while_entering_no_key_stays(app: App, aconn: Conn, db_url: str) -> None:
    """Just after the key was taken: a connection that is not in autocommit then ends its transaction."""

    class CutOff(psycopg.AsyncConnection[Any]):
        async def rollback(self) -> None:
            raise asyncio.CancelledError

    kept: list[CutOff] = []

    @app.task(pass_context=True)
    async def task(context: JobContext) -> None:
        kept.append(await CutOff.connect(db_url))
        async with context.connection(kept[0]):
            raise AssertionError("entered")

    found = await run(app, aconn, task)
    assert found["status"] == "failed"
    assert "entered" not in (found["error"] or "")
    held = await keys(aconn)
    is_closed = kept[0].closed
    await kept[0].close()
    assert (held, is_closed) == (0, True)


async def test_left_open_the_key_is_gone_when_nobody_holds_the_block(
    app: App, aconn: Conn, db_url: str
) -> None:
    with psycopg_pool.ConnectionPool(db_url, min_size=1, max_size=1) as pool:

        @app.task(pass_context=True)
        def task(context: JobContext) -> None:
            context.connection(pool).__enter__()

        assert (await run(app, aconn, task))["status"] == "succeeded"
        with pool.connection() as conn:
            conn.execute("SELECT 1")
        await wait_until_async(lambda: _no_keys(aconn))


async def _no_keys(conn: Conn) -> bool:
    return await keys(conn) == 0


# Entered twice


async def test_a_block_is_entered_once(app: App, aconn: Conn) -> None:
    @app.task(pass_context=True)
    def task(context: JobContext) -> list[str]:
        said = []
        lent = context.connection()
        with lent as conn:
            try:
                with lent:
                    said.append("entered twice")
            except RuntimeError as error:
                said.append(type(error).__name__)
            said.append(conn.execute("SELECT 'still there'").fetchone()[0])  # type: ignore[index]
        with lent as conn:
            said.append(conn.execute("SELECT 'again'").fetchone()[0])  # type: ignore[index]
        return said

    found = await run(app, aconn, task)
    assert found["result"] == ["RuntimeError", "still there", "again"]
    assert await keys(aconn) == 0


async def test_an_async_block_is_entered_once(app: App, aconn: Conn) -> None:
    @app.task(pass_context=True)
    async def task(context: JobContext) -> list[str]:
        said = []
        lent = context.connection()
        async with lent as conn:
            try:
                async with lent:
                    said.append("entered twice")
            except RuntimeError as error:
                said.append(type(error).__name__)
            row = await (await conn.execute("SELECT 'still there'")).fetchone()
            said.append(row[0])  # type: ignore[index]
        return said

    found = await run(app, aconn, task)
    assert found["result"] == ["RuntimeError", "still there"]
    assert await keys(aconn) == 0


# Broken inside


async def test_when_the_connection_breaks_the_tasks_own_error_comes_out(app: App, aconn: Conn) -> None:
    @app.task(pass_context=True)
    def task(context: JobContext) -> None:
        with context.connection() as conn:
            conn.close()
            raise ValueError("the task's own")

    found = await run(app, aconn, task)
    assert found["message"] == "ValueError: the task's own"


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_an_abort_is_one_though_the_connection_breaks_meanwhile(
    app: App, aconn: Conn, kind: str
) -> None:
    started = threading.Event()

    @app.task(pass_context=True, name="async")
    async def task(context: JobContext) -> None:
        async with context.connection() as conn:
            started.set()
            try:
                await asyncio.sleep(DEADLINE)
            finally:
                await conn.close()

    @app.task(pass_context=True, name="thread")
    def task_in_a_thread(context: JobContext) -> None:
        with context.connection() as conn:
            started.set()
            context.abort_flag.wait(DEADLINE)
            conn.close()
            raise JobAborted

    async with running(app, **NOTIFIED):
        job_id = await app.configure_task(kind).defer_async()
        await wait_until_async(started.is_set, DEADLINE)
        await cancel(aconn, job_id)
        assert (await until(aconn, job_id))["status"] == "aborted"


async def test_a_connection_closed_inside_ends_the_block(app: App, aconn: Conn) -> None:
    @app.task(pass_context=True)
    async def task(context: JobContext) -> str:
        async with context.connection() as conn:
            await conn.close()
        with context.connection() as sync_conn:
            sync_conn.close()
        return "done"

    assert (await run(app, aconn, task))["result"] == "done"


# Time enough for the block's own COMMIT, and none for the wait that follows.
@pytest.mark.parametrize(
    "setting", ["SET ROLE nobody", "SET statement_timeout = '200 ms'", "SET lock_timeout = '10 ms'"]
)
async def test_what_cant_leave_is_closed_and_what_was_done_counts(
    app: App, aconn: Conn, db_url: str, setting: str
) -> None:
    await aconn.execute("DO $$ BEGIN CREATE ROLE nobody; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    await aconn.execute("CREATE TABLE done (a int)")
    await aconn.execute("GRANT INSERT ON done TO PUBLIC; GRANT nobody TO pljobs_tests")
    async with await psycopg.AsyncConnection.connect(db_url, autocommit=True) as canceller:
        with psycopg_pool.ConnectionPool(db_url, min_size=1, max_size=1) as pool:

            @app.task(pass_context=True)
            async def task(context: JobContext) -> str:
                # Somebody is about to cancel: leaving has to wait for it.
                await canceller.execute(
                    "SELECT pg_advisory_lock((1::bigint << 62) | (%s::bigint << 1) + 1)", [context.job.run_id]
                )
                await asyncio.to_thread(works, context)
                return "done"

            def works(context: JobContext) -> None:
                with context.connection(pool) as conn:
                    conn.execute("INSERT INTO done VALUES (1)")
                    conn.execute(setting.encode())

            found = await run(app, aconn, task)
            assert (found["status"], found["result"]) == ("succeeded", "done")
            with pool.connection() as conn:
                conn.execute("SELECT 1")
            assert await keys(aconn) == 0
    assert await (await aconn.execute("SELECT count(*) FROM done")).fetchone() == (1,)


# What it is used with


async def test_a_statement_that_is_cancelled_in_a_task_group_is_an_abort(app: App, aconn: Conn) -> None:
    """The statement's end may overtake the CancelledError: here the parent never gets any."""

    @app.task(pass_context=True)
    async def task(context: JobContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(in_a_thread, context))
            group.create_task(asyncio.sleep(DEADLINE))

    def in_a_thread(context: JobContext) -> None:
        with context.connection() as conn:
            conn.execute(SLEEP)

    async with running(app, **NOTIFIED):
        job_id = await task.defer_async()
        await until(aconn, job_id, "doing")

        async def in_sql() -> bool:
            cursor = await aconn.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active'"
                " AND pid <> pg_backend_pid() AND datname = current_database()"
            )
            return await cursor.fetchone() == (1,)

        await wait_until_async(in_sql, DEADLINE)
        await aconn.execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE '%%pg_sleep%%' AND pid <> pg_backend_pid()"
            " AND pljobs.cancel_job(%s, abort => true, sql => true) <> ''",
            [job_id],
        )
        found = await until(aconn, job_id)
    assert found["status"] == "aborted"
    assert (await request(aconn, job_id))["resolution"] == "aborted"


@pytest.mark.parametrize("autocommit", [True, False])
async def test_pipelines_cursors_and_row_factories_of_ones_own_do_no_harm(
    app: App, aconn: Conn, db_url: str, autocommit: bool
) -> None:
    with psycopg.connect(
        db_url, autocommit=autocommit, row_factory=psycopg.rows.dict_row, prepare_threshold=0,
        cursor_factory=psycopg.ClientCursor,
    ) as own:  # fmt: skip

        @app.task(pass_context=True)
        def task(context: JobContext) -> list[Any]:
            seen: list[Any] = []
            for _ in range(3):
                with context.connection(own) as conn, conn.pipeline():
                    conn.execute("SELECT 1")
                    conn.execute("SELECT 2")
                with context.connection(own) as conn, conn.transaction(), conn.cursor(name="c") as cursor:
                    cursor.execute("SELECT generate_series(1, 1000)")
                    seen.append(cursor.fetchone())
            return seen

        found = await run(app, aconn, task)
    assert found["result"] == [{"generate_series": 1}] * 3, found["error"]
    assert await keys(aconn) == 0


async def test_a_pipeline_around_the_block_does_no_harm(app: App, aconn: Conn, db_url: str) -> None:
    with psycopg.connect(db_url) as own:

        @app.task(pass_context=True)
        def task(context: JobContext) -> Any:
            with own.pipeline(), context.connection(own) as conn:
                return conn.execute("SELECT 1").fetchone()

        found = await run(app, aconn, task)
    assert found["result"] == [1], found["error"]
    assert await keys(aconn) == 0
