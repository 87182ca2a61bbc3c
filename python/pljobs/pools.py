"""What the connector's two pools share."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import selectors
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import psycopg
import psycopg_pool

from pljobs.exceptions import InvalidArgument

P = TypeVar("P")
V = TypeVar("V")
C = TypeVar("C", bound=psycopg.AsyncConnection[Any])

# One system call where it exists, not the four of epoll: this is asked before each call.
Selector = getattr(selectors, "PollSelector", selectors.DefaultSelector)

SETTINGS = {
    "name", "timeout", "max_waiting", "max_lifetime", "max_idle", "reconnect_timeout", "num_workers",
}  # fmt: skip
NOT_FOR_TWO = {
    "configure", "check", "reset", "reconnect_failed", "connection_class", "open", "close_returns",
}  # fmt: skip


class OwnPool(Generic[P]):
    """Remember a pool, whether it is ours to close, and whether somebody asked for it."""

    def __init__(self) -> None:
        self.pool: P | None = None
        self.own = False
        self.wanted = False

    def forget(self) -> P | None:
        """Forget the pool; return it if it is ours to close."""
        pool = self.pool if self.own else None
        self.pool, self.own, self.wanted = None, False, False
        return pool


def _has_news(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Say whether the server sent something to an idle connection: mostly, that it closed it."""
    with Selector() as selector:
        selector.register(conn.fileno(), selectors.EVENT_READ)
        return bool(selector.select(0))


def check(conn: psycopg.Connection[Any]) -> None:
    """Raise for a connection that the server has closed; ask it only where there is something to read."""
    if _has_news(conn):
        psycopg_pool.ConnectionPool.check_connection(conn)


async def check_async(conn: psycopg.AsyncConnection[Any]) -> None:
    """Do what `check` does."""
    if _has_news(conn):
        await psycopg_pool.AsyncConnectionPool.check_connection(conn)


def refuse_unshared(settings: Iterable[str]) -> None:
    """Raise `InvalidArgument` for settings that a sync and an async pool can't share."""
    refused = sorted(NOT_FOR_TWO.intersection(settings))
    if refused:
        raise InvalidArgument(
            f"{', '.join(refused)}: can't be given for a sync and an async pool at once;"
            " make a pool of your own and pass it to open() or open_async()"
        )


def refuse_second(new: object, present: object) -> None:
    """Raise `InvalidArgument` where another pool is to be used than the one that is open."""
    if new is not None and present is not None and new is not present:
        raise InvalidArgument("open already: close before you open with another pool")


@contextlib.contextmanager
def no_cancel_lost() -> Iterator[None]:
    """Raise `CancelledError` at the end if the task was cancelled inside, and went on all the same.

    The pools wait with `asyncio.wait_for`, which on python 3.11 drops a cancel that comes together with what
    is waited for.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    yield
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError


async def open_async(pool: psycopg_pool.AsyncConnectionPool[Any]) -> None:
    """Open a pool; close it if that fails, or is cancelled: nobody else knows of it yet."""
    try:
        with no_cancel_lost():
            await pool.open(wait=True)
    except BaseException:
        await pool.close()
        raise


async def connect_like(pool: psycopg_pool.AsyncConnectionPool[C]) -> C:
    """Make a connection as this pool does, in autocommit, for another event loop than the pool's own."""
    conninfo = await _called(pool.conninfo)
    settings = await _called(pool.kwargs)
    return await pool.connection_class.connect(conninfo or "", **{**(settings or {}), "autocommit": True})


async def _called(given: Callable[[], Awaitable[V] | V] | V) -> V:
    """Return a setting of a pool: it may be given as a function, sync or async."""
    value = given() if callable(given) else given
    return await value if inspect.isawaitable(value) else value
