"""X0: whatever comes to mind, at random and all at once; the rows beside it do one thing each."""

from __future__ import annotations

import os
import time

from chaos.rig import CUT, Rig
from chaos.rows import row

WORKERS = 3
SECONDS_SHORT, SECONDS_LONG = 8.0, 45.0


@row("X0", "mixed, at random", invariants="I1-I11, I14", push=1, long=4)
def mixed(rig: Rig) -> None:
    _run(rig, restarts=False)


@row("X0R", "mixed, at random, and the server restarts", invariants="I1-I9, I11, I14", push=0, long=4,
     own_server=True)  # fmt: skip
def mixed_with_restarts(rig: Rig) -> None:
    _run(rig, restarts=True)


def _run(rig: Rig, *, restarts: bool) -> None:
    """Do one deed after the other; each once the last has had some effect, or a tenth of a second."""
    # A body's own connection is cut, too.
    rig.expect_traceback(CUT)
    rig.let_leave()
    # A worker that can't reach the database when it starts ends at once.
    rig.expect_traceback(r"DatabaseUnavailable: ")
    for _ in range(WORKERS):
        rig.worker()
    deeds = [_defer] * 8 + [_cancel] * 8 + [_kill, _pause, _terminate, _terminate]
    if restarts:
        deeds.append(_restart)
    seconds = float(os.environ.get("PLJOBS_CHAOS_SECONDS", SECONDS_LONG if rig.long else SECONDS_SHORT))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rig.check_workers()
        rig.random.choice(deeds)(rig)
        rig.wake()
        rig.await_events(5, 0.1)
    rig.settle()
    rig.check(retries=100)  # each time that a body's own connection was cut
    for ending in ("succeeded", "aborted", "cancelled"):
        assert rig.ended.get(ending, 0) > 0, f"a chaos too mild: nothing {ending}"


def _defer(rig: Rig) -> None:
    rig.load(rig.random.randint(1, 6))


def _cancel(rig: Rig) -> None:
    rig.cancel_some()


def _kill(rig: Rig) -> None:
    rig.kill(rig.random.choice(rig.workers))
    rig.worker()


def _pause(rig: Rig) -> None:
    rig.pause(rig.random.choice(rig.workers), rig.random.uniform(0.2, 2.0))


def _terminate(rig: Rig) -> None:
    rig.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT 2"
    )
    rig.harms["pg_terminate_backend"] += 1


def _restart(rig: Rig) -> None:
    mode = "fast" if rig.random.random() < 0.5 else "immediate"
    rig.server.restart("fast" if mode == "fast" else "immediate")
    rig.harms[f"restart {mode}"] += 1
