"""Ids past 31 bits and at the end of 63: all the way through; and who is refused draws none."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest

from cli_fixtures import Pljobs, bare_environment, pljobs
from pljobs import App, JobContext, calls, db, exceptions
from pljobs.jobs import Job
from waiting import wait_until_async
from workers import POLLING, job, request, running, until

Conn = psycopg.AsyncConnection[Any]
LAST = 2**63 - 1
# All that ids are drawn from.
SEQUENCES = """
    SELECT sequencename FROM pg_sequences
     WHERE schemaname = 'pljobs' AND sequencename <> 'timeline' ORDER BY 1
"""


def restart(conn: psycopg.Connection[Any], value: int, *only: str) -> None:
    """Let all sequences, or these, go on from here."""
    names = only or tuple(name for (name,) in conn.execute(SEQUENCES))
    assert len(names) in {4, len(only)}
    for name in names:
        conn.execute(f"ALTER SEQUENCE pljobs.{name} RESTART WITH {value}".encode())


def drawn(conn: psycopg.Connection[Any]) -> dict[str, int]:
    """Return how far each sequence is."""
    names = [name for (name,) in conn.execute(SEQUENCES)]
    return {
        name: conn.execute(f"SELECT last_value + is_called::int FROM pljobs.{name}".encode()).fetchall()[0][0]
        for name in names
    }


@pytest.mark.parametrize("start", [2**31 - 2, 2**53 - 2, 2**63 - 100], ids=["2**31", "2**53", "2**63"])
async def test_ids_of_any_size_go_through_the_worker_and_the_command_line(
    app: App,
    aconn: Conn,
    conn: psycopg.Connection[Any],
    pljobs: Pljobs,
    start: int,
) -> None:
    restart(conn, start)
    children = []

    @app.task(name="child")
    async def child() -> str:
        return "done"

    @app.task(name="parent", pass_context=True)
    async def parent(context: JobContext) -> None:
        context.progress(0.5, "half")
        children.append(await child.defer_async())
        await asyncio.get_running_loop().create_future()

    async with running(app, **{**POLLING, "update_heartbeat_interval": 0.2, "concurrency": 3}) as worker:
        assert (worker.worker_id or 0) >= start
        ids = [await child.defer_async() for _ in range(3)]
        assert min(ids) >= start
        for job_id in ids:
            assert (await until(aconn, job_id, "succeeded"))["result"] == "done"
        parent_id = await parent.defer_async()
        await until(aconn, parent_id, "doing")

        async def progressed() -> bool:
            return bool((await job(aconn, parent_id))["progress"])

        await wait_until_async(progressed, what="the progress is stored")
        await wait_until_async(lambda: children, what="it has deferred its child")
        await until(aconn, children[0], "succeeded")
        assert (await app.job_manager.get_job_async(children[0])).parent_id == parent_id
        assert await app.job_manager.cancel_job_by_id_async(parent_id, abort=True, reason="enough")
        await until(aconn, parent_id, "aborted")
    asked = await request(aconn, parent_id)
    assert (asked["id"] >= start, asked["resolution"]) == (True, "aborted")
    shown = json.loads(pljobs("show", str(parent_id), "--json").output)
    assert str(parent_id) in json.dumps(shown)
    (listed,) = json.loads(pljobs("list", "--parent", str(parent_id), "--json").output)
    assert listed["id"] == children[0]
    assert f"{parent_id}" in pljobs("retry", str(parent_id)).output
    assert pljobs("cancel", str(parent_id)).output == f"job {parent_id}: cancelled\n"
    pljobs("delete", str(parent_id))


async def test_the_end_of_ids_is_told_by_name_and_is_no_fault_of_the_caller(
    app: App, aconn: Conn, conn: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(name="quick")
    async def quick() -> None: ...

    restart(conn, LAST, "job_id_seq")
    assert await quick.defer_async() == LAST
    with pytest.raises(
        exceptions.ConnectorException, match=r'sequence "job_id_seq" (?s:.*)ids are used up'
    ) as refused:
        await quick.defer_async()
    assert refused.value.sqlstate == "2200H"
    assert not isinstance(refused.value, ValueError)
    async with running(app, **POLLING):
        await until(aconn, LAST, "succeeded")

        restart(conn, 1, "job_id_seq")
        conn.execute("ALTER SEQUENCE pljobs.run_id RESTART WITH 9223372036854775807")
        first = await quick.defer_async()
        await until(aconn, first, "succeeded")
        second = await quick.defer_async()
        await wait_until_async(lambda: "can't fetch jobs" in caplog.text)
        assert (await job(aconn, second))["status"] == "todo"
        restart(conn, LAST - 10, "run_id")
        await until(aconn, second, "succeeded")
    assert 'sequence "run_id"' in caplog.text


def test_who_is_refused_or_told_the_same_again_draws_no_ids(conn: psycopg.Connection[Any]) -> None:
    given = Job(task_name="t", queueing_lock="ql")
    db.run(conn, calls.defer_jobs([given]))
    once = calls.with_arguments(calls.encode_options(Job(task_name="t"), idempotency_key="k"), "{}")
    db.run(conn, calls.defer_encoded([once], version=2))
    conn.execute("SELECT pljobs.pause_queue('q'), pljobs.limit_queues(current_user, 'defer', '{default}')")
    before = drawn(conn)
    for _ in range(3):
        with pytest.raises(exceptions.AlreadyEnqueued):
            db.run(conn, calls.defer_jobs([Job(task_name="first"), given]))
        db.run(conn, calls.defer_encoded([once], version=2))
        with pytest.raises(exceptions.KeyReused):
            db.run(
                conn,
                calls.defer_encoded([once.replace('"t"', '"u"')], version=2),
            )
        with pytest.raises(exceptions.InvalidJob):
            conn.execute("SELECT 1")
            db.run(conn, calls.defer_encoded(['{"task": ""}']))
        conn.execute("SELECT pljobs.pause_queue('q')")
        conn.execute(
            "SELECT pljobs.cancel_job(-1), pljobs.fetch_jobs_v1(w.id, 1, '{other}') FROM pljobs.worker AS w"
        )
    assert drawn(conn) == before
