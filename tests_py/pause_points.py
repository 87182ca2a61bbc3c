"""Stop this worker process by SIGSTOP at a point of a job's run; who started it sees that, and goes on.

Nothing of pljobs knows of it: its methods are wrapped, in this process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import psycopg
from psycopg.waiting import Wait

from pljobs.answers import Call, RunEnd
from pljobs.endings import Ended
from pljobs.execution import LocalRun
from pljobs.link import Link
from pljobs.run import Run
from pljobs.worker import Worker

POINTS = ("claimed", "before body", "after body", "finish sent", "finish committed")
VARIABLE = "PLJOBS_TEST_POINT"


def stop_at(point: str, time: int) -> None:
    """Stop when this point is reached the nth time."""
    assert point in POINTS, point
    left = time

    def reached(name: str) -> None:
        nonlocal left
        left -= name == point
        if left == 0 and name == point:
            os.kill(os.getpid(), signal.SIGSTOP)

    _stop_around_calls(reached)
    _stop_around_bodies(reached)


def _stop_around_calls(reached: Callable[[str], None]) -> None:
    execute, wait = Link.execute, psycopg.AsyncConnection.wait
    finishing = False

    async def execute_and_stop(self: Link, call: Call[Any]) -> Any:
        nonlocal finishing
        finishing = "finish_jobs_v1" in call.statement
        try:
            answer = await execute(self, call)
        finally:
            was_finish, finishing = finishing, False
        if was_finish:
            reached("finish committed")
        elif "fetch_jobs_v1" in call.statement and answer:
            print("claimed", *(job.run_id for job in answer), flush=True)
            reached("claimed")
        return answer

    def until_sent(generator: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        ready = None
        try:
            wanted = next(generator)
            while True:
                if wanted == Wait.R and finishing:
                    reached("finish sent")
                ready = yield wanted
                wanted = generator.send(ready)
        except StopIteration as end:
            return end.value

    def wait_and_stop(self: Any, generator: Any, *args: Any, **options: Any) -> Awaitable[Any]:
        return wait(self, until_sent(generator) if finishing else generator, *args, **options)

    _replace(Link, "execute", execute_and_stop)
    _replace(psycopg.AsyncConnection, "wait", wait_and_stop)


def _stop_around_bodies(reached: Callable[[str], None]) -> None:
    start, ended = LocalRun.start, Worker._ended

    def stop_and_start(self: LocalRun) -> None:
        reached("before body")
        start(self)

    def stop_and_end(self: Worker, run: Run, end: Ended | RunEnd) -> None:
        reached("after body")
        ended(self, run, end)

    _replace(LocalRun, "start", stop_and_start)
    _replace(Worker, "_ended", stop_and_end)


def _replace(owner: type, name: str, function: object) -> None:
    assert name in vars(owner), f"{owner} has no {name} any more"
    setattr(owner, name, function)
