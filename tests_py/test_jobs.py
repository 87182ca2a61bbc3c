"""What a job says of itself, and what it never says."""

from __future__ import annotations

import dataclasses
import threading
from datetime import UTC, datetime

import pytest

import pljobs
from pljobs import exceptions
from pljobs.aborting import AbortFlag
from pljobs.job_context import JobContext
from pljobs.jobs import AbortReason, DeleteJobCondition, Job, Status

SECRET = "hunter2"


def test_a_job_never_shows_its_arguments_result_or_error() -> None:
    job = Job(id=3, task_name="t", task_kwargs={"password": SECRET}, result=SECRET, error=SECRET)
    for shown in (repr(job), str(job), job.call_string, str(job.log_context())):
        assert SECRET not in shown
    assert job.call_string == "t[3]"
    assert job.log_context()["task_name"] == "t"


def test_a_job_is_frozen_and_evolves_into_a_copy() -> None:
    job = Job(task_name="t", scheduled_at=datetime(2030, 1, 1, tzinfo=UTC))
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.id = 3  # type: ignore[misc]
    assert job.evolve(id=3).id == 3
    assert job.id is None
    assert job.log_context()["scheduled_at"] == "2030-01-01T00:00:00+00:00"
    assert hash(job) == hash(job.evolve())


def test_statuses_are_text_and_know_whether_they_are_final() -> None:
    assert Status("todo") == "todo"
    assert [status for status in Status if not status.is_final] == [Status.TODO, Status.DOING]
    assert [str(condition) for condition in DeleteJobCondition] == ["never", "successful", "always"]


def test_job_aborted_is_not_eaten_by_except_exception() -> None:
    assert not issubclass(exceptions.JobAborted, Exception)
    assert str(exceptions.JobAborted("custom message")) == "custom message"


def test_every_exception_is_in_the_tree_and_in_its_docstring() -> None:
    classes = [
        cls for cls in vars(exceptions).values() if isinstance(cls, type) and issubclass(cls, BaseException)
    ]
    for cls in classes:
        if cls is not exceptions.JobAborted:
            assert issubclass(cls, exceptions.PljobsException)
        assert cls.__name__ in (exceptions.PljobsException.__doc__ or "")
    codes = [cls.__dict__["code"] for cls in classes if cls.__dict__.get("code")]
    assert sorted(codes) == [f"PJ{number:03}" for number in range(1, 14)]
    assert {exceptions.BY_CODE[code].code for code in codes} == set(codes)


@pytest.mark.parametrize("first", AbortReason)
@pytest.mark.parametrize("second", AbortReason)
def test_the_stronger_reason_wins_whatever_the_order(first: AbortReason, second: AbortReason) -> None:
    strongest_first = [
        AbortReason.USER_REQUEST,
        AbortReason.RUN_LOST,
        AbortReason.DEADLINE,
        AbortReason.LEASE,
        AbortReason.SHUTDOWN,
    ]
    flag = AbortFlag()
    assert (flag.is_set(), flag.reason) == (False, None)
    assert flag.set(first) is True
    changed = flag.set(second)
    assert flag.reason is min(first, second, key=strongest_first.index)
    assert changed is (strongest_first.index(second) < strongest_first.index(first))


def test_a_thread_waits_for_the_flag() -> None:
    flag = AbortFlag()
    assert flag.wait(0) is False
    threading.Timer(0.01, flag.set, [AbortReason.SHUTDOWN]).start()
    assert flag.wait(10) is True


def test_a_context_tells_whether_and_why_to_stop() -> None:
    app = pljobs.App("")

    @app.task(pass_context=True)
    def task(context: JobContext) -> bool:
        return context.should_abort()

    context = JobContext(app=app, job=Job(task_name="t"), task=task, worker_name="w")
    assert task(context) is False
    assert context.abort_reason() is None
    assert context.worker == "w"
    later = context.evolve(worker_id=3)
    context.abort_flag.set(AbortReason.USER_REQUEST)
    assert task(later) is True
    assert later.abort_reason() is AbortReason.USER_REQUEST
