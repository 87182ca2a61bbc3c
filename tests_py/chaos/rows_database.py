"""D: the database crashes, throws sessions out, has no connection or no space left."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import psycopg

from chaos import traps
from chaos.rig import CUT, Rig
from chaos.rows import row
from chaos.small_disk import small_disk
from oracle import Violation
from waiting import wait_until

WORKERS = 3
BACK_WITHIN = 10.0
# What becomes of a body whose own connection was cut.

_ALIVE_SINCE = """
    SELECT count(*) FROM pljobs.workers AS w
     WHERE w.state = 'alive' AND w.heartbeat_at > pg_postmaster_start_time()
"""
_DOWN_FOR = """
    SELECT extract(epoch FROM max(w.heartbeat_at) - pg_postmaster_start_time()) FROM pljobs.workers AS w
     WHERE w.state = 'alive'
"""
_ENDLESS = """
    SELECT j.id FROM pljobs.jobs AS j
     WHERE j.task = 'forever' AND j.status = 'doing' AND NOT EXISTS (
           SELECT FROM pljobs.requests AS r WHERE r.job_id = j.id AND r.resolved_at IS NULL)
"""
_BACKENDS = """
    SELECT a.pid, a.query LIKE %s FROM pg_stat_activity AS a
     WHERE a.datname = current_database() AND a.application_name = 'pljobs' ORDER BY a.pid
"""
LISTENS = "%heartbeat%"
NOTED = "SELECT count(*) FROM public.side WHERE what = %s"
JOBS = 120


# D1


@row("D1", "server crash in the middle of a claim, a finish, a cancel", invariants="I1-I9, I11, I14",
     push=1, long=40, own_server=True)  # fmt: skip
def crash(rig: Rig) -> None:
    """Five crashes each, of the same workers."""
    rig.expect_traceback(CUT)
    traps.build(rig)
    for _ in range(WORKERS):
        rig.worker()
    rig.await_workers()
    crashes = 5 if rig.long else 3
    for _ in range(crashes):
        rig.load(12)
        rig.cancel_some()
        _crash_in(rig, rig.random.choice(["doing", "succeeded", "aborted", "cancelled", None]))
        _await_back(rig)
        rig.cancel_some()
    rig.settle()
    # A body whose own connection breaks fails, and is tried again.
    rig.check(retries=1 + crashes)


def _crash_in(rig: Rig, status: str | None) -> None:
    """Crash the server while this status is being written, or at any moment."""
    later = rig.count("SELECT pljobs.defer_job('quick', scheduled_at => clock_timestamp() + '1 h')")
    victim = threading.Thread(target=_cancel_in_vain, args=[rig.url, later])
    if status is None:
        rig.await_events(rig.random.randint(1, 20), 1.0)
    else:
        traps.set_for(rig, status)
        if status == "cancelled":
            victim.start()
        rig.load(3)
        rig.defer("forever")
        wait_until(lambda: _caught(rig), 20, f"a session writes {status}")
    pid = rig.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGQUIT)  # pg_ctl is slower to get there
    rig.server.restart("immediate")
    rig.harms[f"crash in {status or 'anything'}"] += 1
    if victim.ident is not None:
        victim.join()
    if (answer := rig.cancel(later)) != "cancelled":
        raise Violation("I7", f"a cancel that the crash undid is answered {answer} when repeated")


def _cancel_in_vain(url: str, job_id: int) -> None:
    """Cancel a job, and get no answer."""
    with contextlib.suppress(psycopg.Error), psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SELECT pljobs.cancel_job_v1(%s)", [job_id])


def _caught(rig: Rig) -> bool:
    """Abort what never ends by itself, so that others get their turn; say whether somebody is in the trap."""
    for (job_id,) in rig.rows(_ENDLESS):
        if not traps.somebody_caught(rig):
            rig.cancel(job_id)
    return traps.somebody_caught(rig)


def _await_back(rig: Rig) -> None:
    """Wait until all workers have been heard of since the server started; note how long that took."""
    try:
        wait_until(lambda: rig.count(_ALIVE_SINCE) == len(rig.workers), 2 * BACK_WITHIN)
    except AssertionError:
        raise Violation("D1", f"a worker is not back within {2 * BACK_WITHIN} s") from None
    rig.check_workers()
    if (after := float(rig.rows(_DOWN_FOR)[0][0])) > BACK_WITHIN:
        raise Violation("D1", f"a worker was back after {after:.1f} s")


# D4


@row("D4", "backends terminated", invariants="I1-I11, I14", push=1, long=20)
def terminate(rig: Rig) -> None:
    """Throw out backends of workers, those that listen more often, and see that work goes on after each."""
    rig.expect_traceback(CUT)
    for _ in range(WORKERS):
        rig.worker(fetch_job_polling_interval=2.0)
    rig.await_workers()
    for number in range(50 if rig.long else 10):
        if number % 5 == 0:
            rig.load(6)
            rig.cancel_some()
        _throw_out_one(rig)
        if number % 5 == 4:
            _await_pick_up(rig)
        else:
            rig.await_events(rig.random.randint(1, 5), 0.2)
    rig.settle()
    rig.check()


def _throw_out_one(rig: Rig) -> None:
    with rig.connect() as conn:
        found = wait_until(lambda: conn.execute(_BACKENDS, [LISTENS]).fetchall(), what="backends of workers")
        listening = [pid for pid, listens in found if listens]
        anybody = [pid for pid, _ in found]
        pid = rig.random.choice(listening if listening and rig.random.random() < 0.6 else anybody)
        conn.execute("SELECT pg_terminate_backend(%s)", [pid])
        rig.harms["listener thrown out" if pid in listening else "backend thrown out"] += 1


def _await_pick_up(rig: Rig) -> None:
    """Defer a job that goes before all others, and see it start."""
    job_id = rig.count("SELECT pljobs.defer_job('quick', priority => 1)")
    started = "SELECT count(*) FROM public.event WHERE job_id = %s AND is_now = 'doing'"
    try:
        wait_until(lambda: rig.count(started, job_id) > 0, 10)
    except AssertionError:
        raise Violation("I10", f"job {job_id} is not picked up") from None


# D5


@row("D5", "no connection left", invariants="I1-I11, I14", push=1, long=20, own_server=True,
     settings={"max_connections": "24", "superuser_reserved_connections": "0"})  # fmt: skip
def exhaust(rig: Rig) -> None:
    """Take all connections away from workers, and give them back after a while."""
    rig.expect_traceback(CUT)
    rig.allow("53300")
    for _ in range(2):
        rig.worker()
    rig.await_workers()
    rig.load(10)
    rig.cancel_some()
    with _all_connections(rig) as conn:
        before = _refusals(rig)
        wait_until(lambda: _refusals(rig) >= before + 6, 60, "workers are refused")
        rig.check_workers()
        conn.execute("SELECT pljobs.defer_job('quick') FROM generate_series(1, 5)")
    rig.load(5)
    rig.settle()
    rig.check(retries=100)  # each time that a body got no connection of its own


@contextlib.contextmanager
def _all_connections(rig: Rig) -> Iterator[psycopg.Connection]:
    """Hold every connection there is, and none is the workers'."""
    with contextlib.ExitStack() as held:
        first = held.enter_context(rig.connect())

        def full() -> bool:
            first.execute(
                "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a"
                " WHERE a.datname = current_database() AND a.application_name = 'pljobs'"
            )
            while True:
                try:
                    held.enter_context(psycopg.connect(rig.url, autocommit=True))
                except psycopg.OperationalError:
                    break
            return not first.execute(_BACKENDS, [LISTENS]).fetchall()

        wait_until(full, 30, "all connections are taken")
        rig.harms["all connections taken"] += 1
        yield first


