"""Run isolated tasks for tests without a worker or a database; look at what becomes of processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import isolated_tasks
from pljobs.answers import RunEnd, Verdict
from pljobs.endings import Ended, run_end
from pljobs.isolated_run import IsolatedRun
from pljobs.isolation import Processes
from pljobs.job_context import JobContext
from pljobs.jobs import AbortReason, DeleteJobCondition, Job
from pljobs.run import Run
from pljobs.tasks import AnyTask
from waiting import wait_until_async

DEADLINE = 60.0
NEVER = DeleteJobCondition.NEVER


class Runs:
    """Start runs, and keep how they ended."""

    def __init__(self) -> None:
        self.processes = Processes(isolated_tasks.app, {})
        self.ends: dict[int, RunEnd] = {}
        self._ids = itertools.count(1)

    def start(self, task: AnyTask, **arguments: object) -> IsolatedRun:
        """Start a task."""
        number = next(self._ids)
        job = Job(id=number, run_id=100 + number, task_name=task.name, task_kwargs=arguments)
        context = JobContext(app=isolated_tasks.app, job=job, task=task)
        run = IsolatedRun(context, processes=self.processes, delete_jobs=NEVER, on_end=self._ended)
        run.start()
        return run

    async def end(self, run: Run) -> RunEnd:
        """Wait for its end."""
        await wait_until_async(lambda: run.ended, DEADLINE, f"{run.job.call_string} ends")
        return self.ends[run.job.run_id or 0]

    def _ended(self, run: Run, ended: Ended | RunEnd) -> None:
        end = ended if isinstance(ended, RunEnd) else run_end(run.context, ended, delete_jobs=NEVER)
        assert end.run_id not in self.ends
        self.ends[end.run_id] = end


@contextlib.asynccontextmanager
async def runs() -> AsyncIterator[Runs]:
    """Have a nursery, which is gone at the end, with all it had."""
    made = Runs()
    try:
        yield made
    finally:
        await made.processes.close()


def ask(run: Run, level: int = 1, reason: AbortReason = AbortReason.USER_REQUEST) -> None:
    """Ask a run to abort, as far as `level`."""
    verdict = Verdict(
        run_id=run.job.run_id or 0, job_id=run.job.id, verdict="abort", level=level, request_id=7,
        requested_by="ann", reason="no longer wanted",
    )  # fmt: skip
    run.abort(reason, verdict)


async def said(path: Path) -> str:
    """Wait for a file, and return what is in it."""
    await wait_until_async(path.exists, DEADLINE, f"{path.name} is written")
    return await asyncio.to_thread(path.read_text)


def is_gone(pid: int) -> bool:
    """Say whether a process is dead, reaped or not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in {"Z", "X"}


async def until_gone(*pids: int) -> None:
    """Wait until all of these are dead."""
    for pid in pids:
        await wait_until_async(lambda pid=pid: is_gone(pid), DEADLINE, f"process {pid} ends")  # type: ignore[arg-type, misc]


def children(pid: int) -> list[int]:
    """Return the children of a process, zombies included."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]
