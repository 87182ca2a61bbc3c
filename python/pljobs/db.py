"""The two runners of calls, sync and async, and the one place where the database's errors become pljobs's."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from pljobs import calls_read, exceptions, release, session
from pljobs.answers import Call, Row

T = TypeVar("T")
AnyConnection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

UNAVAILABLE = (
    "08",  # connection exceptions
    "57P",  # shut down, crashed, starting up, dropped, idle too long
    "53300",  # too many connections
)
READ_ONLY = "25006"
# Others did something at the same time; nothing is left of the call.
TRANSIENT = {"40001", "40P01"}
LOCKED = "55P03"
TRIES, PATIENCE = 10, 1.0
_NOT_PERMITTED = (
    "Rights come from the groups pljobs_reader, pljobs_producer, pljobs_worker, pljobs_canceller and "
    "pljobs_operator: GRANT the one that has this right to the login (docs/security.md lists them)."
)
MISSING = {"3F000", "42883", "42P01", "42703"}  # schema, function, relation, column


def run(conn: psycopg.Connection[Any], call: Call[T]) -> T:
    """Execute a call on this connection, in its transaction if it has one; raises what `translated` does."""
    with translated():
        if (begin := session.beginning(conn)) is None:
            rows = _rows(conn, call)
        else:
            with _transaction(conn, begin):
                rows = _rows(conn, call)
    return call.read(rows)


async def run_async(conn: psycopg.AsyncConnection[Any], call: Call[T]) -> T:
    """Execute a call on this connection, in its transaction if it has one; raises what `translated` does."""
    with translated():
        if (begin := session.beginning(conn)) is None:
            rows = await _rows_async(conn, call)
        else:
            async with _transaction_async(conn, begin):
                rows = await _rows_async(conn, call)
    return call.read(rows)


def run_all(conn: psycopg.Connection[Any], calls: Sequence[Call[T]], *, joined: bool = False) -> list[T]:
    """Execute calls in turn, all or none.

    `joined`: the connection is the caller's. Then they run in a savepoint of its transaction, which goes on
    if one of them is refused, and which is the caller's to end.
    """
    if len(calls) == 1 and not (joined and _has_transaction(conn)):
        return [run(conn, calls[0])]
    if joined and _would_commit(conn):
        run(conn, calls_read.begin())
    begin = None if joined else session.beginning(conn)
    with translated(), conn.transaction() if begin is None else _transaction(conn, begin):
        return [run(conn, call) for call in calls]


async def run_all_async(
    conn: psycopg.AsyncConnection[Any], calls: Sequence[Call[T]], *, joined: bool = False
) -> list[T]:
    """Do what `run_all` does."""
    if len(calls) == 1 and not (joined and _has_transaction(conn)):
        return [await run_async(conn, calls[0])]
    if joined and _would_commit(conn):
        await run_async(conn, calls_read.begin())
    begin = None if joined else session.beginning(conn)
    with translated():
        async with conn.transaction() if begin is None else _transaction_async(conn, begin):
            return [await run_async(conn, call) for call in calls]


@contextmanager
def translated() -> Iterator[None]:
    """Turn what psycopg raises into the exception of pljobs that says what to do about it."""
    try:
        yield
    except psycopg.Error as error:
        translation = translate(error)
        # What the database says about values could show arguments: it stays out of tracebacks.
        raise translation from (None if (error.sqlstate or "")[:2] in {"PJ", "22", "23"} else error)


def translate(error: psycopg.Error) -> exceptions.PljobsException:
    """Return the exception of pljobs for this error."""
    code = error.sqlstate
    message = error.diag.message_primary or str(error) or type(error).__name__
    if error.diag.message_hint:
        message = f"{message}\n{error.diag.message_hint}"
    known = exceptions.BY_CODE.get(code)
    if known is not None and issubclass(known, exceptions.ConnectorException):
        return known(message, sqlstate=code)
    if known is not None:
        return known(message)
    if code in MISSING:
        return exceptions.SchemaMissing(
            f"{message}\nThe schema pljobs is not in this database, or is of a release older than this one, "
            f"{release.version()}: run `pljobs migrate`.",
            sqlstate=code,
        )
    if code == "42501":
        return exceptions.NotPermitted(f"{message}\n{_NOT_PERMITTED}", sqlstate=code)
    if code == READ_ONLY:
        return exceptions.DatabaseReadOnly(
            f"{message}\nThis is a standby, or a read-only transaction: connect to the primary."
            " Among several hosts target_session_attrs=read-write finds it.",
            sqlstate=code,
        )
    if code == "2200H":
        return exceptions.ConnectorException(
            f"{message}\nIts ids are used up: the schema's owner has to restart it where ids are free.",
            sqlstate=code,
        )
    if (code or "").startswith("22") or isinstance(error, psycopg.DataError):
        return exceptions.InvalidArgument(message)
    if (code is None and isinstance(error, psycopg.OperationalError)) or (code or "").startswith(UNAVAILABLE):
        return exceptions.DatabaseUnavailable(message, sqlstate=code)
    return exceptions.ConnectorException(message, sqlstate=code)


def pause_before_again(error: exceptions.PljobsException, tries: int, began: float) -> float | None:
    """Return for how long to wait before the same call is made again, None if it had better not be.

    `tries`: how often it was made; `began`: when, in seconds of time.monotonic(). A call of which nothing is
    left, because of what others did at the same time, is made again; one that waited for somebody, and may
    not wait for long, only for a second in all.
    """
    code = error.sqlstate if isinstance(error, exceptions.ConnectorException) else None
    again = code in TRANSIENT or (code == LOCKED and time.monotonic() - began < PATIENCE)
    return min(0.01 * 2**tries, 0.2) if again and tries < TRIES else None


def _rows(conn: psycopg.Connection[Any], call: Call[T]) -> list[Row]:
    with psycopg.Cursor(conn, row_factory=dict_row) as cursor:
        return cursor.execute(call.statement.encode(), call.params, binary=session.is_odd(conn)).fetchall()


async def _rows_async(conn: psycopg.AsyncConnection[Any], call: Call[T]) -> list[Row]:
    async with psycopg.AsyncCursor(conn, row_factory=dict_row) as cursor:
        await cursor.execute(call.statement.encode(), call.params, binary=session.is_odd(conn))
        return await cursor.fetchall()


@contextmanager
def _transaction(conn: psycopg.Connection[Any], begin: str) -> Iterator[None]:
    """Run what is inside in a transaction that begins so, on a connection in autocommit."""
    try:
        conn.execute(begin.encode())
        yield
        conn.commit()
    except BaseException:
        with suppress(psycopg.Error):
            conn.rollback()
        raise


@asynccontextmanager
async def _transaction_async(conn: psycopg.AsyncConnection[Any], begin: str) -> AsyncIterator[None]:
    try:
        await conn.execute(begin.encode())
        yield
        await conn.commit()
    except BaseException:
        with suppress(psycopg.Error):
            await conn.rollback()
        raise


def _has_transaction(conn: AnyConnection) -> bool:
    """Say whether the next statement is a part of a transaction."""
    return not conn.autocommit or conn.info.transaction_status != TransactionStatus.IDLE


def _would_commit(conn: AnyConnection) -> bool:
    """Say whether `conn.transaction()` would begin, and then end, the transaction that is the caller's."""
    return not conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE
