"""How a worker comes to its end: its jobs go on for a while, are asked to abort, or given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from pljobs.careful import careful_logger
from pljobs.exceptions import WorkerTainted

if TYPE_CHECKING:
    from pljobs.run import Run

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


class GivenUp:
    """What a worker could not stop: it takes no more jobs, and its process has to end."""

    def __init__(self, stop: Stopping) -> None:
        self._stop = stop
        self._names: dict[int | None, str] = {}  # by run_id: some are noted twice

    def add(self, run: Run) -> None:
        """Note a run that is given up, and stop."""
        self._names[run.job.run_id] = run.job.call_string
        self._stop.begin()  # a person's first word is to wait for the others all the same

    def abandon(self, run: Run, is_known: bool) -> None:
        """Give up a run of which the database was told already; `is_known`: and took it down, or may have.

        Its code may have come to its end meanwhile. To the database it is given up all the same, and its
        worker is given no more jobs.
        """
        if is_known:
            self.add(run)
        run.abandon()

    def refuse(self, worker_id: int | None) -> None:
        """Raise `WorkerTainted` if there is any."""
        if self._names:
            raise WorkerTainted(
                f"worker {worker_id} has stopped: it gave up {', '.join(self._names.values())}, whose code"
                " may still run; end this process, and start another"
            )
