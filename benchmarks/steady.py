"""A steady rate for a long time: do latency and sizes stay as they are? `python benchmarks/steady.py --help`.

One producer offers so many jobs a second, each in a transaction of its own (every 10th under an idempotency
key, every 50th cancelled again); one worker runs them, and prunes what is older than a few minutes. Each ten
seconds a sample: how long jobs had waited when they started, what is stored, what has died and was pruned.
The end compares the last third of the time with the second one; the first is for filling up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pljobs import App
from pljobs.embedded import Server
from pljobs.install import migrate

# Durable commits, as in production; autovacuum as it is by default.
SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "2GB"}
SAMPLE_EVERY = 10.0
AT_ONCE = 8
TEXT = "x" * 100
# What is allowed to differ: figures of one moment to the next do, on any machine.
LATENCY_WITHIN, SIZE_WITHIN = 1.3, 1.1
SOME_PAGES = 2**18

# Jobs by id, which is a few thousand rows: those that came since the last sample, and have started.
LATENCY = """
SELECT count(*) AS jobs, max(j.id) AS last_id,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY j.ms) AS p50_ms,
       percentile_cont(0.99) WITHIN GROUP (ORDER BY j.ms) AS p99_ms, max(j.ms) AS most_ms
  FROM (SELECT w.id, (1000 * extract(epoch FROM w.started_at - w.created_at))::double precision AS ms
          FROM pljobs.job AS w WHERE w.id > %s AND w.started_at IS NOT NULL) AS j
"""
SIZES = """
SELECT c.relname AS name, pg_table_size(c.oid) AS bytes
  FROM pg_class AS c
 WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind IN ('r', 'i') AND NOT c.relispartition
"""
ROWS = """
SELECT s.relname AS name, s.n_live_tup AS live, s.n_dead_tup AS dead, s.n_tup_ins AS inserted,
       s.n_tup_del AS deleted, s.autovacuum_count AS vacuums
  FROM pg_stat_user_tables AS s
 WHERE s.relid IN ('pljobs.job'::regclass, 'pljobs.request'::regclass, 'pljobs.idempotency'::regclass)
"""
ARCHIVE = """
SELECT coalesce(sum(pg_total_relation_size(i.inhrelid)), 0)::bigint AS bytes
  FROM pg_inherits AS i WHERE i.inhparent = 'pljobs.job_archive'::regclass
"""


def make_app(url: str) -> App:
    """Return the app of producer and worker."""
    app = App(url)

    @app.task(name="steady")
    async def steady(number: int, text: str) -> None:
        """Do nothing: what is measured is the queue."""

    return app


async def produce(url: str, rate: float) -> None:
    """Defer jobs by the clock, until killed; who is late makes up for it."""
    app = make_app(url)
    task = app.tasks["steady"]
    under_way: set[asyncio.Task[None]] = set()

    async def one(number: int) -> None:
        if number % 50 == 0:
            later = task.configure(schedule_in={"hours": 1})
            job_id = await later.defer_async(number=number, text=TEXT)
            await app.job_manager.cancel_job_by_id_async(job_id)
        elif number % 10 == 9:
            await task.configure(idempotency_key=f"key {number}").defer_async(number=number, text=TEXT)
        else:
            await task.defer_async(number=number, text=TEXT)

    async with app.open_async():
        began, number = time.monotonic(), 0
        while True:
            if len(under_way) >= AT_ONCE:
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            started = asyncio.create_task(one(number))
            under_way.add(started)
            started.add_done_callback(under_way.discard)
            number += 1
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))


def work(url: str, retention: float, archive: bool) -> None:
    """Run jobs until a signal."""
    make_app(url).run_worker(concurrency=32, retention=timedelta(seconds=retention), archive=archive)


def sample(conn: psycopg.Connection[dict[str, Any]], last_id: int) -> dict[str, Any]:
    """Return what there is to see now."""

    def rows(query: str, *params: object) -> list[dict[str, Any]]:
        return conn.execute(query.encode(), params).fetchall()

    return {
        **rows(LATENCY, last_id)[0],
        "bytes": {row["name"]: row["bytes"] for row in rows(SIZES)},
        "rows": {row.pop("name"): row for row in rows(ROWS)},
        "archive_bytes": rows(ARCHIVE)[0]["bytes"],
    }


def measure(url: str, minutes: float) -> list[dict[str, Any]]:
    """Take samples for so long."""
    samples: list[dict[str, Any]] = []
    last_id, began = 0, time.monotonic()
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as conn:
        while (now := time.monotonic() - began) < 60 * minutes:
            due = SAMPLE_EVERY * (len(samples) + 1)
            time.sleep(max(0.0, due - now))
            taken = sample(conn, last_id)
            last_id = taken["last_id"] or last_id
            samples.append({"second": round(time.monotonic() - began, 1), **taken})
            job = taken["rows"]["job"]
            size = taken["bytes"]["job"] / 2**20
            print(
                f"{samples[-1]['second']:>7} s  p50 {taken['p50_ms'] or 0:6.2f} ms"
                f"  p99 {taken['p99_ms'] or 0:7.2f} ms  jobs kept {job['live']:>8,}"
                f"  dead {job['dead']:>7,}  pruned {job['deleted']:>9,}  table {size:7.1f} MiB",
                flush=True,
            )
    return samples


def compare(samples: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Compare the last third with the second: medians, their ratio, and whether that is flat."""
    third = len(samples) // 3
    second, last = samples[third : 2 * third], samples[2 * third :]

    def verdict(name: str, unit: str, within: float, *keys: str) -> dict[str, Any]:
        def values(of: list[dict[str, Any]]) -> list[float]:
            found = []
            for each in of:
                value: Any = each
                for key in keys:
                    value = value[key]
                if value is not None:
                    found.append(float(value))
            return found

        before, after = statistics.median(values(second)), statistics.median(values(last))
        ratio = after / before if before else 1.0
        return {
            "name": name, "unit": unit, "second_third": before, "last_third": after, "ratio": round(ratio, 3),
            "flat": ratio <= within or (unit == "bytes" and after - before < SOME_PAGES),
        }  # fmt: skip

    latencies = [verdict(key, "ms", LATENCY_WITHIN, key) for key in ("p50_ms", "p99_ms")]
    sizes = [verdict(name, "bytes", SIZE_WITHIN, "bytes", name) for name in sorted(samples[-1]["bytes"])]
    return {each["name"]: each for each in [*latencies, *sizes]}


