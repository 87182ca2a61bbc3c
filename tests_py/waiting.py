"""Wait for a condition, with a deadline: the only waiting that tests do."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

_POLL = 0.01
# Of what takes a moment where the machine has nothing else to do.
DEADLINE = 60.0


def wait_until(condition: Callable[[], T | None], deadline: float = DEADLINE, what: str = "") -> T:
    """Call `condition` until its answer is true, and return that answer; fail after `deadline` seconds."""
    end = time.monotonic() + deadline
    while True:
        if answer := condition():
            return answer
        if time.monotonic() > end:
            raise AssertionError(_too_late(condition, deadline, what, answer))
        time.sleep(_POLL)


@overload
async def wait_until_async(
    condition: Callable[[], Awaitable[T | None]], deadline: float = DEADLINE, what: str = ""
) -> T: ...


@overload
async def wait_until_async(
    condition: Callable[[], T | None], deadline: float = DEADLINE, what: str = ""
) -> T: ...


async def wait_until_async(
    condition: Callable[[], object], deadline: float = DEADLINE, what: str = ""
) -> object:
    """Do the same without blocking the event loop; `condition` may be a coroutine function."""
    end = time.monotonic() + deadline
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(_too_late(condition, deadline, what, answer))
        await asyncio.sleep(_POLL)


def _too_late(condition: Callable[[], object], deadline: float, what: str, answer: object) -> str:
    named = what or getattr(condition, "__name__", repr(condition))
    return f"not within {deadline} s: {named}; the last answer was {answer!r}"
