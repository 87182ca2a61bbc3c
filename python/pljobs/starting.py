"""How a job becomes a run: which task, and in which process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pljobs.answers import RunEnd
from pljobs.endings import Ended, run_end
from pljobs.execution import LocalRun
from pljobs.isolated_run import IsolatedRun
from pljobs.isolation import Processes
from pljobs.job_context import JobContext
from pljobs.jobs import Job
from pljobs.run import OnEnd, Run
from pljobs.threads import Threads

if TYPE_CHECKING:
    from pljobs.worker import Worker

NOT_REGISTERED = (
    "task {!r} is not registered in this worker: import the module that defines it, or let the worker leave"
    " such jobs to others (unknown_tasks='leave')"
)


class Unfit(Exception):  # noqa: N818
    """Say why a job can't be run by this worker."""


class Starter:
    """Make the runs of a worker's jobs, and hold what they run in: its threads and processes."""

    def __init__(self, worker: Worker, *, on_end: OnEnd) -> None:
        self._worker = worker
        self._on_end = on_end
        self._threads = Threads("pljobs-job")
        self._processes = Processes(worker.app, worker.additional_context)

    def open(self) -> None:
        """Prepare what takes a while, without waiting for it."""
        self._processes.start()

    async def close(self) -> None:
        """Let threads end, and processes die."""
        self._threads.close()
        await self._processes.close()

    def make(self, job: Job, *, worker_id: int | None) -> Run:
        """Return the run of a job, to be started; raises `Unfit`."""
        worker = self._worker
        task = worker.app.tasks.get(job.task_name)
        if task is None:
            raise Unfit(NOT_REGISTERED.format(job.task_name))
        if job.args_error is not None:
            raise Unfit(job.args_error)
        context = JobContext(
            app=worker.app,
            job=job,
            task=task,
            worker_name=worker.name,
            worker_id=worker_id,
            worker_queues=worker.queues,
            additional_context=dict(worker.additional_context),
        )
        run: Run
        if task.isolation is None:
            run = LocalRun(context, threads=self._threads, on_end=self._on_end)
        else:
            run = IsolatedRun(
                context, processes=self._processes, delete_jobs=worker.delete_jobs, on_end=self._on_end
            )
        if job.timeout is not None:
            run.look_at = time.monotonic() + job.timeout.total_seconds()
        return run

    def end_of(self, run: Run, ended: Ended | RunEnd) -> tuple[RunEnd, BaseException | None]:
        """Return what to report of a run that has ended, and what it raised in this process."""
        if isinstance(ended, RunEnd):
            return ended, None
        return run_end(run.context, ended, delete_jobs=self._worker.delete_jobs), ended.exception
