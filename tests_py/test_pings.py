"""How workers hear of new jobs: with the commit, right after it, or not at all; and that none is lost."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from pljobs import App, Job, PsycopgConnector, pings
from pljobs.exceptions import InvalidArgument
from pljobs.listener import TODO_CHANNEL, queue_hash
from waiting import DEADLINE, wait_until
from workers import NOTIFIED, running, until

Conn = psycopg.Connection[Any]
AConn = psycopg.AsyncConnection[Any]
QUIET = 0.3


@pytest.fixture
def ears(conn: Conn) -> Conn:
    """Return a connection that listens for new jobs."""
    conn.execute(f"LISTEN {TODO_CHANNEL}")
    return conn


@pytest.fixture
def coalesced(db_url: str) -> Iterator[App]:
    app = App(PsycopgConnector(db_url, notify="coalesced"))
    with app.open():
        yield app


def heard(ears: Conn, seconds: float = QUIET) -> list[str]:
    return [note.payload for note in ears.notifies(timeout=seconds)]


def heard_by_now(ears: Conn) -> list[str]:
    """Return all that was said by what is committed: notifications arrive in the order of the commits."""
    said: list[str] = []
    ears.execute("SELECT pg_notify(%s, 'that is all')", [TODO_CHANNEL])

    def all_said() -> bool:
        said.extend(heard(ears, 0.05))
        return "that is all" in said

    wait_until(all_said)
    return said[: said.index("that is all")]


def until_heard(ears: Conn, queue: str) -> list[str]:
    """Wait until a queue was named; return all that was said until then."""
    said: list[str] = []

    def named() -> bool:
        said.extend(heard(ears, 0.05))
        return queue_hash(queue) in said

    wait_until(named)
    return said


def test_many_defers_of_one_transaction_are_one_message_a_queue(ears: Conn, db_url: str) -> None:
    app = App(db_url)
    with app.open(), psycopg.connect(db_url) as other:
        for queue in ("a", "b", "a", "b", "a"):
            app.configure_task("t", queue=queue, connection=other).batch_defer({}, {}, {})
    assert sorted(heard_by_now(ears)) == sorted([queue_hash("a"), queue_hash("b")])


def test_a_job_due_soon_is_told_of_and_a_later_one_is_not(ears: Conn, db_url: str) -> None:
    app = App(db_url)
    with app.open():
        app.configure_task("t", schedule_in={"hours": 1}).defer()
        assert heard_by_now(ears) == []
        app.configure_task("t", schedule_in={"seconds": 5}).defer()
    assert heard_by_now(ears) == [queue_hash("default")]


def test_coalesced_a_defer_is_told_of_after_its_commit(ears: Conn, coalesced: App) -> None:
    coalesced.configure_task("t", queue="a").defer()
    assert set(until_heard(ears, "a")) == {queue_hash("a")}
    # Not only the first.
    coalesced.configure_task("t", queue="b").defer()
    until_heard(ears, "b")
    coalesced.configure_task("t", queue="a", idempotency_key="k").defer()
    until_heard(ears, "a")


def test_coalesced_many_defers_are_few_messages(
    ears: Conn, coalesced: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pings, "EVERY", 600.0)
    deferrer = coalesced.configure_task("t", queue="a")
    deferrer.defer()
    until_heard(ears, "a")
    for _ in range(20):
        deferrer.defer()
    assert heard(ears) == []


def test_coalesced_closing_sends_the_last_word(
    ears: Conn, db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pings, "EVERY", 0.2)
    app = App(PsycopgConnector(db_url, notify="coalesced"))
    with app.open():
        for queue in ("a", "b", "c"):
            app.configure_task("t", queue=queue).defer()
    said = until_heard(ears, "c")
    assert {queue_hash("a"), queue_hash("b"), queue_hash("c")} <= set(said)
    assert not [thread for thread in threading.enumerate() if thread.name == "pljobs-pings"]


async def test_coalesced_closing_an_async_app_sends_the_last_word(
    ears: Conn, db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pings, "EVERY", 0.2)
    app = App(PsycopgConnector(db_url, notify="coalesced"))
    async with app.open_async():
        for queue in ("a", "b", "c"):
            await app.configure_task("t", queue=queue).defer_async()
    said = await asyncio.to_thread(until_heard, ears, "c")
    assert {queue_hash("a"), queue_hash("b"), queue_hash("c")} <= set(said)


def test_coalesced_a_defer_in_the_callers_transaction_is_told_with_its_commit(
    ears: Conn, coalesced: App, db_url: str
) -> None:
    with psycopg.connect(db_url) as other:
        coalesced.configure_task("t", queue="mine", connection=other).defer()
        assert heard(ears) == []
        other.commit()
        assert heard_by_now(ears) == [queue_hash("mine")]


def test_coalesced_a_broken_line_is_made_anew_and_the_queue_named_again(
    ears: Conn, coalesced: App, conn: Conn
) -> None:
    coalesced.configure_task("t", queue="a").defer()
    until_heard(ears, "a")
    conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE '%notify_queues_v1%' AND pid <> pg_backend_pid()"
    )
    coalesced.configure_task("t", queue="b").defer()
    coalesced.configure_task("t", queue="c").defer()

    def both() -> bool:
        coalesced.configure_task("t", queue="d").defer()
        said.extend(heard(ears, 0.05))
        return {queue_hash("b"), queue_hash("c"), queue_hash("d")} <= set(said)

    said: list[str] = []
    wait_until(both)


@contextlib.contextmanager
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have no thread start: as where the process may have no more, or is ending."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        yield


def test_coalesced_a_job_is_deferred_though_no_thread_can_be_had_and_told_of_later(
    ears: Conn, coalesced: App, conn: Conn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with no_threads(monkeypatch):
        coalesced.configure_task("t", queue="a").defer()
        assert "Workers can't be told of new jobs" in caplog.text
        assert heard(ears) == []
    coalesced.configure_task("t", queue="b").defer()
    assert {queue_hash("a"), queue_hash("b")} <= set(until_heard(ears, "b"))
    assert conn.execute("SELECT count(*) FROM pljobs.jobs").fetchone() == (2,)


def test_coalesced_an_app_that_could_start_no_thread_is_closed(
    db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(PsycopgConnector(db_url, notify="coalesced"))
    app.open()
    with no_threads(monkeypatch):
        app.configure_task("t").defer()
        app.close()
    assert not app.connector.is_open


def test_coalesced_closing_drops_the_pool_though_the_last_word_is_interrupted(
    db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = PsycopgConnector(db_url, notify="coalesced")
    connector.open()
    pool = connector._sync.pool
    assert pool is not None

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(connector.pings, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        connector.close()
    assert pool.closed
    assert not connector.is_open


def test_coalesced_what_is_due_much_later_needs_no_ping(ears: Conn, coalesced: App) -> None:
    coalesced.configure_task("t", queue="a", schedule_in={"hours": 1}).defer()
    coalesced.configure_task("t", queue="b", schedule_at=datetime.now(UTC) + 2 * pings.SOON).defer()
    assert heard(ears) == []


def test_never_nobody_is_told(ears: Conn, db_url: str) -> None:
    app = App(PsycopgConnector(db_url, notify="never"))
    with app.open(), psycopg.connect(db_url) as other:
        app.configure_task("t").defer()
        app.configure_task("t", connection=other).defer()
        app.job_manager.defer_job(Job(task_name="t"))
    assert heard(ears) == []


async def test_never_nobody_is_told_of_a_managers_job(ears: Conn, db_url: str) -> None:
    app = App(PsycopgConnector(db_url, notify="never"))
    async with app.open_async(), await AConn.connect(db_url) as other:
        await app.job_manager.defer_job_async(Job(task_name="t"))
        await app.job_manager.defer_job_async(Job(task_name="t"), connection=other)
    assert heard(ears) == []


def test_coalesced_many_jobs_of_a_manager_are_few_messages(
    ears: Conn, db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pings, "EVERY", 3600.0)
    monkeypatch.setattr(pings, "PATIENCE", DEADLINE)
    app = App(PsycopgConnector(db_url, notify="coalesced"))
    with app.open():
        for _ in range(50):
            app.job_manager.defer_job(Job(task_name="t", queue="a"))
    assert 1 <= heard_by_now(ears).count(queue_hash("a")) <= 2
    with app.open(), psycopg.connect(db_url) as other:
        app.job_manager.defer_job(Job(task_name="t", queue="mine"), connection=other)
        assert heard(ears) == []
        other.commit()
        assert heard_by_now(ears) == [queue_hash("mine")]


def test_what_is_none_of_the_choices_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="transaction, coalesced, never"):
        PsycopgConnector("", notify="maybe")  # type: ignore[arg-type]


async def test_coalesced_a_sleeping_worker_takes_jobs_of_many_writers(db_url: str, aconn: AConn) -> None:
    app = App(PsycopgConnector(db_url, notify="coalesced"))

    @app.task(name="t")
    async def task() -> None: ...

    async with app.open_async(), running(app, **NOTIFIED, concurrency=4):
        ids = await asyncio.gather(*(task.defer_async() for _ in range(60)))
        for job_id in ids:
            await until(aconn, job_id, "succeeded")
