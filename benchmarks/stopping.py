"""Every kind of task, stopped at every level: the time until the database says that it has stopped.

Run by `python benchmarks/run.py stopping`, which also starts workers on the tasks here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from harness import Bench
from pljobs import App, JobAborted, JobContext
from pljobs.tasks import AnyTask

app = App("")
LONG = 60.0
TIMES = 10
QUERY = b"SELECT count(*) FROM generate_series(1, 1000000) AS a, generate_series(1, 1000000) AS b"


@app.task(name="async, lets itself be cancelled")
async def willing_async() -> None:
    """Stop at level 1."""
    await asyncio.sleep(LONG)


@app.task(name="async, swallows one cancel")
async def swallowing_async() -> None:
    """Stop at level 3."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(LONG)
    await asyncio.sleep(LONG)


@app.task(name="async, blocks the event loop")
async def blocking_async() -> None:
    """Stop at level 3."""
    time.sleep(LONG)  # noqa: ASYNC251


@app.task(name="async, swallows every cancel")
async def deaf_async() -> None:
    """Be given up."""
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(LONG)


@app.task(name="thread, looks every ms", pass_context=True)
def willing_thread(context: JobContext) -> None:
    """Stop at level 1."""
    while not context.should_abort():
        time.sleep(0.001)
    raise JobAborted


@app.task(name="thread, in a statement", pass_context=True)
def thread_in_sql(context: JobContext) -> None:
    """Stop at level 2."""
    with context.connection() as conn:
        conn.execute(QUERY)


@app.task(name="thread, never looks")
def deaf_thread() -> None:
    """Be given up."""
    time.sleep(LONG)


@app.task(name="process, looks every ms", pass_context=True, isolation="process")
def willing_process(context: JobContext) -> None:
    """Stop at level 1."""
    while not context.should_abort():
        time.sleep(0.001)
    raise JobAborted


@app.task(name="process, in a statement", pass_context=True, isolation="process")
def process_in_sql(context: JobContext) -> None:
    """Stop at level 2."""
    with context.connection() as conn:
        conn.execute(QUERY)


@app.task(name="process, never looks", isolation="process")
def deaf_process() -> None:
    """Stop at level 3."""
    time.sleep(LONG)


@app.task(name="process, resists SIGTERM", isolation="process")
def resisting_process() -> None:
    """Be killed."""
    while True:
        with contextlib.suppress(JobAborted):
            time.sleep(LONG)


TOLD, SQL = "NULL", "NULL, sql => true"
TERM, KILL = "'0', term_grace => '1 min'", "'0', term_grace => '0'"
# What is asked, and from when on it is counted.
TRIED: list[tuple[AnyTask, int, str, str]] = [
    (willing_async, 1, TOLD, "requested_at"),
    (swallowing_async, 3, TERM, "term_at"),
    (blocking_async, 3, TERM, "term_at"),
    (deaf_async, 4, KILL, "kill_at"),
    (willing_thread, 1, TOLD, "requested_at"),
    (thread_in_sql, 2, SQL, "requested_at"),
    (deaf_thread, 4, KILL, "kill_at"),
    (willing_process, 1, TOLD, "requested_at"),
    (process_in_sql, 2, SQL, "requested_at"),
    (deaf_process, 3, TERM, "term_at"),
    (resisting_process, 4, KILL, "kill_at"),
]


def bench_stopping(bench: Bench) -> None:
    """Print a row for each kind of task: at which level it stops, how soon, and as what it is recorded."""
    url, times = bench.database("ours"), bench.pick(1, TIMES)
    tried = bench.pick(TRIED[:1], TRIED)
    app_of_url = App(url)
    with psycopg.connect(url, autocommit=True) as conn, app_of_url.open():
        for task, level, grace, since in tried:
            took, ended = [], set()
            for _ in range(times if level < 4 else min(times, 5)):
                with _worker(url):
                    job_id = app_of_url.configure_task(task.name).defer()
                    _wait(conn, "SELECT status = 'doing' FROM pljobs.jobs WHERE id = %s", job_id)
                    time.sleep(0.5)  # for the body to be where it stays
                    conn.execute(f"SELECT pljobs.cancel_job(%s, true, grace => {grace})".encode(), [job_id])
                    _wait(
                        conn, "SELECT resolved_at IS NOT NULL FROM pljobs.requests WHERE job_id = %s", job_id
                    )
                row = conn.execute(
                    f"SELECT 1000 * extract(epoch FROM resolved_at - {since}), resolution"
                    " FROM pljobs.requests WHERE job_id = %s".encode(),
                    [job_id],
                ).fetchone()
                assert row is not None
                took.append(float(row[0]))
                ended.add(row[1])
            outcome = ", ".join(sorted(ended))
            bench.add(f"{task.name}, level {level}", "ms", {"pljobs": took}, outcome)


@contextlib.contextmanager
def _worker(url: str) -> Iterator[None]:
    """Run a worker in a process; one that gave up a job has ended by itself."""
    command = [sys.executable, "-m", "pljobs", "worker", "--app", "stopping:app", "--log-level", "critical"]
    environment = {**os.environ, "PLJOBS_URL": url, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _wait(conn: psycopg.Connection[tuple[object, ...]], question: str, job_id: int) -> None:
    while conn.execute(question.encode(), [job_id]).fetchone() != (True,):
        time.sleep(0.002)
