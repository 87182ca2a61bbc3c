"""Measure pljobs beside a floor: `make bench`, or `python benchmarks/run.py sql worker abort --postgres 15`.

Read ratios, not figures: both sides of each are measured in one run, on one server, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import statistics
import subprocess
import time
from pathlib import Path

import psycopg
from stopping import bench_stopping
from upgrade import bench_upgrade

from pljobs import App
from pljobs.embedded import Server, environment
from pljobs.install import migrate

HERE = Path(__file__).parent
# Durable commits, as in production; autovacuum on, as in production.
SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB", "max_connections": "50"}
BARE = (
    "CREATE TABLE bench_bare (id bigint PRIMARY KEY, taken boolean NOT NULL DEFAULT false)"
    " WITH (fillfactor = 90)"
)
PLAIN_INSERT = "INSERT INTO bench_bare (taken) SELECT false FROM generate_series(1, %s)"
DEFER = (
    'SELECT pljobs.defer_jobs_v1((SELECT jsonb_agg(\'{"task": "noop"}\'::jsonb) FROM generate_series(1, %s)))'
)
BARE_INDEX = "CREATE INDEX ON bench_bare (id) WHERE NOT taken"


def main() -> None:
    """Run the benchmarks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=list(BENCHMARKS))
    parser.add_argument("--postgres", default="18", help="18 (the wheel's) or 15 (Debian's)")
    parser.add_argument("--seconds", type=int, default=5, help="how long each pgbench run takes")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    bin_dir = None if options.postgres == "18" else Path(f"/usr/lib/postgresql/{options.postgres}/bin")
    with Server.start(bin_dir, settings=SETTINGS) as server:
        for what in options.what:
            url = server.create_database(f"bench_{what}")
            migrate(url)
            BENCHMARKS[what](server, url, options.seconds)


def bench_sql(server: Server, url: str, seconds: int) -> None:
    """Fetch and finish by 1, 10, 100 a call, 8 clients, beside the bare claim and delete."""
    print("jobs/s, 8 clients: fetch + finish of pljobs, a bare SKIP LOCKED claim + delete, their ratio")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SELECT pljobs.register_worker_v1('bench', 'bench', 1, lease => '1 day')")
        conn.execute(BARE)
        conn.execute(BARE_INDEX)
        for batch, rows in ((1, 60_000), (10, 300_000), (100, 600_000)):
            defer(conn, rows)
            conn.execute("INSERT INTO bench_bare SELECT g FROM generate_series(1, %s) AS g", [rows])
            conn.execute("VACUUM ANALYZE pljobs.job, bench_bare")
            ours = batch * pgbench(server, url, "fetch_finish.sql", batch, seconds)
            floor = batch * pgbench(server, url, "bare.sql", batch, seconds)
            print(f"{batch:>4} a call: {ours:>9,.0f} {floor:>9,.0f}   {ours / floor:.2f}")
            conn.execute("TRUNCATE pljobs.job, bench_bare")


def bench_defer(server: Server, url: str, seconds: int) -> None:  # noqa: ARG001
    """Defer by 1 and 1,000 a call, one client, beside a plain INSERT of as many narrow rows."""
    print("defers/s, 1 client: pljobs, plain INSERT ... SELECT, their ratio")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(BARE.replace("id bigint", "id bigint GENERATED ALWAYS AS IDENTITY"))
        for batch, calls in ((1, 3000), (1000, 60)):
            began = time.perf_counter()
            for _ in range(calls):
                defer(conn, batch)
            ours = batch * calls / (time.perf_counter() - began)
            began = time.perf_counter()
            for _ in range(calls):
                conn.execute(PLAIN_INSERT, [batch])
            floor = batch * calls / (time.perf_counter() - began)
            print(f"{batch:>4} a call: {ours:>9,.0f} {floor:>9,.0f}   {ours / floor:.2f}")


def bench_worker(server: Server, url: str, seconds: int) -> None:
    """One worker, concurrency 32, no-op async tasks, beside pgbench's bare dequeue by one client."""
    app = App(url)
    jobs = 20_000

    @app.task(name="noop")
    async def noop() -> None:
        return None

    async def work() -> float:
        began = time.perf_counter()
        await app.run_worker_async(concurrency=32, wait=False, install_signal_handlers=False)
        return jobs / (time.perf_counter() - began)

    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(BARE)
        conn.execute(BARE_INDEX)
        rates = []
        for _ in range(3):
            defer(conn, jobs)
            conn.execute("VACUUM ANALYZE pljobs.job")
            rates.append(asyncio.run(work()))
        conn.execute("INSERT INTO bench_bare SELECT g FROM generate_series(1, 60000) AS g")
        conn.execute("VACUUM ANALYZE bench_bare")
        floor = pgbench(server, url, "bare.sql", 1, seconds, clients=1)
    ours = statistics.median(rates)
    print("jobs/s: one worker, concurrency 32, no-op async tasks; a bare dequeue, one client; their ratio")
    runs = ", ".join(f"{rate:,.0f}" for rate in rates)
    print(f"{ours:>16,.0f} {floor:>9,.0f}   {ours / floor:.2f}   (runs: {runs})")


