"""What is in a job is shown to nobody who may not see it: not by logs, notifications, views, errors, repr."""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from pljobs import App, JobContext, exceptions
from pljobs.cli_commands import cli
from pljobs.cli_logging import _People, _Scripts
from pljobs.embedded import Server
from pljobs.maintenance import Manager
from waiting import wait_until_async
from workers import DEADLINE, HASTY, running, until

Conn = psycopg.AsyncConnection[Any]

# What a job is given, and produces; and what it says when it fails, which its worker's log has to tell.
MARK = "hunter2-7c1f"
SAID = "swordfish-90ab"
SECRETS = re.compile(f"{MARK}|{SAID}")


@pytest.fixture
def app(db_url: str) -> App:
    made = App(db_url)

    @made.task(name="talk", pass_context=True)
    async def talk(context: JobContext, secret: str) -> dict[str, str]:
        context.progress(0.5, secret)
        return {"told": secret}

    @made.task(name="talk_in_a_thread", pass_context=True)
    def talk_in_a_thread(context: JobContext, secret: str) -> str:
        context.progress(0.5, secret)
        return secret

    @made.task(name="fail", retry=1)
    async def fail(secret: str) -> None:
        raise ValueError(SAID)

    @made.task(name="stay")
    async def stay(secret: str) -> None:
        await asyncio.get_running_loop().create_future()

    @made.task(name="unfit")
    async def unfit(secret: str) -> object:
        return {"told": [secret, object()]}

    return made


@pytest.fixture
def others(server: Server, template: str, admin_url: str) -> Iterator[dict[str, str]]:
    """The URLs of logins that may not see what is in these jobs."""
    groups = {"secrets_reader": "reader", "secrets_canceller": "canceller", "secrets_other": "producer"}
    for login, group in groups.items():
        server.run_sql(f"CREATE ROLE {login} LOGIN; GRANT pljobs_{group} TO {login}")
    yield {login: make_conninfo(admin_url, user=login) for login in groups}
    for login in groups:
        server.run_sql(f"DROP ROLE {login}")


@pytest.fixture
async def listener(admin_url: str) -> AsyncIterator[Conn]:
    """Hears every notification that anybody could hear."""
    async with await psycopg.AsyncConnection.connect(admin_url, autocommit=True) as conn:
        await conn.execute("LISTEN pljobs_todo; LISTEN pljobs_worker_1")
        yield conn


async def live(app: App, aconn: Conn) -> dict[str, int]:
    """Run a job of each kind, with all that is done to jobs; return their ids."""
    ids: dict[str, int] = {}
    async with app.open_async(), running(app, concurrency=4, **HASTY):
        for task in ("talk", "talk_in_a_thread", "fail", "stay", "unfit"):
            ids[task] = await app.configure_task(task, on_cancelled="after").defer_async(secret=MARK)
        for task in ("talk", "talk_in_a_thread", "fail", "unfit"):
            await until(aconn, ids[task])
        await until(aconn, ids["stay"], "doing")
        await app.job_manager.cancel_job_by_id_async(ids["stay"], abort=True, reason="enough")
        await until(aconn, ids["stay"])
        ids["waiting"] = await app.configure_task(
            "talk", schedule_in={"hours": 1}, on_cancelled="after", queueing_lock="one"
        ).defer_async(secret=MARK)
        await app.job_manager.cancel_jobs_async(task="talk", dry_run=False)
        await app.job_manager.retry_job_by_id_async(ids["fail"])
        await until(aconn, ids["fail"])
    return ids


