"""The bracket around a job's own SQL: what lets the database cancel it, and nothing else, ever."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from pljobs import calls_sql, db
from pljobs.careful import careful_logger
from pljobs.exceptions import ConnectorException, InvalidArgument, PljobsException, SchemaMissing

if TYPE_CHECKING:
    from pljobs.job_context import JobContext

logger = careful_logger("pljobs.jobs")

Conn = psycopg.Connection[TupleRow]
AsyncConn = psycopg.AsyncConnection[TupleRow]
AnyConn = TypeVar("AnyConn", Conn, AsyncConn)

LEAVE_TRIES = 10
ENTERED = "entered"
CANCELLED, NOT_ALLOWED = "57014", "42501"


class JobConnection:
    """Lend a connection whose statements can be cancelled with the job; see `JobContext.connection`."""

    def __init__(self, context: JobContext, source: object) -> None:
        if context.job.run_id is None:
            raise InvalidArgument(f"{context.job.call_string} is not running: there is nothing to cancel")
        self._bracket = _Bracket(context, context.job.run_id, source)
        self._sync: contextlib.AbstractContextManager[Conn] | None = None
        self._async: contextlib.AbstractAsyncContextManager[AsyncConn] | None = None

    def __enter__(self) -> Conn:
        self._refuse_second()
        self._sync = self._bracket.sync()
        try:
            return self._sync.__enter__()
        except BaseException:
            self._sync = None
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if self._sync is None:
            raise RuntimeError("not entered")
        entered, self._sync = self._sync, None
        return entered.__exit__(kind, error, trace)

    async def __aenter__(self) -> AsyncConn:
        self._refuse_second()
        self._async = self._bracket.asynchronous()
        try:
            return await self._async.__aenter__()
        except BaseException:
            self._async = None
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if self._async is None:
            raise RuntimeError("not entered")
        entered, self._async = self._async, None
        return await entered.__aexit__(kind, error, trace)

    def _refuse_second(self) -> None:
        if self._sync is not None or self._async is not None:
            raise RuntimeError("entered already: call context.connection() again for another connection")


class _Bracket:
    """Enter and leave; without a reference to the JobConnection, so that one dropped open ends in order."""

    def __init__(self, context: JobContext, run_id: int, source: object) -> None:
        self._context = context
        self._run_id = run_id
        self._source = source

    @contextlib.contextmanager
    def sync(self) -> Iterator[Conn]:
        with self._borrowed() as conn:
            way = self._enter(conn)
            try:
                yield conn
                if not conn.closed:
                    conn.commit()
            finally:
                self._leave(conn, way)

    @contextlib.asynccontextmanager
    async def asynchronous(self) -> AsyncIterator[AsyncConn]:
        async with self._borrowed_async() as conn:
            way = await self._enter_async(conn)
            try:
                yield conn
                if not conn.closed:
                    await conn.commit()
            finally:
                await self._leave_async(conn, way)

    # A cancel that belongs to this run may hit the entering and the leaving, too: then leave once more. A
    # connection that can't leave is closed, whatever the reason: its next user must not be cancelled for this
    # run. For the task that is no error: what its block did, it did, and what it raised, comes out.

    def _enter(self, conn: Conn) -> str:
        try:
            way = db.run(conn, calls_sql.enter_sql(self._run_id, conn.info.backend_pid))
            conn.rollback()  # the locks are the session's
        except PljobsException as error:
            if _is_cancel(error):
                self._leave(conn, ENTERED)
                raise
            way = self._not_entered(error)
            conn.rollback()
        except BaseException:
            conn.close()
            raise
        return self._known(way)

    async def _enter_async(self, conn: AsyncConn) -> str:
        try:
            way = await db.run_async(conn, calls_sql.enter_sql(self._run_id, conn.info.backend_pid))
            await conn.rollback()
        except PljobsException as error:
            if _is_cancel(error):
                await self._leave_async(conn, ENTERED)
                raise
            way = self._not_entered(error)
            await conn.rollback()
        except BaseException:
            await conn.close()
            raise
        return self._known(way)

    def _leave(self, conn: Conn, way: str) -> None:
        try:
            for _ in range(0 if conn.closed else LEAVE_TRIES):
                try:
                    with db.translated():
                        conn.rollback()
                    if way == ENTERED:
                        db.run(conn, calls_sql.leave_sql(self._run_id))
                        with db.translated():
                            conn.rollback()
                except ConnectorException as error:
                    if not _is_cancel(error):
                        raise
                else:
                    return
            conn.close()
        except Exception as error:  # noqa: BLE001 - whatever it is
            conn.close()
            self._closed(error)
        except BaseException:
            conn.close()
            raise

    async def _leave_async(self, conn: AsyncConn, way: str) -> None:
        try:
            for _ in range(0 if conn.closed else LEAVE_TRIES):
                try:
                    with db.translated():
                        await conn.rollback()
                    if way == ENTERED:
                        await db.run_async(conn, calls_sql.leave_sql(self._run_id))
                        with db.translated():
                            await conn.rollback()
                except ConnectorException as error:
                    if not _is_cancel(error):
                        raise
                else:
                    return
            await conn.close()
        except Exception as error:  # noqa: BLE001 - whatever it is
            await conn.close()
            self._closed(error)
        except BaseException:
            await conn.close()
            raise

    def _known(self, way: str) -> str:
        if way != ENTERED:
            self._context.sql_way.set(way)
        return way

    def _closed(self, error: Exception) -> None:
        job = self._context.job
        logger.warning(
            "A connection of %s was closed, for it could not be given back: %s",
            job.call_string, error, extra=job.log_context(),
        )  # fmt: skip

    def _not_entered(self, error: PljobsException) -> str:
        job = self._context.job
        if isinstance(error, SchemaMissing):
            raise InvalidArgument(
                f"context.connection of {job.call_string}: the connection leads to a database without the"
                " schema pljobs; give one to the queue's own database"
            ) from error
        if not isinstance(error, ConnectorException) or error.sqlstate != NOT_ALLOWED:
            raise error
        logger.warning(
            "The SQL of %s can't be cancelled with it: %s (GRANT pljobs_worker to this login)",
            job.call_string, error, extra=job.log_context(),
        )  # fmt: skip
        return "denied"

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[Conn]:
        source = self._source
        if source is None:
            with self._context.app.connector.checked_out() as conn:
                yield conn
        elif isinstance(source, psycopg.Connection):
            yield _outside_of_a_transaction(source)
        elif isinstance(source, psycopg_pool.ConnectionPool):
            with source.connection() as conn:
                yield conn
        else:
            raise _unknown(source, "with", "a psycopg Connection or ConnectionPool")

    @contextlib.asynccontextmanager
    async def _borrowed_async(self) -> AsyncIterator[AsyncConn]:
        source = self._source
        if source is None:
            async with self._context.app.connector.checked_out_async() as conn:
                yield conn
        elif isinstance(source, psycopg.AsyncConnection):
            yield _outside_of_a_transaction(source)
        elif isinstance(source, psycopg_pool.AsyncConnectionPool):
            async with source.connection() as conn:
                yield conn
        else:
            raise _unknown(source, "async with", "a psycopg AsyncConnection or AsyncConnectionPool")


def _is_cancel(error: PljobsException) -> bool:
    return isinstance(error, ConnectorException) and error.sqlstate == CANCELLED


def _outside_of_a_transaction(conn: AnyConn) -> AnyConn:
    if conn.info.transaction_status != TransactionStatus.IDLE:
        raise InvalidArgument(
            "context.connection: this connection is in a transaction; end it first: the block's own is ended"
            " with the block"
        )
    return conn


def _unknown(source: object, how: str, wanted: str) -> InvalidArgument:
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    return InvalidArgument(f"`{how} context.connection(...)` takes {wanted}, not {kind}")
