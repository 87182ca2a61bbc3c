"""The SQL functions that defer and run jobs, stated once each: statement, arguments, how to read the rows.

No I/O: `db.run` and `db.run_async` execute a call. What people ask for is in `calls_people`, what is only
read in `calls_read`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from pljobs import arguments, checks, release
from pljobs.answers import (
    Call,
    FinishAnswer,
    LimitAnswer,
    Observation,
    PeriodicResult,
    RescueAnswer,
    Row,
    RunEnd,
    Verdict,
    length,
)
from pljobs.arguments import JsonDumps, JsonLoads
from pljobs.exceptions import InvalidArgument, InvalidJob
from pljobs.jobs import Job, Status

FINAL = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.ABORTED)
NOW, LONGEST_WAIT = timedelta(0), timedelta(days=3650)
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


def encode_job(job: Job, dumps: JsonDumps | None = None) -> str:
    """Return a job as the JSON object that defer_jobs_vN take; raise `InvalidJob` if it can't be."""
    options = encode_options(job, parent_id=job.parent_id)
    return with_arguments(options, arguments.encode_arguments(job.task_name, job.task_kwargs, dumps))


def with_arguments(options: str, args: str) -> str:
    """Return the JSON object of a job: what `encode_options` made, with its encoded arguments."""
    return f'{options}, "args": {args}}}'


def encode_options(job: Job, *, parent_id: int | None = None, idempotency_key: str | None = None) -> str:
    """Return the JSON object of a job but for its arguments and the brace at its end; raise `InvalidJob`."""
    fields: dict[str, object] = {
        "task": checks.name("the name of the task", job.task_name, error=InvalidJob),
        "queue": checks.name("queue", job.queue, error=InvalidJob),
        "priority": checks.priority(job.priority, error=InvalidJob),
    }
    if job.lock is not None:
        fields["lock"] = checks.name("lock", job.lock, error=InvalidJob)
    if job.queueing_lock is not None:
        fields["queueing_lock"] = checks.name("queueing_lock", job.queueing_lock, error=InvalidJob)
    if job.scheduled_at is not None:
        fields["scheduled_at"] = checks.aware("schedule_at", job.scheduled_at, error=InvalidJob).isoformat()
    if job.scheduled_in is not None:
        fields["scheduled_in"] = checks.as_interval(job.scheduled_in)
    if job.start_by is not None:
        fields["start_by"] = checks.aware("start_by", job.start_by, error=InvalidJob).isoformat()
    lengths = {"start_within": job.start_within, "timeout": job.timeout, "grace": job.grace}
    fields |= {key: checks.as_interval(length) for key, length in lengths.items() if length is not None}
    if job.on_cancelled is not None:
        fields["on_cancelled"] = checks.name("on_cancelled", job.on_cancelled, error=InvalidJob)
    if idempotency_key is not None:
        fields["idempotency_key"] = checks.name("idempotency_key", idempotency_key, error=InvalidJob)
    if job.fairness_key is not None:
        fields["fairness_key"] = checks.name("fairness_key", job.fairness_key, error=InvalidJob)
    if parent_id is not None:
        fields["parent_id"] = checks.identifier("parent", parent_id)
    return json.dumps(fields)[:-1]


def defer_jobs(
    jobs: Iterable[Job], *, notify: bool = True, dumps: JsonDumps | None = None
) -> Call[list[int]]:
    """Defer all of these jobs or none; answers the ids in the order given."""
    jobs = list(jobs)
    return defer_encoded((encode_job(job, dumps) for job in jobs), version=defer_version(jobs), notify=notify)


def defer_version(jobs: Iterable[Job], idempotency_key: str | None = None) -> Literal[1, 2, 3]:
    """Return the first version of defer_jobs that knew all that these jobs have.

    An older schema, which would overlook it, has not got that function.
    """
    if any(job.fairness_key is not None for job in jobs):
        return 3
    return 1 if idempotency_key is None else 2


def defer_encoded(
    jobs: Iterable[str], *, version: Literal[1, 2, 3] = 1, notify: bool = True
) -> Call[list[int]]:
    """Defer what `encode_job` made; answers the ids, with version 2 and 3 also of what was there."""
    params = {"jobs": f"[{', '.join(jobs)}]", "notify": notify}
    if version == 1:
        return Call(
            "SELECT pljobs.defer_jobs_v1(jobs => %(jobs)s::jsonb, notify => %(notify)s::boolean) AS ids",
            params,
            lambda rows: list(rows[0]["ids"]),
        )
    return Call(
        f"SELECT d.job_id FROM pljobs.defer_jobs_v{version}(jobs => %(jobs)s::jsonb,"  # noqa: S608
        " notify => %(notify)s::boolean) AS d",
        params,
        lambda rows: [int(row["job_id"]) for row in rows],
    )


