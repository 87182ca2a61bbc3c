"""How a worker comes to its end: its jobs may go on for a while, then they are asked to abort."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pljobs.careful import careful_logger

logger = careful_logger(__name__)


class Stopping:
    """Know whether a worker should stop, and when it has waited for its jobs for long enough.

    `patience`: seconds from the stop until the jobs that still run are asked to abort, whatever else the
    worker waits for meanwhile (None: as long as they take). `on_begin`: called once; `busy`: whether jobs
    still run; `abort`: asks them to abort.
    """

    def __init__(
        self,
        patience: float | None,
        *,
        on_begin: Callable[[], None],
        busy: Callable[[], object],
        abort: Callable[[], None],
    ) -> None:
        self.begun = asyncio.Event()
        self._patience = patience
        self._on_begin = on_begin
        self._busy = busy
        self._abort = abort
        self._told = False
        self._deadline: asyncio.TimerHandle | None = None

    def tell(self) -> None:
        """Begin, as somebody says; the second time, ask the jobs to abort."""
        if self._told:
            self._abort()
        self._told = True
        self.begin()

    def begin(self) -> None:
        """Begin, if that was not done before; nobody has said so."""
        if self.begun.is_set():
            return
        self.begun.set()
        self._on_begin()
        if self._patience is not None:
            self._deadline = asyncio.get_running_loop().call_later(self._patience, self._lose_patience)

    def close(self) -> None:
        """Forget the patience: no job runs, or they have been asked."""
        if self._deadline is not None:
            self._deadline.cancel()

    def _lose_patience(self) -> None:
        if self._busy():
            logger.warning("Jobs still run after %s s: asking them to abort", self._patience)
            self._abort()
