"""A coroutine that tells what became of the abort delivered into it: still being handled, or swallowed."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class Observed(Coroutine[Any, Any, T]):
    """Run a coroutine, and watch the one CancelledError that `expect_abort()` announces.

    While a frame handles it, the exception lives; once it is swallowed, it dies (CPython counts references),
    and `on_swallowed` is called: perhaps by the garbage collector, in any thread, in the middle of anything.
    A body that keeps the exception looks as if it were handling it: the safe side. A plain CancelledError is
    thrown in, for TaskGroup up to Python 3.12 takes a subclass for a failure.
    """

    def __init__(self, coro: Coroutine[Any, Any, T], on_swallowed: Callable[[], None]) -> None:
        self._coro = coro
        self._on_swallowed = on_swallowed
        self._expected = False
        self._thrown: weakref.ref[asyncio.CancelledError] | None = None

    def expect_abort(self) -> None:
        """Announce that the next CancelledError thrown in is an abort, not a timeout of the body's own."""
        self._expected = True

    @property
    def handling(self) -> bool:
        """Say whether the abort is under way to the body, or was thrown in and lives: it is being handled."""
        return self._expected or (self._thrown is not None and self._thrown() is not None)

    def send(self, value: Any) -> Any:  # noqa: ANN401 - as Coroutine declares it
        if self._expected:
            # A cancelled task's next step is a throw, unless what it awaited (another task) ate the cancel.
            self._expected = False
            self._on_swallowed()
        return self._coro.send(value)

    def throw(
        self,
        typ: Any,  # noqa: ANN401 - as Coroutine declares it
        val: BaseException | object | None = None,
        tb: TracebackType | None = None,
        /,
    ) -> Any:  # noqa: ANN401
        # Nothing here may keep a reference to what is thrown, or it would never seem swallowed.
        if self._expected and (isinstance(typ, asyncio.CancelledError) or typ is asyncio.CancelledError):
            self._expected = False
            mine = asyncio.CancelledError()
            self._thrown = weakref.ref(mine, lambda _: self._on_swallowed())
            del typ, val, tb
            try:
                return self._coro.throw(mine)
            finally:
                del mine
        if isinstance(typ, BaseException):
            return self._coro.throw(typ)
        raised = val if isinstance(val, BaseException) else typ()
        return self._coro.throw(raised.with_traceback(tb))

    def close(self) -> None:
        self._coro.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        # What asyncio shows of a task: its name, and where it is (`cr_frame`, `cr_await` ...).
        return getattr(self._coro, name)

    def __await__(self) -> Generator[Any, Any, T]:
        raise TypeError("an Observed coroutine runs as a task of its own: awaiting it would bypass it")
