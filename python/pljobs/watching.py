"""Waiting for ends: however many wait, one of them asks the database, for all of them at once."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from pljobs import calls_many
from pljobs.answers import Call
from pljobs.exceptions import PljobsException

if TYPE_CHECKING:
    from pljobs.connector import PsycopgConnector

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
# Whoever waits for less than a question takes gets an answer all the same, unless the database is stuck.
PATIENCE = 1.0
# What says that it is not over yet.
GOING_ON = {"job": {"todo", "doing"}, "request": {"open"}}

Key = tuple[str, int]
"""("job", id), or ("request", id)."""


class _Event(Protocol):
    """Be an event of threading or of asyncio."""

    def set(self) -> None: ...
    def clear(self) -> None: ...


E = TypeVar("E", bound=_Event)


@dataclasses.dataclass(slots=True)
class Seen:
    """What was seen of a job (a status, `deleted`, `not_found`) or a request; `before`: a look earlier."""

    word: str | None = None
    before: str | None = None
    is_over: bool = False


@dataclasses.dataclass(slots=True, eq=False)
class _Waiter(Generic[E]):
    """One who waits; `turn` is set when it is over, and when it is this one's turn to ask."""

    key: Key
    turn: E
    until: float | None
    seen: Seen = dataclasses.field(default_factory=Seen)
    was_asked: bool = False
    error: PljobsException | None = None

    @property
    def is_done(self) -> bool:
        return self.seen.is_over or self.error is not None

    def left(self) -> float | None:
        return None if self.until is None else self.until - time.monotonic()

    @property
    def is_late(self) -> bool:
        """Say whether its time is over, and it was asked for, or tried to ask, at least once."""
        left = self.left()
        return left is not None and left <= 0 and self.was_asked

    def result(self) -> Seen:
        if self.error is not None:
            raise self.error
        return self.seen


class _Circle(Generic[E]):
    """Those who wait together: one of them leads, which is to ask for all; who leaves hands that on.

    There is no poller of its own, and so none that could be left behind, or die unnoticed.
    """

    def __init__(self, news: E) -> None:
        self.news = news  # somebody new is waiting
        self._lock = threading.Lock()
        self._waiters: list[_Waiter[E]] = []
        self._leader: _Waiter[E] | None = None

    def join(self, waiter: _Waiter[E]) -> None:
        with self._lock:
            self._waiters.append(waiter)
            if self._leader is None:
                self._leader = waiter
                waiter.turn.set()
            else:
                self.news.set()

    def leave(self, waiter: _Waiter[E]) -> bool:
        """Return whether nobody is left."""
        with self._lock:
            self._waiters.remove(waiter)
            if self._leader is waiter:
                self._leader = next((other for other in self._waiters if not other.is_done), None)
                if self._leader is not None:
                    self._leader.turn.set()
            return not self._waiters

    def is_led_by(self, waiter: _Waiter[E]) -> bool:
        return self._leader is waiter

    def keys(self) -> set[Key]:
        with self._lock:
            self.news.clear()
            return {waiter.key for waiter in self._waiters if not waiter.is_done}

    def tell(self, answers: Mapping[Key, str]) -> bool:
        """Tell everybody what was answered; return whether anything is new."""
        changed = False
        with self._lock:
            for waiter in self._waiters:
                seen, word = waiter.seen, answers.get(waiter.key)
                if word is None or waiter.is_done:
                    continue
                changed = changed or word != seen.word
                seen.before, seen.word = seen.word, word
                waiter.was_asked = True
                if word not in GOING_ON[waiter.key[0]]:
                    seen.is_over = True
                    waiter.turn.set()
        return changed

    def fail(self, asked: Iterable[Key], error: PljobsException) -> None:
        """Tell those who were asked for that the database could not answer."""
        keys = set(asked)
        with self._lock:
            for waiter in self._waiters:
                if waiter.key in keys and not waiter.is_done:
                    waiter.error = error
                    waiter.turn.set()


