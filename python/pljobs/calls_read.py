"""What is read from the views, stated once each."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import TypedDict, cast

from pljobs import arguments, checks
from pljobs.answers import Call, Row, length
from pljobs.arguments import JsonLoads
from pljobs.exceptions import NO_JOB, DatabaseReadOnly, InvalidArgument, JobNotFound
from pljobs.jobs import Job, Status

COUNTS = ", ".join(
    ["count(*) AS jobs_count", *(f"count(*) FILTER (WHERE j.status = '{s}') AS {s}" for s in Status)]
)
IDS = ("id", "worker_id", "parent_id")
# Lengths of time in seconds: as intervals they can be read in one IntervalStyle only.
JOB_COLUMNS = (
    "j.id, j.status, j.waiting_for, j.queue, j.task, j.args::text AS args, j.priority, j.lock,"
    " j.queueing_lock, j.attempts, j.crashes, j.created_at, j.scheduled_at, j.started_at, j.finished_at,"
    " j.worker_id, j.run_id, j.abort_requested, j.message, j.error, j.result::text AS result, j.parent_id,"
    " j.start_by, extract(epoch FROM j.timeout) AS timeout,"
    " extract(epoch FROM j.grace) AS grace, j.on_cancelled, j.progress, j.progress_message,"
    " j.fairness_key"
)


class JobCounts(TypedDict):
    """Count the jobs of a queue, a task or a lock (`name`), in all and by status."""

    name: str
    jobs_count: int
    todo: int
    doing: int
    succeeded: int
    failed: int
    cancelled: int
    aborted: int


class QueueCounts(JobCounts):
    """Count the jobs of a queue, and say whether it is paused, since when, by whom and why."""

    paused: bool
    paused_at: datetime | None
    paused_by: str | None
    pause_reason: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class HistoryEntry:
    """Hold one line of a job's history: what happened, when, in which attempt, on which worker, by whom."""

    job_id: int
    at: datetime
    event: str
    attempt: int | None
    worker_id: int | None
    worker: str | None
    who: str | None
    detail: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class StalledWorker:
    """Hold one worker whose lease ran out."""

    id: int
    name: str
    host: str
    pid: int
    heartbeat_at: datetime


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Choose jobs; what is None chooses all."""

    id: int | None = None
    queue: str | None = None
    task: str | None = None
    status: Status | str | None = None
    lock: str | None = None
    queueing_lock: str | None = None
    worker_id: int | None = None
    parent_id: int | None = None

    def where(self) -> tuple[str, dict[str, object]]:
        """Return the condition on `j`, and its parameters; raise `InvalidArgument` for an unknown status."""
        params: dict[str, object] = {}
        for column in IDS:
            value = getattr(self, column)
            if value is not None:
                params[column] = checks.identifier(column, value)
        for column in ("queue", "task", "lock", "queueing_lock"):
            value = getattr(self, column)
            if value is not None:
                params[column] = checks.text(column, value)
        if self.status is not None:
            try:
                params["status"] = str(Status(self.status))
            except ValueError:
                known = ", ".join(Status)
                raise InvalidArgument(f"no such status: {self.status!r}; there are {known}") from None
        conditions = [
            f"j.{column} = %({column})s::{'bigint' if column in IDS else 'text'}" for column in params
        ]
        return " AND ".join(conditions) or "true", params


def get_job(job_id: int, *, loads: JsonLoads | None = None) -> Call[Job]:
    """Read one job; raises `JobNotFound`."""

    def read(rows: list[Row]) -> Job:
        return job_from_row(_found(rows, job_id), loads)

    return Call(
        f"SELECT {JOB_COLUMNS} FROM pljobs.jobs AS j WHERE j.id = %(job_id)s::bigint",  # noqa: S608
        {"job_id": checks.identifier("job_id", job_id)},
        read,
    )


def get_job_status(job_id: int) -> Call[Status]:
    """Read where one job is in its life; raises `JobNotFound`."""
    return Call(
        "SELECT j.status FROM pljobs.jobs AS j WHERE j.id = %(job_id)s::bigint",
        {"job_id": checks.identifier("job_id", job_id)},
        lambda rows: Status(_found(rows, job_id)["status"]),
    )


def get_job_history(job_id: int) -> Call[list[HistoryEntry]]:
    """Read what happened to one job, in order; empty for an unknown id. What was asked outlives the job."""
    return Call(
        "SELECT h.job_id, h.at, h.event, h.attempt, h.worker_id, h.worker, h.who, h.detail"
        " FROM pljobs.history AS h WHERE h.job_id = %(job_id)s::bigint",
        {"job_id": checks.identifier("job_id", job_id)},
        lambda rows: [HistoryEntry(**row) for row in rows],
    )


def list_jobs(
    chosen: JobFilter, *, limit: int | None = None, loads: JsonLoads | None = None
) -> Call[list[Job]]:
    """Read jobs by ascending id, at most `limit`."""
    where, params = chosen.where()
    if limit is not None:
        params["limit"] = max(0, checks.identifier("limit", limit))
    return Call(
        f"SELECT {JOB_COLUMNS} FROM pljobs.jobs AS j WHERE {where} ORDER BY j.id"  # noqa: S608
        + (" LIMIT %(limit)s::bigint" if limit is not None else ""),
        params,
        lambda rows: [job_from_row(row, loads) for row in rows],
    )


def list_queues(chosen: JobFilter) -> Call[list[QueueCounts]]:
    """Count jobs by queue; without a filter on jobs, queues that have but settings are listed too."""
    where, params = chosen.where()
    only_with_jobs = "true" if set(params) - {"queue"} else "false"
    queue = "q.queue = %(queue)s::text" if "queue" in params else "true"
    counts = ", ".join(f"coalesce(c.{column}, 0) AS {column}" for column in ("jobs_count", *Status))
    return Call(
        f"SELECT q.queue AS name, {counts}, q.paused, q.paused_at, q.paused_by, q.pause_reason"  # noqa: S608
        f" FROM pljobs.queues AS q LEFT JOIN (SELECT j.queue, {COUNTS} FROM pljobs.jobs AS j WHERE {where}"
        f" GROUP BY j.queue) AS c ON c.queue = q.queue"
        f" WHERE {queue} AND (c.queue IS NOT NULL OR NOT {only_with_jobs}) ORDER BY q.queue",
        params,
        lambda rows: [cast("QueueCounts", row) for row in rows],
    )


def list_tasks(chosen: JobFilter) -> Call[list[JobCounts]]:
    """Count jobs by task."""
    return _counts("task", chosen)


def list_locks(chosen: JobFilter) -> Call[list[JobCounts]]:
    """Count jobs by lock; jobs without one are left out."""
    return _counts("lock", chosen)


def get_stalled_jobs(
    chosen: JobFilter, *, nb_seconds: float | None = None, loads: JsonLoads | None = None
) -> Call[list[Job]]:
    """Read running jobs whose worker's lease ran out; with `nb_seconds`, those running longer than that."""
    where, params = chosen.where()
    source = "pljobs.stalled_jobs"
    if nb_seconds is not None:
        source = "pljobs.jobs"
        where += " AND j.status = 'doing' AND j.started_at < clock_timestamp() - %(running_for)s::interval"
        params["running_for"] = checks.interval("nb_seconds", nb_seconds)
    return Call(
        f"SELECT {JOB_COLUMNS} FROM {source} AS j WHERE {where} ORDER BY j.id",  # noqa: S608
        params,
        lambda rows: [job_from_row(row, loads) for row in rows],
    )


