"""Waiting for ends: however many wait, one of them asks the database, for all of them at once."""

from __future__ import annotations

import asyncio
import contextlib
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


class _Bell(Protocol):
    """Wake the one who waits for it."""

    def set(self) -> None: ...
    def clear(self) -> None: ...


class _ThreadsBell:
    """Wake a thread. An Event that a signal handler's exception leaves locked would hold whoever sets it."""

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self.clear()

    def set(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has rung already
            self._silence.release()

    def clear(self) -> None:
        self._silence.acquire(blocking=False)

    def wait(self, timeout: float) -> bool:
        """Return whether it has rung, which is over by that."""
        return self._silence.acquire(timeout=timeout)


E = TypeVar("E", bound=_Bell)


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a job (a status, `deleted`, `not_found`) or a request; `before`: a look earlier."""

    word: str | None = None
    before: str | None = None
    is_over: bool = False


@dataclasses.dataclass(slots=True, eq=False)
class _Waiter(Generic[E]):
    """One who waits; `bell` rings when it is over, and when it is this one's turn to ask, or to ask anew."""

    key: Key
    bell: E
    until: float | None
    seen: Seen = dataclasses.field(default_factory=Seen)
    was_asked: bool = False
    leads: bool = False
    error: PljobsException | None = None

    @property
    def is_done(self) -> bool:
        return self.seen.is_over or self.error is not None

    def left(self) -> float | None:
        return None if self.until is None else self.until - time.monotonic()

    @property
    def is_unasked(self) -> bool:
        """Say whether its time is over, and it was neither asked for, nor tried to ask."""
        left = self.left()
        return left is not None and left <= 0 and not self.was_asked

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
    """Those who wait together: the first of them leads, which is to ask for all; who leaves wakes the next.

    There is no poller of its own, and so none that could be left behind, or die unnoticed. A signal handler
    may raise in the middle of anything here: so nothing is locked, whatever changes does so in one step that
    nothing interrupts, and a thread that nobody wakes finds out by itself that it leads now.
    """

    def __init__(self) -> None:
        self.waiters: dict[_Waiter[E], None] = {}

    def leader(self) -> _Waiter[E] | None:
        for waiter in list(self.waiters):
            if not waiter.is_done:
                return waiter
        return None

    def joined(self) -> None:
        """Have somebody new be asked for."""
        if (leader := self.leader()) is not None:
            leader.bell.set()

    def left(self) -> None:
        """Hand on what the one who has left did."""
        if (leader := self.leader()) is not None and not leader.leads:
            leader.bell.set()

    def keys(self) -> set[Key]:
        return {waiter.key for waiter in list(self.waiters) if not waiter.is_done}

    def tell(self, answers: Mapping[Key, str]) -> bool:
        """Tell everybody what was answered; return whether anything is new."""
        changed = False
        for waiter in list(self.waiters):
            word, before = answers.get(waiter.key), waiter.seen.word
            if word is None or waiter.is_done:
                continue
            changed = changed or word != before
            is_over = word not in GOING_ON[waiter.key[0]]
            waiter.seen, waiter.was_asked = Seen(word, before, is_over), True
            if is_over:
                waiter.bell.set()
        return changed

    def fail(self, asked: Iterable[Key], error: PljobsException) -> None:
        """Tell those who were asked for that the database could not answer."""
        keys = set(asked)
        for waiter in list(self.waiters):
            if waiter.key in keys and not waiter.is_done:
                waiter.error = error
                waiter.bell.set()


class Watches:
    """Wait until jobs have ended, or requests are resolved, for sync callers and for each event loop."""

    def __init__(self, connector: PsycopgConnector) -> None:
        self._connector = connector
        self._lock = threading.Lock()
        self._of_threads: tuple[int, _Circle[_ThreadsBell]] | None = None
        self._of_loops: dict[asyncio.AbstractEventLoop, _Circle[asyncio.Event]] = {}

    def wait(self, key: Key, timeout: float | None) -> Seen:
        """Wait until it is over, for at most `timeout` seconds; looks at least once."""
        with self._lock:
            # A forked process has the parent's waiters, but not their threads.
            if self._of_threads is None or self._of_threads[0] != os.getpid():
                self._of_threads = (os.getpid(), _Circle())
            circle = self._of_threads[1]
        waiter = _Waiter(key, _ThreadsBell(), _until(timeout))
        try:
            # No loop here: what a signal handler raises at a loop's jump back, a `try` around it may miss.
            self._wait(circle, waiter)
        finally:
            circle.waiters.pop(waiter, None)
            circle.left()
        return waiter.result()

    async def wait_async(self, key: Key, timeout: float | None) -> Seen:
        """Do what `wait` does."""
        loop = asyncio.get_running_loop()
        circle = self._of_loops.setdefault(loop, _Circle())
        waiter = _Waiter(key, asyncio.Event(), _until(timeout))
        try:
            circle.waiters[waiter] = None
            circle.joined()
            while not (waiter.is_done or waiter.is_late):
                if circle.leader() is waiter:
                    await self._lead_async(circle, waiter)
                elif not await _has_rung(waiter.bell, waiter.left()) and waiter.is_unasked:
                    await self._look_async(circle, {key}, PATIENCE)
                    waiter.was_asked = True
        finally:
            circle.waiters.pop(waiter, None)
            circle.left()
            if not circle.waiters:
                del self._of_loops[loop]
        return waiter.result()

    def _wait(self, circle: _Circle[_ThreadsBell], waiter: _Waiter[_ThreadsBell]) -> None:
        circle.waiters[waiter] = None
        circle.joined()
        while not (waiter.is_done or waiter.is_late):
            if circle.leader() is waiter:
                self._lead(circle, waiter)
            elif not waiter.bell.wait(_shorter(LONGEST_PAUSE, waiter.left())) and waiter.is_unasked:
                self._look(circle, {waiter.key})
                waiter.was_asked = True

    def _lead(self, circle: _Circle[_ThreadsBell], waiter: _Waiter[_ThreadsBell]) -> None:
        pause, waiter.leads = FIRST_PAUSE, True
        while True:
            waiter.bell.clear()
            changed = self._look(circle, circle.keys())
            waiter.was_asked = True
            if waiter.is_done or waiter.is_late:
                return
            pause = FIRST_PAUSE if changed else min(pause * 1.5, LONGEST_PAUSE)
            waiter.bell.wait(_shorter(pause, waiter.left()))

    async def _lead_async(self, circle: _Circle[asyncio.Event], waiter: _Waiter[asyncio.Event]) -> None:
        pause, waiter.leads = FIRST_PAUSE, True
        while True:
            waiter.bell.clear()
            left = waiter.left()
            changed = await self._look_async(
                circle, circle.keys(), None if left is None else max(left, PATIENCE)
            )
            waiter.was_asked = True
            if waiter.is_done or waiter.is_late:
                return
            pause = FIRST_PAUSE if changed else min(pause * 1.5, LONGEST_PAUSE)
            await _has_rung(waiter.bell, _shorter(pause, waiter.left()))

    def _look(self, circle: _Circle[_ThreadsBell], keys: set[Key]) -> bool:
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


async def _has_rung(bell: asyncio.Event, timeout: float | None) -> bool:
    """Do what `_ThreadsBell.wait` does."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if timeout is None else max(0.0, timeout)):
            await bell.wait()
    rung = bell.is_set()
    bell.clear()
    return rung