class Watches:
    """Wait until jobs have ended, or requests are resolved, for sync callers and for each event loop."""

    def __init__(self, connector: PsycopgConnector) -> None:
        self._connector = connector
        self._lock = threading.Lock()
        self._of_threads: tuple[int, _Circle[threading.Event]] | None = None
        self._of_loops: dict[asyncio.AbstractEventLoop, _Circle[asyncio.Event]] = {}

    def wait(self, key: Key, timeout: float | None) -> Seen:
        """Wait until it is over, for at most `timeout` seconds; looks at least once."""
        with self._lock:
            # A forked process has the parent's waiters, but not their threads.
            if self._of_threads is None or self._of_threads[0] != os.getpid():
                self._of_threads = (os.getpid(), _Circle(threading.Event()))
            circle = self._of_threads[1]
        waiter = _Waiter(key, threading.Event(), _until(timeout))
        circle.join(waiter)
        try:
            while not (waiter.is_done or waiter.is_late):
                if circle.is_led_by(waiter):
                    self._lead(circle, waiter)
                elif not waiter.turn.wait(waiter.left()) and not waiter.was_asked:
                    self._look(circle, {key})
                    waiter.was_asked = True
        finally:
            circle.leave(waiter)
        return waiter.result()

    async def wait_async(self, key: Key, timeout: float | None) -> Seen:
        """Do what `wait` does."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._of_loops:
                self._of_loops[loop] = _Circle(asyncio.Event())
            circle = self._of_loops[loop]
        waiter = _Waiter(key, asyncio.Event(), _until(timeout))
        circle.join(waiter)
        try:
            while not (waiter.is_done or waiter.is_late):
                if circle.is_led_by(waiter):
                    await self._lead_async(circle, waiter)
                elif not await _is_set(waiter.turn, waiter.left()) and not waiter.was_asked:
                    await self._look_async(circle, {key}, PATIENCE)
                    waiter.was_asked = True
        finally:
            if circle.leave(waiter):
                with self._lock:
                    del self._of_loops[loop]
        return waiter.result()

    def _lead(self, circle: _Circle[threading.Event], waiter: _Waiter[threading.Event]) -> None:
        pause = FIRST_PAUSE
        while True:
            changed = self._look(circle, circle.keys())
            waiter.was_asked = True
            if waiter.is_done or waiter.is_late:
                return
            pause = FIRST_PAUSE if changed else min(pause * 1.5, LONGEST_PAUSE)
            circle.news.wait(_shorter(pause, waiter.left()))

    async def _lead_async(self, circle: _Circle[asyncio.Event], waiter: _Waiter[asyncio.Event]) -> None:
        pause = FIRST_PAUSE
        while True:
            left = waiter.left()
            changed = await self._look_async(
                circle, circle.keys(), None if left is None else max(left, PATIENCE)
            )
            waiter.was_asked = True
            if waiter.is_done or waiter.is_late:
                return
            pause = FIRST_PAUSE if changed else min(pause * 1.5, LONGEST_PAUSE)
            await _is_set(circle.news, _shorter(pause, waiter.left()))

    def _look(self, circle: _Circle[threading.Event], keys: set[Key]) -> bool:
        try:
            return circle.tell(self._connector.execute(_question(keys)))
        except PljobsException as error:
            circle.fail(keys, error)
            return False

    async def _look_async(
        self, circle: _Circle[asyncio.Event], keys: set[Key], patience: float | None
    ) -> bool:
        try:
            async with asyncio.timeout(patience):
                answers = await self._connector.execute_async(_question(keys))
        except TimeoutError:
            return False
        except PljobsException as error:
            circle.fail(keys, error)
            return False
        return circle.tell(answers)


def _question(keys: set[Key]) -> Call[dict[Key, str]]:
    jobs = sorted(number for kind, number in keys if kind == "job")
    requests = sorted(number for kind, number in keys if kind == "request")
    return calls_many.get_words(jobs, requests)


def _until(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _shorter(pause: float, left: float | None) -> float:
    return pause if left is None else max(0.0, min(pause, left))


async def _is_set(event: asyncio.Event, timeout: float | None) -> bool:
    try:
        async with asyncio.timeout(None if timeout is None else max(0.0, timeout)):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True
