"""A connection of the worker's, for fetches or for all else: reopened when it breaks, never hanging."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from pljobs import calls_read, db, session
from pljobs.answers import Call
from pljobs.exceptions import DatabaseUnavailable

if TYPE_CHECKING:
    from pljobs.connector import PsycopgConnector
    from pljobs.outage import Outage

T = TypeVar("T")

# A peer that vanished is noticed in about four seconds, where PostgreSQL's defaults never notice it.
KEEPALIVES: dict[str, object] = {
    "keepalives": 1,
    "keepalives_idle": 3,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 4000,
    "connect_timeout": 10,
}
# A call that takes longer means a peer that is frozen, which keepalives don't notice.
DEADLINE = 15.0


def cut(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Shut a connection's socket down, so that whoever waits on it gets an error at once; from any thread.

    Cancelling the waiting task instead would ask the server to cancel, and wait for its answer.
    """
    try:
        with socket.socket(fileno=os.dup(conn.fileno())) as sock:
            sock.shutdown(socket.SHUT_RDWR)
    except (OSError, psycopg.Error):
        return  # closed meanwhile: what was wanted


class Link:
    """Execute calls one at a time, each in a short transaction of its own; reconnect when it must."""

    def __init__(self, connector: PsycopgConnector, outage: Outage, *, part: str = "work") -> None:
        self._connector = connector
        self._outage = outage
        self._part = part
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self._doubted = False
        self._opened_at: float | None = None
        self._lock = asyncio.Lock()

    async def execute(self, call: Call[T]) -> T:
        """Execute a call; raises DatabaseUnavailable if the connection is lost, or stalls for 15 seconds.

        Neither needs a line in the log: the outage has one. Never cancel it: the answer would be lost, of a
        call that may have been committed.
        """
        async with self._lock:
            self._outage.refuse_early()
            try:
                conn = await self._connected()
                with _deadline(conn):
                    return await db.run_async(conn, call)
            except DatabaseUnavailable as error:
                # A read-only one, too: another of the addresses may be the primary's by now.
                await self._drop()
                self._outage.met(self._part, error, opened_at=self._opened_at)
                raise

    def doubt(self) -> None:
        """Reconnect before the next call: another line to the same server has turned out to be dead."""
        self._doubted = True

    async def close(self) -> None:
        """Close the connection."""
        async with self._lock:
            await self._drop()

    async def _connected(self) -> psycopg.AsyncConnection[Any]:
        if self._doubted:
            await self._drop()
        if self._conn is None or self._conn.closed:
            self._opened_at = None
            self._conn = conn = await self._connector.connect_async(during=_deadline, **KEEPALIVES)
            try:
                with db.translated(), _deadline(conn):
                    if (pins := session.pin(conn)) is not None:
                        await conn.execute(pins.encode())
                    await db.run_async(conn, calls_read.require_writes())
            except BaseException:
                await self._drop()
                raise
            self._outage.over(self._part)
            self._opened_at = time.monotonic()
        return self._conn

    async def _drop(self) -> None:
        conn, self._conn, self._doubted = self._conn, None, False
        if conn is not None:
            await conn.close()


@contextmanager
def _deadline(conn: psycopg.AsyncConnection[Any]) -> Iterator[None]:
    timer = asyncio.get_running_loop().call_later(DEADLINE, cut, conn)
    try:
        yield
    finally:
        timer.cancel()
