"""Threads for sync tasks: daemons, so that one that never returns does not keep the process from ending."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_a_thread(function: Callable[[], T]) -> T:
    """Run a function in a thread of its own, wait for it, and return what it returned.

    Not in the event loop's executor: that may be full of threads that tasks have left there, for ever.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[BaseException | None] = loop.create_future()
    values: list[T] = []

    def tell(error: BaseException | None) -> None:
        if not done.done():
            done.set_result(error)

    def work() -> None:
        error: BaseException | None = None
        try:
            values.append(function())
        except BaseException as raised:  # noqa: BLE001 - raised where it is waited for
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
            loop.call_soon_threadsafe(tell, error)

    threading.Thread(target=work, name="pljobs-aside", daemon=True).start()
    if (error := await done) is not None:
        raise error
    return values[0]


class Threads:
    """Run functions in threads; as many threads as run at once, kept for the next.

    Not a ThreadPoolExecutor: the interpreter joins its threads at exit, and a task that ignores its abort
    would hold the process for ever.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], Callable[[], object]] | None] = queue.SimpleQueue()
        self._idle = 0
        self._started = 0
        self._lock = threading.Lock()

    def submit(
        self, function: Callable[[], T], on_end: Callable[[T], None], *, context: contextvars.Context
    ) -> None:
        """Run `function`, which must not raise, in a thread and in this context, which nobody else is in.

        What it returns is passed to `on_end` in the running event loop. Nothing stops a thread. Raises what
        `Thread.start` does where a thread is needed, and can't be had.
        """
        loop = asyncio.get_running_loop()

        def work() -> Callable[[], object]:
            return functools.partial(loop.call_soon_threadsafe, on_end, context.run(function))

        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                name = f"{self._name}-{self._started + 1}"
                threading.Thread(target=self._run, name=name, daemon=True).start()
                self._started += 1
        self._work.put(work)

    def close(self) -> None:
        """Let the idle threads end; those at work end after it."""
        with self._lock:
            for _ in range(self._started):
                self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            tell = work()
            work = None  # what it holds is the job's, whose context would live as long as this one is idle
            with self._lock:
                self._idle += 1  # first: whoever is told may submit the next, and need not start another
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody is left to tell
                tell()
            del tell
