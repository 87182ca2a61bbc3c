"""Each part of an application with the one group that it needs: producer, worker, operator, canceller."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import make_conninfo

import isolated_tasks
from cli_fixtures import bare_environment
from pljobs import App, JobContext, exceptions
from pljobs.cli_commands import cli
from pljobs.connector import PsycopgConnector
from pljobs.embedded import Server
from pljobs.maintenance import Manager
from waiting import wait_until, wait_until_async
from workers import DEADLINE, HASTY, LASTING, SIDE_TABLE, job, process, psql, request, running, until

Conn = psycopg.AsyncConnection[Any]

GROUPS = {
    "lp_app": ["producer"],
    "lp_other": ["producer"],
    "lp_worker": ["worker"],
    "lp_deferring_worker": ["worker", "producer"],
    "lp_operator": ["operator"],
    "lp_canceller": ["canceller"],
    "lp_reader": ["reader"],
    "lp_nobody": [],
}
Urls = dict[str, str]


@pytest.fixture(scope="module")
def logins(server: Server, template: str) -> Iterator[None]:
    for login, groups in GROUPS.items():
        server.run_sql(f"CREATE ROLE {login} LOGIN")
        for group in groups:
            server.run_sql(f"GRANT pljobs_{group} TO {login}")
    yield
    for login in GROUPS:
        server.run_sql(f"DROP ROLE {login}")


@pytest.fixture
def urls(admin_url: str, logins: None) -> Urls:
    """The test's database, by login."""
    return {login: make_conninfo(admin_url, user=login) for login in GROUPS}


def tasks_of(app: App) -> App:
    """Give the app the tasks of these tests."""

    @app.task(name="add")
    async def add(a: int, b: int) -> int:
        return a + b

    @app.task(name="add_in_a_thread")
    def add_in_a_thread(a: int, b: int) -> int:
        return a + b

    @app.task(name="fails_once", retry=1, pass_context=True)
    async def fails_once(context: JobContext) -> None:
        if context.job.attempts == 0:
            raise ValueError("once")

    @app.task(name="stays", pass_context=True)
    async def stays(context: JobContext) -> None:
        context.progress(0.5, "half")
        await asyncio.get_running_loop().create_future()

    @app.task(name="hangs_in_sql", pass_context=True)
    def hangs_in_sql(context: JobContext) -> None:
        with context.connection() as conn:
            conn.execute("SELECT pg_sleep(600)")

    @app.task(name="defers", pass_context=True)
    async def defers(context: JobContext) -> int:
        return await app.configure_task("stays").defer_async()

    return app


@pytest.fixture
async def application(urls: Urls) -> AsyncIterator[App]:
    """What a web application has: it defers, looks after its own jobs, and can do nothing else."""
    async with tasks_of(App(urls["lp_app"])).open_async() as app:
        yield app


@pytest.fixture
async def hands(urls: Urls) -> AsyncIterator[App]:
    """The same app, run by a worker that only works."""
    async with tasks_of(App(urls["lp_worker"])).open_async() as app, running(app, concurrency=5, **LASTING):
        yield app


def pljobs_as(url: str, *arguments: str) -> Result:
    result = CliRunner().invoke(cli, arguments, env={"PLJOBS_URL": url})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


# An application that is only a producer, a worker that is only a worker


@pytest.mark.parametrize("task", ["add", "add_in_a_thread"])
async def test_a_producer_defers_and_a_worker_runs(application: App, hands: App, task: str) -> None:
    job_id = await application.configure_task(task).defer_async(a=1, b=2)
    status = await application.job_manager.wait_for_job_async(job_id, timeout=DEADLINE)
    assert status == "succeeded"
    assert (await application.job_manager.get_job_async(job_id)).result == 3


async def test_a_worker_runs_isolated_jobs(urls: Urls, application: App, aconn: Conn) -> None:
    with isolated_tasks.app.replace_connector(PsycopgConnector(urls["lp_worker"])) as app:
        async with app.open_async(), running(app, **LASTING):
            job_id = await application.configure_task("isolated_add").defer_async(a=1, b=2)
            done = await until(aconn, job_id)
    assert (done["status"], done["result"]["sum"]) == ("succeeded", 3)


