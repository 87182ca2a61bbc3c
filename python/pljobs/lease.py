"""The lease, seen by its worker: where the database can't be reached, jobs stop before others start them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from pljobs import calls
from pljobs.answers import Call
from pljobs.careful import careful_logger
from pljobs.exceptions import ConnectorException
from pljobs.jobs import AbortReason, Job
from pljobs.run import KILL, TERM, Run

if TYPE_CHECKING:
    from pljobs.control import Control
    from pljobs.link import Link
    from pljobs.worker import Worker

logger = careful_logger(__name__)

# When this part of the lease is over since it was last renewed: ask, terminate, kill. When all of it is,
# others may start the jobs.
STEPS = ((0.6, 1), (0.8, TERM), (0.95, KILL))
DWELL = 0.1  # of the lease: each step has its time, also after the process itself was suspended


def registration(worker: Worker, worker_id: int | None) -> Call[int]:
    """Return the call that begins a worker's lease, or with its id begins it anew."""
    return calls.register_worker(
        worker.name,
        host=socket.gethostname(),
        pid=os.getpid(),
        queues=worker.queues,
        concurrency=worker.concurrency,
        lease=timedelta(seconds=worker.stalled_timeout),
        worker_id=worker_id,
    )


async def in_time(fetching: Awaitable[list[Job]], lease: float) -> list[Job]:
    """Return the fetched jobs; raise ConnectorException if they come later than a lease after the call.

    They may be another worker's by now. Not started, they are not listed, so that a heartbeat gives them
    back.
    """
    sent_at = time.monotonic()
    jobs = await fetching
    late = time.monotonic() - sent_at
    if jobs and late > lease:
        names = ", ".join(job.call_string for job in jobs)
        raise ConnectorException(
            f"{names} came too late, after {late:.1f} s, of a lease of {lease} s: given back"
        )
    return jobs


class LeaseWatch:
    """Stop a worker's runs step by step while its lease runs out; in the event loop's thread.

    `give_up`: called with a run that could not be stopped, for only the end of its process will.
    """

    def __init__(
        self, lease: float, *, runs: Mapping[int, Run | None], give_up: Callable[[Run], None]
    ) -> None:
        self._every = min(1.0, lease / 20)
        # So little of it is left that no job should be started any more.
        self.running_out = False
        self._lease = lease
        self._runs = runs
        self._give_up = give_up
        # By run_id: how far it was stopped, and when that was.
        self._steps: dict[int, tuple[int, float]] = {}
        self._said = False

    async def run(self, control: Control, links: Iterable[Link], over: asyncio.Event, *, stops: bool) -> None:
        """Look after the line that keeps the lease, and, if its loss `stops` them, after the jobs.

        Raises RuntimeError if the control thread has died: nobody would keep the lease.
        """
        while not over.is_set():
            if control.has_died:
                raise RuntimeError("the control thread has died, and with it the lease")
            if control.cut_if_frozen():
                for link in links:
                    link.doubt()
            if stops:
                self.look(control.renewed_at)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await over.wait()

    def look(self, renewed_at: float) -> None:
        """Do what is due; `renewed_at`: when the last heartbeat that was answered was sent."""
        now = time.monotonic()
        age = now - renewed_at
        due = max((level for part, level in STEPS if age >= part * self._lease), default=0)
        self.running_out = due > 0
        if due == 0:
            self._steps, self._said = {}, False
            return
        if not self._said and any(self._runs.values()):
            self._said = True
            logger.warning(
                "The database has not answered for %.1f s, of a lease of %s s: the jobs stop, before"
                " others start them, and will run again",
                age, self._lease,
            )  # fmt: skip
        before, self._steps = self._steps, {}
        for run_id, run in list(self._runs.items()):
            if run is None or run.ended:
                continue
            # Each from the first step on: one whose fetch was answered late has just begun.
            level, since = before.get(run_id, (0, -math.inf))
            if due > level and now - since >= DWELL * self._lease:
                level, since = next(step for _, step in STEPS if step > level), now
            self._steps[run_id] = level, since
            if level >= KILL and not run.killable:
                logger.error(
                    "Job %s has not stopped, and the lease is over", run.job.call_string,
                    extra=run.job.log_context(),
                )  # fmt: skip
                self._give_up(run)
            else:
                run.abort(AbortReason.LEASE, level=level)