async def test_logs_of_a_worker_say_nothing_of_what_is_in_jobs(
    app: App, aconn: Conn, listener: Conn, caplog: pytest.LogCaptureFixture, server: Server
) -> None:
    caplog.set_level(logging.DEBUG)
    await live(app, aconn)

    assert len(caplog.records) > 20
    said = 0
    for record in caplog.records:
        shown = [formatter.format(record) for formatter in (_People("%(message)s"), _Scripts())]
        assert MARK not in "".join([*shown, repr(vars(record))])
        # The one line that says how a task failed, with its traceback, is there for that.
        if SAID in "".join(shown):
            assert record.name == "pljobs.jobs"
            assert vars(record)["action"] in {"job_error", "job_error_retry"}
            said += 1
    assert said
    heard = [note async for note in listener.notifies(timeout=0.1)]
    assert {note.channel for note in heard} == {"pljobs_todo", "pljobs_worker_1"}
    assert not SECRETS.search(repr(heard))
    assert not SECRETS.search(server.log.read_text(errors="replace"))


async def test_nothing_in_a_job_makes_a_log_line_of_its_own(
    app: App, aconn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    forged = "\nERROR forged\r\u2028\x1b[2J\u202e"
    app.tasks["stay" + forged] = app.tasks["stay"]
    caplog.set_level(logging.DEBUG)
    async with app.open_async(), running(app, concurrency=2, **HASTY):
        unknown = await app.configure_task("no such task" + forged, queue="q" + forged).defer_async()
        known = await app.configure_task("stay" + forged, lock="l" + forged).defer_async(secret=MARK)
        await until(aconn, unknown, "failed")
        await until(aconn, known, "doing")
        await app.job_manager.cancel_job_by_id_async(
            known, abort=True, reason="r" + forged, actor="a" + forged
        )
        await until(aconn, known)
    people = _People("%(levelname)s %(message)s")
    lines = [people.format(record) for record in caplog.records if record.name.startswith("pljobs")]
    assert len([line for line in lines if "forged" in line]) >= 4
    assert [
        line for line in lines if re.search(r"[\r\u2028\x1b\u202e]|^ERROR forged", line, re.MULTILINE)
    ] == []


async def test_a_manager_logs_nothing_of_what_is_in_jobs(
    app: App, aconn: Conn, caplog: pytest.LogCaptureFixture
) -> None:
    await live(app, aconn)
    async with app.open_async():
        lost = await app.configure_task("talk").defer_async(secret=MARK)
        await aconn.execute(
            "SELECT pljobs.fetch_jobs_v1(pljobs.register_worker_v1('lost', 'h', 1, lease => '1 s'))"
        )
        await aconn.execute("UPDATE pljobs.worker SET expires_at = clock_timestamp() WHERE name = 'lost'")
        caplog.clear()
        caplog.set_level(logging.DEBUG)
        manager = asyncio.create_task(Manager(app, interval=0.1).run())
        await until(aconn, lost, "todo")
        await wait_until_async(lambda: "rescue" in caplog.text.lower(), DEADLINE, "the manager tells of it")
        manager.cancel()
        await asyncio.wait([manager])
    assert not SECRETS.search(caplog.text)


async def test_it_is_stored_where_it_belongs_and_nowhere_else(app: App, aconn: Conn) -> None:
    await live(app, aconn)
    columns = await aconn.execute(
        "SELECT c.relname, a.attname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid"
        " WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind = 'r' AND a.attnum > 0"
    )
    found = set()
    for table, column in await columns.fetchall():
        for secret in (MARK, SAID):
            there = await aconn.execute(
                f"SELECT 1 FROM pljobs.{table} WHERE {column}::text LIKE %s LIMIT 1".encode(), [f"%{secret}%"]
            )
            if await there.fetchone():
                found.add((secret, f"{table}.{column}"))
    assert found == {
        *((MARK, at) for at in ("job.args", "job.result", "progress.message")),
        *((SAID, at) for at in ("job.message", "job.error", "job_event.message", "job_event.error")),
    }


async def test_who_may_not_see_it_does_not_see_it_in_any_view(
    app: App, aconn: Conn, others: dict[str, str]
) -> None:
    await live(app, aconn)
    views = await (
        await aconn.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'pljobs'::regnamespace AND relkind = 'v'"
        )
    ).fetchall()
    read = 0
    for url in others.values():
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
            for (view,) in views:
                try:
                    rows = await (
                        await conn.execute(f"SELECT v::text FROM pljobs.{view} AS v".encode())
                    ).fetchall()
                except psycopg.errors.InsufficientPrivilege:
                    continue
                read += len(rows)
                assert not SECRETS.search(repr(rows)), view
    assert read > 20


