"""Periodic tasks: which there are, and which of their ticks are due."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypedDict

from pljobs import calls, checks
from pljobs.answers import Call, PeriodicResult
from pljobs.exceptions import InvalidArgument, MissingExtra, TaskAlreadyRegistered
from pljobs.tasks import AnyTask, Task

MAX_DELAY = timedelta(minutes=10)


class PeriodicOptions(TypedDict, total=False):
    """Say how the jobs of a periodic task are deferred; see `DeferOptions`."""

    lock: str | None
    queueing_lock: str | None
    task_kwargs: Mapping[str, object] | None
    queue: str | None
    priority: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class PeriodicTask:
    """Hold one task with one cron expression, in UTC."""

    task: AnyTask
    cron: str
    periodic_id: str
    configure_kwargs: PeriodicOptions

    def next_tick(self, after: datetime) -> datetime:
        """Return the first planned time after this one."""
        return _from_timestamp(_croniter(self.cron, after.timestamp()).get_next(float))

    def ticks(self, *, since: datetime, until: datetime) -> Iterator[datetime]:
        """Go through the planned times after `since`, up to and with `until`."""
        times = _croniter(self.cron, since.timestamp())
        while (tick := _from_timestamp(times.get_next(float))) <= until:
            yield tick

    def last_tick(self, until: datetime) -> datetime:
        """Return the last planned time up to and with this one."""
        # The last before the next whole second: planned times have no fractions.
        return _from_timestamp(_croniter(self.cron, math.floor(until.timestamp()) + 1).get_prev(float))


@dataclasses.dataclass(frozen=True, slots=True)
class Tick:
    """Hold one planned time of one periodic task."""

    periodic: PeriodicTask
    at: datetime

    @property
    def timestamp(self) -> int:
        """Return the planned time in seconds since 1970, as the task gets it."""
        return int(self.at.timestamp())

    def call(self) -> Call[PeriodicResult]:
        """Return the call that defers this tick's job, at most once however many workers make it."""
        task = self.periodic.task
        options = self.periodic.configure_kwargs
        deferrer = task.configure(**options)
        job = deferrer.job.evolve(task_kwargs={**deferrer.job.task_kwargs, "timestamp": self.timestamp})
        dumps = task.blueprint.bound_to().connector.json_dumps
        return calls.defer_periodic_job(self.periodic.periodic_id, tick=self.at, job=job, dumps=dumps)


class PeriodicRegistry:
    """Know the periodic tasks of an app or blueprint; iterate to get them."""

    def __init__(self) -> None:
        self._tasks: list[PeriodicTask] = []

    def __iter__(self) -> Iterator[PeriodicTask]:
        return iter(list(self._tasks))

    def __len__(self) -> int:
        return len(self._tasks)

    def register_task(
        self,
        task: AnyTask,
        *,
        cron: str,
        periodic_id: str = "",
        configure_kwargs: PeriodicOptions | None = None,
    ) -> PeriodicTask:
        """Register a periodic task; raises `InvalidArgument`, `TaskAlreadyRegistered`, `MissingExtra`."""
        if len(periodic_id) > 255 or not checks.is_storable(periodic_id):
            raise InvalidArgument(
                "periodic_id must have at most 255 characters, without NUL and lone surrogates"
            )
        if not isinstance(task, Task):
            raise InvalidArgument(f"{task!r} is no task: write @app.periodic above @app.task")
        options = configure_kwargs or {}
        unknown = set(options) - set(PeriodicOptions.__annotations__)
        if unknown:
            raise InvalidArgument(f"a periodic task can't be configured with {', '.join(sorted(unknown))}")
        _check_options(options)
        _check_cron(cron)
        periodic = PeriodicTask(task=task, cron=cron, periodic_id=periodic_id, configure_kwargs=options)
        self._refuse_known(periodic)
        self._tasks.append(periodic)
        return periodic

    def update(self, other: PeriodicRegistry) -> None:
        """Add another registry's periodic tasks, all or none; raises `TaskAlreadyRegistered`."""
        for periodic in other:
            self._refuse_known(periodic)
        self._tasks += other

    def _refuse_known(self, new: PeriodicTask) -> None:
        for known in self._tasks:
            if known.task is new.task and known.periodic_id == new.periodic_id:
                raise TaskAlreadyRegistered(
                    f"task {new.task.name} is periodic already, with periodic_id {new.periodic_id!r}:"
                    " give each its own"
                )


def _check_options(options: PeriodicOptions) -> None:
    """Refuse at once what would be refused at each tick."""
    for what in ("queue", "lock", "queueing_lock"):
        if (value := options.get(what)) is not None:
            checks.name(what, value)
    if (priority := options.get("priority")) is not None:
        checks.priority(priority)
    if not isinstance(options.get("task_kwargs") or {}, Mapping):
        raise InvalidArgument("task_kwargs must be a mapping of names to values")


def due_ticks(
    tasks: Iterable[PeriodicTask],
    *,
    now: datetime,
    since: datetime | None = None,
    max_delay: timedelta = MAX_DELAY,
) -> list[Tick]:
    """Return the ticks planned after `since`, up to and with `now`, earliest first.

    None older than `max_delay`: a task that is new, or workers that were all down, don't cause old work.
    Without `since` (a worker that just started), the latest tick of each task.
    """
    oldest = now - max_delay
    due = []
    for periodic in tasks:
        if since is not None:
            due += [Tick(periodic, at) for at in periodic.ticks(since=max(since, oldest), until=now)]
        elif (latest := periodic.last_tick(now)) > oldest:
            due.append(Tick(periodic, latest))
    return sorted(due, key=lambda tick: tick.at)


def next_tick(tasks: Iterable[PeriodicTask], *, after: datetime) -> datetime | None:
    """Return the next planned time of any of these tasks; None where there is none."""
    return min((periodic.next_tick(after) for periodic in tasks), default=None)


class _Croniter(Protocol):
    def get_next(self, ret_type: type[float]) -> float: ...

    def get_prev(self, ret_type: type[float]) -> float: ...


def _croniter(cron: str, start: float) -> _Croniter:
    try:
        module = importlib.import_module("croniter")
    except ImportError:
        raise MissingExtra("periodic tasks need croniter: pip install 'pljobs[periodic]'") from None
    made: _Croniter = module.croniter(cron, start)
    return made


def _check_cron(cron: str) -> None:
    if not isinstance(cron, str):
        raise InvalidArgument(f"cron must be text, not {type(cron).__name__}")
    if len(cron.split()) > 6:
        raise InvalidArgument(f"cron {cron!r} has more than six fields")
    if re.search(r"(?<![^\s,])r(?![a-z])", cron, re.IGNORECASE):
        raise InvalidArgument(f"cron {cron!r} is random (R): each worker would have ticks of its own")
    try:
        # get_next finds out that a date never comes.
        _croniter(cron, datetime.now(UTC).timestamp()).get_next(float)
    except MissingExtra:
        raise
    except Exception as exc:
        raise InvalidArgument(f"cron {cron!r} can't be: {exc}") from exc


def _from_timestamp(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, tz=UTC)
