"""Other job queues on PostgreSQL with a worker in Python, set up as their documentation says is fastest."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness import Bench, connect

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".venv-bench" / "bin" / "python"


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to run another queue: `arguments` are for its worker, `jobs` are for a run of some seconds."""

    label: str
    name: str
    arguments: tuple[int, ...]
    jobs: int
    tables: str

    def command(self, verb: str, url: str, *numbers: int) -> list[str]:
        """The command that does this."""
        return [str(PYTHON), str(HERE / "bench_peer.py"), self.name, verb, url, *map(str, numbers)]

    def install(self, bench: Bench) -> str:
        """Make a database with its schema."""
        url = bench.server.create_database(f"bench_{bench.name}_{self.label}")
        self._run("install", url)
        return url

    def fill(self, url: str) -> None:
        """Leave it with `jobs` no-op jobs, and nothing else."""
        with connect(url) as conn:
            conn.execute(f"TRUNCATE {self.tables}".encode())
            self._run("defer", url, self.jobs)
            conn.execute("VACUUM ANALYZE")

    def worker(self, url: str) -> list[str]:
        """The command of its worker."""
        return self.command("drain", url, *self.arguments)

    def _run(self, verb: str, url: str, *numbers: int) -> None:
        subprocess.run(self.command(verb, url, *numbers), check=True)


PEERS = [
    Peer("procrastinate", "procrastinate", (32,), 2_500, "procrastinate_jobs CASCADE"),
    # The most that it takes for 32 at once: it wants twice the batch size at least.
    Peer("pgqueuer, 32 at once", "pgqueuer", (16, 32), 20_000, "pgqueuer, pgqueuer_log"),
    # Its guide: a larger batch_size for short jobs. No limit, so no bound on what one process claims.
    Peer("pgqueuer, unbounded", "pgqueuer", (100, 0), 30_000, "pgqueuer, pgqueuer_log"),
]
SETTINGS = {
    "procrastinate": "concurrency=32, pool of 4 to 20 connections, LISTEN on, finished jobs kept",
    "pgqueuer, 32 at once": "asyncpg, uvloop, batch_size=16, max_concurrent_tasks=32, `pgq autovac`, durable",
    "pgqueuer, unbounded": "asyncpg, uvloop, batch_size=100, no max_concurrent_tasks, `pgq autovac`, durable",
}


def available(bench: Bench) -> list[Peer]:
    """Those that can be measured here: none without .venv-bench."""
    if not bench.peers:
        return []
    if not PYTHON.exists():
        print("  (no peers: `make .venv-bench/.done` installs them)")
        return []
    return PEERS


def versions() -> dict[str, str]:
    """The versions of the peers that are installed."""
    if not PYTHON.exists():
        return {}
    code = (
        "import importlib.metadata as m\n"
        "for n in ('procrastinate', 'pgqueuer', 'asyncpg', 'psycopg', 'uvloop'): print(n, m.version(n))"
    )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [str(PYTHON), "-c", code], cwd=folder, capture_output=True, text=True, check=True
        )
    return dict(line.split() for line in done.stdout.splitlines())
