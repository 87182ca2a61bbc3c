"""Measure a queue at work while a reader's old snapshot keeps vacuum from removing anything."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg

from chaos.rig import Rig
from oracle import Violation
from waiting import wait_until

JOBS_A_SECOND = 300
WORKERS = 2
WINDOW = 10.0
HELD_FOR = 180.0
RECOVERED_WITHIN = 120.0
LEAST_THROUGHPUT, MOST_CLAIM_TIME = 0.6, 5.0

_PREPARE = """
    DROP TRIGGER note_event ON pljobs.job;
    DROP TRIGGER note_end ON pljobs.job;
    DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET track_functions = pl', current_database()); END $$;
"""
_DEFER = """
    SELECT pljobs.defer_jobs_v1((
        SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
                   'task', 'nothing', 'scheduled_in', CASE n %% 3 WHEN 1 THEN interval '0.1 s' END,
                   'start_by', CASE n %% 3 WHEN 2 THEN clock_timestamp() + interval '5 s' END)))
          FROM generate_series(1, %s) AS n))
"""
_STATE = """
    SELECT (SELECT count(*) FROM pljobs.job AS j WHERE j.status = 'succeeded'), f.calls, f.total_time,
           t.n_dead_tup, pg_total_relation_size('pljobs.job')
      FROM pg_stat_user_functions AS f, pg_stat_user_tables AS t
     WHERE f.funcname = 'fetch_jobs_v1' AND t.relid = 'pljobs.job'::regclass
"""


@dataclass(frozen=True, slots=True)
class Window:
    """Some seconds of the queue's work: jobs a second, ms a claim; at its end: dead rows, bytes."""

    throughput: float
    claim: float
    dead: int
    size: int


def measure(rig: Rig) -> Counter[str]:
    """Return the figures; raise Violation where the queue became too slow, or stayed so."""
    held_for = float(os.environ.get("PLJOBS_CHAOS_SECONDS", HELD_FOR))
    with rig.connect() as conn:
        conn.execute(_PREPARE)
    for _ in range(WORKERS):
        rig.worker(concurrency=20)
    rig.await_workers()
    with rig.connect() as conn, _producing(rig.url):
        _window(conn, WINDOW)  # what starts is not measured
        start = _window(conn, WINDOW)
        with psycopg.connect(rig.url) as reader:
            reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            reader.execute("SELECT count(*) FROM pljobs.job")
            rig.harms["snapshot held"] += 1
            _window(conn, max(0.0, held_for - WINDOW))
            end = _window(conn, WINDOW)
        released = time.monotonic()

        def recovered() -> Window | None:
            now = _window(conn, WINDOW / 2)
            return now if now.claim <= 2 * start.claim and now.dead < end.dead / 2 else None

        try:
            after = wait_until(recovered, RECOVERED_WITHIN)
        except AssertionError:
            raise Violation("X2", f"not recovered within {RECOVERED_WITHIN} s: {_window(conn, 5)}") from None
        rig.harms["snapshot released"] += 1
    tale = f"at the start {start}, at the end {end}, after {time.monotonic() - released:.0f} s {after}"
    print(f"X2: {tale}", flush=True)
    if end.throughput < LEAST_THROUGHPUT * start.throughput or end.claim > MOST_CLAIM_TIME * start.claim:
        raise Violation("X2", tale)
    rig.check_workers()
    return Counter(
        {
            "jobs/s at the start": round(start.throughput),
            "jobs/s at the end": round(end.throughput),
            "us a claim at the start": round(1000 * start.claim),
            "us a claim at the end": round(1000 * end.claim),
            "dead rows at the end": end.dead,
            "kB of jobs at the end": end.size // 1024,
            "s to recover": round(time.monotonic() - released),
        }
    )


def _window(conn: psycopg.Connection, seconds: float) -> Window:
    before, began = conn.execute(_STATE).fetchall()[0], time.monotonic()
    wait_until(lambda: time.monotonic() > began + seconds, seconds + 60)
    after, took = conn.execute(_STATE).fetchall()[0], time.monotonic() - began
    calls = max(1, after[1] - before[1])
    return Window((after[0] - before[0]) / took, (after[2] - before[2]) / calls, after[3], after[4])


@contextlib.contextmanager
def _producing(url: str) -> Iterator[None]:
    """Defer so many jobs a second, as long as the block runs."""
    over = threading.Event()

    def produce() -> None:
        due = time.monotonic()
        with psycopg.connect(url, autocommit=True) as conn:
            while not over.wait(max(0.0, due - time.monotonic())):
                conn.execute(_DEFER, [JOBS_A_SECOND // 10])
                due += 0.1

    thread = threading.Thread(target=produce, name="producer")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
