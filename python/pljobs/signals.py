"""SIGINT and SIGTERM: the first stops, the second aborts, the third ends the process. And SIGURG."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from pljobs.exceptions import JobAborted

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Handler:
    """Pass signals on to `stop`, in the event loop, and to the handler of a worker that was there before.

    Not by `loop.add_signal_handler`: that has one place a signal, and an application's own would be lost.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._seen = 0
        self._former = {number: signal.getsignal(number) for number in SIGNALS}

    def install(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self)

    def restore(self) -> None:
        for number, former in self._former.items():
            if signal.getsignal(number) is self or self._seen > 1:
                # What was installed from C can't be put back: the system's own way is what is left.
                signal.signal(number, signal.SIG_DFL if former is None else former)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._seen += 1
        if self._seen > 1:
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)
        with contextlib.suppress(RuntimeError):  # the loop was closed: there is nothing left to stop
            self._loop.call_soon_threadsafe(self._tell, signal.Signals(number).name)
        former = self._former[signal.Signals(number)]
        if isinstance(former, _Handler):
            former(number, frame)

    def _tell(self, name: str) -> None:
        logger.warning("Received %s", name)
        self._stop()


class Interrupter:
    """Interrupt an async task that blocks its event loop, by a signal: the loop itself can't be asked.

    Only in the main thread, where Python runs signal handlers. The signal is SIGURG, which the system ignores
    where nobody handles it, so that one too many harms nobody.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._target: asyncio.Task[object] | None = None
        self._installed = False

    def interrupt(self, task: asyncio.Task[object]) -> None:
        """Raise `JobAborted` in this task if it is the one that holds the event loop; for any thread."""
        if self._installed:
            self._target = task
            signal.pthread_kill(self._thread, signal.SIGURG)

    @contextlib.contextmanager
    def installed(self, *, install: bool) -> Iterator[None]:
        """Be ready within the block, if this is the main thread."""
        if not install or threading.current_thread() is not threading.main_thread():
            yield
            return
        former = signal.signal(signal.SIGURG, self._on_signal)
        self._installed = True
        try:
            yield
        finally:
            self._installed = False
            signal.signal(signal.SIGURG, signal.SIG_DFL if former is None else former)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signal module's
        target, self._target = self._target, None
        if target is not None and asyncio.current_task(self._loop) is target:
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
    handler = _Handler(stop)
    handler.install()
    try:
        yield
    finally:
        handler.restore()