def get_stalled_workers() -> Call[list[StalledWorker]]:
    """Read the workers whose lease ran out."""
    return Call(
        "SELECT w.id, w.name, w.host, w.pid, w.heartbeat_at FROM pljobs.workers AS w"
        " WHERE w.state = 'stalled' ORDER BY w.id",
        {},
        lambda rows: [StalledWorker(**row) for row in rows],
    )


def server_time() -> Call[datetime]:
    """Read the database's clock."""
    return Call("SELECT pg_catalog.clock_timestamp() AS now", {}, lambda rows: rows[0]["now"])


def require_writes() -> Call[None]:
    """Raise `DatabaseReadOnly` where nothing can be written, as on a standby."""

    def read(rows: list[Row]) -> None:
        if rows[0]["read_only"]:
            raise DatabaseReadOnly("all transactions are read-only", sqlstate="25006")

    return Call("SELECT current_setting('transaction_read_only')::boolean AS read_only", {}, read)


def has_schema() -> Call[bool]:
    """Say whether this database has the schema and its view of jobs."""
    return Call(
        "SELECT to_regclass('pljobs.jobs') IS NOT NULL AS there", {}, lambda rows: bool(rows[0]["there"])
    )


def begin() -> Call[None]:
    """Do nothing, which opens a transaction where the connection is not in autocommit."""
    return Call("SELECT 1 AS nothing", {}, lambda _: None)


def job_from_row(row: Row, loads: JsonLoads | None = None) -> Job:
    """Read a row of `JOB_COLUMNS`."""
    task_kwargs, args_error = arguments.decode_arguments(row["args"], loads)
    status = Status(row["status"])
    changed = {
        "status": status,
        "attempts": row["attempts"] - (status is Status.DOING),
        "result": arguments.decode_result(row["result"], loads),
        "timeout": length(row["timeout"]),
        "grace": length(row["grace"]),
    }
    named = {key: value for key, value in row.items() if key not in {"task", "args"}}
    return Job(task_name=row["task"], task_kwargs=task_kwargs, args_error=args_error, **named | changed)


def _counts(column: str, chosen: JobFilter) -> Call[list[JobCounts]]:
    where, params = chosen.where()
    return Call(
        f"SELECT j.{column} AS name, {COUNTS} FROM pljobs.jobs AS j"  # noqa: S608
        f" WHERE {where} AND j.{column} IS NOT NULL GROUP BY j.{column} ORDER BY j.{column}",
        params,
        lambda rows: [cast("JobCounts", row) for row in rows],
    )


def _found(rows: list[Row], job_id: int) -> Row:
    if not rows:
        raise JobNotFound(f"no job has the id {job_id}: {NO_JOB}")
    return rows[0]


def get_contract() -> Call[dict[str, object]]:
    """Answer the schema's `release`, and the `oldest` and `newest` contract that it serves."""
    return Call(
        "SELECT release, oldest, newest FROM pljobs.get_contract_v1()", {}, lambda rows: dict(rows[0])
    )
