"""SIGINT and SIGTERM: the first stops, the second aborts, the third ends the process. And SIGURG."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from pljobs.careful import careful_logger
from pljobs.exceptions import JobAborted
from pljobs.job_context import current

if TYPE_CHECKING:
    from pljobs.job_context import JobContext

logger = careful_logger(__name__)

Listener = Callable[[signal.Signals], None]


class Shared:
    """Be the one handler of some signals for all workers of the process, in whatever order they come and go.

    Not by `loop.add_signal_handler`: that has one place a signal, and an application's own would be lost.
    What was there before is put back when the last has gone. `passing_on`: call it as well. What a task forks
    does not inherit it: multiprocessing, for one, ends its processes by SIGTERM, and waits until they are
    dead.
    """

    def __init__(self, *numbers: signal.Signals, passing_on: bool = False) -> None:
        self._numbers = numbers
        self._passing_on = passing_on
        self._listeners: list[Listener] = []
        self._former: dict[signal.Signals, Any] = {}
        self._left_alone = False
        self._unblocked = threading.local()
        os.register_at_fork(before=self._block, after_in_parent=self._unblock, after_in_child=self._forked)

    @contextlib.contextmanager
    def heard_by(self, listener: Listener) -> Iterator[None]:
        """Call this with each signal, in the main thread, which alone may enter here; it may raise."""
        for number in () if self._left_alone else self._numbers:
            present = signal.getsignal(number)
            if present != self._on_signal:
                self._former[number] = present
                signal.signal(number, self._on_signal)
        self._listeners.append(listener)
        try:
            yield
        finally:
            if listener in self._listeners:  # else this is what a task has forked, and the code has come back
                self._listeners.remove(listener)
            if not self._listeners:
                self._restore()

    def leave_alone(self) -> None:
        """Leave the next signal to the system, which ends the process."""
        self._left_alone = True
        for number in self._numbers:
            signal.signal(number, signal.SIG_DFL)

    def _restore(self) -> None:
        left_alone, self._left_alone = self._left_alone, False
        for number, former in self._former.items():
            if left_alone or signal.getsignal(number) == self._on_signal:
                # What was installed from C can't be put back: the system's own way is what is left.
                signal.signal(number, signal.SIG_DFL if former is None else former)
        self._former.clear()

    def _block(self) -> None:
        # Else a child that is ended as soon as it is there loses that signal: nothing has been put back yet.
        self._unblocked.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())  # first: a handler may raise here
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._unblocked.mask)

    def _forked(self) -> None:
        for number in self._numbers:
            if signal.getsignal(number) == self._on_signal:
                by_default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, by_default)
        self._listeners, self._former, self._left_alone = [], {}, False
        self._unblock()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        known = signal.Signals(number)
        for listener in list(self._listeners):
            listener(known)
        former = self._former.get(known)
        if self._passing_on and callable(former):
            former(number, frame)


_stops = Shared(signal.SIGINT, signal.SIGTERM)
_interrupts = Shared(signal.SIGURG, passing_on=True)


class Interrupter:
    """Interrupt a job's async code that blocks its event loop, by a signal: the loop itself can't be asked.

    Only in the main thread, where Python runs signal handlers. The signal is SIGURG, which the system ignores
    where nobody handles it, so that one too many harms nobody.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._targets: list[JobContext] = []
        self._installed = False

    def interrupt(self, context: JobContext) -> None:
        """Raise `JobAborted` in this job's code, its body or a task of its own, if that holds the event loop.

        For any thread.
        """
        if self._installed:
            self._targets.append(context)  # signals that come close together are handled once
            signal.pthread_kill(self._thread, signal.SIGURG)

    @contextlib.contextmanager
    def installed(self, *, install: bool) -> Iterator[None]:
        """Be ready within the block, if this is the main thread."""
        if not install or threading.current_thread() is not threading.main_thread():
            yield
            return
        with _interrupts.heard_by(self._on_signal):
            self._installed = True
            try:
                yield
            finally:
                self._installed = False

    def _on_signal(self, _number: signal.Signals) -> None:
        targets = self._targets[:]
        del self._targets[: len(targets)]  # what is added meanwhile has a signal of its own
        # A handler runs in the context of the code that it interrupts.
        interrupted = current.get()
        if any(target is interrupted for target in targets):
            raise JobAborted("terminated: it blocked the event loop")


@contextlib.contextmanager
def stop_on_signals(stop: Callable[[], None], *, install: bool = True) -> Iterator[None]:
    """Call `stop` on the first two signals; leave a third to the system, which ends the process.

    What was there before is put back at the end, not for the third: asyncio's own handler would only cancel.
    Does nothing with install=False, or outside of the main thread, where Python allows no signal handlers.
    """
    if not install or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    seen = 0

    def heard(number: signal.Signals) -> None:
        nonlocal seen
        seen += 1
        if seen > 1:
            _stops.leave_alone()
        with contextlib.suppress(RuntimeError):  # the loop was closed: there is nothing left to stop
            loop.call_soon_threadsafe(tell, number.name)

    def tell(name: str) -> None:
        logger.warning("Received %s", name)
        stop()

    with _stops.heard_by(heard):
        yield