def defer_periodic_job(
    periodic_id: str, *, tick: datetime, job: Job, dumps: JsonDumps | None = None
) -> Call[PeriodicResult]:
    """Defer the job of one tick of its task, at most once whoever calls."""
    return Call(
        "SELECT r.outcome, r.job_id FROM pljobs.defer_periodic_job_v1("
        "periodic_id => %(periodic_id)s::text, tick => %(tick)s::timestamptz, job => %(job)s::jsonb) AS r",
        {
            "periodic_id": periodic_id,
            "tick": checks.aware("tick", tick),
            "job": encode_job(job, dumps),
        },
        lambda rows: PeriodicResult(**rows[0]),
    )


def register_worker(
    name: str,
    *,
    host: str,
    pid: int,
    queues: Sequence[str] | None = None,
    concurrency: int = 1,
    lease: timedelta = timedelta(seconds=30),
    worker_id: int | None = None,
) -> Call[int]:
    """Register a worker, again under its id where one is given; answers the id."""
    return Call(
        "SELECT pljobs.register_worker_v2(name => %(name)s::text, host => %(host)s::text,"
        " pid => %(pid)s::integer, contract => %(contract)s::integer, driver => %(driver)s::text,"
        " queues => %(queues)s::text[], concurrency => %(concurrency)s::integer,"
        " lease => %(lease)s::interval, worker_id => %(worker_id)s::bigint) AS worker_id",
        {
            "name": name,
            "host": host,
            "pid": pid,
            "contract": release.CONTRACT,
            "driver": release.driver(),
            "queues": None if queues is None else list(queues),
            "concurrency": concurrency,
            "lease": lease,
            "worker_id": worker_id,
        },
        lambda rows: int(rows[0]["worker_id"]),
    )


def unregister_worker(worker_id: int) -> Call[str]:
    """Say that a worker has stopped; answers `unregistered` or `not_found`."""
    return Call(
        "SELECT pljobs.unregister_worker_v1(worker_id => %(worker_id)s::bigint) AS outcome",
        {"worker_id": worker_id},
        lambda rows: str(rows[0]["outcome"]),
    )


def fetch_jobs(
    worker_id: int,
    *,
    max_jobs: int = 1,
    queues: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    loads: JsonLoads | None = None,
) -> Call[list[Job]]:
    """Start up to `max_jobs` jobs; answers them in the order to run them, each with its `run_id`.

    A job whose arguments can't be read comes with `args_error`.
    """

    def read(rows: list[Row]) -> list[Job]:
        return [_fetched(row, worker_id, loads) for row in rows]

    return Call(
        "SELECT f.job_id, f.run_id, f.queue, f.task, f.priority, f.lock, f.queueing_lock,"
        " f.args::text AS args, f.attempts, f.scheduled_at, f.created_at, f.started_at,"
        " extract(epoch FROM f.timeout) AS timeout, f.parent_id"
        " FROM pljobs.fetch_jobs_v1(worker_id => %(worker_id)s::bigint, max_jobs => %(max_jobs)s::integer,"
        " queues => %(queues)s::text[], tasks => %(tasks)s::text[]) AS f",
        {
            "worker_id": worker_id,
            "max_jobs": max_jobs,
            "queues": None if queues is None else list(queues),
            "tasks": None if tasks is None else list(tasks),
        },
        read,
    )


def finish_jobs(
    runs: Sequence[RunEnd], *, wait: bool = True, dumps: JsonDumps | None = None
) -> Call[list[FinishAnswer]]:
    """Report how runs ended; answers what was written for each.

    `wait` False: for a job that somebody's open transaction holds, answers `locked` at once instead.

    Send at most 100 at once: with a result of 1 MiB each, more would not fit into one JSON value of
    PostgreSQL's.
    """
    return Call(
        "SELECT a.job_id, a.run_id, a.status FROM pljobs.finish_jobs_v1(runs => %(runs)s::jsonb,"
        " wait => %(wait)s::boolean) AS a",
        {"runs": f"[{', '.join(_encode_run_end(run, dumps) for run in runs)}]", "wait": wait},
        lambda rows: [FinishAnswer(**row) for row in rows],
    )


def heartbeat(
    worker_id: int,
    *,
    run_ids: Sequence[int] = (),
    observed: Sequence[Observation] = (),
    loop_lag: timedelta | None = None,
) -> Call[list[Verdict]]:
    """Renew the lease; answers for each of `run_ids` what to do about it."""
    seen = [_encode_observation(each) for each in observed]
    return Call(
        "SELECT v.run_id, v.job_id, v.verdict, v.level, extract(epoch FROM v.look_in) AS look_in,"
        " v.sql_way, v.request_id, v.source, v.requested_by, v.actor, v.reason, v.requested_at, v.term_at"
        " FROM pljobs.heartbeat_v1(worker_id => %(worker_id)s::bigint, run_ids => %(run_ids)s::bigint[],"
        " observed => %(observed)s::jsonb, loop_lag => %(loop_lag)s::interval) AS v",
        {
            "worker_id": worker_id,
            "run_ids": list(run_ids),
            "observed": json.dumps(seen),
            "loop_lag": loop_lag,
        },
        lambda rows: [Verdict(**row | {"look_in": length(row["look_in"])}) for row in rows],
    )


