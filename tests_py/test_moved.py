"""A job that somebody moves while a fetch looks at it, at each of its looks.

Nothing makes a fetch wait between its choice and its lock; a row security policy of the test's does, which is
asked about each row that is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from waiting import DEADLINE, wait_until

LOOKS = 25
GATE = 4711

POLICY = f"""
CREATE FUNCTION public.look_at(id bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    looks integer := current_setting('test.looks', true);
BEGIN
    IF id = current_setting('test.job', true)::bigint THEN
        PERFORM set_config('test.looks', (looks - 1)::text, false);
        IF looks = 1 THEN
            PERFORM pg_advisory_lock({GATE}), pg_advisory_unlock({GATE});
        END IF;
    END IF;
    RETURN true;
END
$$;
ALTER TABLE pljobs.job ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY look ON pljobs.job USING (public.look_at(id));
"""


@pytest.fixture
def fetcher(admin_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(admin_url, autocommit=True) as connection:
        yield connection


# To another queue, which is paused; for another time.
TO_A_PAUSED_QUEUE = "SELECT pljobs.retry_job(%s, queue => 'paused')"
TO_TOMORROW = "SELECT pljobs.retry_job(%s, scheduled_at => now() + interval '1 day')"


@pytest.mark.parametrize("limits", ["nothing", "another task", "its own task"])
@pytest.mark.parametrize("move", [TO_A_PAUSED_QUEUE, TO_TOMORROW], ids=["to a paused queue", "to tomorrow"])
def test_it_starts_where_it_was_or_not_at_all(
    conn: psycopg.Connection, fetcher: psycopg.Connection, move: str, limits: str
) -> None:
    conn.execute(
        "SELECT pljobs.register_worker_v1('w', 'h', 1, lease => '1 h'), pljobs.pause_queue('paused')"
    )
    if limits == "its own task":
        conn.execute("SELECT pljobs.defer_job('t', queue => 'running')")
        conn.execute("SELECT pljobs.fetch_jobs_v1(1)")
    if limits != "nothing":
        conn.execute("SELECT pljobs.throttle_task(%s, max_running => 1)", ("t" if "own" in limits else "u",))
    conn.execute(POLICY.encode())
    held = moved = 0
    with ThreadPoolExecutor(1) as thread:
        for look in range(1, LOOKS + 1):
            (job,) = conn.execute("SELECT pljobs.defer_job('t', queue => 'a')").fetchone() or (0,)
            conn.execute("SELECT pljobs.defer_job('v', queue => 'b')")
            conn.execute("SELECT pg_advisory_lock(%s)", (GATE,))
            fetcher.execute(f"SET test.job = {job}; SET test.looks = {look}".encode())
            fetch = thread.submit(fetcher.execute, "SELECT job_id FROM pljobs.fetch_jobs_v1(1, 2)")
            waits = "SELECT true FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
            pid = fetcher.info.backend_pid
            wait_until(lambda: fetch.done() or conn.execute(waits, (pid,)).fetchone())  # noqa: B023
            held += not fetch.done()
            # Once the fetch has it nobody moves it.
            free = "SELECT true FROM pljobs.job WHERE id = %s AND status = 'todo' FOR UPDATE SKIP LOCKED"
            with conn.transaction():
                done = conn.execute(free, (job,)).fetchone()
                if done is not None:
                    conn.execute("SELECT pljobs.cancel_job(%s)", (job,))
                    conn.execute(move.encode(), (job,))
                    moved += 1
            conn.execute("SELECT pg_advisory_unlock(%s)", (GATE,))
            fetch.result(DEADLINE)
            row = conn.execute("SELECT status, queue, waiting_for FROM pljobs.job WHERE id = %s", (job,))
            found = row.fetchone()
            if done is None:
                continue
            if move == TO_TOMORROW:
                assert found == ("todo", "a", "schedule"), f"at look {look}"
            else:
                assert found is not None
                assert found[:2] == ("todo", "paused"), f"at look {look}"
            conn.execute("SELECT pljobs.cancel_job(%s)", (job,))
    assert held > 3
    assert moved > 3
