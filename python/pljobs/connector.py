"""The connector: how to reach the database, with a pool for sync calls and one for async calls."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import psycopg
import psycopg_pool
from psycopg.rows import TupleRow

from pljobs import connections, db, exceptions, pools, session
from pljobs.answers import Call
from pljobs.arguments import JsonDumps, JsonLoads
from pljobs.conninfo import Connection, lead_apart, refuse_unfit
from pljobs.pings import Notify, Pings, choice
from pljobs.pools import OwnPool
from pljobs.threads import in_a_thread
from pljobs.watching import Watches

T = TypeVar("T")
SyncPool = psycopg_pool.ConnectionPool[psycopg.Connection[Any]]
AsyncPool = psycopg_pool.AsyncConnectionPool[psycopg.AsyncConnection[Any]]


class PsycopgConnector:
    """Reach the database through psycopg 3, from sync and from async code.

    `conninfo` is what libpq takes (a URL, or `key=value` pairs; empty: libpq's own environment variables).
    `min_size` and `max_size` are for each of the two pools, of which each is opened when it is first needed.
    `notify`: how workers hear of a deferred job, "transaction": with its commit; "coalesced": right after it,
    one message for many defers, from a thread with a connection of its own; "never": they poll. What is
    deferred in a transaction of yours (`connection=`) is always told with its commit, unless "never".
    `json_dumps` and `json_loads` write and read arguments and results, instead of the json module's. Other
    keywords go to the pool (`timeout`, `max_lifetime`, `max_idle` ... in seconds) or, where the pool doesn't
    know them, to each connection. Every call is a short transaction of its own. Follows procrastinate's
    connectors of the same names.
    """

    def __init__(
        self,
        conninfo: str = "",
        *,
        json_dumps: JsonDumps | None = None,
        json_loads: JsonLoads | None = None,
        min_size: int = 1,
        max_size: int | None = 10,
        kwargs: Mapping[str, object] | None = None,
        notify: Notify = "transaction",
        **settings: object,
    ) -> None:
        pools.refuse_unshared(settings)
        refuse_unfit(conninfo)
        self.json_dumps = json_dumps
        self.json_loads = json_loads
        self._conninfo = conninfo
        self._pool_settings: dict[str, Any] = {k: v for k, v in settings.items() if k in pools.SETTINGS}
        self._pool_settings |= {"min_size": min_size, "max_size": max_size}
        others = {k: v for k, v in settings.items() if k not in pools.SETTINGS}
        defaults = {"fallback_application_name": "pljobs", "client_encoding": "utf8"}
        self._kwargs: dict[str, Any] = {**defaults, **(kwargs or {}), **others, "autocommit": True}
        self.notify = choice(notify)
        self.pings = Pings(self)
        self.watches = Watches(self)
        self._sync = OwnPool[SyncPool]()
        self._async = OwnPool[AsyncPool]()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._alone = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'open' if self.is_open else 'closed'}>"

    @property
    def is_open(self) -> bool:
        """Say whether calls can be made: `open()` or `open_async()` was called, and not undone."""
        return self._sync.wanted or self._async.wanted

    @property
    def is_open_async(self) -> bool:
        """Say whether async calls can be made."""
        return self._async.pool is not None

    # Opening and closing

    def open(self, pool: SyncPool | None = None) -> None:
        """Open for sync calls; raises `DatabaseUnavailable` at once where the database can't be reached.

        A pool of yours, already open, is used as it is, and left open by `close()`.
        """
        with self._lock:
            pools.refuse_second(pool, self._sync.pool)
            self._open_sync(pool)
            self._sync.wanted = True

    def close(self) -> None:
        """Close what `open()` opened; harmless when closed already."""
        with self._lock:
            self._drop_if_forked()
            pool = self._sync.forget()
        try:
            self.pings.close()
        finally:
            if pool is not None:
                pool.close()

    async def open_async(self, pool: AsyncPool | None = None) -> bool:
        """Open for async calls in this event loop, and, where needed later, sync ones; say if it was not.

        Raises `DatabaseUnavailable` at once where the database can't be reached. A pool of yours, already
        open, is used as it is, and left open by `close_async()`.
        """
        self._drop_if_forked()
        pools.refuse_second(pool, self._async.pool)
        if self._loop is not None and self._loop.is_closed():
            self._async.forget()  # nobody can close it properly any more
        if self.is_open_async:
            return False
        made = pool if pool is not None else await self._make_async_pool()
        is_first = self._async.pool is None
        if is_first:
            self._async.pool, self._async.own, self._async.wanted = made, pool is None, True
            self._loop = asyncio.get_running_loop()
        elif pool is None:  # somebody else opened it meanwhile
            await made.close()
        return is_first

    async def close_async(self) -> None:
        """Close what `open_async()` opened, and the sync pool if a sync call opened it meanwhile."""
        self._drop_if_forked()
        loop = self._loop
        if loop is not None and loop is not asyncio.get_running_loop() and not loop.is_closed():
            return  # a worker's perhaps: what was opened here found it open
        pool, self._loop = self._async.forget(), None
        if loop is not None and loop.is_closed():
            pool = None  # nobody can close it properly any more
        try:
            with pools.no_cancel_lost():
                if pool is not None:
                    await pool.close()
        finally:
            # In one thread, which goes on to the end though this be cancelled; in none if there is nothing.
            if self._sync.pool is not None and not self._sync.wanted:
                await in_a_thread(self.close)
            elif self.pings.is_running:
                await in_a_thread(self.pings.close)

    # In a process of its own, for one job

    def address(self) -> tuple[str, dict[str, object]]:
        """Return conninfo and connection settings, as another process can use them; passwords included."""
        plain = str | int | float | bool | None
        return self._conninfo, {k: v for k, v in self._kwargs.items() if isinstance(v, plain)}

    def is_near(self, other: PsycopgConnector) -> bool:
        """Say whether both lead to the same database, as far as their addresses tell: ids mean the same."""
        return other is self or not lead_apart(self.address(), other.address())

    def serve_alone(self, conninfo: str, settings: Mapping[str, object]) -> None:
        """Be open at another connector's address; connect when a call needs it, and not before."""
        self._drop_if_forked()
        self._conninfo = conninfo
        self._kwargs |= settings
        self._sync.wanted = self._alone = True
        if self.notify == "coalesced":  # this process may end right after a defer
            self.notify = "transaction"

    # One call

    def execute(self, call: Call[T], *, connection: object = None) -> T:
        """Execute a call, in the transaction of `connection` if given; blocks, in an event loop too."""
        return self.execute_all([call], connection=connection)[0]

    def execute_all(self, calls: Sequence[Call[T]], *, connection: object = None) -> list[T]:
        """Execute calls in one transaction."""
        if connection is not None:
            return db.run_all(connections.unwrap(connection), calls, joined=True)
        began, tries = time.monotonic(), 0
        while True:
            try:
                with db.translated(), self.checked_out() as conn:
                    return db.run_all(conn, calls)
            except exceptions.ConnectorException as error:
                tries += 1
                if (pause := db.pause_before_again(error, tries, began)) is None:
                    raise
                time.sleep(pause)

    async def execute_async(self, call: Call[T], *, connection: object = None) -> T:
        """Execute a call. `connection`: execute it in that transaction."""
        return (await self.execute_all_async([call], connection=connection))[0]

    async def execute_all_async(self, calls: Sequence[Call[T]], *, connection: object = None) -> list[T]:
        """Execute calls in one transaction."""
        if connection is not None:
            conn = await connections.unwrap_async(connection)
            return await db.run_all_async(conn, calls, joined=True)
        began, tries = time.monotonic(), 0
        while True:
            try:
                with db.translated():
                    async with self.checked_out_async() as conn:
                        return await db.run_all_async(conn, calls)
            except exceptions.ConnectorException as error:
                tries += 1
                if (pause := db.pause_before_again(error, tries, began)) is None:
                    raise
                await asyncio.sleep(pause)

    # Connections of one's own

    def connect(
        self, on_connected: Callable[[psycopg.Connection[Any]], object] | None = None, /, **extra: object
    ) -> psycopg.Connection[TupleRow]:
        """Make a new connection in autocommit, with these settings besides the connector's own.

        `on_connected`: called with it before its first statement, whose answer may never come.
        """
        with db.translated():
            conn = psycopg.connect(self._conninfo, **(self._kwargs | extra))
            try:
                if on_connected is not None:
                    on_connected(conn)
                self._adopt(conn)
            except BaseException:
                conn.close()
                raise
            return conn

    async def connect_async(
        self,
        *,
        during: Callable[[psycopg.AsyncConnection[Any]], AbstractContextManager[object]] = nullcontext,
        **extra: object,
    ) -> psycopg.AsyncConnection[TupleRow]:
        """Make a new async connection in autocommit, with these settings besides the connector's own.

        `during`: entered with it for its first statement, whose answer may never come.
        """
        with db.translated():
            conn = await Connection.connect(self._conninfo, **(self._kwargs | extra))
            with during(conn):
                return await self._adopted_async(conn)

    def _adopt(self, conn: psycopg.Connection[Any]) -> None:
        session.adopt(conn, db.run(conn, session.look()), keep_prepared="prepare_threshold" in self._kwargs)

    async def _adopt_async(self, conn: psycopg.AsyncConnection[Any]) -> None:
        found = await db.run_async(conn, session.look())
        session.adopt(conn, found, keep_prepared="prepare_threshold" in self._kwargs)

    async def _adopted_async(self, conn: psycopg.AsyncConnection[Any]) -> psycopg.AsyncConnection[Any]:
        try:
            await self._adopt_async(conn)
        except BaseException:
            await conn.close()
            raise
        return conn

    # Pools

    def _open_sync(self, pool: SyncPool | None = None) -> SyncPool:
        self._drop_if_forked()
        if self._sync.pool is None:
            self._sync.own = pool is None
            self._sync.pool = pool if pool is not None else self._make_sync_pool()
        return self._sync.pool

    def _make_sync_pool(self) -> SyncPool:
        self.connect().close()  # tells at once, and why, where the pool would try for 30 s
        pool = psycopg_pool.ConnectionPool(
            self._conninfo,
            kwargs=self._kwargs,
            open=False,
            check=pools.check,
            configure=self._adopt,
            **self._pool_settings,
        )
        with db.translated():
            pool.open(wait=True)
        return pool

    async def _make_async_pool(self) -> AsyncPool:
        await (await self.connect_async()).close()
        pool: AsyncPool = psycopg_pool.AsyncConnectionPool(
            self._conninfo,
            connection_class=Connection,
            kwargs=self._kwargs,
            open=False,
            check=pools.check_async,
            configure=self._adopt_async,
            **self._pool_settings,
        )
        with db.translated():
            await pools.open_async(pool)
        return pool

    def _drop_if_forked(self) -> None:
        """Leave a parent process's sockets alone: they are not ours to use, nor to close."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._sync.pool = self._async.pool = None

    @contextlib.contextmanager
    def checked_out(self) -> Iterator[psycopg.Connection[TupleRow]]:
        """Lend a connection of the pool, in autocommit; what its statements raise is psycopg's."""
        if not self.is_open:
            raise exceptions.AppNotOpen("open the app first: app.open(), or `with app.open(): ...`")
        with self._lock:
            pool = self._open_sync()
        with contextlib.ExitStack() as stack:
            with db.translated():
                conn = stack.enter_context(pool.connection())
            yield conn

    @contextlib.asynccontextmanager
    async def checked_out_async(self) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
        """Lend an async connection of the pool, in autocommit; what its statements raise is psycopg's."""
        pool = self._async.pool
        if pool is None and not self._alone:
            raise exceptions.AppNotOpen(
                "open the app for async first: await app.open_async(), or `async with app.open_async(): ...`"
            )
        async with contextlib.AsyncExitStack() as stack:
            if pool is None:
                conn = await stack.enter_async_context(await self.connect_async())
            elif self._loop is not asyncio.get_running_loop():
                # Ours or yours, it serves one event loop. A sync task that calls asyncio.run() has another.
                with db.translated():
                    like = await self._adopted_async(await pools.connect_like(pool))
                conn = await stack.enter_async_context(like)
            else:
                with db.translated(), pools.no_cancel_lost():
                    conn = await stack.enter_async_context(pool.connection())
            yield conn


class SyncPsycopgConnector(PsycopgConnector):
    """Be a `PsycopgConnector`, under the name that procrastinate has for a connector of sync calls only."""
