"""0.1.0 is upgraded while three of its workers have all they can do: what is locked, for how long, who waits.

Run by `python benchmarks/run.py upgrade`.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psycopg

from harness import Bench
from pljobs.embedded import Server

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests_py"))

from old_release import WHEEL, OldRelease, install_old, login, migrator  # noqa: E402
from upgrade_load import Probe, Producer, Repeated  # noqa: E402
from waiting import wait_until  # noqa: E402

WORKERS = 3
TASKS: list[tuple[str, dict[str, object]]] = [*[("noop", {})] * 90, *[("second_time", {})] * 10]
ENDED = "SELECT count(*) FROM pljobs.job WHERE finished_at IS NOT NULL"
OPEN = "SELECT count(*) FROM pljobs.job WHERE status IN ('todo', 'doing')"
BAD = "SELECT count(*) FROM pljobs.job WHERE status <> 'succeeded' OR crashes > 0"
HELD = """
SELECT l.relation::regclass::text FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
 WHERE l.granted AND l.mode = 'AccessExclusiveLock' AND a.application_name = 'migrator'
   AND l.relation IN ('pljobs.worker'::regclass, 'pljobs.job_event'::regclass, 'pljobs.jobs'::regclass)
"""
EXPECTED = re.compile(r"Job second_time\[\d+\] (failed: RuntimeError: as told|is now todo)")


class Locks(Repeated):
    """Looks again and again which tables the migrator holds exclusively."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "who watches locks")
        self.held: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._since: dict[str, float] = {}

    def once(self, conn: psycopg.Connection) -> None:
        now = time.monotonic()
        names = {name for (name,) in conn.execute(HELD.encode())}
        for name in names - self._since.keys():
            self._since[name] = now
        for name in self._since.keys() - names:
            self.held[name].append((self._since.pop(name), now))
        # It is not to take a core from those that it watches.
        self._stop.wait(0.002)

    def longest(self, name: str) -> float:
        """For how long this was held, at most, in one go; in seconds."""
        return max((end - begin for begin, end in self.held[name]), default=0.0)


def bench_upgrade(bench: Bench) -> None:
    """Print a line for each way to upgrade."""
    server, seconds = bench.server, bench.pick(1, 5)
    print(f"0.1.0 upgraded under {WORKERS} of its workers at full load: jobs/s before, during, after;")
    print("jobs in all, those that did not end well, complaints in logs; ms: the upgrade, pljobs.worker and")
    print("job_event locked exclusively, the longest fetch before, during")
    with tempfile.TemporaryDirectory() as folder:
        release = OldRelease(Path(folder) / "old")
        with zipfile.ZipFile(WHEEL) as wheel:
            wheel.extractall(release.folder)
        for turn, way in enumerate(["psql", "pljobs migrate"] * bench.rounds):
            print(f"{way:>14}: {measure(server, release, f'bench_upgrade_{turn}', way, seconds)}")


def measure(server: Server, release: OldRelease, name: str, way: str, seconds: int) -> str:
    """Upgrade one database; return what was seen."""
    install_old(server, release, name)
    superuser = server.url(name)
    worker_url, producer_url = login(superuser, "upgrade_worker"), login(superuser, "upgrade_producer")
    with contextlib.ExitStack() as stack:
        conn = stack.enter_context(psycopg.connect(superuser, autocommit=True))
        logs = [stack.enter_context(worker(release, worker_url, name, turn)) for turn in range(WORKERS)]
        producer = stack.enter_context(Producer(producer_url, TASKS, waiting=2000, pause=0))
        probe, locks = stack.enter_context(Probe(worker_url)), stack.enter_context(Locks(superuser))
        wait_until(lambda: number(conn, ENDED) > 2000, 60, "the workers are warm")
        times, counts = [time.monotonic()], [number(conn, ENDED)]

        def lap() -> None:
            times.append(time.monotonic())
            counts.append(number(conn, ENDED))

        time.sleep(seconds)
        lap()
        upgrading = migrator(server, login(superuser, "upgrade_owner"), way)
        said, _ = upgrading.communicate(timeout=120)
        lap()
        if upgrading.returncode:
            raise RuntimeError(said)
        time.sleep(seconds)
        lap()
        producer.stop()
        wait_until(lambda: number(conn, OPEN) == 0, 120, "all jobs end")
        for thread in (probe, locks):
            thread.stop()
        complaints = [
            line
            for log in logs
            for line in log.read_text().splitlines()
            if re.search(r" (WARNING|ERROR|CRITICAL) ", line) and not EXPECTED.search(line)
        ]
        rates = [
            f"{(counts[lap + 1] - counts[lap]) / (times[lap + 1] - times[lap]):,.0f}" for lap in range(3)
        ]
        longest = probe.longest(until=times[1]), probe.longest(times[1], times[2])
        held = locks.longest("pljobs.worker"), locks.longest("pljobs.job_event")
        figures = [times[2] - times[1], *held, *longest]
        return (
            f"{', '.join(rates)}; {producer.deferred}, {number(conn, BAD)}, {len(complaints)}; "
            + ", ".join(f"{1000 * took:.0f}" for took in figures)
        )


def number(conn: psycopg.Connection, query: str) -> int:
    """Return the one number that this answers."""
    row = conn.execute(query.encode()).fetchone()
    if row is None:
        raise RuntimeError(query)
    return int(row[0])


@contextlib.contextmanager
def worker(release: OldRelease, url: str, name: str, turn: int) -> Iterator[Path]:
    """Run a worker of 0.1.0 in a process; yield the path of its log."""
    variables = {"PLJOBS_URL": url, "PYTHONPATH": f"{release.folder}{os.pathsep}{HERE}"}
    log = release.folder.parent / f"{name}-{turn}.log"
    command = [sys.executable, "-m", "pljobs", "worker", "--app", "upgrade_tasks:app", "-c", "16"]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*command, "--log-level", "warning"],
            env={**os.environ, **variables},
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            yield log
        finally:
            process.terminate()
            process.wait(timeout=30)
