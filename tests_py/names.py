"""Names from hell: how they are made, and what must be true of each wherever pljobs takes one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import hypothesis
import psycopg
import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from pljobs import calls, calls_people, calls_read, checks, db, exceptions
from pljobs.answers import RunEnd
from pljobs.calls_read import JobFilter
from pljobs.jobs import Job
from pljobs.listener import queue_hash
from waiting import DEADLINE

EVIL = [
    "", " ", "%", "%s", "%(a)s", "\\", "\\'", "'", '"', "''", ";", "--", "/*", "\n", "\r\n", "\t", "\x7f",
    "\x1b[2J", "$$", "$1", ":a", "{}", "{a,b}", "NULL", "null", "*", ".", "pljobs_todo", "pljobs_worker_1",
    "\u202e", "\u2028", "\u00e9", "e\u0301", "\u0130", "\ufeff", "\U0001f431", "\U0010ffff", "a\0", "\ud800",
    "\udc80", "'; DROP TABLE pljobs.job; --", '"; DROP TABLE pljobs.job; --', "\"'); NOTIFY pljobs_todo; --",
    "x' || pg_sleep(9) || '", "\\'; DELETE FROM pljobs.job; --", "E'\\x27'", "../../etc/passwd", "--help",
    "-q",
]  # fmt: skip
FIELDS = ("task", "queue", "lock", "queueing_lock", "key")
SAID = {"task": "the name of the task", "key": "idempotency_key"}


@st.composite
def of_bytes(draw: Callable[[st.SearchStrategy[Any]], Any]) -> str:
    """Make a name of so many bytes: of 1 to 300, and around what PostgreSQL's own names and ours may have."""
    wanted = draw(
        st.one_of(st.integers(1, 300), st.sampled_from([1, 62, 63, 64, 65, 127, 128, 254, 255, 256]))
    )
    start = draw(st.sampled_from(EVIL))
    filler = draw(st.sampled_from(["x", "\u00e9", "\u20ac", "\U0001f431", "'", '"', "\\"]))
    while len((start + filler).encode("utf-8", "surrogatepass")) <= wanted:
        start += filler
    return str(start)


ANY = st.text(st.characters(exclude_categories=[]), max_size=300)
NAME = st.one_of(st.sampled_from(EVIL), of_bytes(), st.text(max_size=40), ANY)


@dataclasses.dataclass(frozen=True, slots=True)
class Names:
    """One of each."""

    task: str
    queue: str
    lock: str
    queueing_lock: str
    key: str

    def bad(self) -> list[str]:
        """Return which of them nobody may have, in the order in which they are looked at."""
        return [
            each
            for each in FIELDS
            if not 1 <= len(getattr(self, each)) <= 255 or not checks.is_storable(getattr(self, each))
        ]


class World:
    """A database with a worker, and one connection that listens."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.conn = conn
        self.worker = db.run(conn, calls.register_worker("names", host="h", pid=1, lease=timedelta(days=1)))
        conn.execute("LISTEN pljobs_todo")
        self.done = 0

    def check(self, names: Names) -> None:
        """Take a job with these names through its life, or see it refused by driver and database."""
        bad = names.bad()
        # What a failed check has left, so that the next one tells of itself alone.
        self.conn.execute("DELETE FROM pljobs.job; DELETE FROM pljobs.idempotency; DELETE FROM pljobs.queue")
        list(self.conn.notifies(timeout=0))
        if bad:
            self._refused(names, bad)
        else:
            self._lives(names)
        self.done += 1

    def _refused(self, names: Names, bad: list[str]) -> None:
        with pytest.raises(exceptions.InvalidJob) as refused:
            calls.encode_options(self._job(names), idempotency_key=names.key)
        assert str(refused.value).startswith(SAID.get(bad[0], bad[0])), bad
        if all(checks.is_storable(getattr(names, each)) for each in FIELDS):
            raw = {each: getattr(names, each) for each in FIELDS[:4]} | {"idempotency_key": names.key}
            with pytest.raises(psycopg.Error) as denied:
                self.conn.execute("SELECT pljobs.defer_jobs_v2(%s)", [Jsonb([raw])])
            assert denied.value.sqlstate == "PJ002"
            assert any(SAID.get(each, each).split()[-1] in str(denied.value) for each in bad)

    def _lives(self, names: Names) -> None:
        conn, job = self.conn, self._job(names)
        options = calls.encode_options(job, idempotency_key=names.key)
        encoded = calls.with_arguments(options, "{}")
        (job_id,) = db.run(conn, calls.defer_encoded([encoded], version=2))
        self._heard(names.queue)
        assert db.run(conn, calls.defer_encoded([encoded], version=2)) == [job_id]
        with pytest.raises(exceptions.AlreadyEnqueued, match=f"is held by waiting job {job_id}"):
            db.run(conn, calls.defer_jobs([job]))
        chosen = JobFilter(
            queue=names.queue, task=names.task, lock=names.lock, queueing_lock=names.queueing_lock
        )
        (found,) = db.run(conn, calls_read.list_jobs(chosen))
        assert (found.id, found.task_name, found.queue, found.lock, found.queueing_lock) == (
            job_id, names.task, names.queue, names.lock, names.queueing_lock,
        )  # fmt: skip
        assert db.run(conn, calls_people.pause_queue(names.queue, reason=names.task)) == "paused"
        fetch = calls.fetch_jobs(self.worker, queues=[names.queue], tasks=[names.task])
        assert db.run(conn, fetch) == []
        assert db.run(conn, calls_people.resume_queue(names.queue, actor=names.lock)) == "resumed"
        self._heard(names.queue)
        (run,) = db.run(conn, fetch)
        assert (run.id, run.task_name, run.queue, run.lock) == (job_id, names.task, names.queue, names.lock)
        end = RunEnd(
            job_id=job_id, run_id=run.run_id or 0, outcome="failed", message=names.task, error=names.lock,
            retry_in=calls.NOW, retry_queue=names.lock, retry_lock=names.queue,
        )  # fmt: skip
        assert [answer.status for answer in db.run(conn, calls.finish_jobs([end]))] == ["todo"]
        self._heard(names.lock)
        (again,) = db.run(conn, calls.fetch_jobs(self.worker, queues=[names.lock]))
        assert (again.id, again.queue, again.lock) == (job_id, names.lock, names.queue)
        end = RunEnd(job_id=job_id, run_id=again.run_id or 0, outcome="succeeded", delete_job=True)
        assert [answer.status for answer in db.run(conn, calls.finish_jobs([end]))] == ["deleted"]
        assert conn.execute("SELECT id FROM pljobs.job LIMIT 1").fetchall() == []

    def _heard(self, queue: str) -> None:
        """See that this queue's workers were told, and those of no other."""
        (note,) = self.conn.notifies(timeout=DEADLINE, stop_after=1)
        assert (note.channel, note.payload) == ("pljobs_todo", queue_hash(queue))
        assert note.payload != queue_hash(f"{queue}x")

    @staticmethod
    def _job(names: Names) -> Job:
        return Job(
            task_name=names.task, queue=names.queue, lock=names.lock, queueing_lock=names.queueing_lock
        )


def check_many(conn: psycopg.Connection[Any], sets: int, seed: int) -> int:
    """Check so many sets of generated names; return how many names there were."""
    world = World(conn)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=sets, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @hypothesis.given(st.builds(Names, NAME, NAME, NAME, NAME, NAME))
    def holds(names: Names) -> None:
        world.check(names)

    holds()
    return world.done * len(FIELDS)
