"""The job manager: what an application asks about jobs and queues, each sync and, as `..._async`, async."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from pljobs import calls, calls_people, calls_read, checks
from pljobs.answers import DeleteResult, RescueAnswer, RetryResult
from pljobs.calls_read import HistoryEntry, JobCounts, JobFilter, QueueCounts, StalledWorker
from pljobs.deferring import JobDeferrer
from pljobs.exceptions import NO_JOB, JobNotFound
from pljobs.jobs import Job, Status
from pljobs.manager_flow import Throttles
from pljobs.manager_many import ManyJobs
from pljobs.manager_stop import StopJobs
from pljobs.twins import Question, Talk, Wait, talking_twins, twins
from pljobs.watching import Seen

if TYPE_CHECKING:
    from pljobs.connector import PsycopgConnector


class JobManager(StopJobs, ManyJobs, Throttles):
    """Look after jobs and queues; `app.job_manager`.

    Every method has a twin that ends in `_async`, to be awaited. `connection=` does what is asked in the
    transaction of that connection, as in `Task.configure`. `reason` and `actor` (on whose behalf) are kept in
    the audit trail. Methods raise `TypeError` for an id that is no int, `InvalidArgument` for other odd
    arguments, `AppNotOpen`, and `ConnectorException`. Follows procrastinate's class of the same name.
    """

    def __init__(self, connector: PsycopgConnector) -> None:
        self.connector = connector

    # One job

    def defer_job(self, job: Job, *, connection: object = None) -> Job:
        """Defer a job; return it with its id. Raises `AlreadyEnqueued`, `InvalidJob`."""
        return job.evolve(id=self._deferrer(job, connection).defer(), status=Status.TODO)

    async def defer_job_async(self, job: Job, *, connection: object = None) -> Job:
        """Defer a job; return it with its id. Raises `AlreadyEnqueued`, `InvalidJob`."""
        return job.evolve(id=await self._deferrer(job, connection).defer_async(), status=Status.TODO)

    def _deferrer(self, job: Job, connection: object) -> JobDeferrer:
        return JobDeferrer(job=job, connector=self.connector, parent=job.parent_id, connection=connection)

    def _wait_for_job(self, job_id: int, *, timeout: checks.Interval | None = None) -> Talk[Status | None]:
        """Wait until a job has ended; return the status that it has then, None if it was deleted.

        A job that is retried by its strategy has not ended. `timeout` in seconds (None: for ever); raises
        `TimeoutError` after it. Raises `JobNotFound` for an id that is not there, also where a worker deleted
        the job at its end, or `delete_old_jobs` did, before the first look. However many wait at once, the
        database is asked one question at a time, of all jobs, in an event loop, and one by all threads: after
        20 ms first, then less and less often, once a second where nothing changes.
        """
        number = checks.identifier("job_id", job_id)
        length = checks.optional_interval("timeout", timeout)
        seconds = None if length is None else length.total_seconds()
        seen: Seen = yield Wait(("job", number), seconds)
        if not seen.is_over:
            raise TimeoutError(f"job {job_id} has not ended ({seen.word}) after {seconds:g} s")
        if seen.word == "deleted" or (seen.word == "not_found" and seen.before is not None):
            return None
        if seen.word == "not_found":
            raise JobNotFound(f"no job has the id {job_id}: {NO_JOB}")
        return Status(str(seen.word))

    wait_for_job, wait_for_job_async = talking_twins(_wait_for_job)

    def _delete_job_by_id(
        self, job_id: int, *, reason: str | None = None, actor: str | None = None, connection: object = None
    ) -> Question[bool]:
        """Delete a finished job; say whether it was deleted."""
        call = calls_people.delete_job(job_id, reason=reason, actor=actor)
        return Question(call.then(bool), connection)

    delete_job_by_id, delete_job_by_id_async = twins(_delete_job_by_id)

    def _delete_job(
        self, job_id: int, *, reason: str | None = None, actor: str | None = None, connection: object = None
    ) -> Question[DeleteResult]:
        """Do what `delete_job_by_id` does; return all that is to be told about it."""
        return Question(calls_people.delete_job(job_id, reason=reason, actor=actor), connection)

    delete_job, delete_job_async = twins(_delete_job)

    def _retry_job_by_id(
        self,
        job_id: int,
        retry_at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        lock: str | None = None,
        *,
        reason: str | None = None,
        actor: str | None = None,
        connection: object = None,
    ) -> Question[bool]:
        """Put a failed, cancelled or aborted job back to todo; say whether that was done.

        It runs at `retry_at`, which must be timezone-aware, or at once; with a new queue, priority or lock if
        given.
        """
        asked = self._retry_job(
            job_id, retry_at, priority, queue, lock, reason=reason, actor=actor, connection=connection
        )
        return Question(asked.call.then(bool), connection)

    retry_job_by_id, retry_job_by_id_async = twins(_retry_job_by_id)

    def _retry_job(
        self,
        job: Job | int,
        retry_at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        lock: str | None = None,
        *,
        reason: str | None = None,
        actor: str | None = None,
        connection: object = None,
    ) -> Question[RetryResult]:
        """Do what `retry_job_by_id` does, for a job or an id; return all that is to be told about it."""
        job_id = job.id if isinstance(job, Job) else job
        call = calls_people.retry_job(
            job_id,
            retry_at=retry_at,
            queue=queue,
            priority=priority,
            lock=lock,
            reason=reason,
            actor=actor,
        )
        return Question(call, connection)

    retry_job, retry_job_async = twins(_retry_job)

    def _get_job_status(self, job_id: int, *, connection: object = None) -> Question[Status]:
        """Return where a job is in its life; raises `JobNotFound`."""
        return Question(calls_read.get_job_status(job_id), connection)

    get_job_status, get_job_status_async = twins(_get_job_status)

    def _get_job(self, job_id: int, *, connection: object = None) -> Question[Job]:
        """Return a job; raises `JobNotFound`."""
        return Question(calls_read.get_job(job_id, loads=self.connector.json_loads), connection)

    get_job, get_job_async = twins(_get_job)

    def _get_job_history(self, job_id: int) -> Question[list[HistoryEntry]]:
        """Return what happened to a job, in order, also to one that is deleted; empty for an unknown id."""
        return Question(calls_read.get_job_history(job_id))

    get_job_history, get_job_history_async = twins(_get_job_history)

    # Many jobs

    def _list_jobs(
        self,
        id: int | None = None,  # noqa: A002 - as procrastinate has it
        queue: str | None = None,
        task: str | None = None,
        status: Status | str | None = None,
        lock: str | None = None,
        queueing_lock: str | None = None,
        worker_id: int | None = None,
        *,
        parent: int | None = None,
        limit: int | None = None,
    ) -> Question[list[Job]]:
        """Return the jobs that match all that is given, by ascending id, at most `limit`.

        `parent`: those that were deferred inside of that job.
        """
        chosen = JobFilter(
            id=id, queue=queue, task=task, status=status, lock=lock, queueing_lock=queueing_lock,
            worker_id=worker_id, parent_id=parent,
        )  # fmt: skip
        return Question(calls_read.list_jobs(chosen, limit=limit, loads=self.connector.json_loads))

    list_jobs, list_jobs_async = twins(_list_jobs)

    def _list_queues(
        self,
        queue: str | None = None,
        task: str | None = None,
        status: Status | str | None = None,
        lock: str | None = None,
    ) -> Question[list[QueueCounts]]:
        """Return for each queue a dict: `name`, `jobs_count`, a number for each status, `paused`, by whom."""
        chosen = JobFilter(queue=queue, task=task, status=status, lock=lock)
        return Question(calls_read.list_queues(chosen))

    list_queues, list_queues_async = twins(_list_queues)

    def _list_tasks(
        self,
        queue: str | None = None,
        task: str | None = None,
        status: Status | str | None = None,
        lock: str | None = None,
    ) -> Question[list[JobCounts]]:
        """Return for each task a dict: `name`, `jobs_count`, and a number for each status."""
        return Question(calls_read.list_tasks(JobFilter(queue=queue, task=task, status=status, lock=lock)))

    list_tasks, list_tasks_async = twins(_list_tasks)

    def _list_locks(
        self,
        queue: str | None = None,
        task: str | None = None,
        status: Status | str | None = None,
        lock: str | None = None,
    ) -> Question[list[JobCounts]]:
        """Return for each lock a dict: `name`, `jobs_count`, and a number for each status."""
        return Question(calls_read.list_locks(JobFilter(queue=queue, task=task, status=status, lock=lock)))

    list_locks, list_locks_async = twins(_list_locks)

    # Queues

    def _pause_queue(
        self, queue: str, *, reason: str | None = None, actor: str | None = None, connection: object = None
    ) -> Question[bool]:
        """Keep workers from starting a queue's jobs; False if it was paused already. Running ones go on."""
        call = calls_people.pause_queue(queue, reason=reason, actor=actor)
        return Question(call.then(lambda outcome: outcome == "paused"), connection)

    pause_queue, pause_queue_async = twins(_pause_queue)

    def _resume_queue(
        self, queue: str, *, reason: str | None = None, actor: str | None = None, connection: object = None
    ) -> Question[bool]:
        """Let workers start a queue's jobs again; False if it wasn't paused."""
        call = calls_people.resume_queue(queue, reason=reason, actor=actor)
        return Question(call.then(lambda outcome: outcome == "resumed"), connection)

    resume_queue, resume_queue_async = twins(_resume_queue)

    # Housekeeping

    def _get_stalled_jobs(
        self, nb_seconds: float | None = None, queue: str | None = None, task_name: str | None = None
    ) -> Question[list[Job]]:
        """Return running jobs whose worker is gone; with `nb_seconds`, all that run for longer than that."""
        return Question(
            calls_read.get_stalled_jobs(
                JobFilter(queue=queue, task=task_name),
                nb_seconds=nb_seconds,
                loads=self.connector.json_loads,
            )
        )

    get_stalled_jobs, get_stalled_jobs_async = twins(_get_stalled_jobs)

    def _get_stalled_workers(self) -> Question[list[StalledWorker]]:
        """Return the workers that have not been heard of for longer than their lease."""
        return Question(calls_read.get_stalled_workers())

    get_stalled_workers, get_stalled_workers_async = twins(_get_stalled_workers)

    def _rescue_jobs(self, *, max_jobs: int = 1000, max_crashes: int = 3) -> Question[list[RescueAnswer]]:
        """Take jobs from workers that are gone: they run again, or fail after `max_crashes`."""
        return Question(calls.rescue_jobs(max_jobs=max_jobs, max_crashes=max_crashes))

    rescue_jobs, rescue_jobs_async = twins(_rescue_jobs)
