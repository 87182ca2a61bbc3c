"""What users pass as `connection=`, unwrapped down to the psycopg connection in whose transaction to work."""

from __future__ import annotations

import sys
from typing import Any

import psycopg

from pljobs.exceptions import InvalidArgument

ACCEPTED = (
    "a psycopg 3 connection, an SQLAlchemy connection or session, or Django's connection,"
    " with psycopg 3 as their driver"
)


def unwrap(connection: Any) -> psycopg.Connection[Any]:  # noqa: ANN401 - this is where it is found out
    """Return the sync psycopg connection under this object, its transaction begun where it has one.

    Raises `InvalidArgument` for an async connection, another driver, or something else.
    """
    given = connection
    if _is_sqlalchemy(connection):
        connection = _of_sqlalchemy(connection)
    elif _is_django(connection):
        connection.ensure_connection()
        connection = connection.connection
    if isinstance(connection, psycopg.Connection):
        return connection
    if isinstance(connection, psycopg.AsyncConnection) or _is_async_sqlalchemy(connection):
        raise InvalidArgument(
            f"connection: {_kind(given)} is async: await defer_async(...) with it, not defer()"
        )
    raise _unknown(given, connection)


async def unwrap_async(connection: Any) -> psycopg.AsyncConnection[Any]:  # noqa: ANN401
    """Return the async psycopg connection under this object, its transaction begun where it has one.

    Raises `InvalidArgument` for a sync connection, another driver, or something else.
    """
    given = connection
    if _is_async_sqlalchemy(connection):
        connection = await _of_async_sqlalchemy(connection)
    if isinstance(connection, psycopg.AsyncConnection):
        return connection
    if isinstance(connection, psycopg.Connection) or _is_sqlalchemy(connection) or _is_django(connection):
        hint = ""
        if _is_django(connection):
            hint = "; from async code: await sync_to_async(task.configure(connection=connection).defer)(...)"
        raise InvalidArgument(
            f"connection: {_kind(given)} is sync: call defer() with it, not defer_async(){hint}"
        )
    raise _unknown(given, connection)


def _is_sqlalchemy(connection: object) -> bool:
    orm, engine = sys.modules.get("sqlalchemy.orm"), sys.modules.get("sqlalchemy.engine")
    return (engine is not None and isinstance(connection, engine.Connection)) or (
        orm is not None and isinstance(connection, orm.Session | orm.scoped_session)
    )


def _is_async_sqlalchemy(connection: object) -> bool:
    asyncio = sys.modules.get("sqlalchemy.ext.asyncio")
    return asyncio is not None and isinstance(
        connection, asyncio.AsyncConnection | asyncio.AsyncSession | asyncio.async_scoped_session
    )


def _is_django(connection: object) -> bool:
    return "django.db" in sys.modules and hasattr(connection, "ensure_connection")


def _of_sqlalchemy(connection: Any) -> object:  # noqa: ANN401
    if _is_sqlalchemy(connection) and not hasattr(connection, "exec_driver_sql"):
        connection = connection.connection()  # a session's, whose transaction this begins
    if not connection.in_transaction():
        # SQLAlchemy must know that there is something to commit: it doesn't see what we do below it.
        connection.exec_driver_sql("SELECT 1")
    return connection.connection.driver_connection


async def _of_async_sqlalchemy(connection: Any) -> object:  # noqa: ANN401
    if not hasattr(connection, "exec_driver_sql"):
        connection = await connection.connection()
    if not connection.in_transaction():
        await connection.exec_driver_sql("SELECT 1")
    return (await connection.get_raw_connection()).driver_connection


def _kind(given: object) -> str:
    return f"{type(given).__module__}.{type(given).__qualname__}"


def _unknown(given: object, found: object) -> InvalidArgument:
    under = "" if found is given else f" with {_kind(found)} under it"
    return InvalidArgument(f"connection: {_kind(given)}{under} can't be used; give {ACCEPTED}")
