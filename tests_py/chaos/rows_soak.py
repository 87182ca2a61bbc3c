"""X3, the soak: mixed load for long, faults at a low rate, and nothing that grows.

PLJOBS_SOAK_MINUTES makes it last.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.rig import CUT, Rig
from chaos.rows import row
from oracle import Violation
from proxy import Proxy, running_proxy
from workers import Command

MINUTES = 5.0
LEASE = 5.0
OPTIONS: dict[str, Any] = {
    "concurrency": 8,
    "update_heartbeat_interval": 1.0,
    "stalled_worker_timeout": LEASE,
}
# In seconds.
LOAD_EVERY, SAMPLE_EVERY, HARM_EVERY = 1.0, 5.0, 10.0
JOBS_AT_ONCE, BACKLOG = 25, 100
# What caches and allocators take once all has been met, in MiB; beyond it memory may not grow.
SLACK = 16.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What a worker and the server have at one moment; sizes in MiB."""

    memory: float
    descriptors: int
    threads: int
    backends: int
    waiting: int


@row("X3", "soak, mixed faults at a low rate", invariants="I1-I11, I14, flat", push=0, long=1)
def soak(rig: Rig) -> None:
    """Watch two workers that are never killed: one direct, one whose line falls silent now and then."""
    minutes = float(os.environ.get("PLJOBS_SOAK_MINUTES", MINUTES))
    rig.expect_traceback(CUT)
    rig.let_leave()
    proxy = rig.stack.enter_context(running_proxy(rig.server))
    watched: list[Command] = [rig.worker(**OPTIONS), rig.worker(proxy.url(rig.dbname), **OPTIONS)]
    for _ in range(2):
        rig.worker(**OPTIONS)
    rig.await_workers()
    samples: dict[Command, list[Sample]] = {each: [] for each in watched}
    harms = [_kill, _stall, _terminate, _silence]
    end = time.monotonic() + 60 * minutes
    load_at = sample_at = time.monotonic()
    harm_at, heal_at = load_at + HARM_EVERY, end
    while (now := time.monotonic()) < end:
        rig.check_workers()
        rig.wake()
        if now >= heal_at:
            proxy.heal()
            heal_at = end
        if now >= load_at:
            # Jobs of a lane run one at a time: more than all lanes can do would only pile up.
            if rig.count("SELECT count(*) FROM pljobs.jobs WHERE status = 'todo'") < BACKLOG:
                rig.load(JOBS_AT_ONCE)
            rig.cancel_some()
            load_at += LOAD_EVERY
        if now >= sample_at:
            for worker in watched:
                if worker.running:  # it may have left, and another has taken its place
                    samples[worker].append(_sample(rig, worker))
            sample_at += SAMPLE_EVERY
        if now >= harm_at:
            chosen = rig.random.choice(harms)
            chosen(rig, proxy, [worker for worker in rig.workers if worker not in watched])
            if chosen is _silence:
                heal_at = now + rig.random.uniform(1.0, 0.5 * LEASE)
            harm_at += HARM_EVERY * rig.random.uniform(0.5, 1.5)
        rig.await_events(20, min(0.2, LOAD_EVERY))
    proxy.heal()
    rig.settle()
    for each, seen in samples.items():
        _check_flat(rig, each, seen)
    rig.check(retries=100)


def _kill(rig: Rig, _proxy: Proxy, others: list[Command]) -> None:
    rig.kill(rig.random.choice(others))
    rig.worker(**OPTIONS)


def _stall(rig: Rig, _proxy: Proxy, others: list[Command]) -> None:
    rig.pause(rig.random.choice(others), 1.8 * LEASE)


def _terminate(rig: Rig, _proxy: Proxy, _others: list[Command]) -> None:
    rig.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"
    )
    rig.harms["pg_terminate_backend"] += 1


def _silence(rig: Rig, proxy: Proxy, _others: list[Command]) -> None:
    proxy.swallow_up = proxy.swallow_down = True
    rig.harms["silence"] += 1


def _sample(rig: Rig, worker: Command) -> Sample:
    folder = Path(f"/proc/{worker.pid}")
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    backends, waiting = rig.rows(
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()),"
        " (SELECT count(*) FROM pljobs.jobs WHERE status = 'todo')"
    )[0]
    return Sample(
        memory=int(fields["VmRSS"].split()[0]) / 1024,
        descriptors=len(list((folder / "fd").iterdir())),
        threads=int(fields["Threads"]),
        backends=backends,
        waiting=waiting,
    )


def _check_flat(rig: Rig, worker: Command, seen: list[Sample]) -> None:
    """Compare the last third with the middle one: in the first, everything is met for the first time."""
    third = len(seen) // 3
    if third == 0:
        raise Violation("flat", f"too few samples to tell: {seen}")
    middle, last = seen[third : 2 * third], seen[-third:]
    name = worker.log.stem
    for what, slack in (("memory", SLACK), ("descriptors", 8), ("threads", 4), ("backends", 16)):
        before, after = (statistics.median(getattr(each, what) for each in part) for part in (middle, last))
        rig.notes[f"{name} {what} middle"], rig.notes[f"{name} {what} end"] = round(before), round(after)
        if after > before * 1.2 + slack:
            raise Violation("flat", f"{name}: {what} grew from {before} to {after}")
