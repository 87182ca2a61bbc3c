"""What a worker says of a job in its log: one line a step, each with the ids, never with arguments."""

from __future__ import annotations

import logging

from pljobs.answers import RunEnd, Verdict
from pljobs.careful import careful_logger
from pljobs.job_context import current
from pljobs.jobs import AbortReason, Job, in_one_line

logger = careful_logger("pljobs.jobs")

LEVELS = {
    "succeeded": logging.INFO,
    "deleted": logging.INFO,
    "todo": logging.WARNING,
    "aborted": logging.WARNING,
}
# As procrastinate's records have it, for those who look for it.
ACTIONS = {"succeeded": "job_success", "failed": "job_error", "aborted": "job_aborted"}


class JobLogFilter(logging.Filter):
    """Add to each record which job it was written for: `job_id`, `run_id`, `task_name`; None outside of one.

    To be added to a handler: a logger's own filters don't see what loggers below it write. Follows
    contextvars, as `current_context()` does. Filters nothing out.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add them, unless the record is about a job by itself."""
        context = current.get()
        job = None if context is None or getattr(record, "job_id", None) is not None else context.job
        ours = {"job_id": job and job.id, "run_id": job and job.run_id, "task_name": job and job.task_name}
        for name, value in ours.items():
            if getattr(record, name, None) is None:
                setattr(record, name, value)
        return True


def started(job: Job) -> None:
    """Say that a job starts."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("Job %s starts", job.call_string, extra=_about(job, "start_job"))


def refused(job: Job, why: str) -> None:
    """Say why a job can't be run here."""
    logger.error("Job %s can't be run: %s", job.call_string, why, extra=job.log_context())


def asked_to_stop(job: Job, request: Verdict) -> None:
    """Say who asked for the abort that is now delivered, or that nobody could, or that the run was lost."""
    if request.verdict == "lost":
        logger.warning(
            "Job %s is no longer this run's: it is stopped", job.call_string, extra=job.log_context()
        )
        return
    if request.request_id is None:
        logger.warning(
            "Job %s is over its timeout of %s, and another transaction holds its row (`pljobs doctor` names"
            " it): it is asked to abort",
            job.call_string,
            job.timeout,
            extra=_about(job, "abort_job"),
        )
        return
    who = " for ".join(name for name in (request.requested_by, request.actor) if name)
    logger.info(
        "Job %s is asked to abort by %s: %s",
        job.call_string,
        in_one_line(who),
        in_one_line(request.reason or "no reason given"),
        extra={**_about(job, "abort_job"), "request_id": request.request_id, "requested_by": who},
    )


def escalated(job: Job, level: int, verdict: Verdict | None) -> None:
    """Say that an abort has got further: its SQL is cancelled, it is terminated, killed."""
    what = {2: "its SQL is cancelled", 3: "it is terminated", 4: "it is killed, or given up"}
    logger.warning(
        "Job %s has not stopped: %s (level %s)",
        job.call_string,
        what.get(level, "it is stopped by force"),
        level,
        extra={**job.log_context(), "request_id": verdict and verdict.request_id, "level": level},
    )


def swallowed(job: Job) -> None:
    """Say that a task caught its abort and goes on."""
    logger.warning("Job %s swallowed its abort, and goes on", job.call_string, extra=job.log_context())


def ended(job: Job, end: RunEnd, error: BaseException | None, asked: AbortReason | None) -> None:
    """Say how a task ended, where that is not the plain success."""
    if end.outcome == "failed":
        again = _asks_for_a_retry(end)
        logger.log(
            logging.WARNING if again else logging.ERROR,
            "Job %s failed: %s%s",
            job.call_string,
            end.message,
            # From another process there is no exception, but its text.
            f"\n{end.error.rstrip()}" if error is None and end.error else "",
            exc_info=error,
            extra=_about(job, "job_error_retry" if again else "job_error"),
        )
    elif asked is not None or end.outcome not in {"succeeded", "unstarted"}:
        logger.info(
            "Job %s was asked to stop (%s), and ended: %s%s",
            job.call_string,
            asked or "by nobody",
            end.outcome,
            f": {end.message}" if end.message else "",
            extra=job.log_context(),
        )


def recorded(job: Job, end: RunEnd, status: str | None) -> None:
    """Say what the database wrote."""
    plainly = status == end.outcome == "succeeded"
    if plainly and not logger.isEnabledFor(logging.INFO):
        return
    extra = {**job.log_context(), "status": status}
    if status in {"stale", "not_found"}:
        logger.warning(
            "Job %s %s, but this run was no longer the job's (%s): nothing was recorded",
            job.call_string,
            end.outcome,
            status,
            extra=extra,
        )
    elif status == "succeeded" != end.outcome:
        logger.warning(
            "Job %s had ended itself, as succeeded: that it %s afterwards changes nothing",
            job.call_string,
            end.outcome,
            extra=extra,
        )
    elif status is not None:
        level = LEVELS.get(status, logging.ERROR)
        if end.outcome == "failed" and status == ("todo" if _asks_for_a_retry(end) else "failed"):
            level = logging.INFO  # `ended` has said it, with the error
        elif end.outcome == "unstarted" and status == "todo":
            level, status = logging.INFO, f"todo again: {end.message}"
        elif action := ACTIONS.get(end.outcome if status == "deleted" else status):
            extra["action"] = action
        logger.log(level, "Job %s is now %s", job.call_string, status, extra=extra)


def _asks_for_a_retry(end: RunEnd) -> bool:
    return end.retry_at is not None or end.retry_in is not None


def _about(job: Job, action: str) -> dict[str, object]:
    return {**job.log_context(), "action": action}
