"""Periodic tasks: which ticks are due, and each deferred at most once."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pljobs import App, Blueprint, db, periodic
from pljobs.exceptions import InvalidArgument, MissingExtra, TaskAlreadyRegistered
from pljobs.periodic import due_ticks, next_tick

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def app() -> App:
    return App("")


def at(hour: int = 12, minute: int = 0, second: int = 0) -> datetime:
    return NOON.replace(hour=hour, minute=minute, second=second)


def every(app: App, cron: Any, **options: Any) -> None:
    @app.periodic(cron=cron, **options)
    @app.task(name=f"{cron} {len(app.tasks)}")
    def task(timestamp: int) -> None: ...


def due(app: App, **options: Any) -> list[datetime]:
    return [tick.at for tick in due_ticks(app.periodic_registry, **options)]


def test_ticks_since_the_last_look_are_due_earliest_first(app: App) -> None:
    every(app, "*/2 * * * *")
    every(app, "* * * * *")
    found = due(app, since=at(minute=0), now=at(minute=2, second=1))
    assert found == [at(minute=1), at(minute=2), at(minute=2)]


def test_a_tick_is_due_at_its_very_time_and_not_again(app: App) -> None:
    every(app, "* * * * *")
    assert due(app, since=at(minute=0), now=at(minute=1)) == [at(minute=1)]
    assert due(app, since=at(minute=1), now=at(minute=1, second=59)) == []


def test_seconds_come_last(app: App) -> None:
    every(app, "* * * * * */20")
    assert due(app, since=at(), now=at(second=50)) == [at(second=20), at(second=40)]


def test_a_worker_that_starts_defers_only_the_latest_tick_and_none_that_is_too_old(app: App) -> None:
    every(app, "* * * * *")
    every(app, "0 11 * * *")
    assert due(app, now=at(minute=5)) == [at(minute=5)]
    assert due(app, now=at(hour=11, minute=9)) == [at(hour=11), at(hour=11, minute=9)]
    assert due(app, now=at(hour=11, minute=9), max_delay=timedelta(minutes=8)) == [at(hour=11, minute=9)]


def test_the_latest_tick_is_found_without_going_through_all_that_could_be(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = periodic._croniter, list[str]()

    def counted(cron: str, start: float) -> Any:
        made.append(cron)
        return make(cron, start)

    every(app, "* * * * * *")
    every(app, "30 2 * * *")
    monkeypatch.setattr(periodic, "_croniter", counted)
    now = at(second=5) + timedelta(milliseconds=300)
    assert due(app, now=now, max_delay=timedelta(days=1)) == [at(hour=2, minute=30), at(second=5)]
    assert len(made) == 2
    assert len(due(app, since=now - timedelta(hours=1), now=now, max_delay=timedelta(days=1))) == 3600
    assert len(made) == 4


def test_ticks_older_than_max_delay_are_dropped(app: App) -> None:
    every(app, "* * * * *")
    assert due(app, since=at(hour=8), now=at(), max_delay=timedelta(minutes=2)) == [
        at(hour=11, minute=59),
        at(),
    ]


def test_cron_means_utc_also_across_daylight_saving(app: App) -> None:
    every(app, "30 2 * * *")
    (periodic,) = app.periodic_registry
    spring = datetime(2030, 3, 31, tzinfo=UTC)
    ticks = list(periodic.ticks(since=spring, until=spring + timedelta(days=2)))
    assert ticks == [spring + timedelta(hours=2.5), spring + timedelta(days=1, hours=2.5)]


@pytest.mark.parametrize("cron", ["0 0 * MAR,apr FRI", "0 0 * * thu-fri"])
def test_names_of_days_and_months_are_known(app: App, cron: str) -> None:
    every(app, cron)
    assert len(app.periodic_registry) == 1


def test_the_next_tick_is_known(app: App) -> None:
    assert next_tick(app.periodic_registry, after=NOON) is None
    every(app, "0 13 * * *")
    every(app, "30 12 * * *")
    assert next_tick(app.periodic_registry, after=NOON) == at(minute=30)


@pytest.mark.parametrize(
    "cron",
    [
        "", "nonsense", "61 * * * *", "* * * *", "0 0 30 2 *", "* * * * * * *", 5, None,
        "H * * * *", "R * * * *", "0 r(1-5) * * *", "0,R * * * *", "R/2 * * * *",
    ],
)  # fmt: skip
def test_a_cron_that_cant_be_is_refused_where_it_is_declared(app: App, cron: Any) -> None:
    with pytest.raises(InvalidArgument, match="cron"):
        every(app, cron)
    assert len(app.periodic_registry) == 0


def test_options_of_jobs_are_taken_but_no_schedule_and_no_connection(app: App) -> None:
    for bad in (
        {"schedule_in": 3},
        {"schedule_at": NOON},
        {"connection": object()},
        {"periodic_id": "x" * 256},
    ):
        with pytest.raises(InvalidArgument):
            every(app, "* * * * *", **bad)


def test_a_task_is_periodic_once_for_each_periodic_id(app: App) -> None:
    @app.periodic(cron="0 * * * *", periodic_id="hourly")
    @app.periodic(cron="0 0 * * *", periodic_id="daily")
    @app.task
    def task(timestamp: int) -> None: ...

    assert {periodic.periodic_id for periodic in app.periodic_registry} == {"hourly", "daily"}
    with pytest.raises(TaskAlreadyRegistered, match="give each its own"):
        app.periodic(cron="0 1 * * *", periodic_id="daily")(task)


def test_without_croniter_the_extra_is_named(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "croniter", None)
    with pytest.raises(MissingExtra, match=r"pip install 'pljobs\[periodic\]'"):
        every(app, "* * * * *")


def test_a_tick_is_deferred_at_most_once_with_its_timestamp_and_options(
    db_url: str, conn: psycopg.Connection
) -> None:
    app = App(db_url)
    cats = Blueprint()

    @cats.periodic(cron="* * * * *", periodic_id="p", queue="q", priority=3, lock="l", task_kwargs={"a": 1})
    @cats.task(name="feed")
    def feed(timestamp: int, a: int) -> None: ...

    app.add_tasks_from(cats, namespace="cats")
    (tick,) = due_ticks(app.periodic_registry, now=at(minute=1, second=1))
    first = db.run(conn, tick.call())
    second = db.run(conn, tick.call())
    assert (first.outcome, second.outcome, second.job_id) == ("deferred", "already_deferred", None)
    assert first.job_id is not None
    with app.open():
        job = app.job_manager.get_job(first.job_id)
    assert (job.task_name, job.queue, job.priority, job.lock) == ("cats:feed", "q", 3, "l")
    assert job.task_kwargs == {"a": 1, "timestamp": int(at(minute=1).timestamp())}


def test_a_tick_whose_queueing_lock_is_taken_is_skipped(db_url: str, conn: psycopg.Connection) -> None:
    app = App(db_url)

    @app.periodic(cron="* * * * *")
    @app.task(queueing_lock="ql")
    def task(timestamp: int) -> None: ...

    first, second = due_ticks(app.periodic_registry, since=at(), now=at(minute=2))
    outcomes = [db.run(conn, tick.call()).outcome for tick in (first, second, second)]
    assert outcomes == ["deferred", "already_enqueued", "already_deferred"]


@pytest.mark.parametrize(
    "options", [{"priority": "x"}, {"queue": ""}, {"lock": 5}, {"task_kwargs": ["a"]}], ids=str
)
def test_what_every_tick_would_be_refused_for_is_refused_at_once(app: App, options: Any) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(options))):

        @app.periodic(cron="* * * * *", **options)
        @app.task(name="odd")
        def odd(timestamp: int) -> None: ...


def test_the_decorators_in_the_wrong_order_are_told(app: App) -> None:
    # mypy says so, too.
    with pytest.raises(InvalidArgument, match=r"write @app\.periodic above @app\.task"):

        @app.task(name="odd")  # type: ignore[type-var]
        @app.periodic(cron="* * * * *")
        def odd(timestamp: int) -> None: ...


def test_how_late_a_tick_may_be_is_a_number_of_seconds() -> None:
    with pytest.raises(InvalidArgument, match="max_delay"):
        App("", periodic_defaults={"max_delay": "600"})  # type: ignore[arg-type]
