"""What people and applications ask for, stated once each: cancel, delete, retry, pause, resume."""

from __future__ import annotations

from datetime import datetime

from pljobs import checks
from pljobs.answers import Call, CancelResult, DeleteResult, RetryResult, statuses


def cancel_job(
    job_id: int,
    *,
    abort: bool = False,
    delete_job: bool = False,
    force: bool = False,
    reason: str | None = None,
    actor: str | None = None,
) -> Call[CancelResult]:
    """Cancel a waiting job, ask a running one to abort, end it by force, or delete it."""
    return Call(
        "SELECT r.outcome, r.status_before, r.status_after, r.request_id, r.worker_id, r.run_id"
        " FROM pljobs.cancel_job_v1(job_id => %(job_id)s::bigint, abort => %(abort)s::boolean,"
        " delete_job => %(delete_job)s::boolean, force => %(force)s::boolean, reason => %(reason)s::text,"
        " actor => %(actor)s::text) AS r",
        {
            "job_id": checks.identifier("job_id", job_id),
            "abort": checks.flag("abort", abort),
            "delete_job": checks.flag("delete_job", delete_job),
            "force": checks.flag("force", force),
            "reason": checks.text("reason", reason),
            "actor": checks.text("actor", actor),
        },
        lambda rows: CancelResult(**rows[0] | statuses(rows[0], "status_before", "status_after")),
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
