"""What the job manager says in the log of a wish to stop jobs: one line a call, with ids, never arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pljobs.answers import CancelResult, JobAnswer, TreeAnswer
from pljobs.calls_people import StopOptions
from pljobs.careful import careful_logger
from pljobs.jobs import in_one_line

logger = careful_logger("pljobs.manager")

# As much of them as the audit trail keeps.
LONGEST = 1000


def cancelled_one(job_id: int, result: CancelResult, how: StopOptions, *, joined: bool) -> None:
    """Say what became of the wish to cancel a job; `joined`: it counts once the caller's transaction does."""
    extra: dict[str, object] = {
        "job_id": job_id,
        "run_id": result.run_id,
        "request_id": result.request_id,
        "worker_id": result.worker_id,
        "outcome": result.outcome,
        "status_before": None if result.status_before is None else str(result.status_before),
        "sql_way": result.sql_way,
    }
    _say(f"job {job_id}", result.outcome, extra, how, joined=joined)


def cancelled_many(
    answers: Sequence[JobAnswer], chosen: Mapping[str, object], how: StopOptions, *, joined: bool
) -> None:
    """Say the same of all that match: how many of which outcome, and the filters but for the arguments."""
    names = ("queue", "task", "lock", "status", "parent_id")
    filters = {name: chosen[name] for name in names if chosen[name] is not None}
    said = "".join(f", {name} {value!r}" for name, value in filters.items())
    _say_counts(f"all that match{said}", answers, filters, how, joined=joined)


def cancelled_tree(root: int, answers: Sequence[TreeAnswer], how: StopOptions, *, joined: bool) -> None:
    """Say the same of a tree of jobs."""
    _say_counts(f"the tree of job {root}", answers, {"root": root}, how, joined=joined)


def _say_counts(
    what: str,
    answers: Sequence[JobAnswer | TreeAnswer],
    extra: dict[str, object],
    how: StopOptions,
    *,
    joined: bool,
) -> None:
    outcomes = Counter(answer.outcome for answer in answers)
    said = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common())
    _say(
        what,
        said or "no job",
        {**extra, "jobs": len(answers), "outcomes": dict(outcomes)},
        how,
        joined=joined,
    )


def _say(what: str, outcome: str, extra: dict[str, object], how: StopOptions, *, joined: bool) -> None:
    reason = (how.get("reason") or "")[:LONGEST] or None
    actor = (how.get("actor") or "")[:LONGEST] or None
    logger.info(
        "Cancel %s%s: %s; %s%s",
        what,
        f" for {in_one_line(actor)}" if actor else "",
        outcome,
        in_one_line(reason or "no reason given"),
        " (once the caller's transaction commits)" if joined else "",
        extra={**extra, "reason": reason, "actor": actor, "committed": not joined},
    )
