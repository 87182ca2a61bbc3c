"""Kill workers, connections and the server at random, and look for jobs that were lost or doubled.

`make chaos` runs the long ones; PLJOBS_CHAOS_SEED repeats one, PLJOBS_CHAOS_SECONDS makes it last.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import oracle
from pljobs.embedded import THROW_AWAY, Server
from waiting import wait_until
from workers import HASTY, Process

INSTALL = Path(__file__).parent.parent.parent / "sql" / "install.sql"
WORKERS = 3
RUNNING = "SELECT id FROM pljobs.jobs WHERE status = 'doing' ORDER BY random() LIMIT %s"


class Chaos:
    """Do harm at random, and count what was done."""

    def __init__(self, server: Server, url: str, folder: Path, seed: int, *, restarts: bool) -> None:
        self.server, self.url, self.folder = server, url, folder
        self.random = random.Random(seed)
        self.done: dict[str, int] = defaultdict(int)
        self.answers: dict[int, list[str]] = defaultdict(list)
        self.jobs: list[int] = []
        self.workers: list[Process] = []
        self.stopped: dict[Process, float] = {}
        self.started = 0
        self.deeds = (
            [self.defer] * 8 + [self.cancel] * 8 + [self.kill, self.pause, self.terminate, self.terminate]
        )
        if restarts:
            self.deeds.append(self.restart)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True)

    def start_worker(self) -> None:
        self.started += 1
        options = {**HASTY, "concurrency": 4, "name": f"worker{self.started}"}
        self.workers.append(Process(self.url, self.folder / f"worker{self.started}.log", **options))

    def defer(self) -> None:
        task, args = self.random.choice(
            [
                ("quick", "{}"),
                ("work", '{"seconds": 0.05}'),
                ("work", '{"seconds": 0.5}'),
                ("work", '{"fail": true}'),
                ("sync_work", '{"seconds": 0.3}'),
                ("forever", "{}"),
            ]
        )
        lock = self.random.choice([None, None, "a", "b"])
        with self.connect() as conn:
            for _ in range(self.random.randint(1, 6)):
                found = conn.execute(
                    "SELECT pljobs.defer_job(%s, %s, lock => %s)", [task, args, lock]
                ).fetchone()
                assert found is not None
                self.jobs.append(found[0])

    def cancel(self) -> None:
        recent = self.jobs[-30:]
        chosen = self.random.sample(recent, min(2, len(recent)))
        with self.connect() as conn:
            chosen += [job_id for (job_id,) in conn.execute(RUNNING, [2])]
            for job_id in chosen:
                self._cancel(conn, job_id, self.random.random() < 0.8, self.random.random() < 0.1)

    def _cancel(self, conn: psycopg.Connection[Any], job_id: int, abort: bool, delete: bool = False) -> None:
        found = conn.execute(
            "SELECT pljobs.cancel_job(%s, abort => %s, delete_job => %s)", [job_id, abort, delete]
        ).fetchone()
        assert found is not None
        self.answers[job_id].append(found[0])
        self.done[found[0]] += 1

    def kill(self) -> None:
        worker = self.random.choice(self.workers)
        worker.kill()
        self.workers.remove(worker)
        self.stopped.pop(worker, None)
        self.start_worker()

    def pause(self) -> None:
        worker = self.random.choice(self.workers)
        if worker not in self.stopped:
            worker.signal(signal.SIGSTOP)
            self.stopped[worker] = time.monotonic() + self.random.uniform(0.2, 2.0)

    def terminate(self) -> None:
        with self.connect() as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT 2"
            )

    def restart(self) -> None:
        self.server.restart(self.random.choice(["fast", "immediate"]))

    def wake(self, *, everybody: bool = False) -> None:
        for worker, until in list(self.stopped.items()):
            if everybody or time.monotonic() > until:
                worker.signal(signal.SIGCONT)
                del self.stopped[worker]

    def run(self, seconds: float) -> None:
        """Do one deed after the other; each once the last has had some effect, or a tenth of a second."""
        for _ in range(WORKERS):
            self.start_worker()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            deed = self.random.choice(self.deeds)
            deed()
            self.done[deed.__name__] += 1
            self.wake()
            before, soon = self._events(), time.monotonic() + 0.1
            wait_until(lambda: self._events() >= before + 5 or time.monotonic() > soon)  # noqa: B023
        self.wake(everybody=True)
        for worker in self.workers:
            assert worker.popen.poll() is None, worker.log.read_text(errors="replace")
        with self.connect() as conn:
            for (job_id,) in conn.execute("SELECT id FROM pljobs.jobs WHERE task = 'forever'").fetchall():
                self._cancel(conn, job_id, abort=True)
        wait_until(self._all_ended, 60, "all jobs end")

    def stop(self) -> None:
        self.wake(everybody=True)
        for worker in self.workers:
            worker.kill()

    def _events(self) -> int:
        return self._count("SELECT count(*) FROM public.event")

    def _all_ended(self) -> bool:
        return self._count("SELECT count(*) FROM pljobs.jobs WHERE status IN ('todo', 'doing')") == 0

    def _count(self, query: str) -> int:
        with self.connect() as conn:
            found = conn.execute(query.encode()).fetchone()
            assert found is not None
            return int(found[0])


@contextlib.contextmanager
def chaos(binaries: Path, folder: Path, seed: int, *, restarts: bool) -> Iterator[Chaos]:
    """Start a server of our own, with the witnesses, and say how to repeat what was done."""
    with Server.start(binaries, settings=THROW_AWAY) as server:
        url = server.create_database("chaos")
        server.run_sql(f"BEGIN;\n\\i '{INSTALL}'\nCOMMIT;", "chaos")
        made = Chaos(server, url, folder, seed, restarts=restarts)
        with made.connect() as conn:
            oracle.install(conn)
        try:
            yield made
        except BaseException as error:
            error.add_note(f"PLJOBS_CHAOS_SEED={seed}; done: {dict(made.done)}")
            raise
        finally:
            made.stop()


def _run(binaries: Path, folder: Path, seed: int, seconds: float, *, restarts: bool) -> None:
    with chaos(binaries, folder, seed, restarts=restarts) as made:
        made.run(seconds)
        with made.connect() as conn:
            ended = oracle.check(conn, made.answers)
        print(f"seed {seed}: {sum(ended.values())} jobs {ended}; done: {dict(made.done)}")
        assert ended["succeeded"] > 0
        assert ended["aborted"] > 0
        assert ended["cancelled"] > 0


def test_a_short_chaos_loses_and_doubles_nothing(server: Server, tmp_path: Path) -> None:
    _run(server.bin_dir, tmp_path, 20, 10, restarts=False)


@pytest.mark.chaos
@pytest.mark.timeout(0)
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("restarts", [False, True], ids=["server stays", "server restarts"])
def test_a_long_chaos_loses_and_doubles_nothing(
    server: Server, tmp_path: Path, number: int, restarts: bool
) -> None:
    seed = int(os.environ.get("PLJOBS_CHAOS_SEED", random.randrange(10**6)))
    seconds = float(os.environ.get("PLJOBS_CHAOS_SECONDS", "45"))
    _run(server.bin_dir, tmp_path, seed, seconds, restarts=restarts)
