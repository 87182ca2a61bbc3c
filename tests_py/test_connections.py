"""`connection=`: a job deferred in the caller's own transaction is committed, or never happened, with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import psycopg_pool
import pytest
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as sa_async

from pljobs import App, Status, deferring
from pljobs.deferring import JobDeferrer
from pljobs.exceptions import AlreadyEnqueued, InvalidArgument


@pytest.fixture
def app(db_url: str) -> App:
    """Never opened: what is done on the caller's connection needs no other."""
    return App(db_url)


def a_job(app: App, connection: object, **options: Any) -> JobDeferrer:
    return app.configure_task("t", connection=connection, **options)


@pytest.fixture
def ids(conn: psycopg.Connection) -> Any:
    """The ids of all jobs, as another transaction sees them."""

    def committed() -> list[int]:
        return [row[0] for row in conn.execute("SELECT id FROM pljobs.jobs ORDER BY id")]

    return committed


def engine_url(db_url: str, driver: str = "psycopg") -> sa.URL:
    known: dict[str, Any] = conninfo_to_dict(db_url)
    return sa.URL.create(
        f"postgresql+{driver}",
        username=known.get("user"),
        password=known.get("password"),
        database=known["dbname"],
        query={"host": known["host"]} | ({"port": known["port"]} if "port" in known else {}),
    )


@pytest.fixture
def engine(db_url: str) -> Iterator[sa.Engine]:
    made = sa.create_engine(engine_url(db_url))
    yield made
    made.dispose()


@pytest.fixture
async def async_engine(db_url: str) -> AsyncIterator[sa_async.AsyncEngine]:
    made = sa_async.create_async_engine(engine_url(db_url))
    yield made
    await made.dispose()


# psycopg


def test_psycopg_rolled_back_it_never_happened(app: App, db_url: str, ids: Any) -> None:
    with psycopg.connect(db_url) as connection:
        a_job(app, connection).defer(a=1)
        assert ids() == []
        connection.rollback()
        assert ids() == []
        job_id = a_job(app, connection).defer(a=1)
        connection.commit()
    assert ids() == [job_id]


async def test_psycopg_async_rolled_back_it_never_happened(app: App, db_url: str, ids: Any) -> None:
    async with await psycopg.AsyncConnection.connect(db_url) as connection:
        await a_job(app, connection).defer_async(a=1)
        await connection.rollback()
        assert ids() == []
        job_id = await a_job(app, connection).defer_async(a=1)
        await connection.commit()
    assert ids() == [job_id]


def test_a_refused_job_leaves_the_transaction_as_it_was(app: App, db_url: str, ids: Any) -> None:
    with psycopg.connect(db_url) as connection:
        first = a_job(app, connection, queueing_lock="ql").defer()
        with pytest.raises(AlreadyEnqueued):
            a_job(app, connection, queueing_lock="ql").defer()
        second = a_job(app, connection).defer()
        connection.commit()
    assert ids() == [first, second]


def test_psycopg_in_autocommit_and_from_a_pool(app: App, db_url: str, ids: Any) -> None:
    with psycopg.connect(db_url, autocommit=True) as connection:
        first = a_job(app, connection).defer()
        assert ids() == [first]
        with pytest.raises(ZeroDivisionError), connection.transaction():
            a_job(app, connection).defer()
            raise ZeroDivisionError
    with psycopg_pool.ConnectionPool(db_url, open=True) as pool, pool.connection() as connection:
        second = a_job(app, connection).defer()
    assert ids() == [first, second]