def _refusals(rig: Rig) -> int:
    return rig.server.log.read_text(errors="replace").count("too many clients already")


# D6


@row("D6", "disk full when runs end", invariants="I1-I9, I11, I14", push=1, long=10, own_server=True)
def disk_full(rig: Rig) -> None:
    """Let many jobs end while their tables can't grow; each is recorded once there is space again."""
    rig.allow("53100")
    disk = small_disk(rig)
    rig.heal_with(disk.free)
    worker = rig.worker(concurrency=JOBS, update_heartbeat_interval=1.0, stalled_worker_timeout=60.0)
    rig.await_workers()
    with rig.connect() as conn:
        conn.execute("SELECT pljobs.defer_job('until_told') FROM generate_series(1, %s)", [JOBS])
    wait_until(lambda: rig.count(NOTED, "start") == JOBS, 60, "all jobs have begun")
    disk.fill()
    rig.harms["disk filled"] += 1
    with rig.connect() as conn:
        conn.execute("INSERT INTO public.side (what) VALUES ('go')")
    worker.until_said("Can't report the end of job", 60)
    wait_until(lambda: rig.count(NOTED, "end") == JOBS, 60, "all bodies have ended")
    rig.check_workers()
    rig.settle()
    if (ended := rig.rows("SELECT DISTINCT status, attempts FROM pljobs.jobs")) != [("succeeded", 1)]:
        raise Violation("I1", f"not all succeeded at the first attempt: {ended}")
    rig.check()
    assert worker.said("No space left on device")
