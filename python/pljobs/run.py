"""One run of one job, whatever it runs in: its abort, how far that has got, and its end, told once."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Literal

from pljobs import logs
from pljobs.aborting import AbortRequest
from pljobs.answers import Observation, Outcome, RunEnd, Verdict
from pljobs.endings import Ended
from pljobs.exceptions import JobAborted
from pljobs.job_context import JobContext
from pljobs.jobs import AbortReason

SQL, TERM, KILL = 2, 3, 4
"""The levels of an abort above the first, at which the task is only asked; as pljobs.requests has them."""

VOID_GRACE, SHUTDOWN_GRACE = 5.0, 10.0
"""Seconds for a run to stop by itself that is not its job's any more, or that a stopping worker waits for."""

POOLED = "pooled"  # a way of `context.sql_way`
LAST_WORDS = 1.0
"""Seconds at least from telling a task to giving it up: the levels of its abort may come all at once."""

OnEnd = Callable[["Run", "Ended | RunEnd"], None]


class Run(ABC):
    """Run a task for a job, stop it as far as can be, and report its end, once, to `on_end`.

    All of it in the event loop's thread, but for `handling`, `swallowed` and `look_at`, which the control
    thread reads.
    """

    killable: ClassVar[bool] = False
    """Whether `_kill` ends the task's code; else only the end of the whole process does."""
    standstill: ClassVar[float] = LAST_WORDS
    """Seconds for which the event loop may stand still, and not kill it, until it is given up elsewhere."""

    def __init__(self, context: JobContext, *, on_end: OnEnd) -> None:
        self.context = context
        self.job = context.job
        self.task = context.task
        self.request: Verdict | None = None
        self.level = 0
        self.swallowed = False
        self.ended = False
        # Fetched, and not started: there is no slot for it yet.
        self.waiting = False
        # What there was none of, and why: then it could not start.
        self.lacked: str | None = None
        # When to ask the database about this run, in seconds of time.monotonic(): its timeout, or the next
        # level of its abort.
        self.look_at: float | None = None
        # Called in the event loop when the database should hear at once what the task does with its abort.
        self.on_news: Callable[[], None] | None = None
        self._on_end = on_end

    @abstractmethod
    def start(self) -> None:
        """Start the task, or end for want of what it takes. What it raises, the run must end with."""

    def abort(self, reason: AbortReason, verdict: Verdict | None = None, *, level: int = 0) -> None:
        """Ask the task to stop, and stop it by force as far as the verdict, or `level`, says.

        `should_abort()` turns true; an async task is cancelled, once: asking again, for whatever reason,
        never cancels a second time, for that would break a task that is shielding its last words.
        """
        if self.ended:
            return
        asked = AbortRequest.of(verdict) if verdict is not None and verdict.request_id is not None else None
        self.context.abort_flag.set(reason, asked)
        if self.request is None and verdict is not None:
            self.request = verdict
            logs.asked_to_stop(self.job, verdict)
        if not self.begun:
            self.end_unstarted()
            return
        self._stop(reason)
        level = max(level, 0 if verdict is None else verdict.level)
        if level > self.level:
            self.level = level
            if self.level > 1:
                logs.escalated(self.job, self.level, verdict)
            if self.level >= KILL:
                self._kill()
            elif self.level >= TERM:
                self._terminate()

    def observe(self) -> Observation | None:
        """Return what there is to tell of this run that has not been told; for the control thread."""
        if self.job.id is None or self.job.run_id is None:
            return None
        handling: Literal["handling", "swallowed"] | None = None
        if self.handling:
            handling = "handling"
        elif self.swallowed:
            handling = "swallowed"
        # Before its SQL is due to be cancelled the database does not want to know.
        way = self.context.sql_way.take() if self.level >= SQL else None
        if way is None and self.level >= SQL and self.context.sql_way.last() == POOLED:
            way = POOLED  # again, for it stays so: whoever held the request's row kept it from being noted
        progress = self.context.reported_progress.take()
        if handling is None and way is None and progress is None:
            return None
        return Observation(
            job_id=self.job.id, run_id=self.job.run_id, handling=handling, sql_way=way, progress=progress
        )

    def unobserve(self, seen: Observation) -> None:
        """Undo `observe`: it could not be told."""
        if seen.sql_way is not None:
            self.context.sql_way.put_back(seen.sql_way)
        if seen.progress is not None:
            self.context.reported_progress.put_back(seen.progress)

    @property
    def begun(self) -> bool:
        """Say whether something of the task may have run."""
        return not self.waiting

    @property
    def handling(self) -> bool:
        """Say whether the task is handling its abort right now, where that can be seen."""
        return False

    def finish(self, ended: Ended | RunEnd) -> None:
        """Report the end, once."""
        if not self.ended:
            self.ended = True
            self.context.abort_flag.close()
            self._on_end(self, ended)

    def end_unstarted(self) -> None:
        """End what should stop, and has not started: for good, or for others to run."""
        reason = self.context.abort_reason()
        if reason is not None and reason.will_run_again:
            self.give_back()
        else:
            self.finish(Ended(exception=JobAborted()))

    def give_back(self) -> None:
        """End what has not started, and is not going to here."""
        self.finish(self._end("unstarted", "given back: it had not started"))

    def lack(self, what: str, error: BaseException | str) -> None:
        """End what could not be started, for want of a thread or a process: that is not its job's fault."""
        self.lacked = f"no {what} ({error})"
        self.give_back()

    @abstractmethod
    def _stop(self, reason: AbortReason) -> None:
        """Tell the task that its flag is up; called again and again."""

    @abstractmethod
    def _terminate(self) -> None:
        """Stop the task by what it can resist; called once."""

    @abstractmethod
    def _kill(self) -> None:
        """Stop the task by what it can't resist; where there is nothing of the kind, give it up."""

    def abandon(self) -> None:
        """Give the task up: its code may run on, and whatever it does is not recorded."""
        if not self.context.abort_flag.is_closed:  # else it has come to its end, which is on its way
            self.finish(self.abandoned())

    def abandoned(self) -> RunEnd:
        """Return the end of a run that is given up; for any thread."""
        return self._end("abandoned", "abandoned: it could not be stopped, and its code may still run")

    def _end(self, outcome: Outcome, message: str) -> RunEnd:
        if self.job.id is None or self.job.run_id is None:
            raise ValueError(f"{self.job.call_string} is not a run: it has no id")
        return RunEnd(
            job_id=self.job.id,
            run_id=self.job.run_id,
            outcome=outcome,
            message=message,
            progress=self.context.reported_progress.last(),
        )


@contextlib.contextmanager
def observing(runs: Iterable[Run | None]) -> Iterator[list[Observation]]:
    """Return what there is to tell of these runs; where the block raises, it will be told another time."""
    seen = [(run, each) for run in runs if run is not None and (each := run.observe()) is not None]
    try:
        yield [each for _, each in seen]
    except BaseException:
        for run, each in seen:
            run.unobserve(each)
        raise
