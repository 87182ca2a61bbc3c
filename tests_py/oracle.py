"""Two witnesses besides the status: each transition, by a trigger, and what the bodies of jobs wrote themselves."""

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
        id bigint GENERATED ALWAYS AS IDENTITY, job_id bigint, run_id bigint, was text, is_now text, asked boolean);
    CREATE FUNCTION public.note_event() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.event (job_id, run_id, was, is_now, asked)
        VALUES (NEW.id, coalesce(OLD.run_id, NEW.run_id), OLD.status, NEW.status, OLD.request_id IS NOT NULL);
        RETURN NULL;
    END $$;
    CREATE TRIGGER note_event AFTER UPDATE ON pljobs.job FOR EACH ROW
        WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION public.note_event();
"""


def install(conn: psycopg.Connection[Any]) -> None:
    """Make the tables of both witnesses."""
    conn.execute(INSTALL.encode())


def check(conn: psycopg.Connection[Any], answers: dict[int, list[str]] | None = None) -> dict[str, int]:
    """Compare what the witnesses say, after all is done; return how many jobs ended how.

    `answers`: what cancel_job said about each job, in order. No person retried anything.
    """
    events: dict[int, list[tuple[int, str, str, bool]]] = defaultdict(list)
    for job_id, *event in conn.execute(
        "SELECT job_id, run_id, was, is_now, asked FROM public.event ORDER BY id"
    ):
        events[job_id].append(tuple(event))
    ends = {row[0] for row in conn.execute("SELECT run_id FROM public.side WHERE what = 'end'")}
    starts = {row[0] for row in conn.execute("SELECT run_id FROM public.side WHERE what = 'start'")}
    ended: dict[str, int] = defaultdict(int)
    for job_id, status in conn.execute("SELECT id, status FROM pljobs.jobs ORDER BY id").fetchall():
        story = events[job_id]
        tale = f"job {job_id} is {status}: {story}, answers {(answers or {}).get(job_id)}"
        ended[status] += 1
        assert status in FINAL, f"lost (I1): {tale}"
        assert all((was, is_now) in ALLOWED for _, was, is_now, _ in story), f"a forbidden transition: {tale}"
        assert [is_now for _, _, is_now, _ in story if is_now in FINAL] == [status], (
            f"not one end (I1, I2): {tale}"
        )
        assert story[-1][2] == status, f"something after the end (I2): {tale}"
        claims = [run_id for run_id, _, is_now, _ in story if is_now == "doing"]
        assert claims == sorted(set(claims)), f"run ids that don't grow: {tale}"
        if status != "cancelled":
            assert claims, f"ended without a run: {tale}"
            assert story[-1][0] == claims[-1], f"ended by an old run (I3): {tale}"
        if status == "succeeded":
            assert claims[-1] in ends, f"succeeded, and its body did not end (I4): {tale}"
        assert not any(asked and is_now in {"todo", "doing"} for _, _, is_now, asked in story), f"I5: {tale}"
        if status == "cancelled":
            assert not starts & ({claims[-1]} if claims and story[-1][1] == "doing" else set()), f"I6: {tale}"
        _answers_agree((answers or {}).get(job_id, []), status, tale)
    all_claims = {run_id for story in events.values() for run_id, _, is_now, _ in story if is_now == "doing"}
    assert starts <= all_claims, "a body ran that was never claimed (I6)"
    return dict(ended)


def _answers_agree(answers: list[str], status: str, tale: str) -> None:
    for place, answer in enumerate(answers):
        later = set(answers[place + 1 :])
        if answer == "cancelled":
            assert status == "cancelled" and later <= {"already_cancelled"}, f"I7: {tale}"
        elif answer in {"abort_requested", "abort_already_requested"}:
            assert status in {"aborted", "failed", "succeeded"}, f"I7: {tale}"
            assert "cancelled" not in later and "running" not in later, f"I7: {tale}"
        elif answer == "already_cancelled":
            assert status in {"cancelled", "aborted"} and later <= {answer}, f"I7: {tale}"
        elif answer == "already_finished":
            assert status in {"succeeded", "failed"} and later <= {answer}, f"I7: {tale}"
        else:
            assert answer == "running", f"I7: {tale}"
