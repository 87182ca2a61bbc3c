"""Steady traffic while somebody holds a snapshot, so that no dead row can be vacuumed away."""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Callable, Iterator

import psycopg

from harness import Bench, connect, empty, pgbench

BATCH = 10


@contextlib.contextmanager
def nobody(url: str) -> Iterator[None]:  # noqa: ARG001
    """Hold nothing."""
    yield


@contextlib.contextmanager
def snapshot(url: str) -> Iterator[None]:
    """Hold a snapshot, as a long report or pg_dump does."""
    with psycopg.connect(url) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("SELECT count(*) FROM pljobs.job")
        yield


@contextlib.contextmanager
def writer(url: str) -> Iterator[None]:
    """Hold a transaction that has written something, and forgot to commit."""
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE bench_forgotten ()")
        yield
        conn.rollback()


@contextlib.contextmanager
def readers(url: str) -> Iterator[None]:
    """Read all jobs, over and over."""
    stop = threading.Event()

    def read() -> None:
        with connect(url) as conn:
            while not stop.is_set():
                conn.execute("SELECT count(*), max(finished_at) FROM pljobs.jobs")

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


HOLDERS: dict[str, Callable[[str], contextlib.AbstractContextManager[None]]] = {
    "nobody": nobody,
    "a snapshot": snapshot,
    "an idle writing transaction": writer,
    "readers that scan": readers,
}


def bench_snapshot(bench: Bench) -> None:
    """Defer, fetch and finish, by 10 a call, one client: the rate at the end against that at the start."""
    url = bench.database("ours")
    seconds = bench.pick(1, 30, 180)
    edge = max(1, min(10, seconds // 4))
    for script, side in (("steady.sql", "pljobs"), ("bare_steady.sql", "floor")):
        for who, hold in HOLDERS.items():
            if side == "floor" and who not in {"nobody", "a snapshot"}:
                continue
            first, last = [], []
            for _ in range(bench.pick(1, 1, 3)):
                with connect(url) as conn:
                    empty(conn)
                    conn.execute("VACUUM ANALYZE pljobs.job, bench_bare")
                with hold(url):
                    run = pgbench(bench.server, url, script, seconds=seconds, variables={"batch": BATCH})
                rates = [BATCH * tps for tps in run.each_second] or [BATCH * run.tps]
                first.append(statistics.mean(rates[:edge]))
                last.append(statistics.mean(rates[-edge:]))
                bench.series[f"{side}, {who}"] = [round(rate) for rate in rates]
            sides = {"at the end": last, "at the start": first}
            bench.add(f"{side} for {seconds} s, held by {who}", "jobs/s", sides, f"mean of {edge} s each")
