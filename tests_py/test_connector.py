"""The connector: pools, threads, event loops and forks; errors of the database in pljobs's own words."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.conninfo import conninfo_to_dict

from pljobs import App, PsycopgConnector, calls, calls_read, db, exceptions
from pljobs.answers import Call
from pljobs.exceptions import (
    AppNotOpen,
    ConnectorException,
    DatabaseUnavailable,
    InvalidArgument,
    SchemaMissing,
)
from pljobs.jobs import Job
from waiting import DEADLINE, wait_until, wait_until_async


def backend(connector: PsycopgConnector) -> int:
    return connector.execute(Call("SELECT pg_backend_pid() AS pid", {}, lambda rows: int(rows[0]["pid"])))


async def backend_async(connector: PsycopgConnector) -> int:
    call = Call("SELECT pg_backend_pid() AS pid", {}, lambda rows: int(rows[0]["pid"]))
    return await connector.execute_async(call)


def test_a_connection_of_its_own_commits_by_itself_and_takes_more_settings(db_url: str) -> None:
    connector = PsycopgConnector(db_url, application_name="mine")
    with connector.connect(keepalives_idle=3) as conn:
        assert conn.autocommit is True
        assert conn.info.get_parameters()["keepalives_idle"] == "3"
        assert conn.info.get_parameters()["application_name"] == "mine"
    with PsycopgConnector(db_url).connect() as conn:
        row = conn.execute("SELECT current_setting('application_name')").fetchone()
        assert row == ("pljobs",)


async def test_an_async_connection_too(db_url: str) -> None:
    async with await PsycopgConnector(db_url).connect_async(keepalives_idle=3) as conn:
        assert conn.autocommit is True
        assert conn.info.get_parameters()["keepalives_idle"] == "3"


def test_pool_settings_go_to_the_pool_and_others_to_the_connections(db_url: str) -> None:
    connector = PsycopgConnector(
        db_url,
        min_size=2,
        max_size=3,
        timeout=7,
        kwargs={"prepare_threshold": None},
        options="-c statement_timeout=1234",
    )
    connector.open()
    pool = connector._sync.pool
    assert pool is not None
    assert (pool.min_size, pool.max_size, pool.timeout) == (2, 3, 7)
    with pool.connection() as conn:
        assert conn.prepare_threshold is None
        assert conn.execute("SHOW statement_timeout").fetchone() == ("1234ms",)
    connector.close()


def test_what_two_pools_cant_share_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"check, configure: can't be given.*pool of your own"):
        PsycopgConnector("", configure=print, check=print)


def test_a_bad_conninfo_is_refused_without_being_shown() -> None:
    for bad in (
        "postgresql+psycopg://me:hunter2@host/db",
        "me:hunter2@host",
        "postgresql://me:hunter2@host/db\0",
        "postgresql://me:hunter2@host/db\udcff",
    ):
        with pytest.raises(InvalidArgument) as caught:
            PsycopgConnector(bad)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None


async def test_an_app_opened_for_async_serves_sync_calls_from_threads(db_url: str) -> None:
    app = App(db_url)
    task = app.task(name="t")(lambda: None)
    async with app.open_async():
        assert app.connector._sync.pool is None
        ids = await asyncio.gather(*(asyncio.to_thread(task.defer) for _ in range(5)))
        assert len(set(ids)) == 5
        assert task.defer() > max(ids)  # here it blocks the event loop, and works
    assert app.connector._sync.pool is None
    with pytest.raises(AppNotOpen):
        task.defer()


def test_another_event_loop_gets_connections_of_its_own(db_url: str) -> None:
    app = App(db_url)

    async def outer() -> None:
        async with app.open_async():
            here = await backend_async(app.connector)
            there = await asyncio.to_thread(lambda: asyncio.run(backend_async(app.connector)))
            assert here != there
            assert await backend_async(app.connector) == here

    asyncio.run(outer())


@pytest.mark.parametrize("how", ["conninfo", "kwargs", "functions"])
async def test_another_event_loop_leaves_your_async_pool_alone_and_connects_as_it_does(
    db_url: str, how: str
) -> None:
    async def where() -> str:
        return db_url

    def settings() -> dict[str, Any]:
        return {"application_name": "mine"}

    pools: dict[str, tuple[Any, Any]] = {
        "conninfo": (db_url, {"application_name": "mine"}),
        "kwargs": ("", conninfo_to_dict(db_url, application_name="mine")),
        "functions": (where, settings),
    }
    conninfo, kwargs = pools[how]
    app = App("postgresql:///nowhere")
    call = Call("SELECT current_setting('application_name') AS name", {}, lambda rows: str(rows[0]["name"]))

    async def elsewhere() -> tuple[int, str]:
        return await app.configure_task("t").defer_async(), await app.connector.execute_async(call)

    pool = psycopg_pool.AsyncConnectionPool(
        conninfo, kwargs=kwargs, min_size=1, max_size=1, timeout=10.0, open=False
    )
    async with pool, app.open_async(pool):
        async with app.connector.checked_out_async():  # the only one that the pool may have
            job_id, name = await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        assert name == "mine"
        assert (await app.job_manager.get_job_async(job_id)).id == job_id
    stats = pool.get_stats()
    assert stats["connections_num"] == 1


def test_threads_share_the_pool(db_url: str) -> None:
    connector = PsycopgConnector(db_url, max_size=2)
    connector.open()
    pids: list[int] = []
    threads = [threading.Thread(target=lambda: pids.append(backend(connector))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 8
    assert len(set(pids)) <= 2
    connector.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_connections_of_its_own(db_url: str) -> None:
    app = App(db_url)
    task = app.task(name="t")(lambda: None)
    with app.open():
        task.defer()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, f"{backend(app.connector)} {task.defer()}".encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        pid, job_id = (int(word) for word in os.read(reading, 100).split())
        os.close(reading)
        os.close(writing)
        assert pid != backend(app.connector)
        assert app.job_manager.get_job(job_id).id == job_id


def kill_others(conn: psycopg.Connection) -> None:
    conn.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def test_calls_go_on_after_the_server_closed_idle_connections(
    db_url: str, conn: psycopg.Connection
) -> None:
    app = App(db_url)
    async with app.open_async():
        before = await backend_async(app.connector), await asyncio.to_thread(backend, app.connector)
        kill_others(conn)
        after = await backend_async(app.connector), await asyncio.to_thread(backend, app.connector)
    assert not set(before) & set(after)


def test_a_connection_lost_in_a_call_says_unavailable(db_url: str, conn: psycopg.Connection) -> None:
    connector = PsycopgConnector(db_url)
    with connector.connect() as own:
        kill_others(conn)
        with pytest.raises(DatabaseUnavailable) as caught:
            db.run(own, calls_read.has_schema())
        assert isinstance(caught.value, ConnectorException)
        with pytest.raises(DatabaseUnavailable, match=r"closed|lost"):
            db.run(own, calls_read.has_schema())


def test_a_pool_without_a_free_connection_says_unavailable(db_url: str) -> None:
    connector = PsycopgConnector(db_url, max_size=1, timeout=0.05)
    connector.open()
    pool = connector._sync.pool
    assert pool is not None
    with pool.connection(), pytest.raises(DatabaseUnavailable):
        backend(connector)
    connector.close()


def test_a_wrong_password_or_database_tells_what_the_server_said(db_url: str) -> None:
    with pytest.raises(ConnectorException, match='database "nowhere" does not exist'):
        PsycopgConnector(db_url, dbname="nowhere").open()


def test_your_own_pool_is_used_and_left_open(db_url: str) -> None:
    with psycopg_pool.ConnectionPool(db_url, min_size=1, open=True) as pool:
        app = App("postgresql:///nowhere")
        task = app.task(name="t")(lambda: None)
        with app.open(pool):
            job_id = task.defer()
            assert app.job_manager.get_job(job_id).id == job_id
        assert not pool.closed
        assert not app.connector.is_open


async def test_your_own_async_pool_is_used_and_left_open(db_url: str) -> None:
    async with psycopg_pool.AsyncConnectionPool(db_url, min_size=1, open=False) as pool:
        app = App("postgresql:///nowhere")
        task = app.task(name="t")(lambda: None)
        async with app.open_async(pool):
            job_id = await task.defer_async()
            assert (await app.job_manager.get_job_async(job_id)).id == job_id
        assert not pool.closed


async def test_another_pool_for_an_open_app_is_refused(db_url: str) -> None:
    app = App(db_url)
    async with psycopg_pool.AsyncConnectionPool(db_url, min_size=1, open=False) as pool, app.open_async():
        with pytest.raises(InvalidArgument, match="open already"):
            await app.open_async(pool)
    with (
        psycopg_pool.ConnectionPool(db_url, min_size=1, open=True) as sync_pool,
        app.open(),
        pytest.raises(InvalidArgument, match="open already"),
    ):
        app.open(sync_pool)


async def test_an_app_opened_twice_at_once_has_one_pool(db_url: str) -> None:
    app = App(db_url)
    await asyncio.gather(*(app.open_async() for _ in range(3)))
    assert await app.check_connection_async() is True
    await app.close_async()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_app_left_open_in_a_dead_event_loop_opens_again(db_url: str) -> None:
    app = App(db_url)

    async def leave_open() -> None:
        await app.open_async()

    async def again() -> int:
        async with app.open_async():
            assert await backend_async(app.connector) == await backend_async(app.connector)
            return 1

    asyncio.run(leave_open())
    assert asyncio.run(again()) == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_app_left_open_in_a_dead_event_loop_can_be_closed(db_url: str) -> None:
    app = App(db_url)

    async def leave_open() -> None:
        await app.open_async()

    asyncio.run(leave_open())
    asyncio.run(app.close_async())
    assert not app.connector.is_open


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_of_two_workers_in_threads_either_may_be_the_last_to_end(db_url: str) -> None:
    app = App(db_url)
    first, second = threading.Event(), threading.Event()

    @app.task
    def long(place: int) -> None:
        (first, second)[place].wait(DEADLINE)

    ends: list[BaseException | None] = []

    def work(queue: str) -> None:
        try:
            app.run_worker(wait=False, queues=[queue], install_signal_handlers=False)
            ends.append(None)
        except BaseException as error:
            ends.append(error)

    with app.open():
        for place in (0, 1):
            long.configure(queue=f"q{place}").defer(place=place)
    threads = [threading.Thread(target=work, args=[f"q{place}"]) for place in (0, 1)]
    threads[0].start()
    wait_until(lambda: app.connector.is_open_async)  # by the first, which is the first to end
    threads[1].start()
    wait_until(lambda: app._workers == 2)
    for go, thread in zip((first, second), threads, strict=True):
        go.set()
        thread.join(DEADLINE)
    assert ends == [None, None]
    assert not app.connector.is_open


async def test_closing_starts_no_thread_where_there_is_nothing_to_close_in_one(
    db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    app = App(db_url)
    await app.open_async()
    await app.configure_task("t").defer_async()
    monkeypatch.setattr(threading.Thread, "start", start)
    await app.close_async()
    assert not app.connector.is_open_async


async def test_a_cancelled_close_still_closes_the_pool_of_sync_calls(
    db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(PsycopgConnector(db_url, notify="coalesced"))
    await app.open_async()
    await asyncio.to_thread(app.configure_task("t").defer)
    pool = app.connector._sync.pool
    assert pool is not None
    pings, release = app.connector.pings, threading.Event()
    closing = asyncio.Event()
    loop, close_pings = asyncio.get_running_loop(), pings.close

    def slowly() -> None:
        loop.call_soon_threadsafe(closing.set)
        release.wait()
        close_pings()

    monkeypatch.setattr(pings, "close", slowly)
    task = asyncio.create_task(app.close_async())
    try:
        async with asyncio.timeout(DEADLINE):
            await closing.wait()
            task.cancel()
            await asyncio.wait([task])
    finally:
        release.set()
    assert task.cancelled()
    await wait_until_async(lambda: pool.closed)
    assert not app.connector.is_open


# A cancel that comes together with what is waited for, which python 3.11's asyncio.wait_for drops


class Dropping:
    """Have a pool's method, once it has done its work, drop a cancel; `reached`: when it is ready to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.reached = asyncio.Event()
        real: Callable[..., Awaitable[object]] = getattr(psycopg_pool.AsyncConnectionPool, name)

        async def dropping(*args: Any, **kwargs: Any) -> object:
            answer = await real(*args, **kwargs)
            self.reached.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return answer

        monkeypatch.setattr(psycopg_pool.AsyncConnectionPool, name, dropping)

    async def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel the task there; it has to end as cancelled."""
        async with asyncio.timeout(DEADLINE):
            await self.reached.wait()
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()


async def test_a_worker_cancelled_while_its_app_opens_does_not_start(
    db_url: str, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(db_url)
    dropping = Dropping(monkeypatch, "open")
    await dropping.cancel(asyncio.create_task(app.run_worker_async(install_signal_handlers=False)))
    assert not app.connector.is_open_async
    assert conn.execute("SELECT count(*) FROM pljobs.workers").fetchone() == (0,)


async def test_a_call_cancelled_while_it_waits_for_a_connection_is_not_made(
    db_url: str, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(PsycopgConnector(db_url, max_size=1, timeout=DEADLINE))
    task = app.configure_task("t")
    async with app.open_async():
        with monkeypatch.context() as patched:
            await Dropping(patched, "getconn").cancel(asyncio.create_task(task.defer_async()))
        assert conn.execute("SELECT count(*) FROM pljobs.jobs").fetchone() == (0,)
        await task.defer_async()  # the only connection is there again


async def test_a_cancelled_close_is_cancelled(db_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App(db_url)
    await app.open_async()
    await Dropping(monkeypatch, "close").cancel(asyncio.create_task(app.close_async()))
    assert not app.connector.is_open_async


async def test_a_close_cancelled_at_the_async_pool_still_closes_the_other(
    db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(db_url)
    await app.open_async()
    await asyncio.to_thread(app.check_connection)
    pool = app.connector._sync.pool
    assert pool is not None
    await Dropping(monkeypatch, "close").cancel(asyncio.create_task(app.close_async()))
    assert pool.closed
    assert not app.connector.is_open


async def test_a_timeout_that_comes_with_the_connection_is_a_timeout(
    app: App, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping = Dropping(monkeypatch, "getconn")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(DEADLINE), asyncio.timeout(None) as timeout, asyncio.TaskGroup() as group:

            async def expire() -> None:
                await dropping.reached.wait()
                timeout.reschedule(asyncio.get_running_loop().time())

            group.create_task(expire())
            await app.configure_task("t").defer_async()
    assert conn.execute("SELECT count(*) FROM pljobs.jobs").fetchone() == (0,)


async def test_a_task_group_that_fails_cancels_who_waits_for_a_connection(
    app: App, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping = Dropping(monkeypatch, "getconn")

    async def fail() -> None:
        await dropping.reached.wait()
        raise ValueError("the group's end")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
            group.create_task(fail())
            await app.configure_task("t").defer_async()
    assert str(caught.value.exceptions[0]) == "the group's end"
    assert conn.execute("SELECT count(*) FROM pljobs.jobs").fetchone() == (0,)


async def test_who_was_cancelled_before_can_still_make_calls(app: App) -> None:
    async def clean_up() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await app.configure_task("t").defer_async()
        raise AssertionError

    task = asyncio.create_task(clean_up())
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(DEADLINE):
        assert await task > 0


def test_own_json_functions_write_and_read_arguments(db_url: str) -> None:
    at = datetime(2030, 1, 1, tzinfo=UTC)

    def dumps(value: object) -> str:
        return json.dumps(value, default=lambda found: {"at": found.isoformat()})

    def loads(text: str) -> object:
        return json.loads(
            text, object_hook=lambda found: datetime.fromisoformat(found["at"]) if "at" in found else found
        )

    with App(connector=PsycopgConnector(db_url, json_dumps=dumps, json_loads=loads)).open() as app:
        job_id = app.configure_task("t").defer(when=at)
        assert app.job_manager.get_job(job_id).task_kwargs == {"when": at}
        (job,) = app.job_manager.list_jobs()
        assert job.task_kwargs == {"when": at}
        worker_id = app.connector.execute(calls.register_worker("w", host="h", pid=1))
        (fetched,) = app.connector.execute(calls.fetch_jobs(worker_id, loads=loads))
        assert fetched.task_kwargs == {"when": at}


def test_a_missing_schema_says_to_migrate(empty_db_url: str) -> None:
    with App(empty_db_url).open() as app:
        with pytest.raises(SchemaMissing, match="run `pljobs migrate`"):
            app.configure_task("t").defer()
        with pytest.raises(SchemaMissing, match="run `pljobs migrate`"):
            app.job_manager.list_jobs()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("PJ001", exceptions.AlreadyEnqueued),
        ("PJ002", exceptions.InvalidJob),
        ("PJ003", exceptions.WorkerNotRegistered),
        ("PJ004", exceptions.InvalidArgument),
        ("PJ005", exceptions.MigrationEdited),
        ("PJ006", exceptions.SchemaTooNew),
        ("22003", exceptions.InvalidArgument),
        ("42501", exceptions.NotPermitted),
        ("40001", exceptions.ConnectorException),
        ("57P01", exceptions.DatabaseUnavailable),
        ("53300", exceptions.DatabaseUnavailable),
        ("25006", exceptions.DatabaseReadOnly),
        ("42883", exceptions.SchemaMissing),
    ],
)
def test_each_code_has_its_exception_with_the_hint(
    conn: psycopg.Connection, code: str, expected: type[exceptions.PljobsException]
) -> None:
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'what' USING ERRCODE = '{code}', HINT = 'do this'; END $$"
    with pytest.raises(expected) as caught, db.translated():
        conn.execute(raising)
    assert type(caught.value) is expected
    assert str(caught.value).startswith("what\ndo this")
    if isinstance(caught.value, ConnectorException):
        assert caught.value.sqlstate == code


def test_the_details_of_bad_data_stay_out_of_the_exception(conn: psycopg.Connection) -> None:
    conn.execute("CREATE TEMP TABLE kept (secret text CHECK (secret = ''))")
    with pytest.raises(ConnectorException) as caught, db.translated():
        conn.execute("INSERT INTO kept VALUES ('hunter2')")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_calls_work_whatever_factories_the_connection_has(db_url: str) -> None:
    settings: list[dict[str, Any]] = [
        {"row_factory": psycopg.rows.namedtuple_row},
        {"cursor_factory": psycopg.ClientCursor},
        {"cursor_factory": psycopg.RawCursor},
        {"prepare_threshold": 0},
        {"client_encoding": "latin1"},
    ]
    for setting in settings:
        with psycopg.connect(db_url, **setting) as conn:
            (job_id,) = db.run(conn, calls.defer_jobs([Job(task_name="\U0001f431", task_kwargs={"a": "é"})]))
            assert db.run(conn, calls_read.get_job_status(job_id)) == "todo"
