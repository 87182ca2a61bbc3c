"""A database that can't be reached, or takes no writes, as a standby: said once, and waited for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pljobs.careful import careful_logger
from pljobs.exceptions import DatabaseReadOnly, DatabaseUnavailable

logger = careful_logger(__name__)
T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 5.0
REMIND_EVERY = 60.0


class Outage:
    """Know for all parts of a worker, in whatever thread, what is wrong with the database, and say it once.

    `who`: as in "Worker mail", for the log.
    """

    def __init__(self, who: str) -> None:
        self._who = who
        self._lock = threading.Lock()
        # Which parts have met it, and not been answered since.
        self._away: set[str] = set()
        self._read_only: set[str] = set()
        self._refused: tuple[DatabaseReadOnly, float] | None = None
        self._said_at = self._over_at = 0.0

    def refuse_early(self) -> None:
        """Raise again what somebody was told a moment ago: of however many ask, the database hears one."""
        refused = self._refused
        if refused is not None and time.monotonic() < refused[1] + FIRST_PAUSE:
            raise DatabaseReadOnly(str(refused[0]), sqlstate=refused[0].sqlstate)

    def met(self, part: str, error: DatabaseUnavailable, *, opened_at: float | None = None) -> None:
        """Take note of what a part of the worker has met, on a connection that it opened at that time."""
        now = time.monotonic()
        with self._lock:
            if opened_at is not None and opened_at < self._over_at:
                return  # broken by what is over and was said: this part was idle, and sees it only now
            parts = self._read_only if isinstance(error, DatabaseReadOnly) else self._away
            is_news = not parts or now > self._said_at + REMIND_EVERY
            parts.add(part)
            if isinstance(error, DatabaseReadOnly):
                self._refused = (error, now)
            if is_news:
                self._said_at = now
        if is_news and isinstance(error, DatabaseReadOnly):
            logger.warning("%s waits for the primary: the database is read-only, as a standby is", self._who)
        elif is_news:
            logger.warning("%s can't reach the database, and tries again: %s", self._who, error)

    def over(self, part: str) -> None:
        """Take note that a part has been answered, by a database that takes writes."""
        with self._lock:
            were = self._away | self._read_only
            for parts in (self._away, self._read_only):
                parts.discard(part)
            is_news = bool(were) and not self._away and not self._read_only
            if not self._read_only:
                self._refused = None
            if is_news:
                self._over_at = time.monotonic()
        if is_news:
            logger.info("%s goes on: the database is there, and takes writes", self._who)


async def until_writable(
    ask: Callable[[], Awaitable[T]],
    sleep: Callable[[float], Awaitable[None]],
    stopping: asyncio.Event,
    *,
    wait: bool,
) -> T | None:
    """Return what `ask` answers, with `wait` once the database takes writes; None if told to stop first."""
    pause = FIRST_PAUSE
    while not stopping.is_set():
        try:
            return await ask()
        except DatabaseReadOnly:
            if not wait:
                raise
        if not stopping.is_set():
            await sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
    return None