COMMANDS = [
    ["list", "--json"], ["list"], ["queues", "--json"], ["stuck", "--json"], ["show", "{fail}", "--json"],
    ["show", "{talk}"], ["show", "{waiting}"],
]  # fmt: skip


async def test_who_may_not_see_it_does_not_see_it_on_the_command_line(
    app: App, aconn: Conn, others: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await live(app, aconn)
    monkeypatch.delenv("PLJOBS_APP", raising=False)
    said = ""
    for login, url in others.items():
        for command in COMMANDS:
            words = [word.format_map(ids) for word in command]
            result = await asyncio.to_thread(CliRunner().invoke, cli, words, env={"PLJOBS_URL": url})
            assert login == "secrets_other" or result.exit_code == 0, result.output
            said += result.output
    assert f'"id":{ids["fail"]}' in said
    assert not SECRETS.search(said)


def errors_of(app: App) -> Iterator[BaseException]:
    """Raise whatever pljobs raises about a job that it is given."""
    secret = MARK
    talk = app.configure_task("talk", queueing_lock="lock")
    with app.open():
        talk.defer(secret=secret)
        for attempt in (
            lambda: talk.defer(secret=secret),
            lambda: talk.defer(secret={secret}),
            lambda: talk.defer(secret=secret * 100_000),
            lambda: talk.defer(secret=secret + "\0"),
            lambda: talk.defer(secret=float("nan"), other=secret),
            lambda: app.job_manager.cancel_jobs(args={"secret": {secret}}),
            lambda: app.job_manager.cancel_jobs(args={"secret": secret}, older_than=-1),
            lambda: app.job_manager.retry_job_by_id(2**70, reason=secret),
        ):
            try:
                attempt()
            except Exception as error:
                yield error


def test_no_exception_tells_it(app: App, others: dict[str, str]) -> None:
    told = list(errors_of(app))
    denied = App(others["secrets_reader"])
    with denied.open(), pytest.raises(exceptions.NotPermitted) as refused:
        denied.configure_task("talk").defer(secret=MARK)
    away = App("postgresql://me:" + MARK + "@localhost:1/nowhere")
    with pytest.raises(exceptions.DatabaseUnavailable) as unreachable:
        away.open()

    assert len(told) >= 7
    for error in (*told, refused.value, unreachable.value):
        assert isinstance(error, exceptions.PljobsException | TypeError), repr(error)
        text = "".join(traceback.format_exception(error))
        assert MARK not in text, text


async def test_no_repr_tells_it(app: App, aconn: Conn) -> None:
    seen: list[str] = []

    @app.task(name="look", pass_context=True)
    async def look(context: JobContext, secret: str) -> None:
        context.progress(0.5, secret)
        seen.extend(
            [repr(context), repr(context.job), repr(context.job.log_context()), context.job.call_string]
        )

    ids = await live(app, aconn)
    async with app.open_async():
        deferrer = look.configure(queue="q", task_kwargs={"secret": MARK})
        seen.extend([repr(deferrer), repr(look), repr(app), str(app)])
        await until(aconn, await deferrer.defer_async(), "todo")
        async with running(app, **HASTY):
            await wait_until_async(lambda: len(seen) > 4, DEADLINE, "the task looks")
        jobs = [job for job in await app.job_manager.list_jobs_async() if job.id in ids.values()]
        assert len(jobs) >= 5
        seen.extend(text for job in jobs for text in (repr(job), str(job), repr(job.log_context())))
    assert not SECRETS.search(" ".join(seen))
