"""No step of SQL takes the square of the number of jobs, whatever the statistics say."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from pljobs import calls, db
from pljobs.answers import RunEnd
from pljobs.jobs import Job

MANY = 60_000


@pytest.fixture
def conn(admin_url: str) -> Iterator[psycopg.Connection]:
    """A connection whose statements end after a time that a squared step exceeds, and no other."""
    with psycopg.connect(admin_url, autocommit=True, options="-c statement_timeout=80s") as connection:
        yield connection


def defer(conn: psycopg.Connection, count: int, job: str) -> None:
    """Defer `count` jobs like this one."""
    conn.execute(
        "SELECT pljobs.defer_jobs_v1((SELECT jsonb_agg(%s::jsonb) FROM generate_series(1, %s)))", (job, count)
    )


def know_empty(conn: psycopg.Connection, *relations: str) -> None:
    """As if a table and its indexes had been counted before they were filled."""
    conn.execute(
        "UPDATE pg_class SET reltuples = 0, relpages = 1 WHERE oid = ANY (%s::regclass[])", ([*relations],)
    )


def test_a_heartbeat_finds_each_request_by_its_key(conn: psycopg.Connection) -> None:
    conn.execute(
        "INSERT INTO pljobs.request (job_id, run_id, requested_at, kind, queue, requested_by) "
        "SELECT n, n, clock_timestamp(), 'abort', 'q', 'a test' FROM generate_series(1, %s) AS n",
        (MANY,),
    )
    # As if they had been counted while one transaction had written all of them, and not committed.
    know_empty(conn, "pljobs.request", "pljobs.request_pkey")
    with conn.transaction():
        conn.execute("SELECT pljobs._deliver_requests(ARRAY(SELECT r.id FROM pljobs.request AS r), '[]')")
        read = conn.execute(
            "SELECT pg_stat_get_xact_tuples_returned('pljobs.request_one_open_per_run'::regclass)"
        ).fetchone()
    # Not by that of all open ones, each of which would be compared with each that is asked for.
    assert read == (0,)
    delivered = conn.execute("SELECT count(*) FROM pljobs.request AS r WHERE r.level = 1").fetchone()
    assert delivered == (MANY,)


@pytest.mark.parametrize("are_known", [False, True])
def test_any_number_of_runs_ends_in_one_call(conn: psycopg.Connection, are_known: bool) -> None:
    conn.execute("ALTER TABLE pljobs.job SET (autovacuum_enabled = false)")
    if are_known:
        know_empty(conn, "pljobs.job", "pljobs.job_pkey")
    defer(conn, MANY, '{"task": "t"}')
    conn.execute("SELECT pljobs.register_worker_v1('w', 'h', 1, lease => '1 h')")
    done = conn.execute(
        "SELECT count(*) FROM pljobs.finish_jobs_v1((SELECT jsonb_agg(jsonb_build_object('job_id', f.job_id, "
        "'run_id', f.run_id, 'outcome', 'succeeded', 'result', f.job_id)) FROM pljobs.fetch_jobs_v1(1, %s) "
        "AS f)) AS a WHERE a.status = 'succeeded'",
        (MANY,),
    ).fetchone()
    assert done == (MANY,)
    own = conn.execute("SELECT count(*) FROM pljobs.jobs AS j WHERE j.result = to_jsonb(j.id)").fetchone()
    assert own == (MANY,)


def test_any_number_of_keys_is_used_in_one_call(conn: psycopg.Connection) -> None:
    know_empty(conn, "pljobs.idempotency", "pljobs.idempotency_pkey")
    call = (
        "SELECT count(*), count(DISTINCT d.job_id), bool_and(d.is_new) FROM pljobs.defer_jobs_v2((SELECT "
        "jsonb_agg(jsonb_build_object('task', 't', 'idempotency_key', n::text)) FROM generate_series(1, %s) "
        "AS n)) AS d"
    )
    assert conn.execute(call, (MANY // 2,)).fetchone() == (MANY // 2, MANY // 2, True)
    assert conn.execute(call, (MANY // 2,)).fetchone() == (MANY // 2, MANY // 2, False)


HISTORY = {
    "bucket": "(scope, name, key, set_at, full_at) SELECT 'queue', 'q', n::text, '2001-01-01', '2001-01-01'",
    "closed_tree": "(job_id, closed_at) SELECT n, '2001-01-01'",
    "deleted_parent": "(job_id, parent_id, deleted_at) SELECT n, n - 1, '2001-01-01'",
    "request": "(job_id, requested_at, resolved_at, kind, queue, requested_by, resolution)"
    " SELECT n, '2001-01-01', '2001-01-01', 'rescind', 'q', 'tests', 'rescinded'",
}


def test_any_amount_of_history_is_pruned_in_one_call(conn: psycopg.Connection) -> None:
    many = 2_000
    call = "SELECT p.pruned FROM pljobs.prune_history_v2('1 h') AS p"
    for table in [*HISTORY, "job"]:
        conn.execute(f"ALTER TABLE pljobs.{table} SET (autovacuum_enabled = false)".encode())
        conn.execute(f"ANALYZE pljobs.{table}".encode())
    conn.execute(call)  # planned while all of it is known to be empty
    defer(conn, 1, '{"task": "root"}')
    defer(conn, many, '{"task": "child", "parent_id": 1}')
    for table, rows in HISTORY.items():
        conn.execute(f"INSERT INTO pljobs.{table} {rows} FROM generate_series(1, {many}) AS n".encode())
    conn.execute("UPDATE pljobs.job SET parent_id = id - 1 WHERE id > 1")
    everything = ["pljobs.job", "pljobs.job_parent", *(f"pljobs.{table}" for table in HISTORY)]
    # Each with each would be four millions.
    assert read_by(conn, call, *everything) < 20 * many


def test_any_number_is_cancelled_in_one_call(conn: psycopg.Connection) -> None:
    defer(conn, MANY, '{"task": "t"}')
    done = conn.execute(
        "SELECT count(*) FROM pljobs.cancel_jobs_v1(task => 't', dry_run => false, max_jobs => 1000000) AS c "
        "WHERE c.outcome = 'cancelled'"
    ).fetchone()
    assert done == (MANY,)


def test_a_fetch_cancels_any_number_of_late_children(conn: psycopg.Connection, db_url: str) -> None:
    conn.execute("SELECT pljobs.defer_job('root'), pljobs.register_worker_v1('w', 'h', 1, lease => '1 h')")
    with psycopg.connect(db_url) as late:
        defer(late, MANY, '{"task": "child", "parent_id": 1}')
        conn.execute("SELECT pljobs.cancel_tree(1)")
    defer(conn, 1, '{"task": "another"}')
    found = [conn.execute("SELECT f.task FROM pljobs.fetch_jobs_v1(1) AS f").fetchone() for _ in range(3)]
    assert next(filter(None, found)) == ("another",)


def test_locks_that_somebody_is_inserting_are_waited_for_once(conn: psycopg.Connection, db_url: str) -> None:
    many = 200
    jobs = (
        "SELECT count(pljobs.defer_job('t', queueing_lock => n::text)) FROM generate_series(1, %s) AS n",
        (many,),
    )
    conn.execute("SELECT pljobs.register_worker_v1('w', 'h', 1, lease => '1 s')")
    conn.execute(*jobs)
    conn.execute("SELECT pljobs.fetch_jobs_v1(1, %s)", (many,))
    conn.execute("UPDATE pljobs.job SET started_at = started_at - interval '1 h'")
    with psycopg.connect(db_url) as inserting:
        inserting.execute(*jobs)
        # Half a second for each would be a minute and a half.
        conn.execute("SELECT pljobs.heartbeat_v1(1)")
    found = conn.execute("SELECT count(*) FROM pljobs.jobs WHERE status = 'todo' AND queueing_lock IS NULL")
    assert found.fetchone() == (many,)


def read_by(conn: psycopg.Connection, statement: str, *relations: str) -> int:
    """How many entries of these a statement reads."""

    def so_far() -> int:
        found = conn.execute(
            "SELECT sum(pg_stat_get_xact_tuples_returned(r))::bigint FROM unnest(%s::regclass[]) AS r",
            ([*relations],),
        ).fetchone()
        assert found is not None
        return int(found[0])

    # In one transaction: between two the server may take the counts away.
    with conn.transaction():
        before = so_far()
        conn.execute(statement.encode())
        return so_far() - before


def test_of_many_queues_few_are_read(conn: psycopg.Connection) -> None:
    queues, each = 300, 60
    conn.execute(
        "SELECT pljobs.register_worker_v1('w', 'h', 1, lease => '1 h'), pljobs.pause_queue('paused')"
    )
    conn.execute(
        "SELECT pljobs.defer_jobs_v1((SELECT jsonb_agg(jsonb_build_object('task', 't', 'queue', n %% %s))"
        " FROM generate_series(1, %s) AS n))",
        (queues, queues * each),
    )
    conn.execute("SELECT pljobs.defer_job('urgent', queue => '7', priority => 1)")
    # What each of them is called, its first job; and some of some.
    fetch = "SELECT pljobs.fetch_jobs_v1(1)"
    assert read_by(conn, fetch, "pljobs.job_ready_by_queue") < queues * each / 3
    urgent = conn.execute("SELECT status FROM pljobs.jobs WHERE task = 'urgent'").fetchone()
    assert urgent == ("doing",)


def test_jobs_that_somebody_holds_hide_no_other_queue(conn: psycopg.Connection, db_url: str) -> None:
    conn.execute("SELECT pljobs.register_worker_v1('w', 'h', 1, lease => '1 h')")
    defer(conn, 14_000, '{"task": "held", "queue": "a", "priority": 5}')
    defer(conn, 10, '{"task": "free", "queue": "b"}')
    with psycopg.connect(conn.info.dsn, user=conn.info.user) as holder:
        holder.execute("SELECT id FROM pljobs.job WHERE queue = 'a' FOR UPDATE")
        found = conn.execute(
            "SELECT count(*) FROM pljobs.fetch_jobs_v1(1, 5, '{a,b}') AS f WHERE f.task = 'free'"
        )
        assert found.fetchone() == (5,)


def test_a_wait_for_one_lock_costs_no_other_job_its_lock(conn: psycopg.Connection, db_url: str) -> None:
    conn.execute("SELECT pljobs.register_worker_v1('w', 'h', 1, lease => '1 h')")
    conn.execute(
        "SELECT count(pljobs.defer_job('t', queueing_lock => lpad(n::text, 3, '0')))"
        " FROM generate_series(1, 300) AS n"
    )
    conn.execute("SELECT pljobs.fetch_jobs_v1(1, 300)")
    ends = (
        "SELECT count(*) FROM pljobs.finish_jobs_v1((SELECT jsonb_agg(jsonb_build_object('job_id', j.id,"
        " 'run_id', j.run_id, 'outcome', 'failed', 'retry_in', '0 s', 'error', repeat('x', 1800)))"
        " FROM pljobs.job AS j WHERE j.status = 'doing')) AS f WHERE f.status = 'todo'"
    )
    with psycopg.connect(db_url) as inserting:
        inserting.execute("SELECT pljobs.defer_job('t', queueing_lock => '001')")
        assert conn.execute(ends.encode()).fetchone() == (300,)
    kept = conn.execute(
        "SELECT count(*) FROM pljobs.jobs WHERE status = 'todo' AND queueing_lock IS NOT NULL"
    )
    assert kept.fetchone() == (300,)  # all but one, and the new one


def test_old_statistics_make_nothing_read_all_keys(conn: psycopg.Connection) -> None:
    conn.execute("ALTER TABLE pljobs.job SET (autovacuum_enabled = false)")
    conn.execute("SELECT pljobs.register_worker_v1('w', 'h', 1, lease => '1 h')")
    conn.execute(
        "INSERT INTO pljobs.job (task, args, queue, priority, created_at, deferred_by, status, finished_at)"
        " SELECT 't', '{}', 'q', 0, now(), 'tests', 'succeeded', now() FROM generate_series(1, %s)",
        (MANY,),
    )
    conn.execute("ANALYZE pljobs.job")
    conn.execute(
        "INSERT INTO pljobs.job"
        " (task, args, queue, priority, created_at, deferred_by, waiting_for, fairness_key)"
        " SELECT 't', '{}', 'q', 0, now(), 'tests', 'turn', 'k' || n %% 50 FROM generate_series(1, %s) AS n",
        (MANY,),
    )
    assert read_by(conn, "SELECT pljobs.fetch_jobs_v1(1, queues => '{q}')", "pljobs.job_turn") < 1000


@pytest.mark.parametrize("call", ["rescue_jobs_v1()", "enforce_limits_v1()", "heartbeat_v1(1)"])
def test_old_statistics_make_nothing_walk_all_jobs(conn: psycopg.Connection, call: str) -> None:
    conn.execute("ALTER TABLE pljobs.job SET (autovacuum_enabled = false)")
    conn.execute("SELECT pljobs.register_worker_v1('w', 'h', 1, lease => '1 h')")
    runs = (
        "INSERT INTO pljobs.job (task, args, queue, priority, created_at, deferred_by, status, run_id,"
        " worker_id, started_at, attempts, timeout_at) SELECT 't', '{}', 'q', 0, now(), 'tests', 'doing',"
        " nextval('pljobs.run_id'), 1, now(), 1, now() + interval '1 h' FROM generate_series(1, %s)"
    )
    conn.execute(runs, (MANY,))
    conn.execute("VACUUM ANALYZE pljobs.job")
    conn.execute(
        "UPDATE pljobs.job SET status = 'succeeded', run_id = NULL, timeout_at = NULL, finished_at = now()"
    )
    conn.execute("VACUUM pljobs.job")
    conn.execute(runs, (5,))
    assert read_by(conn, f"SELECT pljobs.{call}", "pljobs.job_pkey", "pljobs.job") < 1000


def test_a_hundred_largest_results_fit_into_one_call(conn: psycopg.Connection) -> None:
    jobs = db.run(conn, calls.defer_jobs([Job(task_name="t")] * 100))
    worker = db.run(conn, calls.register_worker("w", host="h", pid=1, concurrency=100))
    fetched = db.run(conn, calls.fetch_jobs(worker, max_jobs=100))
    largest = "x" * (1024 * 1024 - 2)
    ends = [
        RunEnd(job_id=job.id or 0, run_id=job.run_id or 0, outcome="succeeded", result=largest)
        for job in fetched
    ]
    answers = db.run(conn, calls.finish_jobs(ends))
    assert sorted(answer.job_id for answer in answers) == jobs
    kept = conn.execute("SELECT count(*) FROM pljobs.job WHERE length(result #>> '{}') = %s", (len(largest),))
    assert kept.fetchone() == (100,)
