"""One repetition of one row of the fault matrix: workers, jobs, cancels, and the rules at the end."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psycopg

import oracle
from chaos import logs
from oracle import Violation
from pljobs.embedded import Server
from waiting import wait_until
from workers import DEADLINE, HASTY, Command, Process

T = TypeVar("T")

OPTIONS: dict[str, Any] = {**HASTY, "concurrency": 4}
# What the jobs of a load do, and how many of each among ten.
MIX: list[tuple[str, str, int]] = [
    ("quick", "{}", 3),
    ("work", '{"seconds": 0.05}', 2),
    ("work", '{"seconds": 0.5}', 1),
    ("work", '{"fail": true}', 1),
    ("sync_work", '{"seconds": 0.3}', 2),
    ("forever", "{}", 1),
]
# What a body raises whose own connection is cut, also while it tells of its cancellation.
CUT = r"^psycopg\.(OperationalError|errors\.\w+)|^asyncio\.exceptions\.CancelledError$"
ENDLESS = ["forever", "stubborn", "stubborn_async", "until_told"]
# A job is seen within the polling interval and a second, and what a loaded machine takes.
PICKED_UP_WITHIN = 10.0
ALL_ENDED_WITHIN = 90.0

_RUNNING = "SELECT id FROM pljobs.jobs WHERE status = 'doing' ORDER BY random() LIMIT %s"
_LEFT = "SELECT id, task, status FROM pljobs.jobs WHERE status IN ('todo', 'doing') ORDER BY id"


class Rig:
    """A database with the schema and the oracle's witnesses, and what a row needs to do harm around it.

    `seed` decides what `random` does; `long`: in `make chaos`, not in `make test`. `url`: the database, as a
    superuser; `server`: for the row alone if it asked for its own.
    """

    def __init__(self, server: Server, dbname: str, folder: Path, seed: int, *, long: bool) -> None:
        self.server, self.dbname, self.folder, self.seed, self.long = server, dbname, folder, seed, long
        self.url = server.url(dbname)
        self.random = random.Random(seed)
        self.harms: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.answers: dict[int, list[str]] = defaultdict(list)
        self.workers: list[Command] = []
        self.stack = contextlib.ExitStack()
        self.ended: dict[str, int] = {}
        self._conn: psycopg.Connection[Any] | None = None
        self._healing: list[Callable[[], object]] = []
        self._started: list[Command] = []
        self._asleep: dict[Command, float] = {}
        self._may_leave = False
        self._tracebacks = {r"^RuntimeError: as told$"}
        self._states = set(logs.EXPECTED_STATES)
        self._log_start = server.log.stat().st_size

    def move(self, server: Server, url: str) -> None:
        """Have another server from now on, and reach it so; its log is read from its beginning."""
        self.server, self.url, self._log_start = server, url, 0

    # What is allowed, and what is to be undone

    def expect_traceback(self, pattern: str) -> None:
        """Allow tracebacks in the workers' logs that end with a line like this."""
        self._tracebacks.add(pattern)

    def allow(self, *states: str) -> None:
        """Allow these SQLSTATEs in the server's log; never a deadlock."""
        assert logs.DEADLOCK not in states
        self._states.update(states)

    def let_leave(self) -> None:
        """Allow workers to end because they could not stop a job before their lease was over.

        As a supervisor would, `check_workers` starts others for them.
        """
        self._may_leave = True
        self.expect_traceback(r"WorkerTainted: ")

    def heal_with(self, heal: Callable[[], object]) -> None:
        """Have `settle` call this, to undo the harm."""
        self._healing.append(heal)

    # Looking

    def connect(self) -> psycopg.Connection[Any]:
        """Connect; while the server comes back, wait for it."""

        def tried() -> psycopg.Connection[Any] | None:
            try:
                return psycopg.connect(self.url, autocommit=True, connect_timeout=10)
            except psycopg.OperationalError:
                return None

        return wait_until(tried, 60, "the server answers")

    def rows(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query; where the server went away over it, do it again."""
        while True:
            if self._conn is None or self._conn.closed:
                self._conn = self.connect()
            try:
                return self._conn.execute(query.encode(), params or None).fetchall()
            except psycopg.OperationalError:
                if not self._conn.closed:
                    raise

    def count(self, query: str, *params: object) -> int:
        """Return the one number that a query answers."""
        return int(self.rows(query, *params)[0][0])

    def events(self) -> int:
        """How many transitions there have been."""
        return self.count("SELECT count(*) FROM public.event")

    def await_events(self, more: int, seconds: float = DEADLINE) -> None:
        """Wait for so many transitions, or so long: until the harm just done has met something."""
        before, end = self.events(), time.monotonic() + seconds
        wait_until(lambda: self.events() >= before + more or time.monotonic() > end, seconds + 60)

    # Jobs

    def defer(self, task: str, args: str = "{}", *, queue: str = "default", lock: str | None = None) -> int:
        """Defer one job."""
        return self.count("SELECT pljobs.defer_job(%s, %s, queue => %s, lock => %s)", task, args, queue, lock)

    def load(self, jobs: int, *, endless: bool = True, queue: str = "default") -> list[int]:
        """Defer so many jobs, a mix, some with locks; return their ids.

        In a queue of its own without locks: whoever holds the lane may have nobody left to run it.
        """
        locks = [None, None, None, "a", "b"] if queue == "default" else [None]
        tasks = [
            (task, args) for task, args, times in MIX for _ in range(times) if endless or task not in ENDLESS
        ]
        with self.connect() as conn:
            return [
                conn.execute(
                    "SELECT pljobs.defer_job(%s, %s, lock => %s, queue => %s)",
                    [*self.random.choice(tasks), self.random.choice(locks), queue],
                ).fetchall()[0][0]
                for _ in range(jobs)
            ]

    def cancel(self, job_id: int, *, abort: bool = True, delete: bool = False) -> str:
        """Cancel a job, and keep the answer."""
        found = self.rows(
            "SELECT c.outcome FROM pljobs.cancel_job_v1(%s, abort => %s, delete_job => %s) AS c",
            job_id,
            abort,
            delete,
        )
        answer = str(found[0][0])
        self.answers[job_id].append(answer)
        self.notes[answer] += 1
        return answer

    def cancel_some(self, recent: int = 2, running: int = 2) -> None:
        """Cancel some of the last 30 jobs and some that run, mostly with abort, some with deletion."""
        last = [job_id for (job_id,) in self.rows("SELECT id FROM pljobs.jobs ORDER BY id DESC LIMIT 30")]
        chosen = self.random.sample(last, min(recent, len(last)))
        chosen += [job_id for (job_id,) in self.rows(_RUNNING, running)]
        for job_id in chosen:
            self.cancel(job_id, abort=self.random.random() < 0.8, delete=self.random.random() < 0.1)

    # Workers

    def worker(
        self, url: str | None = None, variables: Mapping[str, str] | None = None, **options: object
    ) -> Process:
        """Start a worker process; `url`: its way to the database, where that is not the direct one."""
        name = self.next_name()
        # What a body tells goes the direct way, whatever becomes of its worker's.
        more = {"PLJOBS_SIDE_URL": self.url, **(variables or {})}
        started = Process(
            url or self.url, self.folder / f"{name}.log", more, **{**OPTIONS, "name": name, **options}
        )
        self.watch(started)
        return started

    def watch(self, worker: Command) -> None:
        """Hold a worker that was started otherwise to the same rules."""
        self.workers.append(worker)
        self._started.append(worker)

    def next_name(self) -> str:
        """The name of the next worker, and of its log."""
        return f"worker{len(self._started) + 1}"

    def await_workers(self) -> None:
        """Wait until all of them work."""
        for worker in self.workers:
            worker.until_said("started")

    def kill(self, worker: Command) -> None:
        """SIGKILL a worker; it is not expected to live any more."""
        worker.kill()
        self.gone(worker)
        self.harms["SIGKILL"] += 1

    def gone(self, worker: Command) -> None:
        """Take it that this worker is dead, by what the row has done."""
        self.workers.remove(worker)
        self._asleep.pop(worker, None)

    def pause(self, worker: Command, seconds: float) -> None:
        """SIGSTOP a worker, until `wake` is called after so many seconds."""
        if worker not in self._asleep:
            worker.signal(signal.SIGSTOP)
            self.sleeps(worker, seconds)

    def sleeps(self, worker: Command, seconds: float) -> None:
        """Take it that this worker has stopped itself."""
        self._asleep[worker] = time.monotonic() + seconds
        self.harms["SIGSTOP"] += 1

    def sleeping(self, worker: Command) -> bool:
        """Say whether a worker is paused."""
        return worker in self._asleep

    def wake(self, *, everybody: bool = False) -> None:
        """SIGCONT those whose time has come."""
        for worker, until in list(self._asleep.items()):
            if everybody or time.monotonic() > until:
                worker.signal(signal.SIGCONT)
                del self._asleep[worker]

    # The end

    def heal(self) -> None:
        """Undo the harm."""
        while self._healing:
            self._healing.pop()()
        self.wake(everybody=True)

    def settle(self, deadline: float = ALL_ENDED_WITHIN) -> None:
        """Undo the harm, abort what would never end, and wait until all jobs have ended."""
        self.heal()
        self.check_workers()
        for (job_id,) in self.rows(
            "SELECT id FROM pljobs.jobs WHERE task = ANY (%s) AND status IN ('todo', 'doing')", ENDLESS
        ):
            self.cancel(job_id)
        try:
            wait_until(lambda: not self.rows(_LEFT), deadline)
        except AssertionError:
            self.check_workers()
            raise Violation("I1", f"not ended within {deadline} s: {self.rows(_LEFT)[:20]}") from None

    def check(self, *, without: Collection[str] = (), retries: int = 1) -> None:
        """Hold all that was seen against the rules; raise Violation. Stops the workers."""
        if self.workers and "I10" not in without:
            self._check_pick_up()
        self.stop_workers()
        for worker in self._started:
            logs.check_worker_log(worker.log, self._tracebacks)
        if "I14" not in without:
            self.check_server_log()
        with self.connect() as conn:
            self.ended = oracle.check(conn, self.answers, without=without, retries=retries)

    def check_server_log(self) -> None:
        """Raise Violation if the server has said something of this database that is not allowed."""
        logs.check_server_log(self.server.log, self._log_start, self.dbname, self._states)

    def check_workers(self) -> None:
        """Raise Violation if one has died that nobody killed."""
        for worker in list(self.workers):
            if not worker.running and self._left(worker):
                self.worker()
            elif not worker.running:
                raise Violation("died", f"ended with {worker.popen.returncode}:\n{_tail(worker)}")

    def _left(self, worker: Command) -> bool:
        # Or was cut off when it started.
        is_over = worker.said("leaves at once") or worker.said("exceptions.DatabaseUnavailable: ")
        if not (self._may_leave and is_over):
            return False
        self.gone(worker)
        self.notes["left at once"] += 1
        return True

    def stop_workers(self) -> None:
        """Ask all workers to stop; they must do so, and well."""
        self.check_workers()
        self.await_workers()  # before, a signal meets no handler
        for worker in self.workers:
            worker.signal(signal.SIGTERM)
        for worker in list(self.workers):
            try:
                code = worker.wait()
            except Exception:
                raise Violation("stop", f"does not stop:\n{_tail(worker)}") from None
            if code != 0 and not self._left(worker):
                raise Violation("stop", f"stopped with {code}:\n{_tail(worker)}")
        self.workers.clear()

    def close(self) -> None:
        """End whatever is left, whatever has happened."""
        for worker in self._started:
            with contextlib.suppress(Exception):
                worker.signal(signal.SIGCONT)
            worker.kill()
        self.stack.close()
        if self._conn is not None:
            self._conn.close()

    def _check_pick_up(self) -> None:
        """Check that after all, a new job starts soon, and an abort arrives soon.

        By the server's clock, which knows nothing of how late this process is; or by this one's, for the
        server's may be what was tampered with.
        """
        job_id = self.defer("forever")
        self._soon("start", "SELECT started_at - created_at FROM pljobs.jobs WHERE id = %s", job_id)
        self.cancel(job_id)
        self._soon(
            "abort",
            "SELECT delivered_at - requested_at FROM pljobs.requests"
            " WHERE job_id = %s AND delivered_at IS NOT NULL",
            job_id,
        )
        wait_until(lambda: not self.rows(_LEFT), 30, "a job ends that was asked to abort")

    def _soon(self, what: str, query: str, job_id: int) -> None:
        began = time.monotonic()
        try:
            took = wait_until(
                lambda: [after for (after,) in self.rows(query, job_id) if after is not None],
                2 * PICKED_UP_WITHIN,
            )[0].total_seconds()
            took = min(took, time.monotonic() - began)
        except AssertionError:
            took = float("inf")
        if took > PICKED_UP_WITHIN:
            tales = "\n".join(_tail(worker, 2000) for worker in self.workers)
            raise Violation("I10", f"{what} of job {job_id} after {took:.1f} s\n{tales}")


def _tail(worker: Command, length: int = 6000) -> str:
    return worker.log.read_text(errors="replace")[-length:]