async def test_a_worker_retries_and_deletes_jobs(urls: Urls, application: App, aconn: Conn) -> None:
    app = tasks_of(App(urls["lp_worker"]))
    async with app.open_async(), running(app, delete_jobs="successful", **LASTING):
        job_id = await application.configure_task("fails_once").defer_async()
        assert (await until(aconn, job_id))["status"] == "gone"


async def test_a_worker_defers_periodic_jobs_and_rescues(urls: Urls, aconn: Conn) -> None:
    app = App(urls["lp_worker"])

    @app.periodic(cron="* * * * * *")
    @app.task(name="ticks")
    async def ticks(timestamp: int) -> None: ...

    await aconn.execute("SELECT pljobs.defer_job('lost', queue => 'lost')")
    await aconn.execute(
        "SELECT pljobs.fetch_jobs_v1(pljobs.register_worker_v1('lost', 'h', 1), queues => '{lost}')"
    )
    await aconn.execute("UPDATE pljobs.worker SET expires_at = clock_timestamp() - interval '1 s'")
    async with app.open_async(), running(app, queues=["default"], retention=None, **HASTY):

        async def all_of_it() -> bool:
            done = await aconn.execute(
                "SELECT count(*) FILTER (WHERE task = 'ticks' AND status = 'succeeded') > 0"
                " AND count(*) FILTER (WHERE task = 'lost' AND status = 'todo' AND crashes = 1) = 1"
                " FROM pljobs.job"
            )
            row = await done.fetchone()
            return row is not None and bool(row[0])

        await wait_until_async(all_of_it, DEADLINE, "it defers, runs and rescues")


async def test_a_manager_is_a_worker(urls: Urls, application: App, aconn: Conn) -> None:
    done = await application.configure_task("add").defer_async(a=1, b=2)
    await aconn.execute(
        "UPDATE pljobs.job SET status = 'succeeded', finished_at = now() - interval '1 day' WHERE id = %s",
        [done],
    )
    app = App(urls["lp_worker"])
    async with app.open_async():
        manager = asyncio.create_task(Manager(app, interval=0.1, retention=timedelta(hours=1)).run())
        await until(aconn, done, "gone")
        manager.cancel()
        await asyncio.wait([manager])


async def test_a_worker_whose_tasks_defer_jobs_is_a_producer_too(
    urls: Urls, application: App, aconn: Conn
) -> None:
    for login, status in (("lp_worker", "failed"), ("lp_deferring_worker", "succeeded")):
        app = tasks_of(App(urls[login]))
        async with app.open_async(), running(app, concurrency=2, queues=["default"], **LASTING):
            done = await until(aconn, await application.configure_task("defers").defer_async())
            assert done["status"] == status
            if status == "failed":
                # What it lacks is said where the job's owner looks.
                assert "NotPermitted" in done["message"]
                assert "pljobs_producer" in done["error"]
            else:
                # All of it is the application's to stop, for its job is the root.
                await until(aconn, done["result"], "doing")
                tree = await application.job_manager.cancel_tree_async(done["id"], abort=True)
                assert {answer.job_id for answer in tree} == {done["id"], done["result"]}
                assert (await until(aconn, done["result"]))["status"] == "aborted"


# Stopping


@pytest.mark.parametrize("who", ["lp_app", "lp_canceller", "lp_operator"])
async def test_who_may_cancel_stops_a_job_with_a_deadline(
    urls: Urls, application: App, hands: App, aconn: Conn, who: str
) -> None:
    job_id = await application.configure_task("stays").defer_async()
    await until(aconn, job_id, "doing")
    async with App(urls[who]).open_async() as app:
        stopped = await app.job_manager.cancel_job_by_id_async(
            job_id, abort=True, grace=10, reason="enough", wait=DEADLINE
        )
    assert stopped
    assert (await job(aconn, job_id))["status"] == "aborted"
    assert (await request(aconn, job_id))["requested_by"] == who


async def test_the_sql_of_a_workers_job_is_cancelled_by_the_server(
    application: App, hands: App, aconn: Conn
) -> None:
    job_id = await application.configure_task("hangs_in_sql").defer_async()
    await until(aconn, job_id, "doing")

    async def in_its_statement() -> bool:
        found = await aconn.execute("SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'")
        return await found.fetchone() is not None

    await wait_until_async(in_its_statement, DEADLINE, "the job hangs")
    assert await application.job_manager.cancel_job_by_id_async(job_id, abort=True, sql=True)
    assert (await until(aconn, job_id))["status"] == "aborted"
    assert (await request(aconn, job_id))["sql_way"] == "server"


