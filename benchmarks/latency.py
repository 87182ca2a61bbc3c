"""How soon a job is picked up, and how soon an abort arrives: an idle worker, and one that is fully busy."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg

import working
from harness import Bench, Conn, defer, interleave, percentile, scalar, vacuum
from pljobs import App

FLOOR = "floor"
HEARD = "floor: a row and a NOTIFY, heard by a bare psycopg process, which claims the row"
LOAD = 20_000
LONGEST = 10.0  # seconds for one side of a round


@dataclass(slots=True)
class Serving:
    """A worker that waits in a process of its own, and who asks it."""

    app: App
    conn: Conn
    worker: subprocess.Popen[str]
    floor: subprocess.Popen[str]

    def picked_up(self, priority: int = 0) -> float:
        """Milliseconds from the call of `defer` until the body runs."""
        deferrer = self.app.configure_task("stamp", priority=priority)
        began = time.monotonic()
        deferrer.defer()
        return 1000 * (self._moment(self.worker) - began)

    def aborted(self, priority: int = 0) -> float:
        """Milliseconds from the call of `cancel_job` until CancelledError is in the task."""
        job_id = self.app.configure_task("sleeper", priority=priority).defer()
        self._moment(self.worker)
        time.sleep(0.01)
        began = time.monotonic()
        self.conn.execute("SELECT pljobs.cancel_job(%s, abort => true)", [job_id])
        return 1000 * (self._moment(self.worker) - began)

    def heard(self) -> float:
        """Milliseconds from an INSERT with a NOTIFY until somebody has claimed the row."""
        began = time.monotonic()
        self.conn.execute(
            "WITH added AS (INSERT INTO bench_bare (taken) VALUES (false) RETURNING id)"
            " SELECT pg_notify('bench', '') FROM added"
        )
        return 1000 * (self._moment(self.floor) - began)

    def loaded(self, ask: Callable[[], float]) -> Callable[[], float]:
        """Ask while no-op jobs wait, so that the worker is never idle."""

        def asked() -> float:
            waiting = "SELECT count(*) FROM (SELECT FROM pljobs.job WHERE status = 'todo' LIMIT %s) AS w"
            if scalar(self.conn, waiting, LOAD // 2) < LOAD // 2:
                defer(self.conn, LOAD)
                self.conn.execute("SELECT pg_notify('pljobs_todo', '')")
            return ask()

        return asked

    @staticmethod
    def _moment(process: subprocess.Popen[str]) -> float:
        return float(working.hear(process).split()[1])


def bench_latency(bench: Bench) -> None:
    """Measure one after the other, beside a bare listener."""
    url = bench.database("ours")
    times = bench.pick(3, 200, 500)
    with serving(url) as idle:
        compare(bench, "pick-up, idle worker", idle.picked_up, idle.heard, times)
        compare(bench, "abort, idle worker", idle.aborted, idle.heard, times)
        idle.conn.execute("DELETE FROM pljobs.job")
        vacuum(idle.conn)
        busy = idle.loaded(lambda: idle.picked_up(priority=1))
        compare(bench, "pick-up, busy worker", busy, idle.heard, times // 2 + 1)
        busy = idle.loaded(lambda: idle.aborted(priority=1))
        compare(bench, "abort, busy worker", busy, idle.heard, times // 2 + 1)


def compare(
    bench: Bench, what: str, ours: Callable[[], float], bare: Callable[[], float], times: int
) -> None:
    """Measure so many times a round; keep p50 and p99, and all of them for the chart."""
    seen: dict[str, list[float]] = {"pljobs": [], FLOOR: []}

    def side(name: str, ask: Callable[[], float]) -> Callable[[], dict[str, float]]:
        def ask_often() -> dict[str, float]:
            took: list[float] = []
            ends = time.monotonic() + LONGEST
            while len(took) < times and time.monotonic() < ends:
                time.sleep(0.002 + 0.0007 * (len(took) % 13))  # in step with nothing
                took.append(ask())
            seen[name] += took
            return {"p50": percentile(took, 0.5), "p99": percentile(took, 0.99)}

        return ask_often

    measured = interleave(bench.rounds, {"pljobs": side("pljobs", ours), FLOOR: side(FLOOR, bare)})
    for share in ("p50", "p99"):
        bench.add(f"{what}, {share}", "ms", measured[share], HEARD)
    bench.series[what] = {name: [round(ms, 4) for ms in took] for name, took in seen.items()}


@contextlib.contextmanager
def serving(url: str, retention: int = 0) -> Iterator[Serving]:
    """Run a worker, 32 at once, which keeps jobs for so many seconds (0: for ever), and a bare listener."""
    app = App(url)
    with (
        app.open(),
        psycopg.connect(url, autocommit=True) as conn,
        working.started([*working.OURS, url, "serve", "32", str(retention)]) as worker,
        working.started([*working.OURS, url, "bare", "1"]) as floor,
    ):
        yield Serving(app, conn, worker, floor)
