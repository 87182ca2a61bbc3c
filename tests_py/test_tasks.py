"""Tasks: what is declared, what a call of one becomes, and what is refused."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from pljobs import App, Job, JobContext, Status, deferring
from pljobs.deferring import BATCH_JOBS
from pljobs.exceptions import (
    AlreadyEnqueued,
    AppNotOpen,
    FunctionPathError,
    InvalidArgument,
    InvalidJob,
    UnboundTaskError,
)


@pytest.fixture
def app(db_url: str) -> Iterator[App]:
    with App(db_url).open() as opened:
        yield opened


def job(app: App, job_id: int) -> Job:
    return app.job_manager.get_job(job_id)


def count(app: App) -> int:
    return len(app.job_manager.list_jobs())


def plain(a: int, b: int = 2) -> int:
    """Add."""
    return a + b


def test_a_task_is_still_a_function(app: App) -> None:
    task = app.task(plain)
    assert task(1) == 3
    shown = vars(task)
    assert (shown["__name__"], shown["__doc__"], shown["__module__"]) == ("plain", "Add.", __name__)
    assert task.name == f"{__name__}.plain"
    assert repr(task) == f"<Task {__name__}.plain>"


def test_a_deferred_job_has_the_defaults_of_its_task(app: App) -> None:
    @app.task(name="t", queue="q", priority=5, lock="l", queueing_lock="ql")
    def task(a: int) -> None: ...

    found = job(app, task.defer(a=1))
    assert (found.task_name, found.queue, found.priority, found.lock, found.queueing_lock) == (
        "t",
        "q",
        5,
        "l",
        "ql",
    )
    assert (found.status, found.task_kwargs, found.attempts) == (Status.TODO, {"a": 1}, 0)


def test_configure_overrides_the_defaults_for_one_job(app: App) -> None:
    @app.task(name="t", queue="q", priority=5, lock="l", queueing_lock="ql")
    def task(a: int, b: int) -> None: ...

    at = datetime(2030, 1, 1, tzinfo=UTC)
    deferrer = task.configure(
        queue="q2", priority=0, lock="l2", queueing_lock="ql2", schedule_at=at, task_kwargs={"a": 1, "b": 1}
    )
    found = job(app, deferrer.defer(b=2))
    assert (found.queue, found.priority, found.lock, found.queueing_lock) == ("q2", 0, "l2", "ql2")
    assert (found.scheduled_at, found.waiting_for, found.task_kwargs) == (at, "schedule", {"a": 1, "b": 2})


@pytest.mark.parametrize("schedule_in", [{"hours": 1}, timedelta(hours=1), 3600])
def test_schedule_in_counts_from_now(app: App, schedule_in: Any) -> None:
    task = app.task(plain)
    found = job(app, task.configure(schedule_in=schedule_in).defer(a=1))
    assert found.scheduled_at is not None
    assert abs(found.scheduled_at - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=1)


def test_what_should_have_started_already_starts_at_once(app: App) -> None:
    task = app.task(plain)
    with app.open():
        ids = [
            task.configure(schedule_in={"seconds": -5}).defer(),
            task.configure(schedule_at=datetime.now(UTC) - timedelta(seconds=5)).defer(),
        ]
        assert [app.job_manager.get_job(job_id).waiting_for for job_id in ids] == [None, None]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule_at": datetime(2030, 1, 1, tzinfo=UTC), "schedule_in": 3}, "not both"),
        ({"schedule_at": datetime(2030, 1, 1)}, "timezone-aware"),  # noqa: DTZ001
        ({"schedule_in": {"hour": 1}}, "schedule_in must be a mapping"),
        ({"schedule_in": "1 hour"}, "schedule_in must be a mapping"),
        ({"schedule_in": timedelta.max}, "schedule_in is too long"),
        ({"queue": ""}, "queue must have 1 to 255 characters"),
        ({"lock": "x" * 256}, "lock must have 1 to 255 characters"),
        ({"queueing_lock": "\0"}, "queueing_lock holds a NUL"),
        ({"priority": 2**31}, "priority must fit into 32 bits"),
        ({"priority": True}, "priority must be an int, not bool"),
    ],
)
def test_what_cant_be_is_refused_when_it_is_configured(options: dict[str, Any], said: str) -> None:
    task = App("").task(plain)
    with pytest.raises(InvalidJob, match=said) as caught:
        task.configure(**options)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""},
        {"name": "x" * 256},
        {"aliases": ["ok", "\0"]},
        {"queue": ""},
        {"lock": ""},
        {"queueing_lock": ""},
        {"priority": "high"},
        {"retry": "often"},
    ],
)
def test_a_task_that_cant_be_is_refused_when_it_is_declared(options: dict[str, Any]) -> None:
    app = App("")
    with pytest.raises(InvalidArgument):
        cast("Any", app.task)(**options)(plain)
    assert app.tasks == {}


def test_bad_arguments_are_refused_and_nothing_is_deferred(app: App) -> None:
    task = app.task(name="t")(plain)
    with pytest.raises(InvalidJob, match="task 't': the arguments hold a set at a"):
        task.defer(a={1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="given by name: 1 without one"):
        task.defer(1)
    with pytest.raises(InvalidJob):
        task.batch_defer({"a": 1}, {"a": float("nan")})
    assert count(app) == 0


def test_arguments_may_have_any_name(app: App) -> None:
    @app.task
    def task(**kwargs: object) -> None: ...

    odd = {"self": 1, "task_kwargs": 2, "args": 3, "job": 4, "lock": 5}
    assert job(app, task.defer(**odd)).task_kwargs == odd


def test_a_function_without_a_name_needs_one() -> None:
    app = App("")
    with pytest.raises(FunctionPathError, match="give it a name="):
        app.task(functools.partial(plain, b=3))
    task = app.task(name="partial")(functools.partial(plain, b=3))
    assert task(1) == 4


def test_the_queueing_lock_lets_one_wait(app: App) -> None:
    task = app.task(queueing_lock="ql")(plain)
    job_id = task.defer(a=1)
    with pytest.raises(AlreadyEnqueued, match=f"'ql' is held by waiting job {job_id}"):
        task.defer(a=2)
    with pytest.raises(AlreadyEnqueued, match="asked for by two jobs of this call"):
        task.configure(queueing_lock="other").batch_defer({"a": 1}, {"a": 2})
    assert count(app) == 1


def test_a_batch_is_deferred_in_order(app: App) -> None:
    task = app.task(plain)
    ids = task.batch_defer({"a": 1}, {"a": 2}, {"a": 3})
    assert [job(app, job_id).task_kwargs["a"] for job_id in ids] == [1, 2, 3]
    assert task.configure(task_kwargs={"b": 7}).batch_defer() == []


def test_a_batch_of_many_chunks_is_deferred_whole_or_not_at_all(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = app.task(plain)
    many: list[dict[str, object]] = [{"a": n} for n in range(2 * BATCH_JOBS + 1)]
    assert len(task.batch_defer(*many)) == len(many)
    assert count(app) == len(many)

    # One job a chunk: the first is fine, the second meets its queueing lock.
    monkeypatch.setattr(deferring, "BATCH_JOBS", 1)
    with pytest.raises(AlreadyEnqueued):
        task.configure(queueing_lock="ql").batch_defer({"a": 1}, {"a": 2})
    assert count(app) == len(many)


async def test_a_large_batch_is_all_or_nothing_async_too(
    db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(db_url)
    task = app.task(plain)
    many: list[dict[str, object]] = [{"a": n} for n in range(BATCH_JOBS + 1)]
    async with app.open_async():
        assert len(await task.batch_defer_async(*many)) == len(many)
        monkeypatch.setattr(deferring, "BATCH_JOBS", 1)
        with pytest.raises(AlreadyEnqueued):
            await task.configure(queueing_lock="ql").batch_defer_async({"a": 1}, {"a": 2})
        assert len(await app.job_manager.list_jobs_async()) == len(many)


def test_large_arguments_go_in_chunks_too(app: App) -> None:
    task = app.task(plain)
    assert len(task.batch_defer(*[{"a": "x" * 1_000_000}] * 10)) == 10


async def test_async_twins(db_url: str) -> None:
    app = App(db_url)
    task = app.task(plain)
    async with app.open_async():
        first = await task.defer_async(a=1)
        second = await task.configure(queue="q").defer_async(a=2)
        third, fourth = await task.batch_defer_async({"a": 3}, {"a": 4})
        jobs = await app.job_manager.list_jobs_async()
    assert [found.id for found in jobs] == [first, second, third, fourth]


def test_the_context_is_not_an_argument_of_the_job(app: App) -> None:
    @app.task(pass_context=True)
    def task(context: JobContext, a: int) -> None: ...

    assert job(app, task.defer(a=1)).task_kwargs == {"a": 1}


def test_deferring_needs_an_open_app() -> None:
    task = App("").task(plain)
    with pytest.raises(AppNotOpen, match=r"app\.open\(\)"):
        task.defer(a=1)


async def test_deferring_async_needs_an_app_opened_for_async(app: App) -> None:
    task = app.task(plain)
    with pytest.raises(AppNotOpen, match=r"await app\.open_async\(\)"):
        await task.defer_async(a=1)


def test_a_task_of_a_blueprint_alone_cant_be_deferred() -> None:
    from pljobs import Blueprint

    task = Blueprint().task(plain)
    with pytest.raises(UnboundTaskError, match="add_tasks_from"):
        task.defer(a=1)


def test_the_log_of_a_defer_carries_the_id_and_no_arguments(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    task = app.task(name="t")(plain)
    with caplog.at_level(logging.DEBUG):
        job_id = task.configure(task_kwargs={"b": 1}).defer(a="hunter2")
    (record,) = [record for record in caplog.records if getattr(record, "action", "") == "job_defer"]
    assert record.getMessage() == f"Deferred job t[{job_id}]"
    assert "hunter2" not in str(vars(record))
    assert "hunter2" not in caplog.text


def test_a_generator_function_is_no_task(app: App) -> None:
    def generates() -> Iterator[int]:
        yield 1

    async def generates_async() -> AsyncIterator[int]:
        yield 1

    for function in (generates, generates_async):
        with pytest.raises(InvalidArgument, match="generator"):
            app.task(name="t")(function)
