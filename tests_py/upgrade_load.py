"""Work that goes on while a schema is upgraded: who defers, who aborts, and who fetches."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import psycopg

from waiting import wait_until

# As 0.1.0's driver sends them; psycopg prepares what it has seen five times.
DEFER = "SELECT pljobs.defer_jobs_v1(jobs => %s::jsonb, notify => true) AS ids"
CANCEL = "SELECT c.outcome FROM pljobs.cancel_job_v1(job_id => %s::bigint, abort => true) AS c"
REGISTER = "SELECT pljobs.register_worker_v1(name => %s::text, host => 'here', pid => 1, lease => '1 day')"
FETCH = "SELECT f.job_id FROM pljobs.fetch_jobs_v1(worker_id => %s::bigint, queues => '{probe}') AS f"
ABORTABLE = (
    "SELECT j.id FROM pljobs.job AS j WHERE j.task = 'forever' AND j.run_id > 0 AND j.request_id IS NULL"
)
CANCELLABLE = "SELECT j.id FROM pljobs.job AS j WHERE j.status = 'todo' AND j.task = 'quick' LIMIT 1"
TASKS: list[tuple[str, dict[str, object]]] = [
    ("quick", {}),
    ("quick", {}),
    ("work", {"seconds": 0.02}),
    ("work", {"fail": True}),
    ("sync_work", {"seconds": 0.02}),
    ("forever", {}),
]


class Repeated:
    """A thread with a connection of its own that does one thing again and again, until told to stop.

    What it raises is kept, and ends it.
    """

    def __init__(self, url: str, name: str) -> None:
        self.error: BaseException | None = None
        self.rounds = 0
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    def __enter__(self) -> Any:
        self._thread.start()
        wait_until(lambda: self.rounds > 0 or self.error is not None, what=f"{self._thread.name} is at work")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it, and raise what it met."""
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise AssertionError(f"{self._thread.name}: {self.error}") from self.error

    def prepare(self, conn: psycopg.Connection) -> None:
        """Be called once, before all."""

    def once(self, conn: psycopg.Connection) -> None:
        """Do it."""
        raise NotImplementedError

    def _run(self) -> None:
        try:
            with psycopg.connect(self._url, autocommit=True) as conn:
                self.prepare(conn)
                while not self._stop.is_set():
                    self.once(conn)
                    self.rounds += 1
        except BaseException as error:
            self.error = error


class Producer(Repeated):
    """Defers one of each task, as long as not too many wait; `pause`: between two such calls, in seconds."""

    def __init__(
        self,
        url: str,
        tasks: list[tuple[str, dict[str, object]]] = TASKS,
        waiting: int = 60,
        pause: float = 0.03,
    ) -> None:
        super().__init__(url, "the producer")
        self.waiting = waiting
        self.pause = pause
        self.deferred = 0
        self.jobs = json.dumps([{"task": task, "args": args} for task, args in tasks])

    def once(self, conn: psycopg.Connection) -> None:
        conn.execute(DEFER.encode(), [self.jobs])
        self.deferred += len(json.loads(self.jobs))
        self._stop.wait(self.pause)
        while _count(
            conn, "SELECT sum(q.todo) FROM pljobs.queues AS q"
        ) > self.waiting and not self._stop.wait(0.01):
            pass


class Stopper(Repeated):
    """Aborts what runs for ever, and now and then cancels what waits; `looks`: who may see all jobs."""

    def __init__(self, url: str, looks: psycopg.Connection) -> None:
        super().__init__(url, "who aborts")
        self.answers: dict[int, list[str]] = defaultdict(list)
        self._looks = looks

    def once(self, conn: psycopg.Connection) -> None:
        chosen = self._looks.execute(ABORTABLE.encode()).fetchall()
        if random.random() < 0.1:
            chosen += self._looks.execute(CANCELLABLE.encode()).fetchall()
        for (job_id,) in chosen:
            row = conn.execute(CANCEL.encode(), [job_id]).fetchone()
            assert row is not None
            self.answers[job_id].append(row[0])
        self._stop.wait(0.02)


class Probe(Repeated):
    """A worker that fetches from a queue without jobs, and notes when it asked and how long that took."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "the probe")
        self.asked: list[tuple[float, float]] = []

    def prepare(self, conn: psycopg.Connection) -> None:
        self.worker_id = _count(conn, REGISTER, "probe")

    def once(self, conn: psycopg.Connection) -> None:
        began = time.monotonic()
        conn.execute(FETCH.encode(), [self.worker_id])
        self.asked.append((began, time.monotonic() - began))
        self._stop.wait(0.005)

    def longest(self, since: float = 0, until: float = float("inf")) -> float:
        """The longest of those that were under way between these two times."""
        return max(took for began, took in self.asked if began + took >= since and began <= until)


def until(condition: Callable[[], object], threads: list[Repeated], deadline: float, what: str) -> None:
    """Wait for it, or for the first of these threads to fail."""

    def reached() -> bool:
        for thread in threads:
            if thread.error is not None:
                raise AssertionError(f"{thread.error!r}") from thread.error
        return bool(condition())

    wait_until(reached, deadline, what)


def _count(conn: psycopg.Connection, query: str, *params: object) -> int:
    row = conn.execute(query.encode(), params).fetchone()
    assert row is not None
    return int(row[0] or 0)
