"""A run in this process: an async task in the event loop, or a function in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import sys
import threading
import types
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeGuard

from pljobs import logs
from pljobs.answers import RunEnd
from pljobs.endings import Ended
from pljobs.job_context import JobContext, current
from pljobs.jobs import AbortReason
from pljobs.observed import Observed
from pljobs.run import LAST_WORDS, VOID_GRACE, OnEnd, Run

if TYPE_CHECKING:
    from pljobs.threads import Threads

# Seconds between two cancels, from level 3 on.
CANCEL_FIRST, CANCEL_EVERY = 0.1, 1.0
# A task that has not ended by then is handling its abort, for people to see.
SEEN_AFTER = 0.2
# Whether a task group cancels its task once more, where it has dropped a cancel from outside.
RECANCELS = sys.version_info >= (3, 13)


class LocalRun(Run):
    """Run a task's function in the event loop, or in a thread.

    The end is told by callbacks, not by a coroutine around the body: there is nothing that a stray cancel
    could hit between the end of the body and its report.
    """

    def __init__(self, context: JobContext, *, threads: Threads, on_end: OnEnd) -> None:
        super().__init__(context, on_end=on_end)
        self._threads = threads
        self._observed: Observed[Ended] | None = None
        self._body: asyncio.Task[Ended] | None = None
        self._in_body = False
        self._cancelled = self._terminated = self._lost = False
        self._cancels = 0  # of this worker's, as the body's task counts them
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._environment = contextvars.copy_context()
        self._environment.run(current.set, context)

    def start(self) -> None:
        """Start the task: a coroutine function in the event loop, anything else in a thread."""
        args = (self.context,) if self.task.pass_context else ()
        call = functools.partial(self.task.func, *args, **self.job.task_kwargs)
        if is_async(self.task.func):
            self._await(call)
        else:
            work = functools.partial(_call, call, self.context)
            try:
                self._threads.submit(work, self._returned, context=self._environment)
            except (RuntimeError, OSError, MemoryError) as error:
                self.lack("thread", error)

    @property
    def handling(self) -> bool:
        """Say whether an async task is handling its abort right now."""
        observed = self._observed  # read once: the control thread asks, too
        return observed is not None and observed.handling

    def _stop(self, reason: AbortReason) -> None:
        if reason is AbortReason.RUN_LOST and not self._lost:
            self._lost = True
            self._loop.call_later(VOID_GRACE, self._terminate)
        # A task that is cancelled before its first step runs no line, not even a `finally`: wait until it is
        # in its body.
        if not self._cancelled and self._cancel():
            self._cancelled = True
            self._loop.call_later(SEEN_AFTER, self._tell_handling)

    def _tell_handling(self) -> None:
        if self.handling:
            self._tell()

    def _tell(self) -> None:
        # Only who asked has a place to read it, and the next poll may be seconds away.
        if self.request is not None and self.on_news is not None and not self.ended:
            self.on_news()

    def _terminate(self, pause: float = CANCEL_FIRST) -> None:
        """Cancel an async task again and again. Nothing stops a thread."""
        self._terminated = True
        if not self.ended and self._body is not None:
            self._cancel()
            self._loop.call_later(pause, self._terminate, min(2 * pause, CANCEL_EVERY))

    def _kill(self) -> None:
        if self._terminated and self.context.abort_flag.raised_for() > LAST_WORDS:
            self.abandon()
            return
        # What could stop it has hardly been tried: no grace was given, or the database was away meanwhile.
        if not self._terminated:
            self._terminate()
        self._loop.call_later(LAST_WORDS, self.abandon)

    def _cancel(self) -> bool:
        if not self._in_body or self._body is None or self._observed is None:
            return False
        self._observed.expect_abort()
        is_sent = self._body.cancel()
        self._cancels += is_sent
        return is_sent

    def _await(self, call: Callable[[], object]) -> None:
        self._observed = Observed(self._guarded(call), self._swallowed)
        self._body = self._loop.create_task(
            self._observed, name=f"pljobs {self.job.call_string}", context=self._environment
        )
        self._body.add_done_callback(self._body_done)

    async def _guarded(self, call: Callable[[], object]) -> Ended:
        # Catches what asyncio would let through to the event loop: SystemExit and KeyboardInterrupt in a
        # task.
        self._in_body = True
        if self.context.should_abort():
            self._loop.call_soon(self._stop, AbortReason.USER_REQUEST)
        try:
            value = call()
            return Ended(await value if _is_awaitable(value) else value)
        except BaseException as error:  # noqa: BLE001
            return Ended(exception=error)
        finally:
            self._in_body = False
            self.context.abort_flag.close()

    def _returned(self, ended: Ended) -> None:
        # A partial, a method or a callable object may return an awaitable: what came back tells, not what was
        # called.
        value = ended.value
        if self.ended and inspect.iscoroutine(value):
            value.close()  # it was given up meanwhile: nothing more of it may begin
        elif _is_awaitable(value):
            self._await(lambda: value)
        else:
            self.finish(ended)

    def _body_done(self, body: asyncio.Task[Ended]) -> None:
        # Cancelled before its first step, by somebody who cancels every task there is; or hit by a signal's
        # exception just outside of its body.
        error = asyncio.CancelledError() if body.cancelled() else body.exception()
        self.finish(body.result() if error is None else Ended(exception=error))

    def _swallowed(self) -> None:
        # Called when the abort dies, be it swallowed or because the body ended with it; by the garbage
        # collector perhaps, so that nothing may happen here but a note for the event loop.
        if self._in_body and not self._is_passed_on():
            is_news, self.swallowed = not self.swallowed, True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                if is_news:
                    self._loop.call_soon_threadsafe(self._tell)
                self._loop.call_soon_threadsafe(self._log_swallowed)
                if threading.get_ident() == self._thread_id:
                    self._uncancel()
                else:
                    self._loop.call_soon_threadsafe(self._uncancel)

    def _is_passed_on(self) -> bool:
        # Timeouts and task groups drop an abort that meets a cancel of their own, and look at the task's
        # count to raise another in its place. So does a group on 3.13 whose child fails while it cleans up.
        if self._body is None or self._body.cancelling() > self._cancels:
            return True
        # From 3.13.1 on the group itself is over by then: another cancel is to come in place of this one.
        is_to_come = getattr(self._body, "_must_cancel", False)  # a task of another loop's may have none
        if is_to_come and self._observed is not None and not self.handling:  # else it is the worker's own
            self._observed.expect_abort()
            return True
        frame = inspect.currentframe() if RECANCELS else None
        for _ in range(4):
            frame = frame and frame.f_back
            if frame is not None and frame.f_code.co_filename == asyncio.taskgroups.__file__:
                return True
        return False

    def _uncancel(self) -> None:
        # The task goes on as if never cancelled: else its own timeouts and task groups would mistake this for
        # theirs.
        if self._body is not None and self._in_body:
            self._body.uncancel()
            self._cancels -= 1

    def _log_swallowed(self) -> None:
        logs.swallowed(self.job)

    def finish(self, ended: Ended | RunEnd) -> None:
        """Report the end, once, and let go of the body: else a failed job's locals stay in memory."""
        self._body = self._observed = None
        super().finish(ended)


def _is_awaitable(value: object) -> TypeGuard[Awaitable[object]]:
    if value is None or type(value) is types.CoroutineType:  # nearly always; inspect takes longer to say it
        return value is not None
    try:
        return inspect.isawaitable(value)
    except Exception:  # noqa: BLE001 - an object that can't even be looked at
        return False


def is_async(function: Callable[..., object]) -> bool:
    """Say whether calling this only makes a coroutine, so that it may be called in the event loop."""
    if isinstance(function, types.FunctionType) and function.__code__.co_flags & inspect.CO_COROUTINE:
        return True
    while isinstance(function, functools.partial):
        function = function.func
    # An object's __call__ may be a coroutine function, too.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _call(call: Callable[[], object], context: JobContext) -> Ended:
    try:
        value = call()
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt, too
        context.abort_flag.close()
        return Ended(exception=error)
    if not _is_awaitable(value):
        context.abort_flag.close()
    return Ended(value)
