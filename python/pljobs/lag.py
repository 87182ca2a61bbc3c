"""How late the event loop is, seen from the control thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pljobs.careful import careful_logger

if TYPE_CHECKING:
    from pljobs.run import Run

logger = careful_logger(__name__)

FIRST_WARNING = 1.0


class LoopLag:
    """Ping the event loop, one ping at a time, and know since when it has not answered."""

    def __init__(self, worker_id: int, in_loop: Callable[[Callable[[], None]], None]) -> None:
        self._worker_id = worker_id
        self._in_loop = in_loop
        self._pinged_at: float | None = None
        self._lag = 0.0
        self._warn_at = FIRST_WARNING

    def measure(self, runs: Iterable[Run | None]) -> float:
        """Return how late the event loop answered the last ping, or how late it is by now, in seconds.

        Warns of one that does not answer: after a second, and each time it has taken twice as long.
        """
        if self._pinged_at is None:
            self._pinged_at, self._warn_at = time.monotonic(), FIRST_WARNING
            self._in_loop(self._pong)
            return self._lag
        lag = self.blocked_for()
        if lag > self._warn_at:
            self._warn_at = 2 * lag
            running = sorted({run.job.call_string for run in runs if run and not (run.ended or run.waiting)})
            logger.warning(
                "The event loop of worker %s has been blocked for %.1f s: an async task does not let go of it"
                " (running: %s)",
                self._worker_id, lag, ", ".join(running),
            )  # fmt: skip
        return lag

    def blocked_for(self) -> float:
        """Return for how many seconds the event loop has not answered."""
        pinged_at = self._pinged_at  # the event loop sets it, too
        return 0.0 if pinged_at is None else time.monotonic() - pinged_at

    def _pong(self) -> None:  # in the event loop
        self._lag, self._pinged_at = self.blocked_for(), None
