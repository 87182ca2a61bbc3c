"""What keeps the queue in order, in every worker or on its own: rescue, lanes, periodic tasks, pruning."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar

from pljobs import calls, calls_prune, calls_read
from pljobs.answers import Call
from pljobs.careful import careful_logger
from pljobs.exceptions import DatabaseUnavailable, InvalidArgument, NotPermitted, PljobsException
from pljobs.link import Link
from pljobs.outage import Outage
from pljobs.periodic import MAX_DELAY, Tick, due_ticks, next_tick
from pljobs.signals import stop_on_signals

if TYPE_CHECKING:
    from pljobs.app import App

logger = careful_logger(__name__)
T = TypeVar("T")

PRUNE_EVERY = 60.0
# Few rows at once, and pauses that are longer: fetches and ends of jobs wait for a batch on the same line.
PRUNE_BATCH = 1000
PRUNE_SHARE = 0.2
# What a batch has passed by (somebody held it), one that begins anew finds.
PRUNE_ANEW_EVERY = 3600.0
LONGEST_PAUSE = 5.0


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what is over is kept, and whether jobs are archived then, or deleted."""

    keep_for: timedelta
    archive: bool = False

    @classmethod
    def of(cls, keep_for: timedelta | None, *, archive: bool) -> Retention | None:
        """Return what two settings come to; None: all is kept."""
        if keep_for is not None and not isinstance(keep_for, timedelta):
            raise InvalidArgument(f"retention must be a timedelta or None, not {keep_for!r}")
        return None if keep_for is None else cls(keep_for, archive)


class Execute(Protocol):
    """How to make a call."""

    def __call__(self, call: Call[T]) -> Awaitable[T]: ...


