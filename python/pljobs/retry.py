"""Retry strategies: what to do when a job fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import datetime, timedelta

from pljobs import checks
from pljobs.exceptions import InvalidArgument
from pljobs.jobs import Job

LONGEST_WAIT = timedelta(days=3650)


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class RetryDecision:
    """Decide that a job runs again: when, and in which queue, priority and lock if they change.

    Give at most one of `retry_at`, a timezone-aware time, and `retry_in`, a mapping such as `{"minutes": 5}`,
    a timedelta, or a number of seconds, which the database's clock counts; neither means at once. Raises
    `InvalidArgument` (a ValueError) otherwise. Follows procrastinate's class of the same name.
    """

    retry_at: datetime | None
    retry_in: timedelta | None
    queue: str | None
    priority: int | None
    lock: str | None

    def __init__(
        self,
        *,
        retry_in: checks.Interval | None = None,
        retry_at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        lock: str | None = None,
    ) -> None:
        if retry_in is not None and retry_at is not None:
            raise InvalidArgument("give retry_in or retry_at, not both")
        at = wait = None
        if retry_at is not None:
            at = checks.aware("retry_at", retry_at)
        else:
            wait = checks.interval("retry_in", retry_in if retry_in is not None else 0)
        object.__setattr__(self, "retry_at", at)
        object.__setattr__(self, "retry_in", wait)
        object.__setattr__(self, "queue", checks.optional_name("queue", queue))
        object.__setattr__(self, "priority", None if priority is None else checks.priority(priority))
        object.__setattr__(self, "lock", checks.optional_name("lock", lock))


class BaseRetryStrategy:
    """Inherit from this to decide yourself; override `get_retry_decision`.

    Where a strategy raises, the job is not retried: it ends `failed`, with what the strategy raised in the
    log.
    """

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        """Return when to run the job again, or None to let it end `failed`.

        `job.attempts` counts the runs before the one that failed: 0 for the first failure.
        """
        if not isinstance(exception, Exception):
            return None
        seconds = self.get_schedule_in(exception=exception, attempts=job.attempts)
        return None if seconds is None else RetryDecision(retry_in=seconds)

    def get_schedule_in(self, *, exception: Exception, attempts: int) -> float | None:
        """Return the seconds until the next run, or None: the older form, which decides only the time."""
        raise NotImplementedError(f"{type(self).__name__} must define get_retry_decision")


@dataclasses.dataclass(kw_only=True)
class RetryStrategy(BaseRetryStrategy):
    """Retry up to `max_attempts` times (None: for ever), waiting longer each time, at most ten years.

    The wait before the next run, in seconds, is `wait + linear_wait * attempts + exponential_wait **
    (attempts + 1)`, `attempts` being 0 after the first failure. With `retry_exceptions`, only these
    exceptions are retried, also where they come inside of an exception group. Follows procrastinate's class
    of the same name.
    """

    max_attempts: int | None = None
    wait: float = 0
    linear_wait: float = 0
    exponential_wait: float = 0
    retry_exceptions: Iterable[type[BaseException]] | None = None

    def __post_init__(self) -> None:
        if self.retry_exceptions is not None:
            self.retry_exceptions = tuple(self.retry_exceptions)
        for name in ("wait", "linear_wait", "exponential_wait"):
            if getattr(self, name) < 0:
                raise InvalidArgument(f"{name} must not be negative")

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        """Return when to run the job again; None if tried often enough, or for the wrong exception."""
        if self.max_attempts is not None and job.attempts >= self.max_attempts:
            return None
        if self.retry_exceptions is not None and not _matches(exception, tuple(self.retry_exceptions)):
            return None
        return RetryDecision(retry_in=self._wait(job.attempts))

    def _wait(self, attempts: int) -> timedelta:
        try:
            # As a float: an int of thousands of digits is slow before it is refused.
            growing = float(self.exponential_wait) ** (attempts + 1)
            return min(timedelta(seconds=self.wait + self.linear_wait * attempts + growing), LONGEST_WAIT)
        except OverflowError:
            return LONGEST_WAIT


RetryValue = bool | int | BaseRetryStrategy


def get_retry_strategy(retry: RetryValue) -> BaseRetryStrategy | None:
    """Read what a task's `retry` says: False never, True for ever, an int so many times, or a strategy."""
    if isinstance(retry, BaseRetryStrategy):
        return retry
    if not isinstance(retry, int):
        raise InvalidArgument(f"retry must be a bool, an int or a strategy, not {type(retry).__name__}")
    if retry is True:
        return RetryStrategy()
    if retry < 0:
        raise InvalidArgument("retry must not be negative")
    return RetryStrategy(max_attempts=retry) if retry else None


def _matches(exception: BaseException, types: tuple[type[BaseException], ...]) -> bool:
    if isinstance(exception, types):
        return True
    return isinstance(exception, BaseExceptionGroup) and exception.subgroup(types) is not None
