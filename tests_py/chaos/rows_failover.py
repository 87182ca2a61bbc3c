"""D2, D3: the primary dies and its standby takes over; workers are left on a server that is read-only."""

from __future__ import annotations

import time

from chaos.pairs import Pair, a_pair, demote, promote, unknown
from chaos.rig import CUT, Rig
from chaos.rows import row
from oracle import Violation
from waiting import wait_until
from workers import Command

WORKERS = 3
# Bodies, and what they write themselves, are cut off like everybody.
SAID_ONCE = "the database is read-only"
# A body that could not tell what it did fails, and is tried again.
RETRIES = 10

_DOUBLED = """
    SELECT s.run_id FROM public.side AS s WHERE s.run_id IS NOT NULL
     GROUP BY s.run_id HAVING count(DISTINCT (s.job_id, s.pid)) > 1
"""


@row("D2", "failover to a synchronous standby", invariants="I1-I9, I11, I14", push=1, long=12)
def fail_over(rig: Rig) -> None:
    """Whoever had an answer before the failover finds it true after it."""
    rig.expect_traceback(CUT)
    pair = a_pair(rig, synchronous=True)
    deferred = _work(rig)
    _fail_over(rig, pair)
    deferred += rig.load(8)
    rig.cancel_some()
    rig.settle()
    rig.check(retries=RETRIES)
    if lost := unknown(rig, deferred):
        raise Violation("I1", f"deferred, and lost by the failover: {lost}")


@row("D2A", "failover to a standby that lags", invariants="I1-I3, I5, I7-I9, I11, I14", push=0, long=12)
def fail_over_with_loss(rig: Rig) -> None:
    """The last answers are lost with the primary; what is left keeps the rules."""
    rig.expect_traceback(CUT)
    pair = a_pair(rig, synchronous=False)
    deferred = _work(rig)
    pair.cut()
    deferred += rig.load(rig.random.randint(1, 30))
    rig.await_events(rig.random.randint(0, 40), 2.0)
    # What was answered may be lost.
    rig.answers.clear()
    _fail_over(rig, pair)
    rig.notes["jobs lost"] += len(unknown(rig, deferred))
    rig.load(8)
    rig.cancel_some()
    rig.settle()
    if doubled := rig.rows(_DOUBLED):
        raise Violation("I3", f"a run of the lost time and one of now have one id: {doubled}")
    # A run of the lost time that goes on tells the survivor of a claim that it never saw.
    rig.check(without={"I4", "I6"}, retries=RETRIES)


def _work(rig: Rig) -> list[int]:
    """Start workers, with something to do and to abort; return what was deferred."""
    for _ in range(WORKERS):
        rig.worker()
    rig.await_workers()
    deferred = rig.load(20)
    rig.cancel_some()
    rig.await_events(rig.random.randint(5, 30), 2.0)
    return deferred


def _fail_over(rig: Rig, pair: Pair) -> None:
    pair.fail_over()
    rig.harms["failover"] += 1


# D3


@row("D3", "workers left on a read-only server", invariants="I1-I9, I11, I14", push=0, long=8)
def read_only(rig: Rig) -> None:
    """Start workers on a standby, promote it, demote it under load, promote it again."""
    rig.expect_traceback(CUT)
    rig.allow("25006")
    pair = a_pair(rig, synchronous=False)
    rig.move(pair.standby, pair.standby.url("chaos"))
    for _ in range(2):
        rig.worker()
    for worker in rig.workers:
        worker.until_said(SAID_ONCE)
    _quiet(rig)
    _fail_over(rig, pair)
    rig.await_workers()
    rig.load(15)
    rig.cancel_some()
    rig.await_events(10, 2.0)
    said = {worker: _text(worker).count(SAID_ONCE) for worker in rig.workers}
    demote(pair.standby)
    rig.harms["demoted"] += 1
    for worker in rig.workers:
        wait_until(lambda w=worker: _text(w).count(SAID_ONCE) > said[w], 30, "the worker says it")  # type: ignore[misc]
    _await_silence(rig)
    _quiet(rig)
    promote(pair.standby)
    rig.load(5)
    rig.settle()
    rig.check(retries=RETRIES)


def _await_silence(rig: Rig) -> None:
    """Wait until what the workers ran has stopped, and been told of."""
    last: dict[str, float] = {}

    def silent() -> bool:
        said = "".join(_text(worker) for worker in rig.workers)
        return time.monotonic() - last.setdefault(said, time.monotonic()) > 2.0

    wait_until(silent, 60, "the workers fall silent")


def _quiet(rig: Rig) -> None:
    """See the workers knock at the server some more times, not too often, and say next to nothing."""
    before, began = {worker: len(_text(worker).splitlines()) for worker in rig.workers}, time.monotonic()
    knocks = _knocks(rig)
    wait_until(lambda: _knocks(rig) >= knocks + 6, 60, "the workers try again")
    rig.check_workers()
    took = time.monotonic() - began
    if (more := _knocks(rig) - knocks) > 6 * (took + 3):
        raise Violation("D3", f"{more} connections within {took:.1f} s")
    for worker in rig.workers:
        lines = len(_text(worker).splitlines()) - before[worker]
        rig.notes["lines while read-only"] += lines
        if lines > took + 3:
            raise Violation("D3", f"{lines} lines within {took:.1f} s:\n{_text(worker)[-4000:]}")


def _knocks(rig: Rig) -> int:
    """How many connections the server has let in; the rig's own are not many."""
    return rig.server.log.read_text(errors="replace").count("application_name=pljobs")


def _text(worker: Command) -> str:
    return worker.log.read_text(errors="replace")
