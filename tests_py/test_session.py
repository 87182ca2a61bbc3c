"""Poolers and roles with defaults of their own: calls do the same, or it is said what to set."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.conninfo import make_conninfo

from pgbouncer import MISSING, Pooler, binary, folder_for, pgbouncer
from pljobs import App, JobContext, PsycopgConnector, session
from pljobs.embedded import SUPERUSER, Server
from pljobs.exceptions import ConnectorException
from pljobs.listener import Listener
from waiting import wait_until_async
from workers import DEADLINE, HASTY, NOTIFIED, POLLING, request, running, until

Conn = psycopg.AsyncConnection[Any]
WARNING = "Notifications don't arrive on this connection"
needs_pgbouncer = pytest.mark.skipif(binary() is None, reason=MISSING)


@pytest.fixture
def pooler(server: Server) -> Iterator[Pooler]:
    with folder_for() as folder, pgbouncer(server, folder, SUPERUSER) as running_pooler:
        yield running_pooler


def through(pooler: Pooler, aconn: Conn, **settings: Any) -> App:
    return App(PsycopgConnector(pooler.url(aconn.info.dbname, SUPERUSER), **settings))


# Behind PgBouncer


@needs_pgbouncer
async def test_behind_a_transaction_pooler_nothing_is_prepared(aconn: Conn, pooler: Pooler) -> None:
    app = through(pooler, aconn)
    task = app.configure_task("x")
    async with app.open_async():
        # More than it takes to prepare a statement, over more connections than there are server processes.
        ids = await asyncio.gather(*(task.defer_async() for _ in range(200)))
        ids += [task.defer() for _ in range(20)]
        assert await app.job_manager.get_job_status_async(ids[0]) == "todo"
    assert len(set(ids)) == 220


@needs_pgbouncer
async def test_who_says_what_to_prepare_is_obeyed(aconn: Conn, pooler: Pooler) -> None:
    with through(pooler, aconn, prepare_threshold=7).connector.connect() as conn:
        assert conn.prepare_threshold == 7
    with through(pooler, aconn).connector.connect() as conn:
        assert conn.prepare_threshold is None
    with PsycopgConnector(make_conninfo("", **aconn.info.get_parameters())).connect() as conn:
        assert conn.prepare_threshold == 5


@needs_pgbouncer
async def test_a_worker_behind_a_transaction_pooler_says_that_it_polls_and_leaves_no_settings(
    aconn: Conn, pooler: Pooler, caplog: pytest.LogCaptureFixture
) -> None:
    app = through(pooler, aconn)
    started = asyncio.Event()

    @app.task(name="long")
    async def long() -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    options = HASTY | {"stalled_worker_timeout": 20.0}
    async with app.open_async(), running(app, **options):
        await wait_until_async(lambda: WARNING in caplog.text, DEADLINE, "it says so")
        job_id = await long.defer_async()
        await asyncio.wait_for(started.wait(), DEADLINE)
        await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
        assert (await until(aconn, job_id))["status"] == "aborted"
    url = pooler.url(aconn.info.dbname, SUPERUSER)
    with psycopg.connect(url) as one, psycopg.connect(url) as other:
        for conn in (one, other):
            found = conn.execute(
                "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
            )
            assert found.fetchone() == ("0", "0")


def test_what_others_have_a_server_process_listen_for_proves_nothing(
    db_url: str, admin_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    connector, elsewhere = PsycopgConnector(db_url), make_conninfo(admin_url, dbname="postgres")
    with connector.connect() as conn, connector.connect() as other, psycopg.connect(elsewhere) as far:
        conn.execute("LISTEN other_worker")
        other.execute("NOTIFY other_worker")
        session._pooled[conn] = True
        # As far away as the one that a pooler lends: what it says does not arrive here.
        Listener(7, None, polls_every=1).start(conn, patience=0.1, elsewhere=lambda: nullcontext(far))
    assert WARNING in caplog.text


@needs_pgbouncer
async def test_behind_a_session_pooler_notifications_arrive(
    server: Server, aconn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    with folder_for() as folder, pgbouncer(server, folder, SUPERUSER, mode="session") as pooler:
        app = through(pooler, aconn, max_size=1)

        @app.task(name="quick")
        async def quick() -> None: ...

        async with app.open_async(), running(app, **NOTIFIED):
            await until(aconn, await quick.defer_async(), "succeeded")
    assert WARNING not in caplog.text


@needs_pgbouncer
async def test_a_jobs_sql_behind_a_transaction_pooler_is_said_to_be_pooled(
    aconn: Conn, pooler: Pooler
) -> None:
    app = through(pooler, aconn)
    inside = asyncio.Event()

    @app.task(name="in_sql", pass_context=True)
    async def in_sql(context: JobContext) -> None:
        async with context.connection() as conn:
            await conn.execute("SELECT 1")
            inside.set()
            await asyncio.get_running_loop().create_future()

    async with app.open_async(), running(app, **POLLING | {"update_heartbeat_interval": 0.1}):
        job_id = await in_sql.defer_async()
        await asyncio.wait_for(inside.wait(), DEADLINE)
        await app.job_manager.cancel_job_async(job_id, abort=True, sql=True)
        assert (await until(aconn, job_id))["status"] == "aborted"
    assert (await request(aconn, job_id))["sql_way"] in {"pooled", "none"}


# Defaults of a role


@pytest.fixture
def hostile(conn: psycopg.Connection, db_url: str) -> str:
    for setting in (
        "default_transaction_isolation = 'serializable'",
        "default_transaction_read_only = on",
        "datestyle = 'German, DMY'",
        "intervalstyle = 'sql_standard'",
        "extra_float_digits = -15",
        "timezone = 'Asia/Kathmandu'",
        "standard_conforming_strings = off",
        "search_path = 'nowhere'",
    ):
        conn.execute(f"ALTER DATABASE {conn.info.dbname} SET {setting}".encode())
    return db_url


async def test_whoever_defers_cancels_and_reads_needs_no_defaults(hostile: str) -> None:
    app = App(hostile)
    manager = app.job_manager
    async with app.open_async():
        task = app.configure_task("x", timeout=timedelta(days=1, hours=1), start_by=60)
        for job_id in (task.defer(), await task.defer_async()):
            job = manager.get_job(job_id)
            assert (await manager.get_job_async(job_id)).created_at == job.created_at
            assert job.created_at is not None
            assert job.created_at.tzinfo is not None
            assert job.timeout == timedelta(days=1, hours=1)
            assert manager.cancel_tree(job_id)[0].outcome == "cancelled"
        assert len(await manager.list_jobs_async()) == 2
        # Whatever else the connections are used for is as the role has it.
        with app.connector.checked_out() as conn:
            assert conn.execute("SHOW transaction_isolation").fetchone() == ("serializable",)
            assert conn.execute("SHOW transaction_read_only").fetchone() == ("on",)


def waits(conn: psycopg.Connection) -> bool:
    found = conn.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    return found == (1,)


@pytest.mark.parametrize(
    "isolation", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE]
)
async def test_a_call_that_meets_anothers_change_is_made_again(
    db_url: str, conn: psycopg.Connection, admin_url: str, isolation: psycopg.IsolationLevel
) -> None:
    """In a pool of the application's own, which has transactions of its own kind."""

    def configure(pooled: psycopg.Connection) -> None:
        pooled.isolation_level = isolation

    with psycopg_pool.ConnectionPool(db_url, min_size=1, configure=configure) as pool:
        app = App(db_url)
        app.open(pool)
        job_id = app.configure_task("x").defer()
        with psycopg.connect(admin_url) as other:
            other.execute("UPDATE pljobs.job SET priority = 1 WHERE id = %s", [job_id])
            cancelling = asyncio.create_task(asyncio.to_thread(app.job_manager.cancel_job, job_id))
            await wait_until_async(lambda: waits(conn), what="it waits for the other one")
            other.commit()
        assert (await cancelling).outcome == "cancelled"


