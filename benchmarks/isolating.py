"""What a process of its own costs a sync job, beside a thread."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

from harness import Bench, connect, defer, empty, vacuum
from pljobs import App

isolated_app = App("")


@isolated_app.task(name="noop", isolation="process")
def isolated_noop() -> None:
    """Do nothing, in a process of its own; here, at the top, since that process imports it."""


def bench_isolation(bench: Bench) -> None:
    """No-op sync jobs, one after the other and two at once (the worker's start included)."""
    url = bench.database("ours")
    in_threads = App(url)
    isolated_app.connector = in_threads.connector

    @in_threads.task(name="noop")
    def noop() -> None:
        return None

    jobs = bench.pick(4, 300)

    def side(app: App, concurrency: int) -> Mapping[str, float]:
        with connect(url) as conn:
            empty(conn)
            defer(conn, jobs)
            vacuum(conn)
        began = time.perf_counter()
        app.run_worker(concurrency=concurrency, wait=False, install_signal_handlers=False)
        return {"": 1000 * (time.perf_counter() - began) / jobs}

    for concurrency in (1, 2):
        sides = {
            "in a process": partial(side, isolated_app, concurrency),
            "in a thread": partial(side, in_threads, concurrency),
        }
        bench.compare(f"a no-op sync job, {concurrency} at once", sides, {"": "ms/job"})
