"""What the verdicts of a heartbeat mean to runs that have ended by themselves, or are over their timeout."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from pljobs import calls
from pljobs.answers import Call, FinishAnswer, RunEnd, Verdict

if TYPE_CHECKING:
    from pljobs.run import Run

# Seconds for others to let go of a late run's row; from then on, how often to look.
HELD_FOR, LOOK_EVERY = 5.0, 1.0


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


class Overdue:
    """Ask runs that are over their timeout to abort, where the database can't.

    It passes over a row that another transaction holds: somebody's who went away, or the job's own, which
    hangs between `context.finish` and the commit; stopped, it lets go. They are only asked: how long a job
    then has, the database alone knows. It goes on from there as soon as it gets hold of the row.
    """

    def __init__(self) -> None:
        # By run_id: since when it was late, and not asked.
        self._since: dict[int, float] = {}

    def asked(self, runs: Mapping[int, Run | None], verdicts: Sequence[Verdict]) -> list[Verdict]:
        """Return the verdicts, those of such runs as the database would have answered."""
        before, self._since = self._since, {}
        return [self._asked(runs.get(verdict.run_id), verdict, before) for verdict in verdicts]

    def _asked(self, run: Run | None, verdict: Verdict, before: Mapping[int, float]) -> Verdict:
        is_late = verdict.verdict == "ok" and verdict.look_in is not None and not verdict.look_in
        if run is None or not is_late:
            return verdict
        now = time.monotonic()
        since = self._since[verdict.run_id] = before.get(verdict.run_id, now)
        if now - since < HELD_FOR:
            return verdict
        look_in = timedelta(seconds=LOOK_EVERY)
        if run.ended:  # only its report waits
            return dataclasses.replace(verdict, look_in=look_in)
        return dataclasses.replace(verdict, verdict="abort", level=1, look_in=look_in, source="deadline")
