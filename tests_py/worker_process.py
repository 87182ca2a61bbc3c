"""A worker process for tests; its tasks write what they do into the table public.side, at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
import time
from pathlib import Path

import psycopg

import pause_points
import slowly
from pljobs import App, JobContext
from pljobs.exceptions import JobAborted

app = App(sys.argv[1] if len(sys.argv) > 1 else "postgresql:///")


def note(context: JobContext, what: str) -> None:
    """Write a line into the side table, whatever becomes of the job."""
    # Where the worker's own way to the database may be cut, this one is not.
    with psycopg.connect(os.environ.get("PLJOBS_SIDE_URL", sys.argv[1]), autocommit=True) as conn:
        conn.execute(
            "INSERT INTO public.side (job_id, run_id, pid, what) VALUES (%s, %s, %s, %s)",
            [context.job.id, context.job.run_id, os.getpid(), what],
        )


@app.task(name="quick", pass_context=True)
def quick(context: JobContext) -> str:
    """Run at once."""
    note(context, "start")
    note(context, "end")
    return "done"


@app.task(name="nothing")
async def nothing() -> None:
    """Do nothing, and leave no trace."""


@app.task(name="work", pass_context=True, retry=True)
async def work(context: JobContext, seconds: float = 0.0, fail: bool = False) -> None:
    """Take a while; fail the first time if told to."""
    note(context, "start")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        note(context, "cancelled")
        raise
    if fail and context.job.attempts == 0:
        raise RuntimeError("as told")
    note(context, "end")


@app.task(name="sync_work", pass_context=True)
def sync_work(context: JobContext, seconds: float = 0.0) -> None:
    """Take a while in a thread."""
    note(context, "start")
    if context.abort_flag.wait(seconds):
        note(context, "cancelled")
        raise JobAborted
    note(context, "end")


@app.task(name="forever", pass_context=True)
async def forever(context: JobContext) -> None:
    """Run until aborted."""
    note(context, "start")
    await asyncio.get_running_loop().create_future()


@app.task(name="stubborn", pass_context=True)
def stubborn(context: JobContext) -> None:
    """Never return."""
    note(context, "start")
    while True:
        time.sleep(1)


@app.task(name="stubborn_async", pass_context=True)
async def stubborn_async(context: JobContext) -> None:
    """Never return, whatever is thrown in."""
    note(context, "start")
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1)


@app.task(name="until_told", pass_context=True)
async def until_told(context: JobContext) -> None:
    """End once the side table holds 'go'."""
    note(context, "start")
    async with await psycopg.AsyncConnection.connect(sys.argv[1], autocommit=True) as conn:
        while True:
            cursor = await conn.execute("SELECT FROM public.side WHERE what = 'go'")
            if await cursor.fetchone() is not None:
                break
            await asyncio.sleep(0.05)
    note(context, "end")


@app.task(name="kills_itself", pass_context=True)
def kills_itself(context: JobContext) -> None:
    """End the process, as a memory bomb would."""
    note(context, "start")
    os._exit(137)


@app.task(name="is_killed", pass_context=True)
async def is_killed(context: JobContext) -> None:
    """Have the process killed, as a system out of memory does."""
    note(context, "start")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="ends_what_it_forks")
def ends_what_it_forks() -> list[int | None]:
    """Fork as multiprocessing does, and end each process at once, as it does."""
    forked = []
    for number in range(50):
        each = multiprocessing.get_context("fork").Process(target=time.sleep, args=[600])
        each.start()
        time.sleep(number / 10_000)  # it may be anywhere on its way
        each.terminate()
        forked.append(each)
    end = time.monotonic() + 30
    for each in forked:
        each.join(max(0.0, end - time.monotonic()))
        if each.is_alive():
            each.kill()
            each.join()
    return [each.exitcode for each in forked]


@app.task(name="memory_bomb", pass_context=True)
def memory_bomb(context: JobContext) -> None:
    """Take all the memory that the process may have, to the last bit."""
    note(context, "start")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**28
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    held: list[bytearray] = []
    size = 2**26
    while size > 2**6:
        try:
            held.append(bytearray(size))
        except MemoryError:
            size //= 2
    held.append(bytearray(2**28))


if __name__ == "__main__":
    slowly.if_asked()
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    if point := os.environ.get(pause_points.VARIABLE):
        name, _, nth = point.partition(":")
        pause_points.stop_at(name, int(nth))
    app.run_worker(**json.loads(sys.argv[2]))
    print("ended well", flush=True)
