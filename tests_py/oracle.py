"""Two witnesses besides the status: each transition, by a trigger, and what the bodies of jobs wrote."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

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
INSTALL = f"""
    {SIDE_TABLE};
    CREATE TABLE public.event (
        id bigint GENERATED ALWAYS AS IDENTITY, job_id bigint, run_id bigint, lock text, was text,
        is_now text, asked boolean);
    CREATE FUNCTION public.note_event() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        INSERT INTO public.event (job_id, run_id, lock, was, is_now, asked)
        VALUES (OLD.id, coalesce(OLD.run_id, NEW.run_id), OLD.lock, OLD.status, coalesce(NEW.status, 'gone'),
                EXISTS (SELECT FROM pljobs.request AS r
                         WHERE r.id = OLD.request_id AND r.source <> 'deadline'));
        RETURN NULL;
    END $$;
    CREATE TRIGGER note_event AFTER UPDATE ON pljobs.job FOR EACH ROW
        WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION public.note_event();
    CREATE TRIGGER note_end AFTER DELETE ON pljobs.job FOR EACH ROW EXECUTE FUNCTION public.note_event();
"""

Event = tuple[int, str, str, bool]  # run_id, was, is now, asked to abort: by more than its timeout


def install(conn: psycopg.Connection[Any]) -> None:
    """Make the tables of both witnesses."""
    conn.execute(INSTALL.encode())


class Oracle:
    """Compare what the witnesses say after all is done, where no person retried anything.

    `answers`: what cancel_job said about each job, in order.
    """

    def __init__(self, conn: psycopg.Connection[Any], answers: dict[int, list[str]] | None = None) -> None:
        self.answers = answers or {}
        self.events: dict[int, list[Event]] = defaultdict(list)
        self.lanes: list[tuple[int, str, str, str]] = []
        for job_id, run_id, lock, was, is_now, asked in conn.execute(
            "SELECT job_id, run_id, lock, was, is_now, asked FROM public.event ORDER BY id"
        ):
            self.events[job_id].append((run_id, was, is_now, asked))
            if lock is not None:
                self.lanes.append((job_id, lock, was, is_now))
        self.starts, self.ends = (
            {run_id for (run_id,) in conn.execute("SELECT run_id FROM public.side WHERE what = %s", [what])}
            for what in ("start", "end")
        )
        self.statuses: dict[int, str] = dict(
            conn.execute("SELECT id, status FROM pljobs.jobs ORDER BY id").fetchall()
        )
        self.open_requests = conn.execute(
            "SELECT job_id FROM pljobs.requests WHERE resolved_at IS NULL"
        ).fetchall()

    def check(self) -> dict[str, int]:
        """Return how many jobs ended how; raise AssertionError with the tale of one that broke a rule."""
        ended: dict[str, int] = defaultdict(int)
        for job_id in self.statuses | self.events:
            status = self.statuses.get(job_id, "gone")
            ended[status] += 1
            self._check_job(job_id, status)
        claimed = {event[0] for story in self.events.values() for event in story if event[2] == "doing"}
        assert self.starts <= claimed, "a body ran that was never claimed (I6)"
        assert not self.open_requests, f"requests without an end: {self.open_requests}"
        self._check_lanes()
        return dict(ended)

    def _check_job(self, job_id: int, status: str) -> None:
        story = self.events[job_id]
        tale = f"job {job_id} is {status}: {story}, answers {self.answers.get(job_id)}"
        moves = [(was, is_now) for _, was, is_now, _ in story if is_now != "gone"]
        assert status in FINAL | {"gone"}, f"lost (I1): {tale}"
        assert set(moves) <= ALLOWED, f"a forbidden transition: {tale}"
        assert story, f"nobody ended it: {tale}"
        assert story[-1][2] == status, f"something after the end (I2): {tale}"
        assert len([is_now for _, is_now in moves if is_now in FINAL]) <= 1, f"two ends (I1): {tale}"
        claims = [run_id for run_id, _, is_now, _ in story if is_now == "doing"]
        assert claims == sorted(set(claims)), f"run ids that don't grow: {tale}"
        if status in {"succeeded", "failed", "aborted"}:
            assert claims, f"ended without a run: {tale}"
            assert story[-1][0] == claims[-1], f"ended by an old run (I3): {tale}"
        if status == "succeeded":
            assert claims[-1] in self.ends, f"succeeded, and its body did not end (I4): {tale}"
        asked_then = {is_now for _, _, is_now, asked in story if asked}
        assert not asked_then & {"todo", "doing"}, f"ran on after a request (I5): {tale}"
        self._check_answers(self.answers.get(job_id, []), status, tale)

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
            assert status in ends[answer], f"{answer} (I7): {tale}"
            for later in answers[place + 1 :] if answer in final else ():
                assert later in {"already_cancelled", "already_finished", "deleted", "not_found"}, (
                    f"{later} after {answer} (I7): {tale}"
                )

    def _check_lanes(self) -> None:
        doing: dict[str, set[int]] = defaultdict(set)
        for job_id, lock, was, is_now in self.lanes:
            if was == "doing":
                doing[lock].discard(job_id)
            if is_now == "doing":
                doing[lock].add(job_id)
            assert len(doing[lock]) <= 1, f"two jobs of lock {lock} at once (I11): {doing[lock]}"


def check(conn: psycopg.Connection[Any], answers: dict[int, list[str]] | None = None) -> dict[str, int]:
    """Return how many jobs ended how; raise AssertionError where a rule was broken."""
    return Oracle(conn, answers).check()
