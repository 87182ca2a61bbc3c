"""K1 to K3: the server's clock jumps, those of workers are wrong, and periodic deferrers are killed."""

from __future__ import annotations

import json
import signal
import sys
import time

from chaos.rig import Rig
from chaos.rows import row
from clocks import ServerClock, skewed
from oracle import Violation
from waiting import wait_until
from workers import DEADLINE, HERE, Command

HOUR = 3600
# What the server says of a worker that was killed in the middle of a call.
CLIENT_LOST = "08006"
JUMPS = (HOUR, -600)
# 30 seconds an hour, and what a row of seconds can feel.
PACES = (1 + 30 / HOUR, 1.5, 0.5)


@row(
    "K1",
    "the server's clock jumps and drifts",
    invariants="I1-I7, I9-I11, I14",
    push=1,
    long=20,
    own_server=True,
)
def server_clock_jumps(rig: Rig) -> None:
    rig.allow(CLIENT_LOST)
    clock = ServerClock(rig.server)
    for _ in range(3 if rig.long else 2):
        rig.worker()
    rig.await_workers()
    jumps = [*JUMPS, *rig.random.choices(JUMPS, k=8 if rig.long else 0)]
    rig.random.shuffle(jumps)
    for jump in jumps:
        rig.load(8)
        # Still at work when others find their leases over.
        for _ in range(2):
            rig.defer("work", '{"seconds": 1}')
            rig.defer("sync_work", '{"seconds": 1}')
        rig.await_events(8, 2)
        clock.jump(jump)
        rig.harms[f"{jump:+d} s"] += 1
        rig.cancel_some()
        rig.await_events(4, 1)
        # A worker that died has a lease by the clock that was.
        rig.kill(rig.random.choice(rig.workers))
        rig.worker()
        clock.drift(rig.random.choice(PACES))
        rig.harms["drift"] += 1
        rig.await_events(4, 1)
    clock.jump(0)
    rig.settle()
    # Whose lease is over is not what this clock says.
    rig.check(without={"I8"})


@row("K2", "clocks of workers wrong by a day", invariants="I1-I11, I14", push=1, long=10)
def worker_clocks_are_wrong(rig: Rig) -> None:
    rig.allow(CLIENT_LOST)
    for offset in ("+1d", "-1d"):
        rig.worker(variables=skewed(offset))
    rig.worker()
    rig.await_workers()
    rig.harms["wrong clocks"] += 2
    for _ in range(6 if rig.long else 1):
        rig.load(10)
        rig.cancel_some()
        rig.await_events(10, 2)
        rig.kill(rig.random.choice(rig.workers[:2]))
        rig.worker(variables=skewed(rig.random.choice(["+1d", "-1d"])))
    rig.settle()
    times = rig.rows(
        "SELECT count(*) FROM pljobs.jobs WHERE abs(extract(epoch FROM started_at - now())) > 600"
    )
    assert times == [(0,)], "a time in the database is a worker's"
    rig.check()


class Deferrer(Command):
    """A process that defers periodic tasks, and kills itself in so many cases of a tick."""

    def __init__(self, rig: Rig, *, defers: bool = True, runs: bool, dies: float = 0.0) -> None:
        options = {"defers": defers, "runs": runs, "dies": dies, "seed": rig.random.randrange(10**6)}
        log = rig.folder / f"deferrer{rig.notes['deferrers']}.log"
        super().__init__(
            [sys.executable, str(HERE / "periodic_process.py"), rig.url, json.dumps(options)], log,
            {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        rig.notes["deferrers"] += 1
        rig.stack.callback(self.kill)


@row("K3", "periodic deferrers are killed", invariants="one job a tick, I1-I4, I14", push=1, long=20)
def deferrers_are_killed(rig: Rig) -> None:
    """Kill some between what is due and its job, and after that; one lives, so that no tick is lost."""
    rig.allow(CLIENT_LOST)
    ticks = 40 if rig.long else 3

    def mortal() -> Deferrer:
        return Deferrer(rig, runs=rig.random.random() < 0.5, dies=0.4)

    alive = [
        Deferrer(rig, runs=False),
        *(mortal() for _ in range(rig.random.randint(1, 4 if rig.long else 2))),
    ]
    end = time.monotonic() + ticks + 6 * DEADLINE
    while rig.count("SELECT count(DISTINCT args ->> 'timestamp') FROM pljobs.jobs") <= ticks:
        assert time.monotonic() < end, "too few ticks"
        for place, deferrer in enumerate(alive):
            if deferrer.running:
                continue
            if deferrer.popen.returncode != -signal.SIGKILL:
                raise Violation("died", deferrer.log.read_text(errors="replace")[-4000:])
            rig.harms["SIGKILL"] += 1
            alive[place] = mortal()
        soon = time.monotonic() + 0.3
        wait_until(lambda: not all(each.running for each in alive) or time.monotonic() > soon)  # noqa: B023
    for deferrer in alive:
        deferrer.signal(signal.SIGTERM)
    for deferrer in alive:
        deferrer.wait()
    Deferrer(rig, defers=False, runs=True)
    rig.settle()
    _check_ticks(rig)
    rig.check()


def _check_ticks(rig: Rig) -> None:
    """Raise Violation where a tick has not one job."""
    for name in ("a", "b"):
        found = [
            int(at)
            for (at,) in rig.rows(
                "SELECT args ->> 'timestamp' FROM pljobs.jobs WHERE args ->> 'name' = %s", name
            )
        ]
        planned = list(range(min(found), max(found) + 1))
        if sorted(found) != planned:
            raise Violation("ticks", f"of {name} planned: {planned}; deferred: {sorted(found)}")
