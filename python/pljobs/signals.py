"""SIGINT and SIGTERM: the first stops, the second aborts, the third ends the process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
    former = {number: signal.getsignal(number) for number in SIGNALS}
    seen = 0

    def restore() -> None:
        for number, handler in former.items():
            loop.remove_signal_handler(number)
            # What was installed from C can't be put back: the system's own way is what is left.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def on_signal(number: signal.Signals) -> None:
        nonlocal seen
        seen += 1
        logger.warning("Received %s", number.name)
        if seen == 2:
            for each in SIGNALS:
                loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)
        stop()

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        restore()
