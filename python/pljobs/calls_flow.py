"""The SQL functions of flow control: throttles of queues, of their keys, and of tasks."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from typing import Literal

from pljobs import checks
from pljobs.answers import Call


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """Hold what limits a queue (`scope` "queue"), each fairness key of a queue ("key"), or a task ("task").

    `max_running`: how many run at once; `rate` of them start each `period`, `burst` at once after a quiet
    time; None: no limit. `running`: how many run now (None for "key").
    """

    scope: Literal["queue", "key", "task"]
    name: str
    max_running: int | None
    running: int | None
    rate: int | None
    period: timedelta | None
    burst: int | None
    set_by: str
    set_at: datetime


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Hold the limits of a throttle that is to be set; without any, it is taken away."""

    max_running: int | None = None
    rate: int | None = None
    period: checks.Interval | None = None
    burst: int | None = None

    def params(self) -> dict[str, object]:
        """Return them as parameters; raises `InvalidArgument` for a period that is none."""
        period = checks.positive_interval("period", self.period)
        return {
            "max_running": self.max_running,
            "rate": self.rate,
            "period": None if period is None else checks.as_interval(period),
            "burst": self.burst,
        }


def throttle_queue(queue: str, limits: Limits, *, each_key: bool = False) -> Call[str]:
    """Limit what runs of a queue, or of each key in it: `throttled`, `unthrottled` or `unchanged`."""
    return Call(
        "SELECT pljobs.throttle_queue_v1(queue => %(queue)s::text, max_running => %(max_running)s::integer,"
        " rate => %(rate)s::integer, period => %(period)s::interval, burst => %(burst)s::integer,"
        " each_key => %(each_key)s::boolean) AS outcome",
        {
            "queue": checks.name("queue", queue),
            "each_key": checks.flag("each_key", each_key),
            **limits.params(),
        },
        lambda rows: str(rows[0]["outcome"]),
    )


def throttle_task(task: str, limits: Limits) -> Call[str]:
    """Limit what runs of a task: `throttled`, `unthrottled` or `unchanged`."""
    return Call(
        "SELECT pljobs.throttle_task_v1(task => %(task)s::text, max_running => %(max_running)s::integer,"
        " rate => %(rate)s::integer, period => %(period)s::interval, burst => %(burst)s::integer) AS outcome",
        {"task": checks.name("task", task), **limits.params()},
        lambda rows: str(rows[0]["outcome"]),
    )


def list_throttles() -> Call[list[Throttle]]:
    """Read all throttles, and how much of them is used."""
    return Call(
        "SELECT t.scope, t.name, t.max_running, t.running, t.rate, extract(epoch FROM t.period) AS period,"
        " t.burst, t.set_by, t.set_at FROM pljobs.throttles AS t ORDER BY t.scope, t.name",
        {},
        lambda rows: [
            Throttle(**row | {"period": row["period"] and timedelta(seconds=float(row["period"]))})
            for row in rows
        ],
    )
