"""Isolated tasks for tests: at the top level of a module, as they must be."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pljobs import App, BaseRetryStrategy, JobContext, RetryDecision
from pljobs.exceptions import JobAborted

app = App("postgresql:///nowhere")
logger = logging.getLogger("isolated_tasks.logger")

# Read by the nursery when it imports this module.
if os.environ.get("TEST_NURSERY") == "no fork":

    def _no_fork() -> int:
        raise BlockingIOError(11, "no more processes")

    if "pljobs.nursery" in sys.modules and sys.modules["pljobs.nursery"].Nursery.is_here:
        os.fork = _no_fork

if os.environ.get("TEST_NURSERY") == "slow" and "pljobs.nursery" in sys.modules:
    while sys.modules["pljobs.nursery"].Nursery.is_here and not Path(os.environ["TEST_NURSERY_GO"]).exists():
        time.sleep(0.005)


def touch(path: str, text: str = "") -> None:
    """Make a file that is there with all its text, or not at all."""
    Path(f"{path}.new").write_text(text)
    Path(f"{path}.new").rename(path)


def wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.005)


class Asked(BaseRetryStrategy):
    """Say in the queue's name what was asked."""

    def get_retry_decision(self, *, exception: BaseException, job: Any) -> RetryDecision:
        return RetryDecision(retry_at=datetime(2100, 1, 1, tzinfo=UTC), queue=type(exception).__name__)


isolated = app.task(isolation="process", name="isolated_add")


@isolated
def add(a: int, b: int) -> dict[str, object]:
    return {"sum": a + b, "pid": os.getpid(), "group": os.getpgid(0), "main": is_main()}


def is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


@app.task(isolation="process")
def noop() -> None:
    return None


@app.task(isolation="process", pass_context=True, queue="q")
def tells_its_context(context: JobContext, name: str) -> dict[str, object]:
    return {
        "id": context.job.id, "name": name, "queue": context.job.queue, "worker": context.worker_name,
        "worker_id": context.worker_id, "more": sorted(context.additional_context),
        "value": context.additional_context["value"], "asked": context.should_abort(),
        "task": context.task.name, "stdin": sys.stdin.read(),
    }  # fmt: skip


@app.task(isolation="process", retry=Asked())
def fails() -> None:
    raise ValueError("as told")


@app.task(isolation="process", retry=Asked())
def fails_without_retry() -> None:
    sys.exit(3)


@app.task(isolation="process")
def logs(text: str) -> None:
    logger.debug("not %s", text)
    logger.info("heard %s", text, extra={"mine": {"a": 1}, "odd": object()})
    try:
        int("inner")
    except ValueError:
        logger.exception("with a traceback")


@app.task(isolation="process", pass_context=True)
def progresses(context: JobContext, go: str) -> None:
    context.progress(0.25, "a quarter")
    wait_for(go)
    for number in range(1000):
        context.progress(number / 1000)
    context.progress(1, "all")


@app.task(isolation="process", pass_context=True)
def until_asked(context: JobContext, started: str, note: str = "") -> None:
    """Run until it should stop; tell why by callback."""

    @context.on_abort
    def noted() -> None:
        request = context.abort_request()
        touch(note, f"{context.abort_reason()} {request and request.reason}") if note else None

    touch(started, str(os.getpid()))
    while not context.should_abort():
        time.sleep(0.005)
    if note:
        wait_for(note)
    raise JobAborted(f"stopped: {context.abort_reason()}")


@app.task(isolation="process", pass_context=True)
def iterates(context: JobContext, started: str) -> None:
    touch(started)
    for _ in context.iter(iter(int, 1)):
        time.sleep(0.001)


@app.task(isolation="process")
def ignores(started: str) -> None:
    """Never look at anything, but stop by an exception."""
    try:
        touch(started, str(os.getpid()))
        while True:
            time.sleep(60)
    except Exception:
        touch(f"{started}.caught")
        raise
    finally:
        touch(f"{started}.finally")


@app.task(isolation="process", retry=Asked())
def resists(started: str, daemon: bool = False) -> None:
    """Resist all but SIGKILL, with a child that does, too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"], start_new_session=daemon)
    touch(started, f"{os.getpid()} {child.pid}")
    while True:
        time.sleep(60)


@app.task(isolation="process")
def leaves_behind(started: str, daemon: bool = False) -> None:
    """End, and leave a process and a thread."""
    child = subprocess.Popen(["sleep", "600"], start_new_session=daemon)
    threading.Thread(target=time.sleep, args=[600]).start()
    touch(started, str(child.pid))


@app.task(isolation="process", retry=Asked())
def dies(how: str) -> None:
    faulthandler.disable()
    if how == "segv":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(3)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "fds":
        os.closerange(3, 1024)
        time.sleep(0.1)
    elif how == "fds and reuse":
        os.closerange(3, 1024)
        for _ in range(100):
            os.open(os.devnull, os.O_WRONLY)
    elif how == "garbage":
        for descriptor in range(3, 64):
            try:
                os.write(descriptor, b"\xff" * 100)
            except OSError:
                continue
        time.sleep(600)


@app.task(isolation="process")
def memory(limit: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + limit, used + limit))
    bytearray(4 * limit)


@app.task(isolation="process")
def returns(what: str) -> object:
    return {"object": object(), "set": {1}, "huge": "x" * 5_000_000, "big": "x" * 1_000_000}[what]


@app.task(isolation="process")
def length(text: str) -> int:
    return len(text)


@app.task(isolation="process")
def defers(how: str) -> object:
    if how == "async":
        import asyncio

        return asyncio.run(noop.defer_async())
    return noop.defer()


@app.task(isolation="process")
def forks() -> str:
    """Come back twice."""
    if os.fork() == 0:
        return "child"
    os.wait()
    return "parent"


def _square(number: int) -> int:
    return number * number


def _rest(started: str) -> None:
    touch(started)
    time.sleep(600)


@app.task(isolation="process")
def uses_processes(method: str, started: str) -> list[int]:
    with multiprocessing.get_context(method).Pool(2) as pool:
        squares = pool.map(_square, [1, 2, 3])
        pool.apply_async(_rest, [started])
        wait_for(started)
        return squares  # the pool ends the other by SIGTERM


@app.task(isolation="process", pass_context=True)
def foreign_sigterm(context: JobContext, started: str) -> str:
    os.kill(os.getpid(), signal.SIGTERM)
    touch(started)
    return "went on"


@app.task(isolation="process", pass_context=True)
def sleeps_in_sql(context: JobContext, started: str, bracket: bool) -> None:
    if bracket:
        with context.connection() as conn:
            touch(started)
            conn.execute("SELECT pg_sleep(600)")
    else:
        with context.app.connector.connect() as conn:
            touch(started)
            conn.execute("SELECT pg_sleep(600)")


@app.task(isolation="process")
def floods(lines: int) -> None:
    for number in range(lines):
        logger.info("line %s", number)


@app.task(isolation="process")
def leaves_its_group(started: str) -> None:
    """Resist SIGTERM, in the group of the nursery."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.setpgid(0, os.getpgid(os.getppid()))
    touch(started, str(os.getpid()))
    while True:
        time.sleep(60)


@app.task(isolation="process")
def logs_something_deep() -> str:
    sys.setrecursionlimit(100_000)
    deep: list[object] = []
    for _ in range(5_000):
        deep = [deep]
    logger.warning("deep", extra={"deep": deep})
    return "done"
