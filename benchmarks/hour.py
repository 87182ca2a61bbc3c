"""A steady rate for an hour, with a retention of minutes: latency and sizes, at the start and at the end."""

from __future__ import annotations

import statistics
import subprocess
import time

from harness import HERE, Bench, connect, percentile, scalar
from latency import serving
from pljobs.embedded import environment

RATE = 200
SIZE = "SELECT pg_total_relation_size('pljobs.job')"


def bench_hour(bench: Bench) -> None:
    """Defer 200 jobs a second, work them off, look at latency and size all the while."""
    url = bench.database("ours")
    seconds, keep, pause = bench.pick(2, 60, 3600), bench.pick(1, 15, 300), bench.pick(1, 2, 15)
    load = [
        str(bench.server.bin_dir / "pgbench"), "-n", "-M", "prepared", "-T", str(seconds), "-R", str(RATE),
        "-c", "4", "-D", "notify=true", "-f", str(HERE / "sql" / "defer_noop.sql"), url,
    ]  # fmt: skip
    told: list[tuple[float, float, float, float]] = []
    with serving(url, retention=keep) as worker, connect(url) as conn:
        began = time.monotonic()
        with subprocess.Popen(load, env=environment(), stdout=subprocess.DEVNULL) as pgbench:
            while pgbench.poll() is None:
                took = [worker.picked_up() for _ in range(20)]
                at = time.monotonic() - began
                told.append((at, percentile(took, 0.5), percentile(took, 0.99), scalar(conn, SIZE)))
                time.sleep(pause)
    bench.series["samples"] = told
    # The first third fills the retention.
    rest = told[len(told) // 3 :] or told
    half = max(1, len(rest) // 2)
    for column, what, unit in (
        (1, "pick-up, p50", "ms"),
        (2, "pick-up, p99", "ms"),
        (3, "table's size", "bytes"),
    ):
        sides = {
            "second half": [statistics.median(row[column] for row in rest[-half:])],
            "first half": [statistics.median(row[column] for row in rest[:half])],
        }
        bench.add(
            f"{RATE} jobs/s for {seconds} s: {what}", unit, sides, f"after the retention of {keep} s filled"
        )
