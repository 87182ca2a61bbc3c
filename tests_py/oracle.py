"""Two witnesses besides the status: each transition, by a trigger, and what the bodies of jobs wrote.

The invariants I1 to I14 have their names in `Violation.invariant`, so that a fault which breaks one by intent
(a clock that jumps) can leave it out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import psycopg

from workers import SIDE_TABLE

FINAL = {"succeeded", "failed", "cancelled", "aborted"}
ALLOWED = {
    ("todo", "doing"),
    ("todo", "cancelled"),
    ("doing", "todo"),
    ("doing", "succeeded"),
    ("doing", "failed"),
    ("doing", "aborted"),
}
MAX_CRASHES = 3
# Seconds that a job may be `doing` after its worker's lease ran out: a rescue's interval, one second, and
# what a machine with other things to do takes.
LATE = 30.0
INSTALL = f"""
    {SIDE_TABLE};
    CREATE TABLE public.event (
        id bigint GENERATED ALWAYS AS IDENTITY, job_id bigint, run_id bigint, lock text, was text,
        is_now text, asked boolean, crashes integer, late double precision);
    CREATE FUNCTION public.note_event() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        INSERT INTO public.event (job_id, run_id, lock, was, is_now, asked, crashes, late)
        VALUES (OLD.id, coalesce(OLD.run_id, NEW.run_id), OLD.lock, OLD.status, coalesce(NEW.status, 'gone'),
                EXISTS (SELECT FROM pljobs.request AS r
                         WHERE r.id = OLD.request_id AND r.source <> 'deadline'),
                coalesce(NEW.crashes, OLD.crashes),
                CASE WHEN OLD.status = 'doing' THEN (
                    SELECT extract(epoch FROM clock_timestamp() - w.expires_at)
                      FROM pljobs.worker AS w WHERE w.id = OLD.worker_id) END);
        RETURN NULL;
    END $$;
    CREATE TRIGGER note_event AFTER UPDATE ON pljobs.job FOR EACH ROW
        WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION public.note_event();
    CREATE TRIGGER note_end AFTER DELETE ON pljobs.job FOR EACH ROW EXECUTE FUNCTION public.note_event();