def test_who_may_not_wait_for_long_is_tried_again_for_a_second(
    db_url: str, conn: psycopg.Connection, admin_url: str
) -> None:
    app = App(PsycopgConnector(db_url, options="-c lock_timeout=50"))
    with app.open(), psycopg.connect(admin_url) as other:
        job_id = app.configure_task("x").defer()
        other.execute("SELECT FROM pljobs.job WHERE id = %s FOR UPDATE", [job_id])
        with pytest.raises(ConnectorException) as caught:
            app.job_manager.cancel_job(job_id)
        assert caught.value.sqlstate == "55P03"
        other.rollback()
        assert app.job_manager.cancel_job(job_id).outcome == "cancelled"


async def test_who_lets_go_soon_is_waited_for(
    db_url: str, conn: psycopg.Connection, admin_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Soon enough, however long it takes here to see that it waits, and that it may not for longer.
    monkeypatch.setattr("pljobs.db.PATIENCE", DEADLINE)
    monkeypatch.setattr("pljobs.db.TRIES", 1000)
    app = App(PsycopgConnector(db_url, options="-c lock_timeout=100"))
    with app.open(), psycopg.connect(admin_url) as other:
        job_id = app.configure_task("x").defer()
        other.execute("SELECT FROM pljobs.job WHERE id = %s FOR UPDATE", [job_id])
        cancelling = asyncio.create_task(asyncio.to_thread(app.job_manager.cancel_job, job_id))
        await wait_until_async(lambda: waits(conn), what="it waits")
        await wait_until_async(lambda: not waits(conn), what="it may not wait for longer")
        other.rollback()
        assert (await cancelling).outcome == "cancelled"
