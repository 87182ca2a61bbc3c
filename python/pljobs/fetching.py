"""What the worker asks for: jobs for its free slots, and where jobs are short a little ahead."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pljobs import calls, calls_wake, logs
from pljobs.careful import careful_logger
from pljobs.endings import Ended
from pljobs.exceptions import (
    DatabaseUnavailable,
    NotPermitted,
    PljobsException,
    WorkerNotRegistered,
)
from pljobs.lease import in_time
from pljobs.pace import Pace

if TYPE_CHECKING:
    from pljobs.jobs import Job
    from pljobs.link import Link
    from pljobs.run import Run
    from pljobs.worker import Worker

logger = careful_logger(__name__)

FETCH_AT_MOST = 1000
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
AHEAD, ANSWER_AT_MOST = 0.02, 0.05
"""Seconds of work to have at hand, besides what is started while a fetch is under way: so long at most."""
SHORTEST_SLEEP, LONGEST_SLEEP_IN_VAIN = 0.005, 0.25
"""Seconds of sleep where something is said to be due, and a fetch does not find it: first, and at last."""
ASK_EVERY = 0.05
"""Seconds at least from one question when there may be something to the next."""
ASK_AGAIN = 60.0
"""Seconds from one question to the next where nothing happens meanwhile."""
GIVE_BACK_AFTER, SURE_AFTER = 0.1, 0.01
"""Seconds for which a job may wait for its slot here, while others may have one free."""
MAKE_DO, SAY_EVERY = 5.0, 60.0
"""Seconds without a try to run more at once, where there was no thread or process; and without saying so."""


class Fetcher:
    """Ask for jobs, and start each once there is a slot for it.

    It asks for as many as slots are free. Only while there are more jobs than it asked for, and they end so
    fast that others would be started within milliseconds, it asks for those, too. They wait here
    (`Run.waiting`), are listed in the heartbeats, end when an abort comes for them, and go back, uncharged,
    when the worker stops or when they could not be started at once after all. `held`: how many runs have
    ended, and keep their slots all the same.
    """

    def __init__(self, worker: Worker, link: Link, *, held: Callable[[], int]) -> None:
        self._worker = worker
        self._link = link
        self._held = held
        self._wake = asyncio.Event()
        self._pace = Pace(self.look)
        self._running = 0
        self._waiting: deque[Run] = deque()
        self._starting = False
        # Whether to look now; whether the last fetch left something; when to look if nothing else comes.
        self._due, self._more, self._poll_at = True, False, 0.0
        self._ahead, self._ended, self._answered_at = 0, 0, 0.0
        # How many to ask for at once: fewer where the last fetch failed, on a line that is too slow perhaps.
        self._ask_for = FETCH_AT_MOST
        # Whether to ask when there may be something, and from when on; how long to sleep if that is now.
        self._to_ask, self._asked_at, self._ask_at, self._in_vain = False, 0.0, 0.0, SHORTEST_SLEEP
        self._patience: asyncio.TimerHandle | None = None
        # How many there are threads and processes for, as far as is known, until it is tried again.
        self._at_most = worker.concurrency
        self._try_again: asyncio.TimerHandle | None = None
        self._say_at = 0.0
        self._looked_at_all = False  # of a worker that ends when nothing is left

    def look(self) -> None:
        """Fetch as soon as a slot is free: there may be something new. Or a slot that was held is free."""
        self._start_waiting()
        self._due = True
        self._wake.set()

    def ask(self) -> None:
        """Do the same, at somebody's notification: not again at once where nothing was found."""
        self._pace.ask()

    def wake(self) -> None:
        """Look around: a slot may be free, or it is time to stop."""
        self._wake.set()

    def ended(self, run: Run) -> None:
        """Take note that a run has ended, and start the next one."""
        if run.waiting:
            run.waiting = False
            with contextlib.suppress(ValueError):  # it may have been taken out already
                self._waiting.remove(run)
        else:
            self._running -= 1
            if run.lacked is None:
                self._ended += 1
            else:
                self._make_do(run.lacked)
        self._start_waiting()
        self._wake.set()

    def give_back(self) -> None:
        """End all that wait: they will run again, elsewhere perhaps."""
        self._ahead = 0
        waiting, self._waiting = self._waiting, deque()
        for run in waiting:
            if not run.ended:
                run.give_back()

    async def run(self, worker_id: int, *, register_again: Callable[[], None]) -> None:
        """Fetch until the worker stops; then nothing waits any more."""
        pause = FIRST_PAUSE
        while not self._worker.stopping:
            try:
                if (wanted := self._wanted()) > 0:
                    await self._fetch(worker_id, wanted)
                elif not self._to_ask or self._free() <= 0:
                    await self._sleep(self._poll_at)
                elif self._ask_at > asyncio.get_running_loop().time():
                    await self._sleep(min(self._ask_at, self._poll_at))
                else:
                    await self._ask(worker_id)
                pause = FIRST_PAUSE
            except PljobsException as error:
                # The control thread registers again; that the database is away was said.
                if not isinstance(error, DatabaseUnavailable):
                    logger.warning(
                        "Worker %s can't fetch jobs: %s", worker_id, error, extra=self._worker.ids()
                    )
                if isinstance(error, WorkerNotRegistered):
                    register_again()
                await self._rest(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            except Exception:
                logger.exception("Worker %s can't fetch jobs", worker_id, extra=self._worker.ids())
                await self._rest(LONGEST_PAUSE)
        self.give_back()

    def _wanted(self) -> int:
        """Return how many jobs to ask for now."""
        now = asyncio.get_running_loop().time()
        if now >= self._poll_at:
            self._due = True
            self._poll_at = now + self._worker.polling_interval
        if not (self._due or self._more) or not self._worker.may_start:
            return 0
        free = self._free()
        ahead = self._ahead if self._more else 0
        if free <= 0 and free + ahead <= ahead // 2:
            return 0  # enough is at hand: rather some more at once, soon
        return min(free + ahead, self._ask_for)

    def _free(self) -> int:
        """Return how many slots are free, less what waits for one."""
        return self._slots() - self._running - len(self._waiting)

    def _slots(self) -> int:
        """Return how many may run at once."""
        return min(self._worker.concurrency, self._at_most) - self._held()

    async def _fetch(self, worker_id: int, wanted: int) -> None:
        worker = self._worker
        self._due = False
        self._pace.looks()
        call = calls.fetch_jobs(
            worker_id,
            max_jobs=wanted,
            queues=worker.queues,
            tasks=list(worker.app.tasks) if worker.unknown_tasks == "leave" else None,
            loads=worker.app.connector.json_loads,
        )
        sent_at = asyncio.get_running_loop().time()
        try:
            jobs = await in_time(self._link.execute(call), worker.stalled_timeout)
        except BaseException:
            self._due, self._ask_for = True, max(1, wanted // 2)
            raise
        self._ask_for = min(FETCH_AT_MOST, 2 * self._ask_for)
        self._learn(sent_at, full=len(jobs) >= wanted)
        if jobs:
            self._looked_at_all, self._in_vain = False, SHORTEST_SLEEP  # it was not in vain
            self._pace.found()
            self._take(jobs)
        elif not worker.wait and not worker.is_busy:
            await self._end()

    async def _end(self) -> None:
        """Stop, where no job is left: by a fetch that has looked at all there is."""
        if self._looked_at_all:
            self._worker.stop()
            return
        await self._link.execute(calls_wake.look_at_all())
        self._looked_at_all = self._due = True

    def _learn(self, sent_at: float, *, full: bool) -> None:
        """Find out how many jobs to have at hand, if there are more than were asked for."""
        now = asyncio.get_running_loop().time()
        self._poll_at = now + self._worker.polling_interval
        pace = self._ended / max(now - self._answered_at, 0.001)
        seconds = AHEAD + min(now - sent_at, ANSWER_AT_MOST)
        self._more, self._ahead = full, int(pace * seconds) if full else 0
        self._ended, self._answered_at = 0, now
        self._to_ask, self._ask_at = not full and self._worker.wait, self._asked_at + ASK_EVERY

    async def _ask(self, worker_id: int) -> None:
        """Find out when what can't run now may be able to, and look then if the next poll is later."""
        worker, loop = self._worker, asyncio.get_running_loop()
        # Once more in a minute: nobody notifies of what will be due later than that.
        self._asked_at, self._ask_at = loop.time(), loop.time() + ASK_AGAIN
        tasks = list(worker.app.tasks) if worker.unknown_tasks == "leave" else None
        try:
            call = calls_wake.next_fetch(worker_id, queues=worker.queues, tasks=tasks)
            answer = await self._link.execute(call)
        except NotPermitted:  # rights that were given by hand, before there was this one: then it polls
            return
        if answer is None:
            return
        seconds = answer.total_seconds()
        if seconds < self._in_vain:
            seconds, self._in_vain = self._in_vain, min(2 * self._in_vain, LONGEST_SLEEP_IN_VAIN)
        else:
            self._in_vain = SHORTEST_SLEEP
        self._poll_at = min(self._poll_at, loop.time() + seconds)

    def _take(self, jobs: list[Job]) -> None:
        fresh = self._worker.accept(jobs)
        for run in fresh:
            run.waiting = True
        self._waiting.extend(fresh)
        self._start_waiting()
        self._worker.accepted(fresh)
        if self._waiting and self._patience is None:
            self._be_patient()

    def _start_waiting(self) -> None:
        """Start what waits and has a slot."""
        if self._starting or not self._waiting:  # one that ended at once: the loop below goes on
            return
        self._starting = True
        try:
            while self._waiting and self._running < self._slots() and self._worker.may_start:
                run = self._waiting.popleft()
                if run.ended:
                    continue
                if run.context.should_abort():  # the control thread has heard of it already
                    run.end_unstarted()
                    continue
                run.waiting = False
                self._running += 1
                self._start(run)
        finally:
            self._starting = False

    def _start(self, run: Run) -> None:
        try:
            logs.started(run.job)
            run.start()
        except Exception as error:  # noqa: BLE001 - what can't be pickled, an application's log filter
            run.finish(Ended(exception=error))

    def _make_do(self, lacked: str) -> None:
        """Run no more at once than now, for a while: else the same jobs would come and go all the time."""
        loop = asyncio.get_running_loop()
        self._at_most, self._ahead = self._running, 0
        if self._try_again is None:
            self._try_again = loop.call_later(MAKE_DO, self._try_more)
        if loop.time() >= self._say_at:
            self._say_at = loop.time() + SAY_EVERY
            logger.warning(
                "Worker %s can't start more than %s jobs for now, gives others back, and tries again: %s",
                self._worker.worker_id,
                self._at_most,
                lacked,
                extra=self._worker.ids(),
            )

    def _try_more(self) -> None:
        self._try_again, self._at_most = None, self._worker.concurrency
        self.look()

    def _be_patient(self) -> None:
        loop = asyncio.get_running_loop()
        self._patience = loop.call_later(GIVE_BACK_AFTER, self._lose_patience, self._waiting[0])

    def _lose_patience(self, first: Run, *, is_sure: bool = False) -> None:
        if first.waiting and not is_sure:
            # The loop may have stood still: then what has ended meanwhile is only about to be seen.
            sure = partial(self._lose_patience, first, is_sure=True)
            self._patience = asyncio.get_running_loop().call_later(SURE_AFTER, sure)
            return
        self._patience = None
        if first.waiting:
            # All that came since, too: what runs has turned out not to be short.
            self.give_back()
        elif self._waiting:
            self._be_patient()

    async def _rest(self, seconds: float) -> None:
        """Let somebody who is in trouble have some peace, but not from being stopped."""
        until = asyncio.get_running_loop().time() + seconds
        while not self._worker.stopping and asyncio.get_running_loop().time() < until:
            await self._sleep(until)

    async def _sleep(self, until: float) -> None:
        """Wait until somebody wakes it, or until then."""
        self._wake.clear()
        timer = asyncio.get_running_loop().call_at(until, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
