"""R1, X1, X2: sessions that get in each other's way."""

from __future__ import annotations

import threading
from typing import Self

import psycopg

from chaos import reader, sampler
from chaos.rig import Rig
from chaos.rows import row
from chaos.sessions import SAID, hunt
from oracle import Violation

# R1

OLD_SHORT, OLD_LONG = 20_000, 200_000
BATCH = 2_000
WORKERS_SHORT, WORKERS_LONG = 3, 6
LONGEST_WAIT = 0.1
FILL = """
    INSERT INTO pljobs.job (created_at, started_at, finished_at, priority, status, queue, task, args,
                            attempts, deferred_by, worker_id, last_run_id)
    SELECT clock_timestamp() - interval '30 days', clock_timestamp() - interval '30 days',
           clock_timestamp() - interval '29 days' + n * interval '1 s', 0,
           (ARRAY['succeeded', 'failed', 'cancelled', 'aborted'])[1 + n %% 4], 'old', 'quick', '{}', 1,
           session_user, 0, 0
      FROM generate_series(1, %s) AS n
"""
# What is pruned here is not the witnesses' concern: a trigger each would be most of the work.
OTHERS_ONLY = """
    DROP TRIGGER note_end ON pljobs.job;
    CREATE TRIGGER note_end AFTER DELETE ON pljobs.job FOR EACH ROW WHEN (OLD.queue <> 'old')
        EXECUTE FUNCTION public.note_event();
"""
PRUNE = "SELECT pljobs.prune_jobs_v1(interval '1 day', max_jobs => %s)"
LEFT = "SELECT status, count(*) FROM pljobs.job WHERE queue = 'old' GROUP BY status"


class Pruner(threading.Thread):
    """Prunes batch after batch until nothing old is left."""

    def __init__(self, url: str) -> None:
        super().__init__(name="pruner")
        self._url = url
        self.pid = self.pruned = self.batches = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join()

    def run(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as conn:
            self.pid = conn.info.backend_pid
            while done := conn.execute(PRUNE, [BATCH]).fetchall()[0][0]:
                self.pruned += done
                self.batches += 1


@row("R1", "retention beside live traffic", invariants="I1-I11, I14, lock waits", push=1, long=3)
def prune(rig: Rig) -> None:
    """Prune very many finished jobs, of all final states, while workers run others."""
    old = OLD_LONG if rig.long else OLD_SHORT
    with rig.connect() as conn:
        conn.execute(OTHERS_ONLY)
        conn.execute(FILL, [old])
        conn.execute("ANALYZE pljobs.job")
    for _ in range(WORKERS_LONG if rig.long else WORKERS_SHORT):
        rig.worker()
    rig.await_workers()
    rig.load(60)  # cancelled are the last ones: none of the old
    with sampler.lock_waits(rig.url) as waits, Pruner(rig.url) as pruner:
        while pruner.is_alive():
            rig.load(3)
            rig.cancel_some(recent=5, running=5)
    pruned, pid = pruner.pruned, pruner.pid
    rig.harms["batch pruned"] += pruner.batches
    if pruned != old or rig.rows(LEFT):
        raise Violation("R1", f"{pruned} pruned of {old}, left: {rig.rows(LEFT)}")
    rig.notes["samples"] += waits.samples
    rig.notes["longest wait for the pruner, ms"] = round(1000 * waits.longest(pid))
    rig.notes["longest wait for any row, ms"] = round(1000 * waits.longest())
    if (longest := waits.longest(pid)) > LONGEST_WAIT:
        raise Violation("R1", f"somebody waited {longest:.3f} s for a row that the pruner held")
    rig.settle()
    rig.check()


# X1

SESSIONS = 8


@row("X1", "deadlock hunting", invariants="I14", push=1, long=6)
def deadlocks(rig: Rig) -> None:
    """Call everything at once over few jobs, with a server that looks for deadlocks after 20 ms."""
    rig.allow(*SAID)
    try:
        done = hunt(rig.url, rig.random, sessions=SESSIONS, seconds=12 if rig.long else 4)
    except Violation:
        rig.check_server_log()  # which tells who waited for whom
        raise
    rig.harms["calls"] += done.total()
    rig.check_server_log()


# X2


@row("X2", "a snapshot held for long", invariants="throughput, claim times", push=0, long=1)
def held_snapshot(rig: Rig) -> None:
    """See how fetching goes while a reader keeps every dead row alive, and after it has ended."""
    rig.notes += reader.measure(rig)