class Maintenance:
    """Do what is due, until stopped; in any number at once: the database lets one work, and once a tick.

    Every `interval` seconds: rescue the jobs of lost workers, enforce time limits, wake sleeping lanes; with
    `retention`, every minute: prune what finished longer ago, in small batches. Defers the app's periodic
    tasks when they are due, by the database's clock.
    """

    def __init__(
        self,
        app: App,
        execute: Execute,
        *,
        interval: float,
        retention: Retention | None = None,
        max_crashes: int = 3,
    ) -> None:
        self._app = app
        self._execute = execute
        self._interval = interval
        self._retention = retention
        self._max_crashes = max_crashes
        self._max_delay = timedelta(seconds=app.periodic_defaults.get("max_delay", MAX_DELAY.total_seconds()))
        self._ticked_until: datetime | None = None
        self._refused: list[Tick] = []
        self._jobs_since: datetime | None = None
        self._history_since: datetime | None = None
        self._anew_at = 0.0

    async def run(self, stopping: asyncio.Event, *, until: asyncio.Event | None = None) -> None:
        """Run until `stopping` is set; what looks after jobs that are there already, `until` that is set."""
        over = stopping if until is None else until
        duties: list[tuple[Callable[[], Awaitable[float]], asyncio.Event, float]] = [
            (duty, over, 0.0) for duty in (self._rescue, self._enforce_limits, self._wake_lanes)
        ]
        if len(self._app.periodic_registry):
            duties.append((self._defer_periodic, stopping, 0.0))
        if self._retention is not None:
            duties.append((self._prune, stopping, 0.0))
        while not over.is_set():
            now = time.monotonic()
            for place, (duty, ends, due) in enumerate(duties):
                if due <= now and not ends.is_set():
                    duties[place] = (duty, ends, time.monotonic() + await self._done(duty))
            pause = min((due for _, ends, due in duties if not ends.is_set()), default=0.0) - time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, pause)):
                    await over.wait()
            except TimeoutError:
                continue

    async def _done(self, duty: Callable[[], Awaitable[float]]) -> float:
        """Do a duty, and return after how many seconds to do it again."""
        try:
            return await duty()
        except DatabaseUnavailable:
            return LONGEST_PAUSE
        except PljobsException as error:
            logger.warning("Maintenance failed, trying again: %s", error)
        except Exception:
            logger.exception("Maintenance failed, trying again")
        return LONGEST_PAUSE

    async def _rescue(self) -> float:
        for answer in await self._execute(calls.rescue_jobs(max_crashes=self._max_crashes)):
            logger.warning(
                "Job %s was rescued from a lost worker: it is now %s",
                answer.job_id,
                answer.outcome,
                extra={"job_id": answer.job_id},
            )
        return self._pause()

    async def _enforce_limits(self) -> float:
        for limit in await self._execute(calls.enforce_limits()):
            logger.info(
                "Job %s is over its time: %s", limit.job_id, limit.outcome, extra={"job_id": limit.job_id}
            )
        return self._pause()

    async def _wake_lanes(self) -> float:
        woken = await self._execute(calls.wake_lanes())
        if woken:
            logger.info("Woke %s lanes that had been left asleep", woken)
        return self._pause()

    def _pause(self) -> float:
        # Not all workers at the same moment.
        return self._interval * random.uniform(0.8, 1.2)  # noqa: S311

    async def _prune(self) -> float:
        if self._retention is None:
            return PRUNE_EVERY
        began = time.monotonic()
        if began >= self._anew_at:
            self._jobs_since = self._history_since = None
            self._anew_at = began + PRUNE_ANEW_EVERY
        keep_for, archive = self._retention.keep_for, self._retention.archive
        jobs = await self._execute(
            calls_prune.prune_jobs(keep_for, max_jobs=PRUNE_BATCH, archive=archive, since=self._jobs_since)
        )
        self._jobs_since = jobs.reached_at
        history = await self._execute(
            calls_prune.prune_history(keep_for, max_rows=PRUNE_BATCH, since=self._history_since)
        )
        self._history_since = history.reached_at
        if max(jobs.pruned, history.pruned) < PRUNE_BATCH:
            return PRUNE_EVERY
        return (time.monotonic() - began) * (1 / PRUNE_SHARE - 1)

    async def _defer_periodic(self) -> float:
        # The database's time: many machines' clocks are wrong, and all workers must agree on what is due.
        now = await self._execute(calls_read.server_time())
        registry = self._app.periodic_registry
        due = due_ticks(registry, now=now, since=self._ticked_until, max_delay=self._max_delay)
        again = [tick for tick in self._refused if tick.at > now - self._max_delay]
        refused = [tick for tick in again if not await self._defer_tick(tick, first=False)]
        refused += [tick for tick in due if not await self._defer_tick(tick, first=True)]
        self._ticked_until, self._refused = now, refused
        upcoming = next_tick(registry, after=now)
        pause = LONGEST_PAUSE if refused else self._interval
        return pause if upcoming is None else min(pause, (upcoming - now).total_seconds() + 0.01)

    async def _defer_tick(self, tick: Tick, *, first: bool) -> bool:
        """Defer one tick's job; say whether that is settled. One that can't be must keep no other waiting."""
        name, at = tick.periodic.task.name, tick.at.isoformat()
        extra = {"task": name, "tick": at}
        try:
            answer = await self._execute(tick.call())
        except DatabaseUnavailable:
            raise
        except Exception as error:
            if isinstance(error, NotPermitted) and error.sqlstate == NotPermitted.code:
                # Limited to other queues: who works for this one does it.
                logger.info("Periodic task %s is left to others: %s", name, error, extra=extra)
                return True
            if first:
                logger.warning(
                    "Periodic task %s, planned for %s, can't be deferred, trying again: %s", name, at, error,
                    exc_info=not isinstance(error, PljobsException), extra=extra,
                )  # fmt: skip
            return False
        if answer.outcome != "already_deferred":
            logger.info(
                "Periodic task %s, planned for %s: %s", name, at, answer.outcome,
                extra=extra | {"job_id": answer.job_id},
            )  # fmt: skip
        return True


class Manager:
    """Do the maintenance in a process of its own: `await manager.run()`, until `stop()` or a signal."""

    def __init__(
        self,
        app: App,
        *,
        interval: float = 10.0,
        retention: timedelta | None = None,
        archive: bool = False,
        max_crashes: int = 3,
        install_signal_handlers: bool = True,
    ) -> None:
        if interval <= 0:
            raise InvalidArgument(f"interval must be more than 0 s, not {interval}")
        self._app = app
        self._interval = interval
        self._retention = Retention.of(retention, archive=archive)
        self._max_crashes = max_crashes
        self._install_signal_handlers = install_signal_handlers
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End `run()` after what is under way."""
        self._stopping.set()

    async def run(self) -> None:
        """Run until stopped; a database that goes away is waited for."""
        link = Link(self._app.connector, Outage("The manager"))
        maintenance = Maintenance(
            self._app,
            link.execute,
            interval=self._interval,
            retention=self._retention,
            max_crashes=self._max_crashes,
        )
        try:
            with stop_on_signals(self.stop, install=self._install_signal_handlers):
                await maintenance.run(self._stopping)
        finally:
            await link.close()