def bench_abort(server: Server, url: str, seconds: int) -> None:  # noqa: ARG001
    """The time from the call of cancel_job to CancelledError in the task, with and without LISTEN."""
    print("ms from SELECT cancel_job(id, abort => true) to CancelledError: p50, p99, most")
    for listen, interval, times in ((True, 5.0, 300), (False, 1.0, 100)):
        took = sorted(1000 * t for t in asyncio.run(abort_times(url, listen, interval, times)))
        p99 = took[min(len(took) - 1, int(len(took) * 0.99))]
        how = "LISTEN" if listen else f"polling every {interval:g} s"
        print(f"{how:>20}: {statistics.median(took):8.1f} {p99:8.1f} {took[-1]:8.1f}   ({times} jobs)")


async def abort_times(url: str, listen: bool, interval: float, times: int) -> list[float]:
    """Abort jobs one after the other, each once it runs; return how long each took, in seconds."""
    app = App(url)
    started: asyncio.Queue[int] = asyncio.Queue()
    stopped: asyncio.Queue[float] = asyncio.Queue()

    @app.task(name="sleeper", pass_context=True)
    async def sleeper(context: object) -> None:
        started.put_nowait(context.job.id)  # type: ignore[attr-defined]
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.put_nowait(time.perf_counter())

    took = []
    async with app.open_async(), await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        worker = asyncio.create_task(
            app.run_worker_async(
                concurrency=4,
                listen_notify=listen,
                abort_job_polling_interval=interval,
                fetch_job_polling_interval=5.0 if listen else 0.05,
                install_signal_handlers=False,
            )
        )
        for number in range(times):
            await sleeper.defer_async()  # type: ignore[call-arg]
            job_id = await started.get()
            # Not in step with the polling.
            await asyncio.sleep(0.01 + 0.0373 * (number % 29) * (not listen))
            began = time.perf_counter()
            await conn.execute("SELECT pljobs.cancel_job(%s, abort => true)", [job_id])
            took.append(await stopped.get() - began)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    return took


isolated_app = App("")


@isolated_app.task(name="noop", isolation="process")
def isolated_noop() -> None:
    """Do nothing, in a process of its own; here, at the top, since that process imports it."""


def bench_isolation(server: Server, url: str, seconds: int) -> None:  # noqa: ARG001
    """No-op sync jobs, one after the other and two at once: in processes of their own, and in threads."""
    in_threads = App(url)

    @in_threads.task(name="noop")
    def noop() -> None:
        return None

    isolated_app.connector = in_threads.connector
    jobs = 300
    print("ms a no-op sync job: in a process of its own, in a thread (its worker's start included)")
    with psycopg.connect(url, autocommit=True) as conn:
        for concurrency in (1, 2):
            took = []
            for app in (isolated_app, in_threads):
                defer(conn, jobs)
                began = time.perf_counter()
                app.run_worker(concurrency=concurrency, wait=False, install_signal_handlers=False)
                took.append(1000 * (time.perf_counter() - began) / jobs)
            print(f"{concurrency:>4} at once: {took[0]:8.1f} {took[1]:8.1f}")


BENCHMARKS = {
    "sql": bench_sql,
    "defer": bench_defer,
    "worker": bench_worker,
    "abort": bench_abort,
    "isolation": bench_isolation,
    "stopping": lambda server, url, seconds: bench_stopping(url),  # noqa: ARG005
    "upgrade": lambda server, url, seconds: bench_upgrade(server, seconds),  # noqa: ARG005
}


def defer(conn: psycopg.Connection, jobs: int) -> None:
    """Defer no-op jobs in one call, by at most 10,000."""
    while jobs > 0:
        now = min(jobs, 10_000)
        conn.execute(DEFER, [now])
        jobs -= now


def pgbench(server: Server, url: str, script: str, batch: int, seconds: int, clients: int = 8) -> float:
    """Run a script and return its transactions a second."""
    how = ["-n", "-M", "prepared", "-c", str(clients), "-j", "2", "-T", str(seconds), "-D", f"batch={batch}"]
    command = [str(server.bin_dir / "pgbench"), *how, "-f", str(HERE / script), url]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    if found is None:
        raise RuntimeError(done.stdout + done.stderr)
    return float(found[1])


if __name__ == "__main__":
    main()
