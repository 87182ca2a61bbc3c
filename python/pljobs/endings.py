"""How a run ended: what the body returned or raised, classified by facts, as it is reported."""

from __future__ import annotations

import asyncio
import dataclasses
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from pljobs.answers import Outcome, RunEnd
from pljobs.careful import careful_logger
from pljobs.exceptions import JobAborted, JobTimeout, TreeCancelled
from pljobs.jobs import AbortReason, DeleteJobCondition
from pljobs.retry import RetryDecision

if TYPE_CHECKING:
    from pljobs.job_context import JobContext

logger = careful_logger(__name__)

# The modules whose frames call a task: they tell nobody anything about its failure.
CALLERS = {str(Path(__file__).with_name(name)) for name in ("execution.py", "isolated.py")}
# TreeCancelled: who cancels a tree closes it first, and asks its jobs to stop then.
STOPS = (JobAborted, asyncio.CancelledError, TreeCancelled)
EXITS = (SystemExit, KeyboardInterrupt)


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """What the body did: returned a value, or raised."""

    value: object = None
    exception: BaseException | None = None


def run_end(context: JobContext, ended: Ended, *, delete_jobs: DeleteJobCondition) -> RunEnd:
    """Say what to report: facts only, what was delivered and what the body raised; SQL decides the rest."""
    job = context.job
    if job.id is None or job.run_id is None:
        raise ValueError(f"{job.call_string} is not a run: it has no id")
    try:
        return _run_end(context, ended, job.id, job.run_id, delete_jobs)
    except BaseException as error:  # noqa: BLE001 - an exception that can't be looked at: its job ends
        text = f"{_name_of(ended.exception)} (it can't be looked at: {type(error).__name__})"
        return RunEnd(job_id=job.id, run_id=job.run_id, outcome="failed", message=text)


def _name_of(error: BaseException | None) -> str:
    try:
        return type(error).__name__
    except BaseException:  # noqa: BLE001 - of a class that is made to misbehave
        return "an exception"


def _run_end(
    context: JobContext, ended: Ended, job_id: int, run_id: int, delete_jobs: DeleteJobCondition
) -> RunEnd:
    error = ended.exception
    reason, progress = context.abort_reason(), context.reported_progress.last()
    how = outcome(reason, error)
    if error is None:
        return RunEnd(
            job_id=job_id,
            run_id=run_id,
            outcome=how,
            result=ended.value,
            delete_job=delete_jobs != DeleteJobCondition.NEVER,
            progress=progress,
        )
    end = RunEnd(
        job_id=job_id,
        run_id=run_id,
        outcome=how,
        progress=progress,
        message=message(error),
        error=None if how in {"aborted", "interrupted"} else trace(error),
        delete_job=delete_jobs == DeleteJobCondition.ALWAYS,
        sql_cancelled=sql_was_cancelled(error),
    )
    # Neither a Ctrl-C that hit a task nor a sys.exit() is a reason to run it again, at once and for ever.
    if end.outcome == "interrupted" or any(isinstance(each, EXITS) for each in _leaves(error)):
        return end
    if end.outcome == "aborted" and reason is AbortReason.DEADLINE:
        error = JobTimeout(f"job {job_id} ran longer than its timeout")
    return with_retry(end, context, error)


def outcome(reason: AbortReason | None, error: BaseException | None) -> Outcome:
    """Classify the end of a body, by what it raised and why it should have stopped."""
    if error is None:
        return "succeeded"
    interrupted = reason is not None and reason.will_run_again
    if interrupted and sql_was_cancelled(error):
        return "interrupted"
    if isinstance(_stop_in(error), STOPS):
        return "interrupted" if interrupted else "aborted"
    return "failed"


# Groups are nested as deep as a body's task groups were: nothing here may recurse.


def sql_was_cancelled(error: BaseException | None) -> bool:
    """Say whether the server cancelled a statement, and this is what came of it.

    Of a group, as a TaskGroup raises: if there is nothing in it but that, and aborts.
    """
    todo = [] if error is None else [error]
    was_cancelled, seen = False, set[int]()
    while todo:
        found = _cancel_or_group(todo.pop())
        if isinstance(found, BaseExceptionGroup):
            if id(found) in seen:
                continue
            seen.add(id(found))
            others = [each for each in _leaves(found) if not isinstance(each, STOPS)]
            if not others:
                return False
            todo.extend(others)
        elif found is None:
            return False
        else:
            was_cancelled = True
    return was_cancelled


def _cancel_or_group(error: BaseException) -> BaseException | None:
    """Return the first of either among what led to this error."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        if isinstance(following, psycopg.errors.QueryCanceled | BaseExceptionGroup):
            return following
        seen.add(id(following))
        following = following.__cause__ or following.__context__
    return None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield what a group holds that is no group, in order; or else the error."""
    todo = [error]
    while todo:
        each = todo.pop()
        if isinstance(each, BaseExceptionGroup):
            todo.extend(reversed(each.exceptions))
        else:
            yield each


def _stop_in(error: BaseException) -> BaseException:
    """Return the first abort of a group of nothing but aborts, as a TaskGroup raises; else the error."""
    leaves = list(_leaves(error))
    return leaves[0] if all(isinstance(each, STOPS) for each in leaves) else error


def message(error: BaseException) -> str | None:
    """Return one line on how the body ended: an abort's own message, else the exception's type and text."""
    error = _stop_in(error)
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - an exception class, or an argument of one, with a broken __str__
        text = "(its text can't be had)"
    if isinstance(error, TreeCancelled):
        return text.split("\n", 1)[0]  # its second line is for who defers by hand
    if isinstance(error, STOPS):
        return text or None
    if not isinstance(error, Exception):
        text = f"{text} (a task can't end its worker)"
    return f"{type(error).__name__}: {text}".split("\n", 1)[0]


def trace(error: BaseException) -> str:
    """Return the traceback as text, without the frames of what called the task."""
    try:
        tb = error.__traceback__
        while tb is not None and tb.tb_next is not None and tb.tb_frame.f_code.co_filename in CALLERS:
            tb = tb.tb_next
        return "".join(traceback.format_exception(type(error), error, tb))
    except BaseException:  # noqa: BLE001 - an exception class with a broken __str__ or __cause__
        return f"{type(error).__name__} (its traceback can't be shown)"


def with_retry(end: RunEnd, context: JobContext, error: BaseException) -> RunEnd:
    """Add what the task's retry strategy says of this error."""
    try:
        decision = context.task.get_retry_decision(exception=error, job=context.job)
        if decision is None:
            return end
        if not isinstance(decision, RetryDecision):
            raise TypeError(f"not a RetryDecision: a {type(decision).__name__}")  # noqa: TRY301
        return dataclasses.replace(
            end,
            retry_at=decision.retry_at,
            retry_in=decision.retry_in,
            retry_queue=decision.queue,
            retry_priority=decision.priority,
            retry_lock=decision.lock,
        )
    except BaseException:  # whatever a strategy does, its job ends
        logger.exception(
            "The retry strategy of task %s raised: job %s is not retried",
            context.task.name,
            context.job.id,
            extra=context.job.log_context(),
        )
        return end
