"""A process for tests that defers periodic tasks, as a manager or a worker, and may kill itself at a tick."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import sys

from pljobs import App, JobContext
from pljobs.answers import Call, PeriodicResult
from pljobs.maintenance import Manager
from pljobs.periodic import Tick
from worker_process import note
from workers import HASTY

app = App(sys.argv[1] if len(sys.argv) > 1 else "postgresql:///")


def tick(context: JobContext, timestamp: int, name: str) -> None:
    """Run at once."""
    note(context, "start")
    note(context, "end")


def die_at_ticks(share: float, seed: int) -> None:
    """Kill this process before, or after, it defers a tick's job, in so many of all cases."""
    choices = random.Random(seed)
    make = Tick.call

    def die() -> None:
        if choices.random() < share / 2:
            os.kill(os.getpid(), signal.SIGKILL)

    def call(self: Tick) -> Call[PeriodicResult]:
        die()
        made = make(self)

        def answered(result: PeriodicResult) -> PeriodicResult:
            die()
            return result

        return made.then(answered)

    Tick.call = call  # type: ignore[method-assign]


def main(*, defers: bool, runs: bool, dies: float, seed: int) -> None:
    """Do as told until SIGTERM."""
    task = app.task(name="tick", pass_context=True)(tick)
    if defers:
        for name in ("a", "b"):
            app.periodic(cron="* * * * * *", periodic_id=name, task_kwargs={"name": name})(task)
    die_at_ticks(dies, seed)
    if runs:
        app.run_worker(**HASTY, concurrency=4)
    else:
        asyncio.run(Manager(app, interval=1.0).run())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    main(**json.loads(sys.argv[2]))
