"""What the SQL functions do to one job, in Python: small enough to read, to search through, and to compare.

`variant` puts a mistake in, one that other queues have made: a search that doesn't find it is worth nothing.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal, NamedTuple

Status = Literal["todo", "doing", "succeeded", "failed", "cancelled", "aborted", "gone"]
FINAL = ("succeeded", "failed", "cancelled", "aborted")
# Who may ask a run to abort, the weakest first. What a person asked, alone or with its tree, never runs anew.
SOURCES = ("", "deadline", "tree", "user")

# Each with the rule that it breaks first.
VARIANTS = MappingProxyType(
    {
        "finish by id": ("I3", "a finish is taken for any job that is todo or doing"),
        "finish by state": ("I3", "a finish is taken for any job that is doing, whichever run it is of"),
        "flag lost": ("I5", "a rescue forgets the request"),
        "retry after request": ("I5", "a failure is retried though an abort was asked for"),
        "unguarded rescue": ("I2", "a rescue requeues what has ended meanwhile"),
        "flag kept": ("I5", "a person's retry leaves the old request open"),
        "interrupted wins": ("I5", "a shutdown requeues a job that was asked to abort"),
        "deadline first": ("I5", "who asks a run that its timeout has asked before changes nothing"),
        "weaker wins": ("I5", "a timeout takes the place of a person's request"),
        "timeout is final": ("not retried", "a run that took too long is never retried"),
        "abandoned again": ("runs twice", "a run is retried though its code may still go on"),
        "blind claim": ("I6", "a fetch takes what it saw as todo, though it was cancelled since"),
        "asked is left": ("I1", "a rescue leaves alone what was asked to abort"),
        "stale commit": ("I4", "a body of a lost run commits its effects with an end that does not count"),
    }
)
# Of workers that nobody interferes with, and whose jobs are taken from them only when their lease is over.
WORK_VARIANTS = MappingProxyType(
    {
        "crashes forgotten": ("I9", "a job that kills its worker is put back for ever"),
        "retries for ever": ("I9", "a worker retries whatever the number of attempts"),
        "outlives its lease": ("two bodies", "a worker goes on though its lease is over"),
        "late reply": ("two bodies", "a worker starts what a fetch answers later than a lease"),
    }
)


class JobModel(NamedTuple):
    """One job. `written` holds what each run's own finish wrote, for replays."""

    status: Status = "todo"
    run: int | None = None
    asked: str = ""
    delete: bool = False
    attempts: int = 0
    crashes: int = 0
    written: tuple[tuple[int, str], ...] = ()

    # Each verb returns the job as it is then, and the answer.

    def claim(self, run: int) -> JobModel:
        assert self.status == "todo"
        return self._replace(status="doing", run=run, attempts=self.attempts + 1)

    def ask(self, source: str, *, variant: str = "") -> JobModel:
        """Ask the run to abort; what was asked before is only made stronger."""
        weaker = SOURCES.index(source) < SOURCES.index(self.asked)
        if (weaker and variant != "weaker wins") or (self.asked and variant == "deadline first"):
            return self
        return self._replace(asked=source)

    def time_out(self, *, variant: str = "") -> JobModel:
        return self.ask("deadline", variant=variant) if self.status == "doing" else self

    def expire(self) -> JobModel:
        return self._replace(status="cancelled") if self.status == "todo" else self

    def cancel(
        self,
        *,
        abort: bool = False,
        delete: bool = False,
        force: bool = False,
        source: str = "user",
        variant: str = "",
    ) -> tuple[JobModel, str]:
        if self.status == "gone":
            return self, "not_found"
        if self.status == "doing":
            if not (abort or force):
                return self, "running"
            answer = "abort_already_requested" if self.asked else "abort_requested"
            asked = self.ask(source, variant=variant)._replace(delete=self.delete or delete)
            if not force:
                return asked, answer
            ended = asked._aborted()
            return ended, "deleted" if ended.status == "gone" else "aborted"
        if self.status == "todo" or (delete and self.status in {"cancelled", "aborted"}):
            return (self._gone(), "deleted") if delete else (self._replace(status="cancelled"), "cancelled")
        return self, "already_cancelled" if self.status in {"cancelled", "aborted"} else "already_finished"

    def finish(
        self, run: int, outcome: str, *, retry: bool = False, delete: bool = False, variant: str = ""
    ) -> tuple[JobModel, str]:
        if self.status == "gone":
            return self, "not_found"
        fits = {
            "finish by id": self.status in {"todo", "doing"},
            "finish by state": self.status == "doing",
        }.get(variant, self.status == "doing" and self.run == run)
        if not fits:
            return self, dict(self.written).get(run, "stale")
        person = self.asked in {"tree", "user"}
        if (variant == "retry after request" and outcome == "failed") or (
            variant == "interrupted wins" and outcome == "interrupted"
        ):
            person = False
        if person and outcome not in {"succeeded", "failed"}:
            ended = self._gone() if delete else self._aborted(run)
            return ended, "deleted" if ended.status == "gone" else "aborted"
        if outcome == "interrupted":
            return self._todo(run, attempts=self.attempts - (not self.asked)), "todo"
        if outcome != "succeeded":
            final = outcome == "abandoned" and variant != "abandoned again"
            final = final or (variant == "timeout is final" and self.asked == "deadline")
            outcome = "failed"
            if retry and not person and not final:
                return self._todo(run), "todo"
        if delete:
            return self._gone(), "deleted"
        return self._ended(outcome, run), outcome

    def finish_in_body(self, run: int) -> tuple[JobModel, str]:
        """End a run in the transaction of its own body; 'lost' where that must not commit."""
        after, answer = self.finish(run, "succeeded")
        return (after, answer) if answer == "succeeded" else (self, "lost")

    def rescue(self, *, max_crashes: int = 3, variant: str = "") -> tuple[JobModel, str]:
        if variant == "unguarded rescue" and self.status in FINAL:
            return self._todo(), "todo"
        assert self.status == "doing"
        if self.asked in {"tree", "user"} and variant != "flag lost":
            ended = self._aborted()
            return ended, "deleted" if ended.status == "gone" else "aborted"
        if self.crashes + 1 < max_crashes:
            return self._todo(crashes=self.crashes + (variant != "crashes forgotten")), "todo"
        return self._ended("failed")._replace(crashes=self.crashes + 1), "failed"

    def give_back(self) -> JobModel:
        """Return what the worker never received."""
        person = self.asked in {"tree", "user"}
        return self._aborted() if person else self._todo(attempts=self.attempts - 1)

    def delete_job(self) -> tuple[JobModel, str]:
        answers = {"gone": "not_found", "todo": "todo", "doing": "running"}
        return (self._gone(), "deleted") if self.status in FINAL else (self, answers[self.status])

    def retry_job(self, *, variant: str = "") -> tuple[JobModel, str]:
        answers = {"gone": "not_found", "todo": "todo", "doing": "running", "succeeded": "succeeded"}
        if self.status in answers:
            return self, answers[self.status]
        return self._todo(crashes=0)._replace(asked="user" if variant == "flag kept" else ""), "requeued"

    def _aborted(self, run: int | None = None) -> JobModel:
        return self._gone() if self.delete else self._ended("aborted", run)

    def _gone(self) -> JobModel:
        return JobModel(status="gone")

    def _ended(self, status: str, run: int | None = None) -> JobModel:
        return self._closed(run, status)._replace(status=status)  # type: ignore[arg-type]

    def _todo(self, run: int | None = None, **changes: int) -> JobModel:
        return self._closed(run, "todo")._replace(status="todo", **changes)  # type: ignore[arg-type]

    def _closed(self, run: int | None, wrote: str) -> JobModel:
        written = (*self.written, (run, wrote)) if run is not None else self.written
        return self._replace(run=None, asked="", delete=False, written=written)
