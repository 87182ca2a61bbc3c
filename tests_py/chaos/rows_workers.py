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


@row("W1", "worker SIGKILL at random", invariants="I1-I5, I7-I11, I14", push=1, long=40)
def killed_at_random(rig: Rig) -> None:
    spared = rig.worker(queues=["of nobody"])  # for the rescue, when all others have hardly started
    for _ in range(WORKERS):
        rig.worker()
    rig.await_workers()
    for _ in range(20 if rig.long else 3):
        rig.load(rig.random.randint(3, 10))
        if rig.random.random() < 0.3:
            rig.cancel_some()
        rig.await_events(rig.random.randint(1, 12), rig.random.uniform(0.0, 0.5))
        rig.kill(rig.random.choice([worker for worker in rig.workers if worker is not spared]))
        rig.worker()
    rig.settle()
    rig.check()


@row("W2", "worker SIGKILL at each point of a run", invariants="I1-I5, I8-I11, I14", push=1, long=40)
def killed_at_each_point(rig: Rig) -> None:
    rig.worker(queues=["of nobody"])  # for the rescue
    victims = []
    for point in POINTS:
        queue = rig.next_name()
        rig.load(8, endless=False, queue=queue)
        victims.append((_stops_at(rig, point, rig.random.randint(1, 3), queues=[queue]), queue))
    for point, (victim, queue) in zip(POINTS, victims, strict=True):
        _until_stopped(rig, victim, queue)
        rig.kill(victim)
        rig.notes[f"killed: {point}"] += 1
    rig.worker()
    rig.settle()
    rig.check()


@row("W3", "worker stalled for 1.8 leases, at random and at each point", invariants="I1-I5, I8-I11, I14",
     push=1, long=40)  # fmt: skip
def stalled(rig: Rig) -> None:
    # Either way it must see that its runs are not its any more; it may only leave if it was told not to let a
    # job run beside another worker's.
    may_leave = rig.random.random() < 0.5
    if may_leave:
        rig.let_leave()
    rig.worker()
    points = [*POINTS, None] if rig.long else ["claimed", rig.random.choice(POINTS[1:]), None]
    victims = [_Victim(rig, point, may_leave) for point in points]
    for victim in victims:
        victim.stalls()
    for victim in victims:
        victim.loses_its_runs()
    wait_until(lambda: all(victim.wakes() for victim in victims), 30, "they are woken")
    for victim in victims:
        victim.knows()
    rig.check_workers()
    for victim in victims:
        victim.goes_on()
    rig.settle()
    rig.check()


class _Victim:
    """A worker with a queue of its own, that is stalled at a point of a run, or anywhere."""

    def __init__(self, rig: Rig, point: str | None, may_leave: bool) -> None:
        self.rig, self.point = rig, point
        self.queue = rig.next_name()
        self.endless = rig.defer("forever", queue=self.queue)
        rig.load(8, endless=False, queue=self.queue)
        options: dict[str, Any] = {"queues": [self.queue], "stop_without_database": may_leave}
        self.nth = rig.random.randint(1, 2)
        self.worker = rig.worker(**options) if point is None else _stops_at(rig, point, self.nth, **options)
        self.held: list[int] = []
        self.runs: list[int] = []
        self.said = 0

    def stalls(self) -> None:
        if self.point is None:
            self.worker.until_said("started")
            self.rig.await_events(self.rig.random.randint(1, 5), 0.5)
            self.rig.pause(self.worker, STALL)
        else:
            _until_stopped(self.rig, self.worker, self.queue)
            self.rig.sleeps(self.worker, STALL)
        found = self.rig.rows(
            "SELECT id, run_id FROM pljobs.jobs WHERE worker_id = %s AND status = 'doing'", _id(self.worker)
        )
        self.said = self.worker.log.stat().st_size
        # What the server is just writing down is not told to be lost.
        self.held = [] if self.point == "finish sent" else [job_id for job_id, _ in found]
        self.runs = [run_id for _, run_id in found]

    def loses_its_runs(self) -> None:
        query = "SELECT count(*) FROM pljobs.jobs WHERE run_id = ANY (%s) AND status = 'doing'"
        wait_until(lambda: self.rig.count(query, self.runs) == 0, 30, "its jobs are rescued")
        # But for those whose end was under way already.
        ended = self.rig.rows("SELECT id FROM pljobs.job WHERE last_run_id = ANY (%s)", self.runs)
        self.held = [job_id for job_id in self.held if (job_id,) not in ended]
        self.rig.notes[f"stalled: {self.point or 'at random'}"] += 1

    def wakes(self) -> bool:
        self.rig.wake()
        return not self.rig.sleeping(self.worker)

    def knows(self) -> None:
        wait_until(
            lambda: not self.worker.running or all(self._knows_of(job_id) for job_id in self.held),
            30,
            f"{self.queue} sees that its runs are not its any more: {self.held}",
        )
        if self.point == "claimed":
            late = _claimed(self.worker, self.nth)
            if self.rig.count("SELECT count(*) FROM public.side WHERE run_id = ANY (%s)", late):
                raise Violation("I3", f"runs began that were no longer its: {late}")

    def _knows_of(self, job_id: int) -> bool:
        # Or an end of the run before was answered: one whose run began anew while it was stalled, by a fetch
        # that was under way.
        since = self.worker.log.read_bytes()[self.said :].decode(errors="replace")
        return _knows(self.worker, job_id) or f"[{job_id}] is now " in since

    def goes_on(self) -> None:
        if not self.worker.running:  # nobody else looks into its queue
            self.rig.worker(queues=[self.queue])
        own = self.rig.defer("quick", queue=self.queue)
        query = "SELECT count(*) FROM pljobs.jobs WHERE id = %s AND status = 'succeeded'"
        wait_until(lambda: self.rig.count(query, own), 30, "it goes on")


@row("W4", "worker's registration vanishes while it works", invariants="I1-I5, I8-I11, I14", push=1, long=60)
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


def _until_stopped(rig: Rig, worker: Process, queue: str) -> None:
    """Give it jobs until it has come to its point."""

    def stopped() -> bool:
        if rig.count("SELECT count(*) FROM pljobs.jobs WHERE status = 'todo' AND queue = %s", queue) < 4:
            rig.load(6, endless=False, queue=queue)
        return _state(worker) == "T"

    wait_until(stopped, 60, "it comes to its point")


def _claimed(worker: Command, nth: int) -> list[int]:
    """The runs of its nth fetch."""
    said = re.findall(r"^claimed (.*)$", worker.log.read_text(errors="replace"), re.MULTILINE)
    return [int(run_id) for run_id in said[nth - 1].split()]


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
