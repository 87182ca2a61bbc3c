"""A job's own SQL: cancelled with the job, by the server, and never a statement of anybody else."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest

from pljobs import App, JobContext, calls_sql
from pljobs.embedded import Server
from pljobs.exceptions import InvalidArgument
from waiting import wait_until, wait_until_async
from workers import DEADLINE, LASTING, NOTIFIED, POLLING, job, look, request, row, running, until

Conn = psycopg.AsyncConnection[Any]
SQL = Path(__file__).parent.parent / "sql"
SLEEP = f"SELECT pg_sleep({DEADLINE})"


async def in_sql(conn: Conn, marker: str = "pg_sleep") -> None:
    """Wait until a statement with this in it runs, on another connection."""

    async def runs() -> bool:
        cursor = await conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s"
            " AND pid <> pg_backend_pid() AND datname = current_database()",
            [f"%{marker}%"],
        )
        return await cursor.fetchone() != (0,)

    await wait_until_async(runs, DEADLINE, "the job is in its statement")


CANCEL_OTHERS = (
    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
    " WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid() AND datname = current_database()"
)


async def cancel_directly(conn: Conn) -> None:
    """Cancel as somebody does who knows nothing of pljobs."""
    await conn.execute(CANCEL_OTHERS.encode())


async def cancel(conn: Conn, job_id: int, options: str = "sql => true") -> None:
    await conn.execute(f"SELECT pljobs.cancel_job(%s, abort => true, {options})".encode(), [job_id])


def sync_task(app: App, source: object = None) -> Any:
    @app.task(pass_context=True, name="sync")
    def stuck(context: JobContext) -> None:
        with context.connection(source) as conn:
            conn.execute(SLEEP.encode())

    return stuck


def async_task(app: App, source: object = None) -> Any:
    @app.task(pass_context=True, name="async")
    async def stuck(context: JobContext) -> None:
        async with context.connection(source) as conn:
            await conn.execute(SLEEP.encode())

    return stuck


@pytest.mark.parametrize("make", [sync_task, async_task], ids=["thread", "async"])
@pytest.mark.parametrize("options", ["sql => true", "grace => '100 ms', term_grace => '1 h'"])
async def test_a_job_stuck_in_a_statement_is_freed_by_the_server(
    app: App, aconn: Conn, make: Callable[[App], Any], options: str
) -> None:
    stuck = make(app)
    async with running(app, **NOTIFIED):
        job_id = await stuck.defer_async()
        await in_sql(aconn)
        await cancel(aconn, job_id, options)
        await until(aconn, job_id, "aborted")
    asked = await request(aconn, job_id)
    assert asked["resolution"] == "aborted"
    # An async task may be out of its statement by its CancelledError, before the server is asked at all.
    assert asked["sql_way"] == "server" or make is async_task


async def test_a_statement_is_cancelled_when_half_of_the_grace_is_over(app: App, aconn: Conn) -> None:
    stuck = sync_task(app)
    async with running(app, **NOTIFIED):
        job_id = await stuck.defer_async()
        await in_sql(aconn)
        await cancel(aconn, job_id, "grace => '1 h'")
        await aconn.execute("UPDATE pljobs.request SET sql_at = requested_at WHERE job_id = %s", [job_id])
        await look(aconn, job_id)
        await until(aconn, job_id, "aborted")
    asked = await request(aconn, job_id)
    assert (asked["level"], asked["sql_way"], asked["resolution"]) == (2, "server", "aborted")


@pytest.mark.parametrize("last", [None, "COMMIT", "SELECT 1"], ids=["before", "between", "in transaction"])
async def test_a_job_in_no_statement_gets_the_cancel_when_it_next_runs_one(
    app: App, aconn: Conn, last: str | None
) -> None:
    """A signal that finds no statement hits nothing: it is sent again until one does."""
    began, go = threading.Event(), threading.Event()

    @app.task(pass_context=True)
    def task(context: JobContext) -> None:
        if last is None:
            began.set()
            go.wait(DEADLINE)
        with context.connection() as conn:
            if last is not None:
                conn.execute(last.encode())
                began.set()
                go.wait(DEADLINE)
            conn.execute(SLEEP.encode())

    async with running(app, **NOTIFIED):
        job_id = await task.defer_async()
        await wait_until_async(began.is_set, DEADLINE)
        await cancel(aconn, job_id)
        assert (await request(aconn, job_id))["sql_way"] == "none"
        go.set()
        await until(aconn, job_id, "aborted")
    assert (await request(aconn, job_id))["sql_way"] == "server"


async def test_once_a_statement_was_cancelled_the_database_is_left_alone(app: App, aconn: Conn) -> None:
    begun = threading.Event()
    enter, go_on = threading.Event(), threading.Event()

    @app.task(pass_context=True)
    def task(context: JobContext) -> None:
        begun.set()
        enter.wait(DEADLINE)
        with pytest.raises(psycopg.errors.QueryCanceled), context.connection() as conn:
            conn.execute(SLEEP.encode())
        go_on.wait(DEADLINE)

    async with running(app, **NOTIFIED) as worker:
        job_id = await task.defer_async()
        await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
        await cancel(aconn, job_id)
        enter.set()
        await wait_until_async(
            lambda: (
                (run := next(iter(worker._runs.values()), None)) is not None
                and (run.level, run.look_at) == (2, None)
            ),
            DEADLINE,
            "the worker has heard of level 2, and asks no more",
        )
        go_on.set()
        await until(aconn, job_id, "succeeded")


async def test_nobody_asked_and_a_cancelled_statement_is_a_failure(app: App, aconn: Conn) -> None:
    stuck = sync_task(app)
    async with running(app, **NOTIFIED):
        job_id = await stuck.defer_async()
        await in_sql(aconn)
        await cancel_directly(aconn)
        await until(aconn, job_id, "failed")
    assert "QueryCanceled" in (await job(aconn, job_id))["message"]


async def test_a_forced_job_does_not_keep_its_thread_in_a_statement_for_ever(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pljobs.control.VOID_GRACE", 0.0)
    freed = threading.Event()

    @app.task(pass_context=True)
    def stuck(context: JobContext) -> None:
        try:
            with context.connection() as conn:
                conn.execute(SLEEP.encode())
        finally:
            freed.set()

    async with running(app, **NOTIFIED):
        job_id = await stuck.defer_async()
        await in_sql(aconn)
        await aconn.execute("SELECT pljobs.cancel_job(%s, force => true)", [job_id])
        await wait_until_async(freed.is_set, DEADLINE, "the thread is free")
    assert (await job(aconn, job_id))["status"] == "aborted"


async def test_a_worker_that_stops_frees_a_job_from_its_statement_and_it_runs_again(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pljobs.control.SHUTDOWN_GRACE", 0.0)
    stuck = sync_task(app)
    async with running(app, **POLLING) as worker:
        job_id = await stuck.defer_async()
        await in_sql(aconn)
        worker.abort()
        await until(aconn, job_id, "todo")
    assert (await job(aconn, job_id))["attempts"] == 0


# Connections of one's own


@pytest.fixture
async def table(aconn: Conn) -> str:
    await aconn.execute("CREATE TABLE mine (n integer UNIQUE); GRANT ALL ON mine TO PUBLIC")
    return "mine"


async def test_what_the_block_did_is_committed_and_after_an_error_it_is_not(
    app: App, aconn: Conn, db_url: str, table: str
) -> None:
    with psycopg_pool.ConnectionPool(db_url, min_size=1, max_size=1) as pool, psycopg.connect(db_url) as own:

        @app.task(pass_context=True)
        def task(context: JobContext, source: str, n: int, fail: bool) -> None:
            with context.connection({"pool": pool, "own": own, "app": None}[source]) as conn:
                conn.execute("INSERT INTO mine VALUES (%s)", [n])
                if fail:
                    raise ValueError("no")

        async with running(app, **NOTIFIED):
            numbers = {}
            for place, source in enumerate(("pool", "own", "app")):
                for fail in (False, True):
                    numbers[source, fail] = 10 * place + fail
                    job_id = await task.defer_async(source=source, n=numbers[source, fail], fail=fail)
                    await until(aconn, job_id, "failed" if fail else "succeeded")
    cursor = await aconn.execute("SELECT n FROM mine ORDER BY n")
    # The app's own pool is in autocommit.
    assert [n for (n,) in await cursor.fetchall()] == [0, 10, 20, 21]


async def test_the_next_user_of_a_pools_connection_is_never_cancelled_for_the_last(
    app: App, aconn: Conn, db_url: str
) -> None:
    async with psycopg_pool.AsyncConnectionPool(db_url, min_size=1, max_size=1) as pool:
        stuck = async_task(app, pool)
        async with running(app, **NOTIFIED):
            job_id = await stuck.defer_async()
            await in_sql(aconn)
            await cancel(aconn, job_id)
            await until(aconn, job_id, "aborted")
        async with pool.connection() as conn:
            cursor = await conn.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            )
            assert await cursor.fetchone() == (0,)


async def test_odd_sources_are_refused_at_the_door(
    app: App, aconn: Conn, db_url: str, server: Server
) -> None:
    outside = server.create_database("no_pljobs_here")
    messages: list[str] = []
    with psycopg.connect(db_url) as busy, psycopg.connect(outside) as elsewhere:
        busy.execute("SELECT 1")

        @app.task(pass_context=True)
        def task(context: JobContext) -> None:
            for source in (object(), busy, elsewhere):
                with pytest.raises(InvalidArgument) as info, context.connection(source):
                    pass
                messages.append(str(info.value))

        @app.task(pass_context=True)
        async def other(context: JobContext) -> None:
            with pytest.raises(InvalidArgument, match="takes a psycopg AsyncConnection"):
                async with context.connection(busy):
                    pass

        async with running(app, **NOTIFIED):
            for each in (task, other):
                await until(aconn, await each.defer_async(), "succeeded")
    server.drop_database("no_pljobs_here")
    assert [
        "not builtins.object" in messages[0],
        "in a transaction" in messages[1],
        "without the schema" in messages[2],
    ] == [True] * 3


# Which way was taken


@pytest.mark.parametrize("options", [NOTIFIED, LASTING], ids=["at once", "after some heartbeats"])
async def test_a_pooler_between_is_noticed_and_said(
    app: App, aconn: Conn, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    original = calls_sql.enter_sql
    monkeypatch.setattr(calls_sql, "enter_sql", lambda run_id, pid: original(run_id, pid + 1))
    stuck = sync_task(app)

    async def beats(later_than: object) -> bool:
        cursor = await aconn.execute("SELECT FROM pljobs.worker WHERE heartbeat_at > %s", [later_than])
        return cursor.rowcount > 0

    async with running(app, concurrency=2, **options):
        job_id = await stuck.defer_async()
        await in_sql(aconn)
        if options is LASTING:
            # What a heartbeat has told, and nobody wrote, for nobody had asked, is told again.
            for _ in range(2):
                found = await row(aconn, "SELECT clock_timestamp() AS now")
                assert found is not None
                await wait_until_async(functools.partial(beats, found["now"]), DEADLINE)
        await cancel(aconn, job_id)
        await wait_until_async(lambda: said(aconn, job_id, "pooled"), DEADLINE, "the request says pooled")
        await cancel_directly(aconn)
        await until(aconn, job_id)


async def said(conn: Conn, job_id: int, way: str) -> bool:
    return bool((await request(conn, job_id))["sql_way"] == way)


LOGINS = "plain_owner, plain_worker, plain_app"


@pytest.fixture
def plain_roles(server: Server, template: str) -> Iterator[tuple[str, ...]]:
    """URLs for a database that a plain role installed: as it, as a worker, an application, a superuser."""
    for login in LOGINS.split(", "):
        server.run_sql(f"CREATE ROLE {login} LOGIN")
    url = server.create_database("plain")
    server.run_sql("ALTER DATABASE plain OWNER TO plain_owner")
    server.run_sql(
        f"\\i '{SQL / 'roles.sql'}'\nSET ROLE plain_owner;\nBEGIN;\n\\i '{SQL / 'install.sql'}'\nCOMMIT;",
        "plain",
    )
    server.run_sql("GRANT pljobs_worker, pljobs_producer TO plain_worker; GRANT pljobs_worker TO plain_app")
    yield (*(psycopg.conninfo.make_conninfo(url, user=login) for login in LOGINS.split(", ")), url)
    server.drop_database("plain")
    server.run_sql(f"DROP ROLE {LOGINS}")


async def test_where_the_owner_may_not_the_worker_cancels(plain_roles: tuple[str, ...]) -> None:
    as_owner, as_worker, _, as_superuser = plain_roles
    app = App(as_worker)
    stuck = sync_task(app)
    async with (
        app.open_async(),
        await psycopg.AsyncConnection.connect(as_owner, autocommit=True) as owner,
        await psycopg.AsyncConnection.connect(as_superuser, autocommit=True) as superuser,
        running(app, **NOTIFIED),
    ):
        job_id = await stuck.defer_async()
        await in_sql(superuser)
        await cancel(owner, job_id)
        assert (await request(owner, job_id))["sql_way"] in {"asked", "worker"}
        await until(owner, job_id, "aborted")


async def test_where_nobody_may_it_says_denied(plain_roles: tuple[str, ...]) -> None:
    as_owner, as_worker, as_app, as_superuser = plain_roles
    app = App(as_worker)
    with psycopg_pool.ConnectionPool(as_app, min_size=1) as pool:
        stuck = sync_task(app, pool)
        async with (
            app.open_async(),
            await psycopg.AsyncConnection.connect(as_owner, autocommit=True) as owner,
            await psycopg.AsyncConnection.connect(as_superuser, autocommit=True) as superuser,
            running(app, **NOTIFIED),
        ):
            job_id = await stuck.defer_async()
            await in_sql(superuser)
            await cancel(owner, job_id)
            await wait_until_async(lambda: said(owner, job_id, "denied"), DEADLINE, "the request says denied")
            with psycopg.connect(as_app, autocommit=True) as conn:
                conn.execute(CANCEL_OTHERS.encode())
            await until(owner, job_id)


# The adversary


def hand_on(
    db_url: str, go_on: Callable[[], bool], stop: threading.Event, now: list[int], counts: Counter[str]
) -> None:
    """Hand one connection from run to run: a statement in the bracket, then one of somebody else."""
    with psycopg.connect(db_url, autocommit=True) as conn:
        pid = conn.info.backend_pid
        counts["pid"] = pid
        while go_on():
            now[0] = run_id = now[0] + 1
            try:
                conn.execute("SELECT pljobs.enter_sql_v1(%s, %s)", [run_id, pid])
                conn.execute("SELECT pg_sleep(0.001)")
            except psycopg.errors.QueryCanceled:
                counts["inside"] += 1
            while True:
                try:
                    conn.execute("SELECT pljobs.leave_sql_v1(%s)", [run_id])
                    break
                except psycopg.errors.QueryCanceled:
                    counts["leaving"] += 1
            try:
                conn.execute("SELECT pg_sleep(0.001)")
            except psycopg.errors.QueryCanceled:
                counts["innocent"] += 1
    stop.set()


def fight(
    db_url: str, tries: int, attack: Callable[[psycopg.Connection[Any], int, int], None], **hits: int
) -> Counter[str]:
    """Let four attackers cancel whatever run is on now, or was a moment ago.

    For so many runs, and on until they have hit so often: a busy machine may let the victim run alone.
    """
    stop, now, counts = threading.Event(), [0], Counter[str]()
    end = time.monotonic() + 2 * DEADLINE

    def go_on() -> bool:
        missed = any(counts[where] < wanted for where, wanted in hits.items())
        return now[0] < tries or (missed and time.monotonic() < end)

    def attacker() -> None:
        with psycopg.connect(db_url, autocommit=True) as conn:
            while not stop.is_set():
                counts["attacks"] += 1
                attack(conn, now[0], counts["pid"])

    attackers = [threading.Thread(target=attacker) for _ in range(4)]
    victim = threading.Thread(target=hand_on, args=(db_url, go_on, stop, now, counts))
    victim.start()
    wait_until(lambda: counts["pid"], DEADLINE, "the victim is connected")
    for each in attackers:
        each.start()
    victim.join(3 * DEADLINE)
    stop.set()
    for each in attackers:
        each.join(DEADLINE)
    assert now[0] >= tries
    return counts


def test_a_cancel_never_hits_a_statement_outside_of_the_bracket(
    db_url: str, record_property: Callable[[str, object], None]
) -> None:
    def attack(conn: psycopg.Connection[Any], run_id: int, _: int) -> None:
        conn.execute("SELECT pljobs.cancel_sql_v1(%s)", [run_id - random.randint(0, 1)])

    counts = fight(db_url, 1000, attack, inside=101)
    record_property("bracket", dict(counts))
    assert counts["innocent"] == 0, counts
    assert counts["inside"] > 100, counts


def test_the_adversary_would_see_an_unfenced_cancel(db_url: str) -> None:
    def attack(conn: psycopg.Connection[Any], run_id: int, pid: int) -> None:
        found = conn.execute(
            "SELECT count(*) FROM pg_locks WHERE pid = %s AND locktype = 'advisory'", [pid]
        ).fetchone()
        if found != (0,):
            conn.execute("SELECT pg_cancel_backend(%s)", [pid])

    assert fight(db_url, 300, attack, innocent=1)["innocent"] > 0
