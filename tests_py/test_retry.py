"""Retry strategies: when a failed job runs again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pljobs import App, BaseRetryStrategy, Job, RetryDecision, RetryStrategy
from pljobs.exceptions import InvalidArgument
from pljobs.retry import LONGEST_WAIT, get_retry_strategy


def a_job(attempts: int = 0) -> Job:
    return Job(task_name="t", attempts=attempts)


def wait_of(decision: RetryDecision | None) -> float:
    assert decision is not None
    assert decision.retry_at is None
    assert decision.retry_in is not None
    return round(decision.retry_in.total_seconds())


@pytest.mark.parametrize(
    ("strategy", "waits"),
    [
        (RetryStrategy(), [0, 0, 0, 0]),
        (RetryStrategy(wait=5), [5, 5, 5, 5]),
        (RetryStrategy(linear_wait=5), [0, 5, 10, 15]),
        (RetryStrategy(exponential_wait=5), [5, 25, 125, 625]),
        (RetryStrategy(wait=1, linear_wait=2, exponential_wait=3), [4, 12, 32, 88]),
        (RetryStrategy(max_attempts=2, wait=1), [1, 1, None, None]),
        (RetryStrategy(max_attempts=0), [None, None, None, None]),
    ],
)
def test_the_wait_grows_as_documented(strategy: RetryStrategy, waits: list[float | None]) -> None:
    for attempts, expected in enumerate(waits):
        decision = strategy.get_retry_decision(exception=ValueError(), job=a_job(attempts))
        assert (None if decision is None else wait_of(decision)) == expected


def test_a_wait_that_would_never_end_is_ten_years() -> None:
    for strategy in (RetryStrategy(exponential_wait=10), RetryStrategy(linear_wait=1e300)):
        decision = strategy.get_retry_decision(exception=ValueError(), job=a_job(5000))
        assert wait_of(decision) == LONGEST_WAIT.total_seconds()


def test_only_the_chosen_exceptions_are_retried_also_inside_groups() -> None:
    strategy = RetryStrategy(retry_exceptions=(error for error in (KeyError, OSError)))

    def is_retried(exception: BaseException) -> bool:
        return strategy.get_retry_decision(exception=exception, job=a_job()) is not None

    assert is_retried(KeyError())
    assert is_retried(FileNotFoundError())
    assert is_retried(ExceptionGroup("a", [ValueError(), ExceptionGroup("b", [KeyError()])]))
    assert not is_retried(ValueError())
    assert not is_retried(ExceptionGroup("a", [ValueError()]))


def test_shorthands() -> None:
    assert get_retry_strategy(False) is None
    assert get_retry_strategy(0) is None
    assert get_retry_strategy(True) == RetryStrategy()
    assert get_retry_strategy(5) == RetryStrategy(max_attempts=5)
    own = BaseRetryStrategy()
    assert get_retry_strategy(own) is own
    for bad in (-1, "5", 1.5):
        with pytest.raises(InvalidArgument):
            get_retry_strategy(bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        RetryStrategy(wait=-1)


def test_a_decision_takes_a_time_or_a_length_of_time() -> None:
    at = datetime(2030, 1, 1, 12, tzinfo=UTC)
    decision = RetryDecision(retry_at=at, priority=3, queue="q", lock="l")
    assert (decision.retry_at, decision.priority, decision.queue, decision.lock) == (at, 3, "q", "l")
    for retry_in in ({"minutes": 1}, timedelta(minutes=1), 60, 60.0):
        assert wait_of(RetryDecision(retry_in=retry_in)) == 60
    assert wait_of(RetryDecision()) == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"retry_in": 1, "retry_at": datetime(2030, 1, 1, tzinfo=UTC)},
        {"retry_at": datetime(2030, 1, 1)},  # noqa: DTZ001
        {"retry_in": {"lightyears": 1}},
        {"retry_in": 1e300},
        {"retry_in": timedelta.max},
        {"queue": ""},
        {"lock": "a\0"},
        {"priority": 2**31},
    ],
)
def test_a_decision_that_cant_be_is_refused_where_it_is_made(bad: Any) -> None:
    with pytest.raises(InvalidArgument):
        RetryDecision(**bad)


def test_own_strategies_decide_in_the_new_form_or_the_old_one() -> None:
    class New(BaseRetryStrategy):
        def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
            return RetryDecision(retry_in=7, queue="slow") if job.attempts < 2 else None

    class Old(BaseRetryStrategy):
        def get_schedule_in(self, *, exception: Exception, attempts: int) -> float | None:
            return 7 if attempts < 2 else None

    for strategy in (New(), Old()):
        app = App("")

        @app.task(retry=strategy)
        def task() -> None: ...

        assert wait_of(task.get_retry_decision(exception=ValueError(), job=a_job(1))) == 7
        assert task.get_retry_decision(exception=ValueError(), job=a_job(2)) is None
    assert Old().get_retry_decision(exception=KeyboardInterrupt(), job=a_job()) is None
    with pytest.raises(NotImplementedError, match="must define get_retry_decision"):
        BaseRetryStrategy().get_retry_decision(exception=ValueError(), job=a_job())
