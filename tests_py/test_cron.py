"""Two years of ticks, leap day included, on machines in six zones: what is planned, and deferred once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import psycopg
import pytest

from pljobs import App, db
from pljobs.periodic import due_ticks

START, END = datetime(2027, 1, 1, tzinfo=UTC), datetime(2029, 1, 1, tzinfo=UTC)
QUARTER = timedelta(minutes=15)
# Of an hour; at midnight; of half an hour; twice a year by the moon; none, and a quarter off.
ZONES = [
    "Europe/Berlin", "America/New_York", "America/Santiago", "Australia/Lord_Howe", "Africa/Casablanca",
    "Asia/Kathmandu",
]  # fmt: skip
PLANS: dict[str, Callable[[datetime], bool]] = {
    "30 2 * 3 *": lambda at: (at.month, at.hour, at.minute) == (3, 2, 30),
    "15 0 * * sun": lambda at: (at.isoweekday(), at.hour, at.minute) == (7, 0, 15),
    "0 0 29 2 *": lambda at: (at.month, at.day, at.hour, at.minute) == (2, 29, 0, 0),
    "0 12 31 * *": lambda at: (at.day, at.hour, at.minute) == (31, 12, 0),
    "45 23 28-31 2,3,10,11 *": lambda at: (
        at.month in {2, 3, 10, 11} and at.day >= 28 and (at.hour, at.minute) == (23, 45)
    ),
    "*/30 0-3 * mar sun": lambda at: (
        at.month == 3 and at.isoweekday() == 7 and at.hour <= 3 and at.minute % 30 == 0
    ),
    "*/15 1,2 * nov sun": lambda at: at.month == 11 and at.isoweekday() == 7 and at.hour in {1, 2},
}


def quarters() -> Iterator[datetime]:
    """Go through all quarters of an hour of these years."""
    at = START
    while at < END:
        yield at
        at += QUARTER


PLANNED = {cron: [at for at in quarters() if planned(at)] for cron, planned in PLANS.items()}


# Enough to be deferred, too, by two who look.
DEFERRED = ["15 0 * * sun", "0 0 29 2 *", "0 12 31 * *"]


def an_app(url: str = "", plans: Iterable[str] = PLANS) -> App:
    app = App(url)
    for cron in plans:

        @app.periodic(cron=cron)
        @app.task(name=cron)
        def task(timestamp: int) -> None: ...

    return app


@pytest.fixture(params=ZONES)
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Let this process be in another zone."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def test_no_hour_is_skipped_or_repeated_wherever_the_machine_is(zone: str) -> None:
    for periodic in an_app().periodic_registry:
        ticks = list(periodic.ticks(since=START - QUARTER, until=END - QUARTER))
        assert ticks == PLANNED[periodic.cron], periodic.cron
        for tick, later in pairwise(ticks):  # what a worker finds that starts in between, or just then
            for now in (tick, tick + timedelta(milliseconds=1), later - timedelta(microseconds=1)):
                assert periodic.last_tick(now) == tick, (periodic.cron, now)


def test_a_task_that_wants_a_local_time_has_it_once_a_day_wherever_that_is(zone: str) -> None:
    local = ZoneInfo(zone)
    noons: Counter[date] = Counter()
    nights: Counter[date] = Counter()
    for at in quarters():
        there = at.astimezone(local)
        # What the manual says to ask in the task.
        if (there.hour, there.minute) == (9, 0) and not there.fold:
            noons[there.date()] += 1
        if (there.hour, there.minute) == (2, 15) and not there.fold:
            nights[there.date()] += 1
    days = [START.date() + timedelta(days=day) for day in range(1, (END - START).days - 1)]
    assert {noons[day] for day in days} == {1}
    # A time that is skipped does not come that day; one that is repeated comes once.
    skipped = {
        day for day in days if not _exists(datetime(day.year, day.month, day.day, 2, 15, tzinfo=local))
    }
    assert {day for day in days if nights[day] == 0} == skipped
    assert {nights[day] for day in days} <= {0, 1}


def test_each_tick_of_two_years_is_one_job_however_many_look_and_whenever(
    db_url: str, conn: psycopg.Connection
) -> None:
    """Two deferrers, which look at different times, and one of which is away for days now and then."""
    app = an_app(db_url, DEFERRED)
    registry = list(app.periodic_registry)
    looked = [START - QUARTER, START - QUARTER]
    now, step = START, 0
    while now < END:
        step += 1
        now = min(now + timedelta(hours=(11, 35, 50)[step % 3], minutes=step % 60), END)
        for who in (0, 1) if step % 5 else (0,):
            until = now - QUARTER
            for tick in due_ticks(registry, now=until, since=looked[who], max_delay=timedelta(days=9)):
                db.run(conn, tick.call())
            looked[who] = until
    found: dict[str, list[datetime]] = {cron: [] for cron in DEFERRED}
    for cron, at in conn.execute("SELECT task, (args -> 'timestamp')::bigint FROM pljobs.jobs ORDER BY 2"):
        found[cron].append(datetime.fromtimestamp(at, UTC))
    assert found == {cron: PLANNED[cron] for cron in DEFERRED}


def _exists(at: datetime) -> bool:
    return at.astimezone(UTC).astimezone(at.tzinfo).replace(tzinfo=None) == at.replace(tzinfo=None)
