"""A database that takes no writes, a standby for instance: said once, and waited for."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pljobs.exceptions import DatabaseReadOnly

logger = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 5.0


class Standby:
    """Know for all parts of a worker, in whatever thread, whether the database takes writes, and say so once.

    `who`: as in "Worker mail", for the log.
    """

    def __init__(self, who: str) -> None:
        self._who = who
        self._lock = threading.Lock()
        self._refused: tuple[DatabaseReadOnly, float] | None = None

    def refuse_early(self) -> None:
        """Raise again what somebody was told a moment ago: of however many ask, the database hears one."""
        refused = self._refused
        if refused is not None and time.monotonic() < refused[1] + FIRST_PAUSE:
            raise DatabaseReadOnly(str(refused[0]), sqlstate=refused[0].sqlstate)

    def met(self, error: DatabaseReadOnly) -> None:
        """Take note that the database refused to write."""
        with self._lock:
            is_news, self._refused = self._refused is None, (error, time.monotonic())
        if is_news:
            logger.warning("%s waits for the primary: the database is read-only, as a standby is", self._who)

    def over(self) -> None:
        """Take note that the database takes writes."""
        with self._lock:
            is_news, self._refused = self._refused is not None, None
        if is_news:
            logger.info("%s goes on: the database takes writes", self._who)


async def until_writable(
    ask: Callable[[], Awaitable[T]],
    sleep: Callable[[float], Awaitable[None]],
    stopping: asyncio.Event,
    *,
    wait: bool,
) -> T | None:
    """Return what `ask` answers, with `wait` once the database takes writes; None if told to stop first."""
    pause = FIRST_PAUSE
    while True:
        try:
            return await ask()
        except DatabaseReadOnly:
            if not wait:
                raise
            await sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        if stopping.is_set():
            return None