@pytest.mark.parametrize("begun", [True, False])
def test_a_batch_of_many_chunks_joins_too(
    app: App, db_url: str, ids: Any, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    monkeypatch.setattr(deferring, "BATCH_JOBS", 1)
    with psycopg.connect(db_url) as connection:
        if begun:
            connection.execute("SELECT 1")
        a_job(app, connection).batch_defer({"a": 1}, {"a": 2})
        assert ids() == []
        connection.rollback()
        assert ids() == []
        found = a_job(app, connection).batch_defer({"a": 1}, {"a": 2})
        with pytest.raises(AlreadyEnqueued):
            a_job(app, connection, queueing_lock="l").batch_defer({"a": 3}, {"a": 4})
        connection.commit()
    assert ids() == found


async def test_an_async_batch_of_many_chunks_joins_too(
    app: App, db_url: str, ids: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferring, "BATCH_JOBS", 1)
    async with await psycopg.AsyncConnection.connect(db_url) as connection:
        await a_job(app, connection).batch_defer_async({"a": 1}, {"a": 2})
        await connection.rollback()
        assert ids() == []
        found = await a_job(app, connection).batch_defer_async({"a": 1}, {"a": 2})
        await connection.commit()
    assert ids() == found


def test_cancel_delete_retry_and_pause_join_too(app: App, db_url: str, conn: psycopg.Connection) -> None:
    manager = app.job_manager
    job_id = a_job(app, conn).defer()
    with psycopg.connect(db_url) as connection:
        assert manager.cancel_job_by_id(job_id, connection=connection) is True
        assert manager.get_job_status(job_id, connection=connection) is Status.CANCELLED
        assert manager.get_job_status(job_id, connection=conn) is Status.TODO
        connection.rollback()
        assert manager.get_job_status(job_id, connection=conn) is Status.TODO
        assert manager.cancel_job_by_id(job_id, connection=connection) is True
        assert manager.retry_job_by_id(job_id, connection=connection) is True
        assert manager.pause_queue("default", connection=connection) is True
        assert manager.cancel_job_by_id(job_id, connection=connection) is True
        assert manager.delete_job_by_id(job_id, connection=connection) is True
        connection.rollback()
    assert manager.get_job_status(job_id, connection=conn) is Status.TODO


# SQLAlchemy


def test_sqlalchemy_connection(app: App, engine: sa.Engine, ids: Any) -> None:
    with engine.connect() as connection:
        # Nothing was executed before: SQLAlchemy must learn of it all the same.
        a_job(app, connection).defer()
        connection.rollback()
        assert ids() == []
        first = a_job(app, connection).defer()
        connection.commit()
    with pytest.raises(ZeroDivisionError), engine.begin() as connection:
        a_job(app, connection).defer()
        raise ZeroDivisionError
    with engine.begin() as connection:
        connection.execute(sa.text("SELECT 1"))
        second = a_job(app, connection).defer()
    with engine.connect() as connection:
        a_job(app, connection).defer()  # never committed
    assert ids() == [first, second]


def test_sqlalchemy_session(app: App, engine: sa.Engine, ids: Any) -> None:
    with orm.Session(engine) as session:
        a_job(app, session).defer()
        session.rollback()
        assert ids() == []
        first = a_job(app, session).defer()
        session.commit()
        assert ids() == [first]
        with session.begin_nested() as savepoint:
            a_job(app, session).defer()
            savepoint.rollback()
        second = a_job(app, session).defer()
        session.commit()
    scoped = orm.scoped_session(orm.sessionmaker(engine))
    third = a_job(app, scoped).defer()
    scoped.commit()
    scoped.remove()
    assert ids() == [first, second, third]


async def test_sqlalchemy_async_connection(app: App, async_engine: sa_async.AsyncEngine, ids: Any) -> None:
    async with async_engine.connect() as connection:
        await a_job(app, connection).defer_async()
        await connection.rollback()
        assert ids() == []
        first = await a_job(app, connection).defer_async()
        await connection.commit()
    async with async_engine.begin() as connection:
        second = await a_job(app, connection).defer_async()
    assert ids() == [first, second]


async def test_sqlalchemy_async_session(app: App, async_engine: sa_async.AsyncEngine, ids: Any) -> None:
    async with sa_async.AsyncSession(async_engine) as session:
        await a_job(app, session).defer_async()
        await session.rollback()
        assert ids() == []
        job_id = await a_job(app, session).defer_async()
        await session.commit()
    assert ids() == [job_id]


# Django


@pytest.fixture(scope="module")
def _django() -> None:
    import django
    from django.conf import settings

    settings.configure(DATABASES={}, USE_TZ=False, TIME_ZONE="Asia/Tokyo")
    django.setup()


@pytest.fixture
def django_connection(_django: None, db_url: str) -> Iterator[Any]:
    from django.db import connections

    known: dict[str, Any] = conninfo_to_dict(db_url)
    connections.settings["default"] = connections.configure_settings(
        {
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": known["dbname"],
                "USER": known.get("user", ""),
                "PASSWORD": known.get("password", ""),
                "HOST": known["host"],
                "PORT": known.get("port", ""),
            }
        }
    )["default"]
    from django.db import connection

    yield connection
    connection.close()
    del connections["default"]


