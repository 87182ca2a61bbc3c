"""W1 to W4: workers that die, that stall, and whose registration vanishes, at any point of a job's run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from chaos.rig import Rig
from chaos.rows import row
from oracle import Violation
from pause_points import POINTS, VARIABLE
from waiting import wait_until
from workers import HASTY, Command, Process

WORKERS = 3
LEASE: float = HASTY["stalled_worker_timeout"]
STALL = 1.8 * LEASE
NO_LONGER = r"\[{}\](?: is no longer this run's| \w+, but this run was no longer the job's|.* came too late)"


@row("W1", "worker SIGKILL at random", invariants="I1-I5, I7-I11, I14", push=1, long=60)
def killed_at_random(rig: Rig) -> None:
    for _ in range(WORKERS):
        rig.worker()
    rig.await_workers()
    for _ in range(20 if rig.long else 6):
        rig.load(rig.random.randint(3, 10))
        if rig.random.random() < 0.3:
            rig.cancel_some()
        rig.await_events(rig.random.randint(1, 12), rig.random.uniform(0.0, 0.5))
        rig.kill(rig.random.choice(rig.workers))
        rig.worker()
    rig.settle()
    rig.check()


@row("W2", "worker SIGKILL at each point of a run", invariants="I1-I5, I8-I11, I14", push=1, long=40)
def killed_at_each_point(rig: Rig) -> None:
    rig.worker()
    for point in POINTS:
        victim = _stops_at(rig, point, rig.random.randint(1, 4))
        _until_stopped(rig, victim)
        rig.kill(victim)
        rig.notes[f"killed: {point}"] += 1
    rig.settle()
    rig.check()


@row("W3", "worker stalled for 1.8 leases, at random and at each point", invariants="I1-I5, I8-I11, I14",
     push=1, long=25)  # fmt: skip
def stalled(rig: Rig) -> None:
    # Either way it must see that its runs are not its any more; it may only leave if it was told not to let a
    # job run beside another worker's.
    may_leave = rig.random.random() < 0.5
    if may_leave:
        rig.let_leave()
    rig.worker()
    chosen = [*rig.random.sample(POINTS, 2 if not rig.long else 4), None]
    for point in chosen:
        _stall(rig, point, stop_without_database=may_leave)
    rig.settle()
    rig.check()


def _stall(rig: Rig, point: str | None, *, stop_without_database: bool) -> None:
    queue = rig.next_name()
    endless = rig.defer("forever", queue=queue)
    more: dict[str, Any] = {"queues": ["default", queue], "stop_without_database": stop_without_database}
    first = 2 if point in {"claimed", "before body"} else 1  # not for the endless job
    if point is None:
        victim = rig.worker(**more)
    else:
        victim = _stops_at(rig, point, rig.random.randint(first, 4), **more)
    wait_until(lambda: _has_started(rig, endless), 30, "a job of its own starts")
    if point is None:
        rig.load(8, endless=False)
        rig.await_events(rig.random.randint(1, 10), 0.5)
        rig.pause(victim, STALL)
    else:
        _until_stopped(rig, victim)
        rig.sleeps(victim, STALL)
    worker_id = _id(victim)
    held = rig.rows(
        "SELECT id, run_id FROM pljobs.jobs WHERE worker_id = %s AND status = 'doing' ORDER BY id", worker_id
    )
    runs = [run_id for _, run_id in held]
    unstarted = [run_id for run_id in runs if not _bodies(rig, [run_id])]
    if point == "finish sent":
        held = []  # some may be written down while it sleeps
    # Until all of it is somebody else's.
    wait_until(lambda: not _still_its(rig, runs), 30, "its jobs are rescued")
    wait_until(lambda: _woken(rig, victim), 30)
    rig.notes[f"stalled: {point or 'at random'}"] += 1
    wait_until(lambda: not victim.running or all(_knows(victim, job_id) for job_id, _ in held), 30,
               "it sees that its runs are not its any more")  # fmt: skip
    rig.check_workers()
    if point == "claimed" and _bodies(rig, unstarted):
        raise Violation("I3", f"runs began that were no longer its: {unstarted}")
    if victim.running:
        own = rig.defer("quick", queue=queue)
        wait_until(
            lambda: rig.count("SELECT count(*) FROM pljobs.jobs WHERE id = %s AND status = 'succeeded'", own),
            30,
            "it goes on",
        )
    else:  # nobody else would look into its queue
        rig.cancel(endless)


@row("W4", "worker's registration vanishes while it works", invariants="I1-I5, I8-I11, I14", push=1, long=40)
def pruned_while_alive(rig: Rig) -> None:
    workers = [rig.worker() for _ in range(2)]
    rig.await_workers()
    for number in range(4):
        rig.load(8)
        rig.await_events(rig.random.randint(1, 10), 1)
        worker = workers[number % 2]
        before = _registered_again(worker)
        way = rig.random.choice(["delete", "unregister", "prune"])
        if way == "delete":
            rig.rows("DELETE FROM pljobs.worker WHERE id = %s RETURNING id", _id(worker))
        else:
            rig.rows("SELECT pljobs.unregister_worker_v1(%s)", _id(worker))
        if way == "prune":
            rig.rows("SELECT pljobs.prune_history_v1('0 s')")
        rig.harms[way] += 1
        wait_until(lambda: _registered_again(worker) > before, 30, "it registers again")  # noqa: B023
    rig.settle()
    rig.check()


def _stops_at(rig: Rig, point: str, nth: int, **options: object) -> Process:
    return rig.worker(None, {VARIABLE: f"{point}:{nth}"}, **options)


def _until_stopped(rig: Rig, worker: Process) -> None:
    """Give it jobs until it has come to its point."""

    def stopped() -> bool:
        if rig.count("SELECT count(*) FROM pljobs.jobs WHERE status = 'todo'") < 6:
            rig.load(6, endless=False)
        # Those that are running may be another's endless ones, but no more than it can take.
        return _state(worker) == "T"

    wait_until(stopped, 60, "it comes to its point")


def _woken(rig: Rig, worker: Command) -> bool:
    rig.wake()
    return not rig.sleeping(worker)


def _state(worker: Command) -> str:
    return Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0]


def _id(worker: Command) -> int:
    found = re.search(r"Worker (\d+) \(", worker.log.read_text(errors="replace"))
    assert found is not None, "it has not begun"
    return int(found[1])


def _registered_again(worker: Command) -> int:
    return worker.log.read_text(errors="replace").count("registering again")


def _knows(worker: Command, job_id: int) -> bool:
    return re.search(NO_LONGER.format(job_id), worker.log.read_text(errors="replace")) is not None


def _has_started(rig: Rig, job_id: int) -> bool:
    return rig.count("SELECT count(*) FROM public.side WHERE job_id = %s AND what = 'start'", job_id) > 0


def _bodies(rig: Rig, runs: list[int]) -> int:
    return rig.count("SELECT count(*) FROM public.side WHERE run_id = ANY (%s)", runs)


def _still_its(rig: Rig, runs: list[int]) -> int:
    return rig.count("SELECT count(*) FROM pljobs.jobs WHERE run_id = ANY (%s) AND status = 'doing'", runs)