def enforce_limits(*, max_jobs: int = 1000) -> Call[list[LimitAnswer]]:
    """Enforce start_by, timeouts and due SQL cancels, of all workers' jobs; answers what was done."""
    return Call(
        "SELECT e.job_id, e.outcome FROM pljobs.enforce_limits_v1(max_jobs => %(max_jobs)s::integer) AS e",
        {"max_jobs": max_jobs},
        lambda rows: [LimitAnswer(**row) for row in rows],
    )


def rescue_jobs(*, max_jobs: int = 1000, max_crashes: int = 3) -> Call[list[RescueAnswer]]:
    """Take the jobs of workers whose lease ran out back; answers what became of each."""
    return Call(
        "SELECT r.job_id, r.outcome FROM pljobs.rescue_jobs_v1(max_jobs => %(max_jobs)s::integer,"
        " max_crashes => %(max_crashes)s::integer) AS r",
        {"max_jobs": max_jobs, "max_crashes": max_crashes},
        lambda rows: [RescueAnswer(**row) for row in rows],
    )


def wake_lanes() -> Call[int]:
    """Wake the lanes that a rare race left asleep; answers how many."""
    return Call("SELECT pljobs.wake_lanes_v1() AS woken", {}, lambda rows: int(rows[0]["woken"]))


def _encode_observation(seen: Observation) -> dict[str, object]:
    fields: dict[str, object] = {"job_id": seen.job_id, "run_id": seen.run_id}
    if seen.handling is not None:
        fields["handling"] = seen.handling
    if seen.sql_way is not None:
        fields["sql"] = seen.sql_way
    if seen.progress is not None:
        fields["progress"], fields["progress_message"] = seen.progress
    return fields


def _fetched(row: Row, worker_id: int, loads: JsonLoads | None) -> Job:
    task_kwargs, args_error = arguments.decode_arguments(row["args"], loads)
    return Job(
        id=row["job_id"],
        run_id=row["run_id"],
        status=Status.DOING,
        queue=row["queue"],
        task_name=row["task"],
        priority=row["priority"],
        lock=row["lock"],
        queueing_lock=row["queueing_lock"],
        task_kwargs=task_kwargs,
        args_error=args_error,
        attempts=row["attempts"] - 1,
        scheduled_at=row["scheduled_at"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        timeout=length(row["timeout"]),
        parent_id=row["parent_id"],
        worker_id=worker_id,
    )


def _encode_run_end(run: RunEnd, dumps: JsonDumps | None) -> str:
    result, not_stored = arguments.encode_result(run.result, dumps)
    notes = [note for note in (run.message, not_stored) if note]
    fields: dict[str, object] = {"job_id": run.job_id, "run_id": run.run_id, "outcome": run.outcome}
    if notes:
        # The note about the result comes last and is kept: a message that is too long loses its middle.
        fields["message"] = arguments.clip_text("; ".join(notes), arguments.MAX_MESSAGE)
    if run.error:
        fields["error"] = arguments.clip_text(run.error, arguments.MAX_ERROR)
    if run.delete_job:
        fields["delete_job"] = True
    if run.sql_cancelled:
        fields["sql_cancelled"] = True
    if run.progress is not None:
        fields["progress"], fields["progress_message"] = run.progress
    if run.retry_at is not None or run.retry_in is not None:
        fields |= _encode_retry(run)
    encoded = json.dumps(fields)
    return encoded if result is None else f'{encoded[:-1]}, "result": {result}}}'


def _encode_retry(run: RunEnd) -> dict[str, object]:
    """Leave out what the database would refuse: better a retry in the old queue than a job without end."""
    fields: dict[str, object] = {}
    with contextlib.suppress(InvalidArgument):
        if run.retry_at is not None:
            fields["retry_at"] = max(checks.aware("retry_at", run.retry_at), EARLIEST).isoformat()
    if run.retry_in is not None:
        fields["retry_in"] = checks.as_interval(min(max(run.retry_in, NOW), LONGEST_WAIT))
    with contextlib.suppress(InvalidArgument):
        if run.retry_priority is not None:
            fields["retry_priority"] = checks.priority(run.retry_priority)
    for key, value in (("retry_queue", run.retry_queue), ("retry_lock", run.retry_lock)):
        with contextlib.suppress(InvalidArgument):
            if value is not None:
                fields[key] = checks.name(key, value)
    return fields
