"""Logical replication: publishing the tables stops nothing, and another server can take the queue over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from clusters import INSTALL, Conn, Filled, another_server, contents, statuses, tool
from pljobs import App
from pljobs.embedded import PORT, SUPERUSER, Server
from test_docs import documented, run_sql
from waiting import wait_until, wait_until_async
from workers import DEADLINE, HASTY, running

DB = "app"
LEDGER = {"migration"}
SEQUENCES = "SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'pljobs'"


@pytest.fixture
def publisher(server: Server) -> Iterator[Server]:
    with another_server(server, wal_level="logical") as started:
        install(started)
        yield started


@pytest.fixture
def subscriber(server: Server) -> Iterator[Server]:
    """Another server with the schema, and nothing in it."""
    with another_server(server, wal_level="logical") as started:
        install(started)
        yield started


def install(server: Server) -> None:
    server.create_database(DB)
    server.run_sql(f"BEGIN;\n\\i '{INSTALL}'\nCOMMIT;", DB)


def connected(server: Server) -> Conn:
    return psycopg.connect(server.url(DB), autocommit=True)


def subscribe(subscriber: Server, publisher: Server) -> None:
    source = make_conninfo("", host=str(publisher.base), port=PORT, user=SUPERUSER, dbname=DB)
    with connected(subscriber) as conn:
        conn.execute(
            sql.SQL("CREATE SUBSCRIPTION pljobs CONNECTION {} PUBLICATION pljobs").format(sql.Literal(source))
        )


def unsubscribe(subscriber: Server) -> None:
    subscriber.run_sql("DROP SUBSCRIPTION pljobs", DB)


def until_replicated(publisher: Server, subscriber: Server, *, but: set[str] = LEDGER) -> None:
    def rows(conn: Conn) -> dict[str, list[str]]:
        return {name: rows for name, rows in contents(conn).items() if name not in but}

    with connected(publisher) as sent, connected(subscriber) as seen:
        wait_until(lambda: rows(seen) == rows(sent), DEADLINE, "the subscriber has what the publisher has")


def everything_else(conn: Conn, filled: Filled) -> None:
    """Change and delete rows of each table that `Filled` only fills."""
    answers = {
        "pljobs.delete_job(%(failed)s)": "deleted",
        "pljobs.retry_job(%(aborted)s)": "requeued",
        "pljobs.cancel_job(%(retried)s, delete_job => true)": "deleted",
        "pljobs.cancel_job(%(asked)s, abort => true, force => true)": "aborted",
        "pljobs.resume_queue('paused')": "resumed",
        "pljobs.limit_queues('pljobs_worker', 'fetch', '{mail}')": "limited",
        "pljobs.limit_queues('pljobs_worker', 'fetch', '{print}')": "limited",
        "pljobs.limit_queues('pljobs_worker', 'fetch', NULL)": "unlimited",
        "(pljobs.defer_periodic_job_v1('each day', '2030-01-02Z', %(periodic_job)s)).outcome": "deferred",
        "pljobs.rescue_jobs()": len(filled.running),
        "pljobs.unregister_worker_v1(pljobs.register_worker_v1('another', 'here', 8))": "unregistered",
    }
    params = vars(filled) | {"periodic_job": '{"task": "quick", "queue": "periodic"}'}
    for expression, answer in answers.items():
        assert conn.execute(f"SELECT {expression}".encode(), params).fetchall() == [(answer,)], expression


def age_everything(conn: Conn) -> None:
    """Make all that is over a year old, for pruning."""
    columns = (
        "job.finished_at", "request.resolved_at", "closed_tree.closed_at", "deleted_parent.deleted_at",
        "worker.stopped_at",
    )  # fmt: skip
    for column in columns:
        table, name = column.split(".")
        conn.execute(f"UPDATE pljobs.{table} SET {name} = {name} - interval '1 year'".encode())


# Publishing


def test_each_table_can_be_published(publisher: Server) -> None:
    """A row is told from others by a key, or by all that is in it."""
    bare = publisher.run_sql(
        """
        SELECT c.relname FROM pg_class AS c
         WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind = 'r' AND c.relreplident <> 'f'
           AND NOT EXISTS (SELECT FROM pg_index AS i
                            WHERE i.indrelid = c.oid AND i.indisprimary AND c.relreplident = 'd')
        """,
        DB,
    )
    assert bare == ""


@pytest.mark.parametrize("what", ["ALL TABLES", "TABLES IN SCHEMA pljobs"])
async def test_a_publication_stops_nothing_and_its_subscriber_has_every_row(
    publisher: Server, subscriber: Server, what: str
) -> None:
    with connected(publisher) as conn:
        if what != "ALL TABLES" and conn.info.server_version < 150000:
            pytest.skip("since 15")
        conn.execute(f"CREATE PUBLICATION pljobs FOR {what}".encode())
        # The ledger's rows come with the others.
        subscriber.run_sql("DELETE FROM pljobs.migration", DB)
        subscribe(subscriber, publisher)
        filled = Filled(conn)
        everything_else(conn, filled)
        app = App(publisher.url(DB))

        @app.task(name="quick", pass_context=True)
        def quick(context: Any) -> str:
            context.progress(1.0, "done")
            return "done"

        async def all_done() -> bool:
            found = await asyncio.to_thread(statuses, conn)
            return {found[job_id] for job_id in filled.running | filled.waiting} == {"succeeded"}

        async with app.open_async(), running(app, **HASTY):
            await wait_until_async(all_done, DEADLINE)
        until_replicated(publisher, subscriber, but=set())
        age_everything(conn)
        (pruned,) = conn.execute(
            "SELECT pljobs.prune_jobs('1 day'), pljobs.prune_history_v1('1 day')"
        ).fetchall()
        assert min(pruned) > 0
        until_replicated(publisher, subscriber, but=set())
    assert subscriber.run_sql("SELECT count(*) FROM pljobs.check_install()", DB) == "0"
    unsubscribe(subscriber)


# Moving


async def test_a_subscriber_takes_over_and_draws_no_id_again(publisher: Server, subscriber: Server) -> None:
    with connected(publisher) as conn:
        before = Filled(conn)
        before.archive()
        run_sql(publisher, DB, documented("CREATE PUBLICATION"))
        subscribe(subscriber, publisher)
        months = {name for name in contents(conn) if name.startswith("job_archive_")}
        assert len(months) == 1
        until_replicated(publisher, subscriber, but=LEDGER | months)
        # What was drawn for jobs that left nothing behind counts as well.
        conn.execute(
            "SELECT pljobs.cancel_job(pljobs.defer_job('x'), delete_job => true) FROM generate_series(1, 40)"
        )
        conn.execute("SELECT pljobs.prune_history_v1('0 s')")
        drawn: dict[str, int] = dict(conn.execute(SEQUENCES.encode()).fetchall())
    until_replicated(publisher, subscriber, but=LEDGER | months)
    unsubscribe(subscriber)
    sections = ("--section=pre-data", "--section=data")
    archive = tool(publisher, "pg_dump", *sections, "--table=pljobs.job_archive_*", publisher.url(DB)).stdout
    assert tool(subscriber, "psql", "-Xq1", subscriber.url(DB), stdin=archive).stderr == ""
    until_replicated(publisher, subscriber)
    subscriber.run_sql(run_sql(publisher, DB, documented("setval(%L")), DB)
    with connected(subscriber) as conn:
        assert dict(conn.execute(SEQUENCES.encode()).fetchall()) == drawn
        app = App(subscriber.url(DB))

        @app.task(name="quick")
        def quick() -> str:
            return "done"

        async def all_done() -> bool:
            found = await asyncio.to_thread(statuses, conn)
            return {found[job_id] for job_id in before.running | before.waiting} == {"succeeded"}

        async with app.open_async(), running(app, **HASTY) as worker:
            await wait_until_async(all_done, DEADLINE)
            assert worker.worker_id is not None
            assert worker.worker_id > drawn["worker_id_seq"]
        assert_new_ids(conn, drawn)


def test_where_the_publisher_is_lost_ids_go_on_far_beyond(publisher: Server, subscriber: Server) -> None:
    with connected(publisher) as conn:
        run_sql(publisher, DB, documented("CREATE PUBLICATION"))
        subscribe(subscriber, publisher)
        Filled(conn)
        until_replicated(publisher, subscriber)
        drawn: dict[str, int] = dict(conn.execute(SEQUENCES.encode()).fetchall())
    publisher.stop()
    subscriber.run_sql(
        "ALTER SUBSCRIPTION pljobs DISABLE; ALTER SUBSCRIPTION pljobs SET (slot_name = NONE)", DB
    )
    unsubscribe(subscriber)
    run_sql(subscriber, DB, documented("extract(epoch"))
    with connected(subscriber) as conn:
        assert_new_ids(conn, {name: last + 1_000_000 for name, last in drawn.items()})


def assert_new_ids(conn: Conn, drawn: dict[str, int]) -> None:
    """Draw one of each, by the functions that draw them."""

    def one(query: str, *params: object) -> Any:
        return conn.execute(f"SELECT {query}".encode(), params).fetchall()[0][0]

    assert one("pljobs.defer_job('quick', queue => 'new')") > drawn["job_id_seq"]
    worker_id = one("pljobs.register_worker_v1('new', 'here', 7)")
    assert worker_id > drawn["worker_id_seq"]
    assert one("(pljobs.fetch_jobs_v1(%s, queues => '{new}')).run_id", worker_id) > drawn["run_id"]
    job_id = one("pljobs.defer_job('quick', queue => 'new')")
    assert one("(pljobs.cancel_job_v1(%s)).request_id", job_id) > drawn["request_id_seq"]
