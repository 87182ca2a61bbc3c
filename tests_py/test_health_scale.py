"""pljobs.health costs little beside any number of jobs."""

from __future__ import annotations

import psycopg
import pytest

from nights import Conn, found, gone, night_server, seen
from pljobs.embedded import Server

MANY = 80_000


def scans(conn: Conn) -> dict[str, tuple[int, int]]:
    """How often each table and index was scanned so far, and how many entries were read in all."""
    if conn.info.server_version >= 150000:
        conn.execute("SELECT pg_stat_force_next_flush()")
    return {
        name: (count, entries)
        for name, count, entries in conn.execute(
            "SELECT c.relname, pg_stat_get_numscans(c.oid), pg_stat_get_tuples_returned(c.oid)"
            " FROM pg_class AS c WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind IN ('r', 'i')"
        ).fetchall()
    }


def fill(conn: Conn, count: int, **columns: str) -> None:
    """Make jobs, by the statement: through defer_jobs it would take minutes."""
    values = {"queue": "'q'", "status": "'todo'", "waiting_for": "NULL", "task": "'t'"} | columns
    conn.execute(
        f"INSERT INTO pljobs.job (created_at, priority, deferred_by, args, {', '.join(values)})"
        f" SELECT clock_timestamp(), 0, 'tests', '{{}}', {', '.join(values.values())}"
        f" FROM generate_series(1, {count}) AS n".encode()
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_beside_half_a_million_jobs_it_walks_indexes_only(server: Server) -> None:
    with night_server(server) as night, psycopg.connect(night.url("night"), autocommit=True) as conn:
        fill(conn, MANY, queue="'q' || n % 50")
        fill(conn, 2 * MANY, status="'succeeded'", finished_at="clock_timestamp() - n * interval '1 s'")
        fill(conn, MANY, queue="'q' || n % 50", waiting_for="'turn'", fairness_key="'key ' || n % 1000")
        fill(conn, MANY, queue="'q' || n % 50", waiting_for="'limit'", task="'task ' || n % 1000")
        later = "clock_timestamp() + n * interval '1 s'"
        fill(conn, MANY, waiting_for="'schedule'", scheduled_at=later)
        conn.execute(
            "INSERT INTO pljobs.job_event (job_id, at, attempt, kind)"
            " SELECT n, clock_timestamp() - n * interval '1 s', 1,"
            " CASE WHEN n % 10 = 0 THEN 'rescued' ELSE 'retried' END"
            f" FROM generate_series(1, {MANY}) AS n".encode()
        )
        conn.execute(
            "INSERT INTO pljobs.request"
            " (job_id, run_id, requested_at, kind, queue, requested_by, resolved_at, resolution)"
            " SELECT n, n, clock_timestamp(), 'abort', 'q', 'tests', clock_timestamp(), 'aborted'"
            f" FROM generate_series(1, {MANY}) AS n".encode()
        )
        for statistics in ("none", "as they are", "as they are, without an index"):
            if statistics == "as they are":
                conn.execute("ANALYZE")
            elif statistics != "none":
                conn.execute("DROP INDEX pljobs.job_turn")
            before = scans(conn)
            items = conn.execute("SELECT count(DISTINCT item) FROM pljobs.health").fetchall()[0][0]
            after = scans(conn)
            assert items == 28
            for table in ("job", "request", "job_event"):
                assert after[table][0] == before[table][0], f"{table} was scanned; statistics: {statistics}"
            walked = {name: after[name][1] - before[name][1] for name in after}
            assert max(walked.values()) < 5000, walked
            if statistics.endswith("index"):
                continue  # costs of scans that are never done: a server with a JIT compiler compiles the view
            # Above, compiling the view would take longer than all the rest.
            line = conn.execute("EXPLAIN SELECT * FROM pljobs.health").fetchall()[0][0]
            assert float(line.split("..")[1].split(" ")[0]) < 100_000, line


@pytest.mark.slow
def test_dead_rows_are_shown_until_they_are_vacuumed(server: Server) -> None:
    many = 200_000
    with night_server(server) as night, psycopg.connect(night.url("night"), autocommit=True) as conn:
        conn.execute(
            "INSERT INTO pljobs.progress (job_id, run_id, at)"
            f" SELECT n, n, clock_timestamp() FROM generate_series(1, {many}) AS n".encode()
        )
        assert found(conn, "dead_tuples") == {}
        conn.execute("DELETE FROM pljobs.progress")
        severity, detail, action = seen(conn, "dead_tuples", "pljobs.progress")
        assert severity == "warning"
        assert f"{many} dead rows" in detail
        assert "was never done" in detail
        assert "VACUUM pljobs.progress" in action
        conn.execute("VACUUM pljobs.progress")
        gone(conn, "dead_tuples")
