"""What the command line reads, stated once each; the database writes rows as JSON: nothing is lost.

What `list` reads by default is what the role pljobs_reader may see: no arguments, results or errors. Lengths
of time are in seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pljobs.answers import Call
from pljobs.calls_read import JobFilter
from pljobs.jobs import Status

SHORT = (
    "j.id, j.status, j.waiting_for, j.queue, j.task, j.priority, j.attempts, j.crashes, j.created_at,"
    " j.scheduled_at, j.started_at, j.finished_at, j.worker_id, j.run_id, j.abort_requested,"
    " j.abort_requested_at, j.parent_id, j.start_by, extract(epoch FROM j.timeout) AS timeout, j.timeout_at,"
    " j.progress, j.progress_at"
)
FULL = (
    f"{SHORT}, j.lock, j.queueing_lock, j.args, j.message, j.error, j.result, j.deferred_by,"
    " extract(epoch FROM j.grace) AS grace, j.on_cancelled, j.progress_message, j.fairness_key"
)
REQUEST = (
    "r.id, r.job_id, r.run_id, r.worker_id, r.task, r.queue, r.kind, r.force, r.delete_job, r.requested_by,"
    " r.actor, r.reason, r.requested_at, r.delivered_at, r.handling, r.resolved_at, r.resolution,"
    " r.source, r.level, r.escalated_at, r.sql_at, r.term_at, r.kill_at, r.sql_way"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Holder:
    """Tell who holds what another session waits for; what this role may not see is null.

    `pid` is 0 for a prepared transaction; `seconds`: for how long it has been in its `state`.
    """

    pid: int
    role: str | None
    application: str | None
    state: str | None
    seconds: float | None


def list_jobs(
    chosen: JobFilter,
    *,
    statuses: Sequence[Status] = (),
    abort_requested: bool = False,
    stalled: bool = False,
    full: bool = False,
    oldest_first: bool = False,
    limit: int | None = None,
) -> Call[list[str]]:
    """Read jobs, the newest first."""
    where, params = chosen.where()
    if statuses:
        where += " AND j.status = ANY (%(statuses)s::text[])"
        params["statuses"] = [str(status) for status in statuses]
    if abort_requested:
        where += " AND j.abort_requested"
    if limit is not None:
        params["limit"] = limit
    return _rows(
        f"SELECT {FULL if full else SHORT} FROM pljobs.{'stalled_jobs' if stalled else 'jobs'} AS j"  # noqa: S608
        f" WHERE {where} ORDER BY j.id {'ASC' if oldest_first else 'DESC'}"
        + (" LIMIT %(limit)s::bigint" if limit is not None else ""),
        params,
    )


def show_job(job_id: int) -> Call[list[str]]:
    """Read all there is of one job; empty for an unknown id."""
    return _rows(f"SELECT {FULL} FROM pljobs.jobs AS j WHERE j.id = %(job_id)s::bigint", {"job_id": job_id})  # noqa: S608


def show_history(job_id: int) -> Call[list[str]]:
    """Read what happened to one job, in order."""
    return _rows(
        "SELECT h.at, h.event, h.attempt, h.worker_id, h.worker, h.who, h.detail FROM pljobs.history AS h"
        " WHERE h.job_id = %(job_id)s::bigint",
        {"job_id": job_id},
    )


def show_requests(job_id: int) -> Call[list[str]]:
    """Read what was asked about one job, in order; outlives the job."""
    return _rows(
        f"SELECT {REQUEST} FROM pljobs.requests AS r WHERE r.job_id = %(job_id)s::bigint ORDER BY r.id",  # noqa: S608
        {"job_id": job_id},
    )


def await_request(request_id: int) -> Call[list[str]]:
    """Read what became of a request, and where its job is now: `status` is null once it is deleted."""
    return _rows(
        f"SELECT {REQUEST}, j.status, j.finished_at FROM pljobs.requests AS r"  # noqa: S608
        " LEFT JOIN pljobs.jobs AS j ON j.id = r.job_id WHERE r.id = %(request_id)s::bigint",
        {"request_id": request_id},
    )


def list_stuck_aborts() -> Call[list[str]]:
    """Read which jobs were asked to abort and still run, the longest first; `asked_ago` in seconds."""
    return _rows(
        "SELECT s.job_id, extract(epoch FROM s.asked_ago) AS asked_ago, s.task, s.queue, s.requested_by,"
        " s.actor, s.reason, s.requested_at, s.delivered_at, s.handling, s.run_id, s.worker_id, s.worker,"
        " s.next, s.source, s.level, s.escalated_at, s.sql_way"
        " FROM pljobs.stuck_aborts AS s ORDER BY s.requested_at, s.job_id",
        {},
    )


def mind_client(*, is_local: bool) -> Call[int]:
    """Have the server end what this client asked once it is gone; return the session's pid.

    `is_local`: in this transaction only. Servers not on Linux may not be able to, and are left as they are.
    """
    return Call(
        "SELECT pg_catalog.pg_backend_pid() AS pid,"
        " CASE WHEN pg_catalog.version() LIKE '%%linux%%'"
        " THEN pg_catalog.set_config('client_connection_check_interval', '1s', %(is_local)s::boolean) END",
        {"is_local": is_local},
        lambda rows: int(rows[0]["pid"]),
    )


def list_holders(pid: int) -> Call[list[Holder]]:
    """Read for whom a session waits, those left out that wait themselves: what ends them helps nobody."""
    return Call(
        "WITH RECURSIVE ahead (pid) AS ("
        " SELECT unnest(pg_catalog.pg_blocking_pids(%(pid)s::integer))"
        " UNION SELECT unnest(pg_catalog.pg_blocking_pids(w.pid)) FROM ahead AS w"
        ") SELECT w.pid, a.usename::text AS role, a.application_name AS application, a.state,"
        " extract(epoch FROM clock_timestamp() - a.state_change)::double precision AS seconds"
        " FROM ahead AS w LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = w.pid"
        " WHERE pg_catalog.cardinality(pg_catalog.pg_blocking_pids(w.pid)) = 0 ORDER BY w.pid",
        {"pid": pid},
        lambda rows: [Holder(**row) for row in rows],
    )


def list_queues() -> Call[list[str]]:
    """Read every queue that has jobs or settings."""
    return _rows(
        "SELECT q.queue, q.paused, q.paused_at, q.paused_by, q.pause_reason, q.todo, q.doing, q.succeeded,"
        " q.failed, q.cancelled, q.aborted FROM pljobs.queues AS q ORDER BY q.queue",
        {},
    )


def list_workers(*, stopped: bool) -> Call[list[str]]:
    """Read the workers that are registered, and with `stopped` those that were; `loop_lag` in seconds."""
    return _rows(
        "SELECT w.id, w.name, w.host, w.pid, w.state, w.running, w.queues, w.concurrency, w.started_at,"
        " w.heartbeat_at, w.expires_at, w.stopped_at, extract(epoch FROM w.loop_lag) AS loop_lag,"
        " w.tainted_at"
        " FROM pljobs.workers AS w WHERE %(stopped)s::boolean OR w.state <> 'stopped' ORDER BY w.id",
        {"stopped": stopped},
    )


def count_workers() -> Call[dict[str, int]]:
    """Count the workers that are alive, and those whose lease ran out."""
    return Call(
        "SELECT count(*) FILTER (WHERE w.state = 'alive') AS alive,"
        " count(*) FILTER (WHERE w.state = 'stalled') AS stalled FROM pljobs.workers AS w",
        {},
        lambda rows: dict(rows[0]),
    )


def list_migrations() -> Call[dict[str, str]]:
    """Read when each migration was applied."""
    return Call(
        "SELECT m.name, m.applied_at::text AS applied_at FROM pljobs.migration AS m ORDER BY m.name",
        {},
        lambda rows: {str(row["name"]): str(row["applied_at"]) for row in rows},
    )


def _rows(statement: str, params: dict[str, object]) -> Call[list[str]]:
    return Call(
        f"SELECT row_to_json(x)::text AS row FROM ({statement}) AS x",  # noqa: S608
        params,
        lambda rows: [str(row["row"]) for row in rows],
    )
