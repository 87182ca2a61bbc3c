"""What people and applications ask for, stated once each: cancel, delete, retry, pause, resume."""

from __future__ import annotations

from datetime import datetime
from typing import TypedDict, Unpack

from pljobs import checks
from pljobs.answers import Call, CancelResult, DeleteResult, RetryResult, TreeAnswer, statuses
from pljobs.exceptions import InvalidArgument

STOP = (
    "abort => %(abort)s::boolean, delete_job => %(delete_job)s::boolean, force => %(force)s::boolean,"
    " reason => %(reason)s::text, actor => %(actor)s::text, grace => %(grace)s::interval,"
    " term_grace => %(term_grace)s::interval, sql => %(sql)s::boolean"
)


class StopOptions(TypedDict, total=False):
    """Say how to stop jobs: what cancelling one, many and a tree have in common.

    `abort`: ask running ones, too. `delete_job`: delete it once it is cancelled or aborted. `force`: end a
    running one now, in the database. `reason` and `actor` (on whose behalf) are kept. `grace`: how long a
    running one has until it is terminated (None: it is never; 0: at once), its SQL being cancelled after half
    of that; `term_grace`: how long from then until it is killed (5 seconds). `sql`: cancel its SQL now.
    """

    abort: bool
    delete_job: bool
    force: bool
    reason: str | None
    actor: str | None
    grace: checks.Interval | None
    term_grace: checks.Interval | None
    sql: bool


def stop_params(how: StopOptions) -> dict[str, object]:
    """Check how to stop; return it as the parameters of `STOP`."""
    grace = checks.optional_interval("grace", how.get("grace"))
    term_grace = checks.optional_interval("term_grace", how.get("term_grace"))
    if term_grace is not None and grace is None:
        raise InvalidArgument("term_grace goes with grace: it begins when that is over")
    return {
        "abort": checks.flag("abort", how.get("abort")),
        "delete_job": checks.flag("delete_job", how.get("delete_job")),
        "force": checks.flag("force", how.get("force")),
        "reason": checks.text("reason", how.get("reason")),
        "actor": checks.text("actor", how.get("actor")),
        "grace": grace,
        "term_grace": term_grace,
        "sql": checks.flag("sql", how.get("sql")),
    }


def cancel_job(job_id: int, **how: Unpack[StopOptions]) -> Call[CancelResult]:
    """Cancel a waiting job, ask a running one to abort, end it by force, or delete it."""
    return Call(
        "SELECT r.outcome, r.status_before, r.status_after, r.request_id, r.worker_id, r.run_id, r.sql_way"  # noqa: S608
        f" FROM pljobs.cancel_job_v1(job_id => %(job_id)s::bigint, {STOP}) AS r",
        {"job_id": checks.identifier("job_id", job_id), **stop_params(how)},
        lambda rows: CancelResult(**rows[0] | statuses(rows[0], "status_before", "status_after")),
    )


def cancel_tree(root: int, *, dry_run: bool = False, **how: Unpack[StopOptions]) -> Call[list[TreeAnswer]]:
    """Cancel a job and all that was deferred inside of it; answers by ascending id."""
    return Call(
        "SELECT r.job_id, r.parent_id, r.queue_name AS queue, r.task_name AS task, r.status_before, r.outcome"  # noqa: S608
        f" FROM pljobs.cancel_tree_v1(root => %(root)s::bigint, {STOP}, dry_run => %(dry_run)s::boolean) AS r"
        " ORDER BY r.job_id",
        {
            "root": checks.identifier("root", root),
            **stop_params(how),
            "dry_run": checks.flag("dry_run", dry_run),
        },
        lambda rows: [TreeAnswer(**row | statuses(row, "status_before")) for row in rows],
    )


def delete_job(job_id: int, *, reason: str | None = None, actor: str | None = None) -> Call[DeleteResult]:
    """Delete a finished job."""
    return Call(
        "SELECT r.outcome, r.status FROM pljobs.delete_job_v1(job_id => %(job_id)s::bigint,"
        " reason => %(reason)s::text, actor => %(actor)s::text) AS r",
        {
            "job_id": checks.identifier("job_id", job_id),
            "reason": checks.text("reason", reason),
            "actor": checks.text("actor", actor),
        },
        lambda rows: DeleteResult(**rows[0] | statuses(rows[0], "status")),
    )


def retry_job(
    job_id: int | None,
    *,
    retry_at: datetime | None = None,
    queue: str | None = None,
    priority: int | None = None,
    lock: str | None = None,
    reason: str | None = None,
    actor: str | None = None,
) -> Call[RetryResult]:
    """Put a failed, cancelled or aborted job back to todo."""
    return Call(
        "SELECT r.outcome, r.status FROM pljobs.retry_job_v1(job_id => %(job_id)s::bigint,"
        " scheduled_at => %(scheduled_at)s::timestamptz, queue => %(queue)s::text,"
        " priority => %(priority)s::integer, lock => %(lock)s::text, reason => %(reason)s::text,"
        " actor => %(actor)s::text) AS r",
        {
            "job_id": checks.identifier("job_id", job_id),
            "scheduled_at": None if retry_at is None else checks.aware("retry_at", retry_at),
            "queue": checks.optional_name("queue", queue),
            "priority": None if priority is None else checks.priority(priority),
            "lock": checks.optional_name("lock", lock),
            "reason": checks.text("reason", reason),
            "actor": checks.text("actor", actor),
        },
        lambda rows: RetryResult(**rows[0] | statuses(rows[0], "status")),
    )


def pause_queue(queue: str, *, reason: str | None = None, actor: str | None = None) -> Call[str]:
    """Stop a queue's jobs from being fetched; answers `paused` or `already_paused`."""
    return Call(
        "SELECT pljobs.pause_queue_v1(queue => %(queue)s::text, reason => %(reason)s::text,"
        " actor => %(actor)s::text) AS outcome",
        {
            "queue": checks.name("queue", queue),
            "reason": checks.text("reason", reason),
            "actor": checks.text("actor", actor),
        },
        lambda rows: str(rows[0]["outcome"]),
    )


def resume_queue(queue: str, *, reason: str | None = None, actor: str | None = None) -> Call[str]:
    """Let a paused queue's jobs be fetched again; answers `resumed` or `not_paused`."""
    return Call(
        "SELECT pljobs.resume_queue_v1(queue => %(queue)s::text, reason => %(reason)s::text,"
        " actor => %(actor)s::text) AS outcome",
        {
            "queue": checks.name("queue", queue),
            "reason": checks.text("reason", reason),
            "actor": checks.text("actor", actor),
        },
        lambda rows: str(rows[0]["outcome"]),
    )
