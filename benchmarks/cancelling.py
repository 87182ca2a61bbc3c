"""Cancelling many waiting jobs by a filter."""

from __future__ import annotations

import time
from collections.abc import Mapping

from harness import Bench, connect, defer, empty, vacuum
from pljobs import App


def bench_cancel(bench: Bench) -> None:
    """Cancel 100,000 by their queue, from Python (batches of 1,000, each committed), beside a bare UPDATE."""
    url = bench.database("ours")
    jobs = bench.pick(500, 100_000)
    app = App(url)
    with connect(url) as conn, app.open():

        def ours() -> Mapping[str, float]:
            empty(conn)
            defer(conn, jobs, '{"queue": "gone"}')
            vacuum(conn)
            began = time.perf_counter()
            answers = app.job_manager.cancel_jobs(queue="gone", dry_run=False)
            took = time.perf_counter() - began
            if len(answers) != jobs:
                raise RuntimeError(f"{len(answers)} of {jobs} were cancelled")
            return {"": took}

        def floor() -> Mapping[str, float]:
            empty(conn)
            conn.execute("INSERT INTO bench_bare (taken) SELECT false FROM generate_series(1, %s)", [jobs])
            vacuum(conn)
            began = time.perf_counter()
            for first in range(0, jobs, 1000):
                conn.execute(
                    "UPDATE bench_bare SET taken = true WHERE id = ANY (ARRAY(SELECT id FROM bench_bare"
                    " WHERE NOT taken ORDER BY id LIMIT 1000 FOR UPDATE)) AND %s >= 0",
                    [first],
                )
            return {"": time.perf_counter() - began}

        sides = {"pljobs": ours, "floor": floor}
        bench.compare(
            f"cancel {jobs:,} by filter", sides, {"": "s"}, "floor: UPDATE of 1,000 narrow rows a call"
        )
