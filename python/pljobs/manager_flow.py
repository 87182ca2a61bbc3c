"""The part of the job manager that limits how much runs, and how fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pljobs import calls_flow, checks
from pljobs.calls_flow import Limits, Throttle
from pljobs.twins import Question, twins

if TYPE_CHECKING:
    from pljobs.connector import PsycopgConnector


class Throttles:
    """Hold what `JobManager` does to throttles."""

    connector: PsycopgConnector

    def _throttle_queue(
        self,
        queue: str,
        *,
        max_running: int | None = None,
        rate: int | None = None,
        period: checks.Interval | None = None,
        burst: int | None = None,
        each_key: bool = False,
        connection: object = None,
    ) -> Question[bool]:
        """Limit a queue over all workers; with `each_key`, each fairness key in it, beside the queue itself.

        At most `max_running` of its jobs run at once, and `rate` start each `period` (a mapping such as
        {"minutes": 1}, a timedelta or seconds); after a quiet time up to `burst` at once (None: as many as
        the rate). Replaces what was set before; without limits, takes it away. False if nothing was set and
        nothing is. What runs already goes on, and counts.
        """
        limits = Limits(max_running=max_running, rate=rate, period=period, burst=burst)
        call = calls_flow.throttle_queue(queue, limits, each_key=each_key)
        return Question(call.then(lambda outcome: outcome != "unchanged"), connection)

    throttle_queue, throttle_queue_async = twins(_throttle_queue)

    def _throttle_task(
        self,
        task: str,
        *,
        max_running: int | None = None,
        rate: int | None = None,
        period: checks.Interval | None = None,
        burst: int | None = None,
        connection: object = None,
    ) -> Question[bool]:
        """Limit a task over all workers and queues, as `throttle_queue` limits a queue."""
        limits = Limits(max_running=max_running, rate=rate, period=period, burst=burst)
        call = calls_flow.throttle_task(task, limits)
        return Question(call.then(lambda outcome: outcome != "unchanged"), connection)

    throttle_task, throttle_task_async = twins(_throttle_task)

    def _list_throttles(self) -> Question[list[Throttle]]:
        """Return what is limited, and how much of it runs."""
        return Question(calls_flow.list_throttles())

    list_throttles, list_throttles_async = twins(_list_throttles)