async def test_an_abort_is_taken_as_far_as_it_has_to_be(urls: Urls, application: App, aconn: Conn) -> None:
    app = App(urls["lp_worker"])
    begun, let_go = threading.Event(), threading.Event()

    @app.task(name="heeds nothing")
    def heeds_nothing() -> None:
        begun.set()
        let_go.wait(600.0)

    async with app.open_async():
        try:
            with pytest.raises(exceptions.WorkerTainted):
                async with running(app, **LASTING):
                    job_id = await application.configure_task("heeds nothing").defer_async()
                    # What has not begun ends at once, unstarted.
                    await wait_until_async(begun.is_set, DEADLINE, "the body has begun")
                    await application.job_manager.cancel_job_by_id_async(
                        job_id, abort=True, grace=0, term_grace=0.1
                    )
                    await until(aconn, job_id)
        finally:
            let_go.set()
    assert (await request(aconn, job_id))["resolution"] == "abandoned"


# People


READING = (["list"], ["show", "{job}"], ["queues"], ["stuck"], ["healthcheck"])


async def test_an_operator_has_the_whole_command_line(
    urls: Urls, application: App, hands: App, aconn: Conn, bare_environment: None
) -> None:
    stays = await application.configure_task("stays").defer_async()
    await until(aconn, stays, "doing")
    waits = await application.configure_task("stays", schedule_in={"hours": 1}).defer_async()
    names = {"job": str(stays), "waits": str(waits)}
    for command in (
        *READING, ["workers"], ["list", "--stalled"], ["schema", "--check"], ["pause", "q"], ["resume", "q"],
        ["cancel", "{waits}"], ["delete", "{waits}"],
        ["cancel", "{job}", "--abort", "--grace", "10s", "--wait"], ["retry", "{job}"], ["rescue"],
        ["prune", "--older-than", "1d", "--history"], ["defer", "add", '{{"a": 1, "b": 2}}'],
    ):  # fmt: skip
        words = [word.format_map(names) for word in command]
        result = await asyncio.to_thread(pljobs_as, urls["lp_operator"], *words)
        assert result.exit_code == 0, (command, result.output)
    assert (await request(aconn, stays))["resolution"] == "requeued"


async def test_a_canceller_stops_what_it_finds_and_no_more(
    urls: Urls, application: App, hands: App, aconn: Conn, server: Server, bare_environment: None
) -> None:
    url = urls["lp_canceller"]
    first = await application.configure_task("stays").defer_async()
    second = await application.configure_task("stays").defer_async()
    for job_id in (first, second):
        await until(aconn, job_id, "doing")
    for command in READING:
        words = [word.format_map({"job": str(first)}) for word in command]
        result = await asyncio.to_thread(pljobs_as, url, *words)
        assert result.exit_code == 0, (command, result.output)

    result = await asyncio.to_thread(pljobs_as, url, "cancel", str(first), "--abort", "--wait", "--json")
    assert result.exit_code == 0, result.output
    assert await psql(server, url, f"SELECT cancel_job({second}, abort => true)") == "abort_requested"
    assert (await until(aconn, second))["status"] == "aborted"

    for command in (
        ["retry", str(first)],
        ["delete", str(first)],
        ["defer", "add"],
        ["pause", "q"],
        ["rescue"],
    ):
        result = await asyncio.to_thread(pljobs_as, url, *command)
        assert result.exit_code not in {0, 2}
        assert "GRANT" in result.output, (command, result.output)


async def test_what_is_not_shown_is_not_there(
    urls: Urls, application: App, hands: App, aconn: Conn, bare_environment: None
) -> None:
    done = await application.configure_task("add").defer_async(a=1, b=2)
    await until(aconn, done)
    async with App(urls["lp_reader"]).open_async() as app:
        (seen,) = await app.job_manager.list_jobs_async()
        assert (seen.id, seen.status, seen.task_kwargs, seen.result) == (done, "succeeded", {}, None)
        assert seen.args_error == "this role may not see the arguments"
    shown = json.loads(
        (await asyncio.to_thread(pljobs_as, urls["lp_reader"], "show", str(done), "--json")).stdout
    )
    assert (shown["job"]["args"], shown["job"]["result"]) == (None, None)
    async with App(urls["lp_other"]).open_async() as app:
        assert list(await app.job_manager.list_jobs_async()) == []
        assert not await app.job_manager.cancel_job_by_id_async(done)
        with pytest.raises(exceptions.JobNotFound):
            await app.job_manager.get_job_async(done)


