"""Names of any kind are only text: stored as given, or refused by name; in SQL, channels, logs and shells."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from cli_fixtures import Pljobs, bare_environment, pljobs
from names import EVIL, Names, World, check_many
from pljobs import App
from pljobs.cli_commands import cli
from workers import NOTIFIED, running, until


@pytest.fixture
def world(conn: psycopg.Connection[Any]) -> World:
    return World(conn)


def test_names_that_are_known_to_hurt_dont(world: World) -> None:
    for name in EVIL:
        world.check(Names(name, name, name, name, name))
        # A bad one beside good ones, and a good one beside bad ones.
        world.check(Names("t", "q", "l", name, "k"))


def test_five_hundred_generated_names_are_stored_or_refused(conn: psycopg.Connection[Any]) -> None:
    assert check_many(conn, 100, 1) >= 500


# The command line, whose arguments may hold bytes that are no text: Python makes lone surrogates of these.

NO_TEXT = "a\udcff"
TAKES_TEXT = [
    ["pause", NO_TEXT],
    ["resume", NO_TEXT],
    ["pause", "q", "--reason", NO_TEXT],
    ["pause", "q", "--actor", NO_TEXT],
    ["list", "--queue", NO_TEXT],
    ["list", "--task", NO_TEXT],
    ["list", "--lock", NO_TEXT],
    ["list", "--queueing-lock", NO_TEXT],
    ["cancel", "1", "--reason", NO_TEXT],
    ["cancel", "--queue", NO_TEXT],
    ["cancel", "--args", f'{{"a": "{NO_TEXT}"}}'],
    ["retry", "1", "--to-queue", NO_TEXT],
    ["retry", "1", "--to-lock", NO_TEXT],
    ["delete", "1", "--reason", NO_TEXT],
    ["rescind", "1", "--reason", NO_TEXT],
    ["defer", NO_TEXT],
    ["defer", "t", f'{{"a": "{NO_TEXT}"}}'],
    ["defer", "t", "--queue", NO_TEXT],
    ["defer", "t", "--lock", NO_TEXT],
    ["defer", "t", "--queueing-lock", NO_TEXT],
    ["defer", "t", "--fairness-key", NO_TEXT],
    ["defer", "t", "--idempotency-key", NO_TEXT],
    ["list", "--url", f"postgresql:///{NO_TEXT}"],
]


@pytest.mark.parametrize("arguments", TAKES_TEXT, ids=lambda each: "-".join(each[:-1]))
def test_what_is_no_text_is_a_usage_error_that_says_so(
    bare_environment: None, db_url: str, arguments: list[str]
) -> None:
    result = CliRunner().invoke(cli, arguments, env={"PLJOBS_URL": db_url})
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in {1, 2}, result.output
    assert re.search("surrogate|no connection string", result.output)


def test_names_that_hurt_go_through_the_command_line(pljobs: Pljobs, conn: psycopg.Connection[Any]) -> None:
    evil = "'\"; DROP TABLE pljobs.job; -- %s\\\n\u202e\U0001f431"
    pljobs("defer", evil, "{}", "--queue", evil, "--lock", evil, "--queueing-lock", evil)
    (row,) = conn.execute("SELECT task, queue, lock, queueing_lock FROM pljobs.jobs").fetchall()
    assert set(row) == {evil}
    listed = pljobs("list", "--queue", evil, "--task", evil, "--lock", evil, "--full").output
    assert "DROP TABLE" in listed
    assert "\u202e" not in listed
    assert len(listed.splitlines()) == 2
    pljobs("pause", evil)
    pljobs("cancel", "--queue", evil, "--yes")
    assert conn.execute("SELECT status FROM pljobs.jobs").fetchall() == [("cancelled",)]


# A server or a machine in FIPS mode, which has no md5.


async def test_a_server_without_md5_wakes_the_workers_of_all_queues(
    app: App, aconn: psycopg.AsyncConnection[Any]
) -> None:
    @app.task(name="mail", queue="mail")
    async def mail() -> None: ...

    await aconn.execute("SET allow_system_table_mods = on")
    # A new one: what is built in is called by its oid. It says what a server says; 14, that memory is out.
    await aconn.execute("ALTER FUNCTION pg_catalog.md5(text) RENAME TO former_md5")
    await aconn.execute("""
        CREATE FUNCTION pg_catalog.md5(text) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT AS $$
        BEGIN RAISE EXCEPTION 'could not compute MD5 hash: unsupported' USING ERRCODE = 'XX000'; END $$
    """)
    async with running(app, queues=["mail", "other"], **NOTIFIED):
        for _ in range(2):
            job_id = await mail.defer_async()
            await until(aconn, job_id, "succeeded")


async def test_a_worker_without_md5_looks_at_each_notification(
    app: App, aconn: psycopg.AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task(name="mail", queue="mail")
    async def mail() -> None: ...

    def refused(*_: object, **__: object) -> None:
        raise ValueError("[digital envelope routines] unsupported")

    monkeypatch.setattr("hashlib.md5", refused)
    async with running(app, queues=["mail"], **NOTIFIED):
        for _ in range(2):
            await until(aconn, await mail.defer_async(), "succeeded")
