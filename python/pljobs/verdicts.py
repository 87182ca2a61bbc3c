"""What the verdicts of a heartbeat mean to runs that have ended by themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pljobs import calls
from pljobs.answers import Call, FinishAnswer, RunEnd, Verdict

if TYPE_CHECKING:
    from pljobs.run import Run


def ended_themselves(
    runs: Mapping[int, Run | None],
    verdicts: Sequence[Verdict],
    ask: Callable[[Call[list[FinishAnswer]]], list[FinishAnswer]],
) -> set[int]:
    """Return those runs that are not their jobs' any more for having ended them, by `context.finish`."""
    lost = {
        v.run_id: run
        for v in verdicts
        if v.verdict == "lost" and (run := runs.get(v.run_id)) is not None and not run.ended
    }
    if not lost:
        return set()
    # A lost run's report changes nothing; one that had succeeded already is answered so.
    ends = [RunEnd(job_id=run.job.id or 0, run_id=n, outcome="succeeded") for n, run in lost.items()]
    ended = {
        answer.run_id for answer in ask(calls.finish_jobs(ends, wait=False)) if answer.status == "succeeded"
    }
    for run_id in ended:
        lost[run_id].look_at = None  # nothing is to come for it, however long its body goes on
    return ended