@pytest.mark.parametrize(
    ("login", "group"),
    [("lp_nobody", "pljobs_producer"), ("lp_reader", "pljobs_producer"), ("lp_worker", "pljobs_producer")],
)
async def test_who_lacks_a_right_is_told_which_groups_have_it(urls: Urls, login: str, group: str) -> None:
    async with App(urls[login]).open_async() as app:
        with pytest.raises(exceptions.NotPermitted, match=group):
            await app.configure_task("add").defer_async(a=1, b=2)


async def test_a_login_that_is_no_worker_says_so_when_it_starts(urls: Urls) -> None:
    async with App(urls["lp_app"]).open_async() as app:
        with pytest.raises(exceptions.NotPermitted, match="pljobs_worker"):
            await app.run_worker_async(wait=False, install_signal_handlers=False)


async def test_where_there_are_no_groups_single_grants_do(urls: Urls, aconn: Conn) -> None:
    await aconn.execute(
        "GRANT USAGE ON SCHEMA pljobs TO lp_nobody; GRANT SELECT ON pljobs.jobs TO lp_nobody;"
        " GRANT EXECUTE ON FUNCTION pljobs.defer_jobs_v1, pljobs.cancel_job_v1 TO lp_nobody"
    )
    others = await (await aconn.execute("SELECT pljobs.defer_job('add')")).fetchone()
    assert others is not None
    async with App(urls["lp_nobody"]).open_async() as app:
        own = await app.configure_task("add").defer_async(a=1, b=2)
        assert [seen.id for seen in await app.job_manager.list_jobs_async()] == [own]
        assert not await app.job_manager.cancel_job_by_id_async(others[0])
        assert await app.job_manager.cancel_job_by_id_async(own)
    assert await (await aconn.execute("SELECT * FROM pljobs.check_install()")).fetchall() == []


def test_a_worker_process_needs_no_more(urls: Urls, conn: psycopg.Connection, tmp_path: Path) -> None:
    conn.execute(SIDE_TABLE)
    with process(urls["lp_worker"], tmp_path, **LASTING) as worker:
        conn.execute("SELECT pljobs.defer_job('quick')")
        wait_until(
            lambda: conn.execute("SELECT 1 FROM pljobs.jobs WHERE status = 'succeeded'").fetchone(), DEADLINE
        )
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert not worker.said("ERROR")
        assert not worker.said("permission denied")


# Limited to queues


async def test_a_worker_that_is_limited_to_queues_works_for_these(
    urls: Urls, application: App, aconn: Conn
) -> None:
    await aconn.execute("SELECT pljobs.limit_queues('lp_worker', 'fetch', '{mail}')")
    money = await application.configure_task("add", queue="money", priority=9).defer_async(a=1, b=1)
    mail = await application.configure_task("add", queue="mail").defer_async(a=1, b=2)
    async with tasks_of(App(urls["lp_worker"])).open_async() as app:
        with pytest.raises(exceptions.NotPermitted, match="mail"):
            await app.run_worker_async(queues=["money"], wait=False, install_signal_handlers=False)
        async with running(app, **LASTING):
            assert (await until(aconn, mail))["result"] == 3
        # Its lease ran out meanwhile, say: it comes back as itself.
        async with running(app, **LASTING) as worker:
            await aconn.execute(
                "UPDATE pljobs.worker SET stopped_at = now(), expires_at = now() WHERE id = %s",
                [worker.worker_id],
            )
            again = await application.configure_task("add", queue="mail").defer_async(a=2, b=2)
            assert (await until(aconn, again))["result"] == 4
    assert (await job(aconn, money))["status"] == "todo"


async def test_a_producer_that_is_limited_to_queues_is_told(application: App, aconn: Conn) -> None:
    await aconn.execute("SELECT pljobs.limit_queues('lp_app', 'defer', '{mail}')")
    assert await application.configure_task("add", queue="mail").defer_async(a=1, b=2)
    with pytest.raises(exceptions.NotPermitted, match="'money'"):
        await application.configure_task("add", queue="money").defer_async(a=1, b=2)
