"""Sessions that call everything at once over few jobs, in whatever order: what deadlocks, deadlocks here."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from oracle import Violation
from waiting import wait_until

Conn = psycopg.Connection[Any]

# What our own functions say; anything else is a bug, and a deadlock above all.
SAID = {"PJ001", "PJ003", "PJ007", "PJ011", "PJ012"}
RECENT = 40
WORKERS = 4
LANES = (None, None, "a", "b", "c")
UNIQUE = (*[None] * 8, "p", "q", "r", "s")
SESSION = "SET deadlock_timeout = '20ms'"
REGISTER = "SELECT pljobs.register_worker_v2('any', 'here', 1, 2, lease => '1 s', worker_id => %s)"
AGE_RUNS = """
    WITH held AS (SELECT j.id FROM pljobs.job AS j WHERE j.worker_id = %s AND j.status = 'doing'
                   ORDER BY j.id FOR NO KEY UPDATE)
    UPDATE pljobs.job AS j SET started_at = j.started_at - interval '2 s' FROM held WHERE j.id = held.id
"""
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


class Session:
    """A thread that does one thing after the other, by chance; `common`: what all of them know."""

    def __init__(self, url: str, seed: int, common: Common) -> None:
        self._url = url
        self._random = random.Random(seed)
        self._common = common
        self._thread = threading.Thread(target=self._run, name=f"session {seed}")
        self.error: BaseException | None = None
        self.done: Counter[str] = Counter()

    def start(self) -> None:
        self._thread.start()

    def join(self, deadline: float) -> None:
        """Wait for the end of what it does; raise what it met."""
        self._thread.join(deadline)
        if self._thread.is_alive():
            raise Violation("I14", f"{self._thread.name} waits for ever")
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            with psycopg.connect(self._url, autocommit=True) as conn:
                conn.execute(SESSION)
                while not self._common.over.is_set():
                    deed = self._random.choice(DEEDS)
                    try:
                        deed(self, conn)
                    except psycopg.Error as error:
                        if error.sqlstate not in SAID:
                            raise Violation("I14", f"{error.sqlstate} in {deed.__name__}: {error}") from error
                    self.done[deed.__name__] += 1
        except BaseException as error:
            self.error = error
            self._common.over.set()

    def _ids(self, most: int) -> list[int]:
        top = self._common.top
        return [self._random.randint(max(1, top - RECENT), top) for _ in range(self._random.randint(1, most))]

    def _id(self) -> int:
        return self._ids(1)[0]

    def _flag(self, chance: float = 0.5) -> bool:
        return self._random.random() < chance

    def _worker(self) -> int:
        return self._random.choice(self._common.workers)

    # What a producer does

    def defer(self, conn: Conn) -> None:
        jobs = [self._job() for _ in range(self._random.randint(1, 6))]
        rows = conn.execute("SELECT job_id FROM pljobs.defer_jobs_v2(%s)", [Jsonb(jobs)]).fetchall()
        self._common.top = max([self._common.top, *(job_id for (job_id,) in rows)])

    def _job(self) -> dict[str, object]:
        job: dict[str, object] = {"task": "any", "queue": self._random.choice("xyz")}
        job |= {"lock": self._random.choice(LANES), "queueing_lock": self._random.choice(UNIQUE)}
        job |= {"priority": self._random.choice([0, 0, 1, -1])}
        if self._flag(0.4):
            job["parent_id"] = self._id()
        if self._flag(0.2):
            job |= {"timeout": "1 ms", "grace": "0"}
        if self._flag(0.1):
            job["on_cancelled"] = "follow-up"
        if self._flag(0.2):
            job["start_within"] = "30 ms"
        if self._flag(0.1):
            job["scheduled_in"] = "5 ms"
        if self._flag(0.2):
            job["idempotency_key"] = str(
                self._random.randint(self._common.top // 50, self._common.top // 50 + 5)
            )
        return job

    def defer_periodic(self, conn: Conn) -> None:
        conn.execute(
            "SELECT pljobs.defer_periodic_job_v1(%s, clock_timestamp(), %s)",
            [self._random.choice("mn"), Jsonb({"task": "any", "queueing_lock": self._random.choice(UNIQUE)})],
        )

    # What workers do

    def fetch(self, conn: Conn) -> None:
        worker_id = self._worker()
        queues = self._random.choice([None, None, ["x"], ["y", "z"]])
        rows = conn.execute(
            "SELECT job_id, run_id FROM pljobs.fetch_jobs_v1(%s, %s, queues => %s)",
            [worker_id, self._random.randint(1, 15), queues],
        ).fetchall()
        # Some replies are lost.
        if self._flag(0.9):
            self._common.runs += [(job_id, run_id, worker_id) for job_id, run_id in rows]

    def finish(self, conn: Conn) -> None:
        runs = self._common.some_runs(self._random, 15)
        ends = [self._end(job_id, run_id) for job_id, run_id, _ in runs]
        conn.execute("SELECT pljobs.finish_jobs_v1(%s, wait => %s)", [Jsonb(ends), self._flag()])

    def _end(self, job_id: int, run_id: int) -> dict[str, object]:
        end: dict[str, object] = {"job_id": job_id, "run_id": run_id}
        end["outcome"] = self._random.choice(
            ["succeeded", "succeeded", "failed", "failed", "aborted", "killed", "interrupted", "abandoned"]
        )
        if self._flag(0.5):
            end |= {"retry_in": "0", "retry_lock": self._random.choice(LANES)}
        if self._flag(0.2):
            end |= {"progress": 1, "progress_message": "done", "delete_job": True}
        return end

    def finish_inside(self, conn: Conn) -> None:
        for job_id, run_id, _ in self._common.some_runs(self._random, 1):
            conn.execute("SELECT pljobs.finish_job_v1(%s, %s)", [job_id, run_id])

    def heartbeat(self, conn: Conn) -> None:
        worker_id = self._worker()
        held = [run for run in list(self._common.runs) if run[2] == worker_id]
        observed = [
            {"job_id": job_id, "run_id": run_id, "progress": 0.5, "handling": "handling"}
            for job_id, run_id, _ in held
            if self._flag(0.3)
        ]
        self._random.shuffle(observed)
        conn.execute(
            "SELECT pljobs.heartbeat_v1(%s, %s, %s)", [worker_id, [run[1] for run in held], Jsonb(observed)]
        )

    def register(self, conn: Conn) -> None:
        worker_id = self._worker()
        conn.execute(REGISTER, [worker_id])
        conn.execute("UPDATE pljobs.worker SET tainted_at = NULL WHERE id = %s", [worker_id])

    def lose_lease(self, conn: Conn) -> None:
        """Age a worker, and what it runs, by more than its lease."""
        worker_id = self._worker()
        conn.execute(AGE_RUNS, [worker_id])
        conn.execute(
            "UPDATE pljobs.worker SET expires_at = clock_timestamp() - interval '1 s' WHERE id = %s",
            [worker_id],
        )

    # What keeps order

    def rescue(self, conn: Conn) -> None:
        conn.execute("SELECT pljobs.rescue_jobs_v1(%s)", [self._random.choice([3, 1000])])

    def enforce(self, conn: Conn) -> None:
        conn.execute("SELECT pljobs.enforce_limits_v1()")

    def wake(self, conn: Conn) -> None:
        conn.execute("SELECT pljobs.wake_lanes_v1()")

    def prune(self, conn: Conn) -> None:
        conn.execute(
            "SELECT pljobs.prune_jobs_v1(interval '0', max_jobs => %s)", [self._random.randint(1, 5)]
        )
        conn.execute("SELECT pljobs.prune_history_v1(interval '1 s')")

    # What people do

    def cancel(self, conn: Conn) -> None:
        conn.execute(
            "SELECT pljobs.cancel_job_v1(%s, abort => %s, delete_job => %s, force => %s, grace => %s)",
            [self._id(), self._flag(0.8), self._flag(0.2), self._flag(0.3), self._random.choice([None, "0"])],
        )

    def cancel_many(self, conn: Conn) -> None:
        conn.execute(
            "SELECT pljobs.cancel_jobs_v1(job_ids => %s, abort => %s, delete_job => %s, force => %s,"
            " dry_run => false)",
            [self._ids(20), self._flag(0.8), self._flag(0.2), self._flag(0.3)],
        )

    def cancel_lane(self, conn: Conn) -> None:
        conn.execute(
            "SELECT pljobs.cancel_jobs_v1(lock => %s, abort => %s, dry_run => false)",
            [self._random.choice("abc"), self._flag()],
        )

    def cancel_tree(self, conn: Conn) -> None:
        conn.execute(
            "SELECT pljobs.cancel_tree_v1(%s, abort => %s, delete_job => %s, force => %s)",
            [self._id(), self._flag(0.8), self._flag(0.2), self._flag(0.3)],
        )

    def rescind(self, conn: Conn) -> None:
        conn.execute("SELECT pljobs.rescind_request_v1(%s)", [self._id()])

    def retry(self, conn: Conn) -> None:
        conn.execute("SELECT pljobs.retry_job_v1(%s, lock => %s)", [self._id(), self._random.choice(LANES)])

    def retry_many(self, conn: Conn) -> None:
        conn.execute("SELECT pljobs.retry_jobs_v1(job_ids => %s, dry_run => false)", [self._ids(20)])

    def delete(self, conn: Conn) -> None:
        conn.execute("SELECT pljobs.delete_job_v1(%s)", [self._id()])

    # What makes others queue up in the middle of what they do: one thing held for some ms

    def hold_job(self, conn: Conn) -> None:
        conn.execute(
            "SELECT pg_sleep(0.01) FROM (SELECT FROM pljobs.job WHERE id = %s FOR UPDATE) AS h", [self._id()]
        )

    def hold_worker(self, conn: Conn) -> None:
        conn.execute(
            "SELECT pg_sleep(0.01) FROM (SELECT FROM pljobs.worker WHERE id = %s FOR UPDATE) AS h",
            [self._worker()],
        )

    def hold_queueing_lock(self, conn: Conn) -> None:
        job = {"task": "any", "queueing_lock": self._random.choice("pqrs")}
        conn.execute("SELECT pljobs.defer_jobs_v1(%s), pg_sleep(0.01)", [Jsonb([job])])

    def pause(self, conn: Conn) -> None:
        conn.execute("SELECT pljobs.pause_queue_v1('x'), pljobs.resume_queue_v1('x')")


class Common:
    """What sessions share: the workers, the runs under way, the highest id."""

    def __init__(self, workers: list[int]) -> None:
        self.workers = workers
        self.runs: list[tuple[int, int, int]] = []
        self.top = 1
        self.over = threading.Event()
        self._lock = threading.Lock()

    def some_runs(self, rng: random.Random, most: int) -> list[tuple[int, int, int]]:
        """Take some runs out, in any order; some of them stay, to be finished by another one too."""
        with self._lock:
            chosen = rng.sample(self.runs, min(len(self.runs), rng.randint(1, most)))
            self.runs = [run for run in self.runs if run not in chosen or rng.random() < 0.7][-60:]
            return chosen


DEEDS: list[Callable[[Session, Conn], None]] = [
    *[Session.defer] * 5,
    *[Session.fetch] * 5,
    *[Session.finish] * 4,
    *[Session.heartbeat] * 4,
    *[Session.hold_job] * 4,
    *[Session.cancel_many, Session.cancel_tree, Session.retry_many, Session.rescue] * 2,
    *[Session.hold_worker, Session.hold_queueing_lock] * 2,
    Session.defer_periodic,
    Session.finish_inside,
    *[Session.register] * 3,
    Session.lose_lease,
    Session.enforce,
    Session.wake,
    Session.prune,
    Session.cancel,
    Session.cancel_lane,
    Session.rescind,
    Session.retry,
    Session.delete,
    Session.pause,
]


def hunt(url: str, rng: random.Random, *, sessions: int, seconds: float) -> Counter[str]:
    """Let sessions loose for so long; return how often they did what. Raises Violation for a deadlock."""
    with psycopg.connect(url, autocommit=True) as conn:
        workers = [conn.execute(REGISTER, [None]).fetchall()[0][0] for _ in range(WORKERS)]
        common = Common(workers)
        everybody = [Session(url, rng.randrange(10**9), common) for _ in range(sessions)]
        for session in everybody:
            session.start()
        end = time.monotonic() + seconds
        wait_until(lambda: common.over.is_set() or time.monotonic() > end, seconds + 60)
        common.over.set()
        done: Counter[str] = Counter()
        for session in everybody:
            session.join(60)
            done += session.done
        # One that a function of ours has caught is counted all the same.
        deadlocks = conn.execute(DEADLOCKS).fetchall()[0][0]
        if deadlocks:
            raise Violation("I14", f"{deadlocks} deadlocks")
    return done