def test_django_connection(app: App, django_connection: Any, ids: Any) -> None:
    from django.db import transaction

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        a_job(app, django_connection).defer()
        raise ZeroDivisionError
    assert ids() == []
    with transaction.atomic():
        first = a_job(app, django_connection).defer(a="é")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            a_job(app, django_connection).batch_defer({}, {})
            raise ZeroDivisionError
        assert ids() == []
    assert ids() == [first]
    second = a_job(app, django_connection).defer()  # not in atomic(): commits by itself
    assert ids() == [first, second]
    assert app.job_manager.cancel_job_by_id(first, connection=django_connection) is True
    assert app.job_manager.get_job_status(first, connection=django_connection) is Status.CANCELLED


def test_a_batch_of_many_chunks_joins_djangos_transaction(
    app: App, django_connection: Any, ids: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import transaction

    monkeypatch.setattr(deferring, "BATCH_JOBS", 1)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        a_job(app, django_connection).batch_defer({}, {})
        raise ZeroDivisionError
    assert ids() == []


# What can't be


async def test_sync_and_async_are_not_mixed_up(
    app: App,
    db_url: str,
    engine: sa.Engine,
    async_engine: sa_async.AsyncEngine,
    django_connection: Any,
) -> None:
    with psycopg.connect(db_url) as sync, engine.connect() as sa_sync, orm.Session(engine) as session:
        for connection in (sync, sa_sync, session, django_connection):
            with pytest.raises(InvalidArgument, match=r"is sync: call defer\(\) with it"):
                await a_job(app, connection).defer_async()
    with pytest.raises(InvalidArgument, match="sync_to_async"):
        await a_job(app, django_connection).defer_async()
    async with (
        await psycopg.AsyncConnection.connect(db_url) as asynchronous,
        async_engine.connect() as sa_asynchronous,
        sa_async.AsyncSession(async_engine) as async_session,
    ):
        for connection in (asynchronous, sa_asynchronous, async_session):
            with pytest.raises(InvalidArgument, match=r"is async: await defer_async"):
                a_job(app, connection).defer()


async def test_another_driver_or_something_else_is_refused_by_name(app: App) -> None:
    sqlite = sa.create_engine("sqlite://")
    with (
        sqlite.connect() as connection,
        pytest.raises(InvalidArgument, match=r"with sqlite3\.Connection under it can't be used"),
    ):
        a_job(app, connection).defer()
    sqlite.dispose()
    for other in (object(), "postgresql://", 3):
        with pytest.raises(InvalidArgument, match="can't be used; give a psycopg 3 connection"):
            a_job(app, other).defer()
        with pytest.raises(InvalidArgument, match="can't be used; give a psycopg 3 connection"):
            await a_job(app, other).defer_async()


def test_a_closed_connection_is_unavailable(app: App, db_url: str) -> None:
    from pljobs.exceptions import DatabaseUnavailable

    connection = psycopg.connect(db_url)
    connection.close()
    with pytest.raises(DatabaseUnavailable):
        a_job(app, connection).defer()