def rates(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Return how many jobs a second came, and went, in the last two thirds."""
    first, last = samples[len(samples) // 3], samples[-1]
    seconds = last["second"] - first["second"]
    return {
        what: round((last["rows"]["job"][what] - first["rows"]["job"][what]) / seconds, 1)
        for what in ("inserted", "deleted")
    }


def run(options: argparse.Namespace) -> None:
    """Start a server, producer and worker; measure; write and print."""
    bin_dir = None if options.postgres == "18" else Path(f"/usr/lib/postgresql/{options.postgres}/bin")
    with Server.start(bin_dir, settings=SETTINGS) as server:
        url = server.create_database("steady")
        migrate(url)
        base = [sys.executable, __file__, "--url", url, "--rate", str(options.rate)]
        base += ["--retention", str(options.retention), *(["--archive"] if options.archive else [])]
        helpers = [subprocess.Popen([*base, "--role", role]) for role in ("worker", "producer")]
        try:
            samples = measure(url, options.minutes)
            dead = [helper.args for helper in helpers if helper.poll() is not None]
        finally:
            for helper in reversed(helpers):
                helper.terminate()
                helper.wait(60)
    compared = compare(samples)
    result = {
        "minutes": options.minutes, "rate": options.rate, "retention_s": options.retention,
        "archive": options.archive, "postgres": options.postgres, "rates": rates(samples),
        "flat": all(each["flat"] for each in compared.values()) and not dead,
        "compared": compared, "samples": samples,
    }  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, default=float, indent=1))
    print(f"jobs/s that came, and were pruned: {result['rates']}")
    print(f"{'':>32} {'second third':>14} {'last third':>14} {'ratio':>6}")
    for each in compared.values():
        if each["unit"] == "ms" or max(each["second_third"], each["last_third"]) > 2**20 or not each["flat"]:
            print(
                f"{each['name']:>32} {each['second_third']:>14,.2f} {each['last_third']:>14,.2f}"
                f" {each['ratio']:>6.2f} {'flat' if each['flat'] else 'GROWS'}"
            )
    if dead:
        print(f"ended before their time: {dead}")
    print("flat" if result["flat"] else "not flat")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=200.0, help="jobs a second")
    parser.add_argument("--retention", type=float, default=300.0, help="seconds that finished jobs stay")
    parser.add_argument("--archive", action="store_true", help="archive them then")
    parser.add_argument("--postgres", default="18", help="18 (the wheel's) or 15 (Debian's)")
    parser.add_argument("--output", type=Path, default=Path("build/steady.json"))
    parser.add_argument(
        "--role", choices=["run", "producer", "worker"], default="run", help=argparse.SUPPRESS
    )
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    if options.role == "producer":
        asyncio.run(produce(options.url, options.rate))
    elif options.role == "worker":
        work(options.url, options.retention, options.archive)
    else:
        run(options)


if __name__ == "__main__":
    main()