"""


class Violation(AssertionError):  # noqa: N818 - what it is called everywhere
    """A rule was broken: `invariant` names it."""

    def __init__(self, invariant: str, tale: str) -> None:
        super().__init__(f"{invariant}: {tale}")
        self.invariant = invariant


class Event(NamedTuple):
    """One transition; `asked`: to abort, by more than its timeout; `late`: seconds since its lease ended."""

    run_id: int
    was: str
    is_now: str
    asked: bool
    crashes: int
    late: float | None


def install(conn: psycopg.Connection[Any]) -> None:
    """Make the tables of both witnesses."""
    conn.execute(INSTALL.encode())


class Oracle:
    """Compare what the witnesses say after all is done, where no person retried anything.

    `answers`: what cancel_job said about each job, in order; `without`: invariants that need not hold;
    `retries`: how often a task's failure may have been tried again.
    """

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        answers: Mapping[int, list[str]] | None = None,
        *,
        without: Collection[str] = (),
        retries: int = 1,
    ) -> None:
        self.answers = answers or {}
        self.without = without
        self.retries = retries
        self.events: dict[int, list[Event]] = defaultdict(list)
        self.lanes: list[tuple[int, str, str, str]] = []
        for job_id, lock, *event in conn.execute(
            "SELECT job_id, lock, run_id, was, is_now, asked, crashes, late FROM public.event ORDER BY id"
        ):
            self.events[job_id].append(told := Event(*event))
            if lock is not None:
                self.lanes.append((job_id, lock, told.was, told.is_now))
        self.starts, self.ends = (
            Counter(
                run_id for (run_id,) in conn.execute("SELECT run_id FROM public.side WHERE what = %s", [what])
            )
            for what in ("start", "end")
        )
        self.put_back: dict[int, Counter[str]] = defaultdict(Counter)
        for job_id, kind in conn.execute(
            "SELECT job_id, kind FROM pljobs.job_event"
            " WHERE kind IN ('retried', 'interrupted', 'given_back', 'rescued')"
        ):
            self.put_back[job_id][kind] += 1
        self.statuses: dict[int, str] = dict(
            conn.execute("SELECT id, status FROM pljobs.jobs ORDER BY id").fetchall()
        )
        self.open_requests = conn.execute(
            "SELECT job_id FROM pljobs.requests WHERE resolved_at IS NULL"
        ).fetchall()

    def check(self) -> dict[str, int]:
        """Return how many jobs ended how; raise Violation with the tale of one that broke a rule."""
        ended: dict[str, int] = defaultdict(int)
        for job_id in self.statuses | self.events:
            status = self.statuses.get(job_id, "gone")
            ended[status] += 1
            self._check_job(job_id, status)
        claimed = {
            event.run_id for story in self.events.values() for event in story if event.is_now == "doing"
        }
        self._rule(self.starts.keys() <= claimed, "I6", "a body ran that was never claimed")
        for what, runs in (("began", self.starts), ("ended", self.ends)):
            twice = [run_id for run_id, times in runs.items() if times > 1]
            self._rule(not twice, "I4", f"runs whose body {what} twice: {twice}")
        self._rule(self.ends.keys() <= self.starts.keys(), "I4", "a body ended that never began")
        self._rule(not self.open_requests, "I5", f"requests without an end: {self.open_requests}")
        self._check_lanes()
        return dict(ended)

    def _rule(self, holds: bool, invariant: str, tale: str) -> None:
        if not holds and invariant not in self.without:
            raise Violation(invariant, tale)

    def _check_job(self, job_id: int, status: str) -> None:
        story = self.events[job_id]
        tale = f"job {job_id} is {status}: {story}, answers {self.answers.get(job_id)}"
        self._rule(status in FINAL | {"gone"}, "I1", f"lost: {tale}")
        self._rule(bool(story), "I1", f"nobody ended it: {tale}")
        moves = [(event.was, event.is_now) for event in story if event.is_now != "gone"]
        self._rule(set(moves) <= ALLOWED, "I2", f"a forbidden transition: {tale}")
        self._rule(story[-1].is_now == status, "I2", f"something after the end: {tale}")
        ends = [is_now for _, is_now in moves if is_now in FINAL]
        self._rule(len(ends) <= 1, "I1", f"two ends: {tale}")
        now = "todo"
        for event in story:
            self._rule(event.was == now, "I2", f"a transition that nobody saw: {tale}")
            now = event.is_now
        claims = [event.run_id for event in story if event.is_now == "doing"]
        self._rule(claims == sorted(set(claims)), "I3", f"run ids that don't grow: {tale}")
        if status in {"succeeded", "failed", "aborted"}:
            self._rule(bool(claims), "I3", f"ended without a run: {tale}")
            self._rule(story[-1].run_id == claims[-1], "I3", f"ended by an old run: {tale}")
        if status == "succeeded":
            self._rule(claims[-1] in self.ends, "I4", f"succeeded, and its body did not end: {tale}")
        asked_then = {event.is_now for event in story if event.asked}
        self._rule(not asked_then & {"todo", "doing"}, "I5", f"ran on after a request: {tale}")
        late = max((event.late for event in story if event.late is not None), default=0.0)
        self._rule(late <= LATE, "I8", f"{late:.1f} s under a dead worker: {tale}")
        self._check_attempts(job_id, status, story, len(claims), tale)
        self._check_answers(self.answers.get(job_id, []), status, tale)

    def _check_attempts(self, job_id: int, status: str, story: list[Event], claims: int, tale: str) -> None:
        put_back, crashes = self.put_back[job_id], story[-1].crashes
        tale = f"{tale}, put back {dict(put_back)}"
        self._rule(crashes <= MAX_CRASHES, "I9", f"crashed {crashes} times: {tale}")
        self._rule(put_back["rescued"] < MAX_CRASHES, "I9", f"rescued too often: {tale}")
        if crashes == MAX_CRASHES:
            self._rule(status in {"failed", "gone"}, "I9", f"crashed {crashes} times, and lives: {tale}")
        self._rule(put_back["retried"] <= self.retries, "I9", f"retried too often: {tale}")
        if status != "gone":  # which takes its history along
            more = claims - put_back.total()
            self._rule(more in {0, 1}, "I9", f"started more often than put back: {tale}")

    def _check_answers(self, answers: list[str], status: str, tale: str) -> None:
        """Hold each answer against the job's end, and against what was answered later (I7)."""
        ends = {
            "cancelled": {"cancelled", "gone"},
            "already_cancelled": {"cancelled", "aborted", "gone"},
            "abort_requested": {"aborted", "failed", "succeeded", "gone"},
            "abort_already_requested": {"aborted", "failed", "succeeded", "gone"},
            "already_finished": {"succeeded", "failed"},
            "deleted": {"gone"},
            "not_found": {"gone"},
            "running": FINAL | {"gone"},
        }
        final = {"cancelled", "already_cancelled", "already_finished", "deleted", "not_found"}
        for place, answer in enumerate(answers):
            self._rule(status in ends.get(answer, set()), "I7", f"answered {answer}: {tale}")
            for later in answers[place + 1 :] if answer in final else ():
                self._rule(
                    later in {"already_cancelled", "already_finished", "deleted", "not_found"},
                    "I7",
                    f"{later} after {answer}: {tale}",
                )

    def _check_lanes(self) -> None:
        doing: dict[str, set[int]] = defaultdict(set)
        for job_id, lock, was, is_now in self.lanes:
            if was == "doing":
                doing[lock].discard(job_id)
            if is_now == "doing":
                doing[lock].add(job_id)
            self._rule(len(doing[lock]) <= 1, "I11", f"two jobs of lock {lock} at once: {doing[lock]}")


def check(
    conn: psycopg.Connection[Any],
    answers: Mapping[int, list[str]] | None = None,
    *,
    without: Collection[str] = (),
    retries: int = 1,
) -> dict[str, int]:
    """Return how many jobs ended how; raise Violation where a rule was broken."""
    return Oracle(conn, answers, without=without, retries=retries).check()
