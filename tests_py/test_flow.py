"""Flow control with real workers, the manager, the command line; its rules: _flow.sql."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from cli_fixtures import Pljobs, bare_environment, pljobs
from pljobs import App, fetching
from pljobs.exceptions import InvalidArgument, InvalidJob
from waiting import wait_until_async
from workers import LASTING, NOTIFIED, running


class Crowd:
    """Count how many of each key run at once, over all workers of this process."""

    def __init__(self) -> None:
        self.now: collections.Counter[str] = collections.Counter()
        self.most: collections.Counter[str] = collections.Counter()
        self.order: list[str] = []

    @contextlib.contextmanager
    def inside(self, key: str) -> Iterator[None]:
        self.order.append(key)
        self.now[key] += 1
        self.most[key] = max(self.most[key], self.now[key])
        try:
            yield
        finally:
            self.now[key] -= 1


@pytest.fixture
def crowd(app: App) -> Crowd:
    crowd = Crowd()

    @app.task(name="work")
    async def work(key: str) -> None:
        with crowd.inside(key):
            await asyncio.sleep(0.01)

    return crowd


async def _all_done(conn: psycopg.Connection, jobs: int) -> None:
    def done() -> bool:
        row = conn.execute("SELECT count(*) FROM pljobs.jobs WHERE status = 'succeeded'").fetchone()
        return row == (jobs,)

    await wait_until_async(done)


@pytest.mark.parametrize("each_key", [False, True], ids=["queue", "each key"])
async def test_a_limit_holds_over_several_workers(
    app: App, crowd: Crowd, conn: psycopg.Connection, each_key: bool
) -> None:
    async with app.open_async():
        assert await app.job_manager.throttle_queue_async("default", max_running=3, each_key=each_key) is True
        for key in "abcd":
            work = app.configure_task("work", fairness_key=key if each_key else None)
            await work.batch_defer_async(*({"key": key if each_key else "all"} for _ in range(15)))
        # They hear of a slot that is free by notifications alone.
        async with running(app, concurrency=5, **NOTIFIED), running(app, concurrency=5, **NOTIFIED):
            await _all_done(conn, 60)
    assert set(crowd.most) == (set("abcd") if each_key else {"all"})
    # Of four keys, which have ten slots, one may never have three at once.
    assert max(crowd.most.values()) == 3 or (each_key and max(crowd.most.values()) == 2)


async def test_a_task_s_limit_holds_and_keeps_no_others_waiting(
    app: App, crowd: Crowd, conn: psycopg.Connection
) -> None:
    @app.task(name="other")
    async def other() -> None:
        crowd.order.append("other")

    async with app.open_async():
        await app.job_manager.throttle_task_async("work", max_running=2)
        await app.configure_task("work").batch_defer_async(*({"key": "all"} for _ in range(40)))
        await other.defer_async()
        async with running(app, concurrency=5, **LASTING), running(app, concurrency=5, **LASTING):
            await _all_done(conn, 41)
    assert crowd.most["all"] == 2
    assert crowd.order.index("other") < 20


async def test_few_jobs_of_one_key_do_not_wait_for_the_many_of_another(
    app: App, crowd: Crowd, conn: psycopg.Connection
) -> None:
    async with app.open_async():
        many = app.configure_task("work", fairness_key="many")
        await many.batch_defer_async(*({"key": "many"} for _ in range(300)))
        few = app.configure_task("work", fairness_key="few")
        ids = await few.batch_defer_async(*({"key": "few"} for _ in range(5)))
        job = await app.job_manager.get_job_async(ids[0])
        assert (job.fairness_key, job.waiting_for) == ("few", "turn")
        async with running(app, concurrency=2, **LASTING):
            await _all_done(conn, 305)
    assert max(place for place, key in enumerate(crowd.order) if key == "few") < 20


async def test_a_rate_lets_so_many_start(app: App, crowd: Crowd, conn: psycopg.Connection) -> None:
    async with app.open_async():
        await app.job_manager.throttle_queue_async("default", rate=4, period={"hours": 1}, burst=6)
        await app.configure_task("work").batch_defer_async(*({"key": "all"} for _ in range(20)))
        async with running(app, concurrency=5, **LASTING):
            await _all_done(conn, 6)
            await asyncio.sleep(0.5)
            await _all_done(conn, 6)


async def test_a_rate_is_reached_between_polls(
    app: App, crowd: Crowd, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its next poll is ten minutes away; and so is a look, once some dozen in a row were in vain.
    monkeypatch.setattr(fetching, "LONGEST_SLEEP_IN_VAIN", 600.0)
    async with app.open_async():
        await app.job_manager.throttle_queue_async("default", rate=20, period=1, burst=1)
        await app.configure_task("work").batch_defer_async(*({"key": "all"} for _ in range(60)))
        async with running(app, concurrency=50, **NOTIFIED):
            await _all_done(conn, 60)


def test_the_manager_sets_and_lists_throttles(app: App) -> None:
    with app.open():
        manager = app.job_manager
        assert manager.throttle_queue("q", max_running=2, rate=100, period=60) is True
        assert manager.throttle_queue("q", max_running=1, each_key=True) is True
        assert manager.throttle_task("t", rate=1, period=timedelta(days=1), burst=2) is True
        assert [
            (t.scope, t.name, t.max_running, t.running, t.rate, t.period, t.burst)
            for t in manager.list_throttles()
        ] == [
            ("key", "q", 1, None, None, None, None),
            ("queue", "q", 2, 0, 100, timedelta(minutes=1), 100),
            ("task", "t", None, 0, 1, timedelta(days=1), 2),
        ]
        assert (manager.throttle_queue("q"), manager.throttle_queue("q")) == (True, False)
        assert (manager.throttle_task("t"), manager.throttle_queue("q", each_key=True)) == (True, True)
        assert manager.list_throttles() == []
        with pytest.raises(InvalidArgument):
            manager.throttle_queue("q", max_running=0)
        with pytest.raises(InvalidArgument):
            manager.throttle_queue("", max_running=1)
        with pytest.raises(InvalidArgument):
            manager.throttle_task("t", rate=1)


def test_keys_that_can_t_be_are_refused_at_the_door(app: App, crowd: Crowd) -> None:
    for key in ("", "k" * 256, "a\0b"):
        with pytest.raises(InvalidJob, match="fairness_key"):
            app.configure_task("work", fairness_key=key)


def test_a_job_may_have_both_keys(app: App, crowd: Crowd) -> None:
    with app.open():
        work = app.configure_task("work", fairness_key="a", idempotency_key="once")
        assert work.defer(key="a") == work.defer(key="a")
        assert app.job_manager.list_jobs()[0].fairness_key == "a"


def test_the_command_throttles_and_lists(pljobs: Pljobs) -> None:
    assert "nothing is limited" in pljobs("throttle").output
    assert (
        pljobs("throttle", "mail", "--max-running", "5", "--rate", "100/1m").stdout
        == "queue mail: throttled\n"
    )
    assert (
        pljobs("throttle", "mail", "--each-key", "--max-running", "1").stdout
        == "each key of queue mail: throttled\n"
    )
    assert pljobs("throttle", "--task", "t", "--rate", "1/1h", "--burst", "2").stdout == "task t: throttled\n"
    table = pljobs("throttle").stdout
    assert "100 per 0:01:00, 100 at once" in table
    assert "each key of queue" in table
    listed = json.loads(pljobs("throttle", "--json").stdout)
    assert [(t["scope"], t["max_running"], t["period"]) for t in listed] == [
        ("key", 1, None), ("queue", 5, 60.0), ("task", None, 3600.0)
    ]  # fmt: skip
    assert (
        pljobs("throttle", "mail", "--remove", "--json").stdout
        == '{"name": "mail", "outcome": "unthrottled"}\n'
    )
    assert pljobs("throttle", "mail", "--remove").stdout == "queue mail: unchanged\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["mail"], ["mail", "--remove", "--max-running", "1"], ["--max-running", "1"], ["--remove"],
        ["mail", "--task", "t", "--max-running", "1"], ["--task", "t", "--each-key", "--max-running", "1"],
        ["mail", "--rate", "100"], ["mail", "--rate", "x/1m"], ["mail", "--rate", "1/1parsec"],
        ["mail", "--max-running", "0"],
    ],
)  # fmt: skip
def test_the_command_refuses_what_makes_no_sense(pljobs: Pljobs, arguments: list[str]) -> None:
    pljobs("throttle", *arguments, exits=2)
