"""A worker in a process of its own, for the benchmarks: `bench_worker.py URL KIND CONCURRENCY [RETENTION]`.

It says "ready", waits for a line, works, and says what it measured as JSON. KIND: `async` or `threads`, until
no job is left; `serve` until its input ends, with a line for each job of the task `stamp`, or aborted one of
`sleeper`: its id, and when its body began, or saw that it was cancelled; `bare` is no worker but the floor of
`serve`: a line for each row that it hears of and claims.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
import threading
import time
from datetime import timedelta

import psycopg

from pljobs import App, JobContext


def main() -> None:
    """Work as the command line says."""
    url, kind, concurrency = sys.argv[1], sys.argv[2], int(sys.argv[3])
    logging.disable(logging.WARNING)
    app = App(url)

    if kind == "threads":

        @app.task(name="noop")
        def noop_in_thread() -> None:
            return None
    else:

        @app.task(name="noop")
        async def noop() -> None:
            return None

    @app.task(name="stamp", pass_context=True)
    async def stamp(context: JobContext) -> None:
        said(context)

    @app.task(name="sleeper", pass_context=True)
    async def sleeper(context: JobContext) -> None:
        said(context)
        try:
            await asyncio.sleep(3600)
        finally:
            said(context)

    if kind == "bare":
        listen(url)
    elif kind == "serve":
        asyncio.run(serve(app, concurrency, int(sys.argv[4])))
    else:
        print("ready", flush=True)
        sys.stdin.readline()
        used, began = cpu(), time.monotonic()
        app.run_worker(concurrency=concurrency, wait=False, install_signal_handlers=False)
        print(json.dumps({"began": began, "ended": time.monotonic(), "cpu": cpu() - used}), flush=True)


def said(context: JobContext) -> None:
    """Say when this happened; Linux has one monotonic clock for all processes."""
    now = time.monotonic()
    print(context.job.id, now, flush=True)


async def serve(app: App, concurrency: int, retention: int) -> None:
    """Work until the input ends."""
    worker = asyncio.create_task(
        app.run_worker_async(
            concurrency=concurrency,
            install_signal_handlers=False,
            retention=timedelta(seconds=retention) if retention else None,
        )
    )
    await asyncio.sleep(0.5)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)


def listen(url: str) -> None:
    """Claim a row at each notification, until the input ends."""
    claim = (
        "UPDATE bench_bare SET taken = true WHERE id = (SELECT id FROM bench_bare WHERE NOT taken"
        " ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id"
    )
    with psycopg.connect(url, autocommit=True) as heard, psycopg.connect(url, autocommit=True) as conn:
        heard.execute("LISTEN bench")
        print("ready", flush=True)
        ended = threading.Event()

        def end() -> None:
            sys.stdin.read()
            ended.set()

        threading.Thread(target=end, daemon=True).start()
        while not ended.is_set():
            for _ in heard.notifies(timeout=0.5, stop_after=1):
                for (row_id,) in conn.execute(claim):
                    print(row_id, time.monotonic(), flush=True)


def cpu() -> float:
    """Seconds of processor time that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
