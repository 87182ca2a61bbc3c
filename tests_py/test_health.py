"""pljobs.health sees what other sessions do: those that hold, those that wait, those that don't listen."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from nights import HURRIED, Conn, Feedback, burn, found, gone, night_server, pid_of, seen
from pljobs.embedded import Server
from waiting import DEADLINE, wait_until


@pytest.fixture(scope="module")
def night(server: Server) -> Iterator[Server]:
    """A server for this file alone: what holds back vacuum, or fills queues, is the whole server's."""
    with night_server(server) as started:
        yield started


@pytest.fixture
def conn(night: Server) -> Iterator[Conn]:
    """A connection that is patient for microseconds."""
    with psycopg.connect(night.url("night"), autocommit=True, options=HURRIED) as connection:
        yield connection


@pytest.fixture
def other(night: Server) -> Iterator[Conn]:
    """Somebody else's session, with a transaction about to begin."""
    connection = psycopg.connect(night.url("night"), application_name="a report")
    yield connection
    connection.close()


def worst(conn: Conn, item: str, subject: str) -> str:
    """The severity for somebody without any patience at all."""
    conn.execute("SET pljobs.health_patience = 0")
    severity = seen(conn, item, subject)[0]
    conn.execute("RESET pljobs.health_patience")
    return severity


# What has just begun


def test_a_patient_reader_sees_no_harm_in_what_has_just_begun(night: Server, conn: Conn, other: Conn) -> None:
    job_id = conn.execute("SELECT pljobs.defer_job('a task')").fetchall()[0][0]
    other.execute("LISTEN a_channel")
    other.commit()
    with (
        psycopg.connect(night.url("night")) as writing,
        psycopg.connect(night.url("night"), autocommit=True) as waiting,
        psycopg.connect(night.url("night")) as preparing,
        psycopg.connect(night.url("night"), autocommit=True) as patient,
    ):
        writing.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        writing.execute("SELECT pljobs.cancel_job(%s)", [job_id])
        thread = threading.Thread(target=waiting.execute, args=["SELECT pljobs.cancel_job_v1(%s)", [job_id]])
        thread.start()
        preparing.tpc_begin(preparing.xid(1, "young", "shop"))
        preparing.execute("SELECT pg_current_xact_id()")
        preparing.tpc_prepare()
        try:
            for item, subject in {
                "held_snapshots": pid_of(writing),
                "open_transactions": pid_of(writing),
                "blocked_sessions": pid_of(waiting),
            }.items():
                seen(conn, item, subject)
            young = patient.execute(
                "SELECT item, detail FROM pljobs.health WHERE severity <> 'ok'"
            ).fetchall()
            assert young == []
        finally:
            preparing.tpc_rollback()
            writing.rollback()
            thread.join()


# What holds back vacuum


def test_a_snapshot_that_is_held_is_shown_with_its_session(conn: Conn, other: Conn) -> None:
    other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    other.execute("SELECT count(*) FROM pljobs.job")

    severity, detail, action = seen(conn, "held_snapshots", pid_of(other))
    assert severity == "notice"
    assert "postgres, a report, idle in transaction: holds a snapshot for " in detail
    assert f"pg_terminate_backend({other.info.backend_pid})" in action
    burn(conn, 10_000)
    assert seen(conn, "held_snapshots", pid_of(other))[0] == "warning"
    other.rollback()
    gone(conn, "held_snapshots")


def test_a_transaction_that_wrote_holds_back_vacuum_too(conn: Conn, other: Conn) -> None:
    other.execute("SELECT pg_current_xact_id()")

    assert seen(conn, "held_snapshots", pid_of(other))[0] == "notice"


def test_a_long_statement_is_to_be_cancelled_rather_than_its_session_ended(conn: Conn, other: Conn) -> None:
    def sleep() -> None:
        with pytest.raises(psycopg.errors.QueryCanceled):
            other.execute("SELECT pg_sleep(60)")

    thread = threading.Thread(target=sleep)
    thread.start()
    try:
        action = seen(conn, "held_snapshots", pid_of(other))[2]
        assert f"SELECT pg_cancel_backend({other.info.backend_pid});" in action
    finally:
        conn.execute("SELECT pg_cancel_backend(%s)", [other.info.backend_pid])
        thread.join()


def test_a_snapshot_in_another_database_is_none_of_ours(night: Server, conn: Conn) -> None:
    with psycopg.connect(night.url()) as elsewhere:
        elsewhere.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        elsewhere.execute("SELECT pg_current_xact_id()")
        wait_until(
            lambda: conn.execute(
                "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND backend_xid IS NOT NULL",
                [elsewhere.info.backend_pid],
            ).fetchone()
        )
        assert found(conn, "held_snapshots") == {}


def test_vacuum_itself_holds_back_nothing(conn: Conn, night: Server) -> None:
    with psycopg.connect(night.url("night"), autocommit=True, application_name="vacuum") as vacuuming:
        conn.execute("CREATE TABLE public.large AS SELECT repeat('x', 100) FROM generate_series(1, 20000)")
        vacuuming.execute("SET vacuum_cost_delay = '100 ms'; SET vacuum_cost_limit = 1")
        thread = threading.Thread(target=lambda: _cancelled(vacuuming, "VACUUM (FREEZE) public.large"))
        thread.start()
        try:
            wait_until(
                lambda: conn.execute(
                    "SELECT 1 FROM pg_stat_progress_vacuum AS v JOIN pg_stat_activity AS a USING (pid)"
                    " WHERE v.phase <> 'initializing'"
                ).fetchone()
            )
            assert found(conn, "held_snapshots") == {}
        finally:
            conn.execute("SELECT pg_cancel_backend(%s)", [vacuuming.info.backend_pid])
            thread.join()
            conn.execute("DROP TABLE public.large")


def _cancelled(conn: Conn, statement: str) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        conn.execute(statement.encode())


def test_a_prepared_transaction_is_shown_with_whose_it_is(conn: Conn, other: Conn) -> None:
    other.tpc_begin(other.xid(1, "order 'one'", "shop"))
    other.execute("SELECT pg_current_xact_id()")
    other.tpc_prepare()
    (subject, (severity, detail, action)) = next(iter(found(conn, "held_snapshots").items()))

    assert severity == "critical"
    assert subject.startswith("prepared transaction '")
    assert detail.startswith("of postgres: prepared 00:00:0")
    gid = subject.removeprefix("prepared transaction ")
    assert f"ROLLBACK PREPARED {gid};" in action
    conn.execute(f"ROLLBACK PREPARED {gid}".encode())
    assert found(conn, "held_snapshots") == {}


def test_a_slot_is_shown_as_long_as_its_standby_needs_old_rows(night: Server, conn: Conn) -> None:
    conn.execute("SELECT pg_create_physical_replication_slot('a_standby', true)")
    standby = Feedback(night, "a_standby")
    standby.need(conn.execute("SELECT pg_current_xact_id()::text::bigint").fetchall()[0][0])
    burn(conn, 5)

    severity, detail, action = seen(conn, "held_snapshots", "replication slot a_standby")
    assert severity == "notice"
    assert "runs a query that needs what was" in detail
    assert "hot_standby_feedback = off" in action
    standby.close()
    wait_until(lambda: "used by nobody" in seen(conn, "held_snapshots", "replication slot a_standby")[1])
    severity, _, action = seen(conn, "held_snapshots", "replication slot a_standby")
    assert severity == "warning"
    assert "pg_drop_replication_slot('a_standby')" in action
    conn.execute("SELECT pg_drop_replication_slot('a_standby')")
    gone(conn, "held_snapshots")


def test_a_standby_without_a_slot_is_shown_as_its_session(night: Server, conn: Conn) -> None:
    standby = Feedback(night)
    standby.need(conn.execute("SELECT pg_current_xact_id()::text::bigint").fetchall()[0][0])
    burn(conn, 5)

    subject = wait_until(lambda: next(iter(found(conn, "held_snapshots")), None))
    assert subject.startswith("standby, pid ")
    standby.close()
    gone(conn, "held_snapshots")


# Notifications


def test_a_listener_that_does_not_read_is_shown(conn: Conn, other: Conn) -> None:
    other.execute("LISTEN a_channel")
    other.commit()
    conn.execute(
        "SELECT pg_notify('a_channel', n || repeat('x', 7000)) FROM generate_series(1, 300) AS n LIMIT 300"
    )

    _, detail, action = seen(conn, "listeners", pid_of(other))
    assert detail.startswith("postgres, a report, idle: doesn't read its notifications")
    assert f"pg_terminate_backend({other.info.backend_pid})" in action
    assert worst(conn, "listeners", pid_of(other)) == "warning"
    other.set_autocommit(True)
    for _ in other.notifies(timeout=DEADLINE, stop_after=300):
        pass
    gone(conn, "listeners")


def test_a_listener_in_a_transaction_keeps_the_notification_queue(conn: Conn, other: Conn) -> None:
    other.execute("LISTEN a_channel")
    other.commit()
    other.execute("SELECT 1")
    # Each takes a page of 8 kB.
    pages = int(
        conn.execute(
            "SELECT coalesce(current_setting('max_notify_queue_pages', true), '1048576')"
        ).fetchall()[0][0]
    )
    conn.execute(
        "SELECT pg_notify('a_channel', n || repeat('x', 7000)) FROM generate_series(1, %s) AS n",
        [pages // 100 + 10],
    )

    severity, detail, _ = seen(conn, "notification_queue", "1 % full")
    assert severity == "notice"
    assert f"pid {other.info.backend_pid} (night, postgres, a report, idle in transaction)" in detail
    other.close()
    gone(conn, "notification_queue")


# Locks and connections


def test_an_idle_transaction_that_holds_jobs_is_shown(conn: Conn, other: Conn) -> None:
    other.execute("SELECT pljobs.cancel_job(pljobs.defer_job('a task'))")

    _, detail, action = seen(conn, "open_transactions", pid_of(other))
    assert "pljobs.job" in detail
    assert "COMMIT or ROLLBACK there" in action
    assert worst(conn, "open_transactions", pid_of(other)) == "warning"
    other.rollback()
    gone(conn, "open_transactions")


def test_an_idle_transaction_that_only_looked_is_not(conn: Conn, other: Conn) -> None:
    other.execute("SELECT count(*) FROM pljobs.jobs")
    wait_until(
        lambda: conn.execute(
            "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'idle in transaction'",
            [other.info.backend_pid],
        ).fetchone()
    )
    assert found(conn, "open_transactions") == {}


def test_who_waits_is_shown_with_whom_for(night: Server, conn: Conn, other: Conn) -> None:
    job_id = conn.execute("SELECT pljobs.defer_job('a task')").fetchall()[0][0]
    other.execute("SELECT pljobs.cancel_job(%s)", [job_id])
    with psycopg.connect(night.url("night"), autocommit=True) as waiting:
        thread = threading.Thread(target=waiting.execute, args=["SELECT pljobs.cancel_job_v1(%s)", [job_id]])
        thread.start()
        _, detail, action = seen(conn, "blocked_sessions", pid_of(waiting))
        assert worst(conn, "blocked_sessions", pid_of(waiting)) == "critical"
        other.rollback()
        thread.join()

    assert f"on pid {other.info.backend_pid}" in detail
    assert f"pg_terminate_backend({other.info.backend_pid})" in action
    gone(conn, "blocked_sessions")


def test_a_prepared_transaction_that_somebody_waits_for_is_named(
    night: Server, conn: Conn, other: Conn
) -> None:
    job_id = conn.execute("SELECT pljobs.defer_job('a task')").fetchall()[0][0]
    other.tpc_begin(other.xid(1, "two", "shop"))
    other.execute("SELECT id FROM pljobs.job WHERE id = %s FOR UPDATE", [job_id])
    other.tpc_prepare()
    with psycopg.connect(night.url("night"), autocommit=True) as waiting:
        thread = threading.Thread(target=waiting.execute, args=["SELECT pljobs.cancel_job_v1(%s)", [job_id]])
        thread.start()
        _, detail, action = seen(conn, "blocked_sessions", pid_of(waiting))
        other.tpc_rollback()
        thread.join()

    assert "on a prepared transaction" in detail
    assert "pg_prepared_xacts" in action


def test_connections_that_are_nearly_used_up_are_shown(night: Server, conn: Conn) -> None:
    assert found(conn, "connections") == {}
    opened = [psycopg.connect(night.url("night")) for _ in range(31)]
    # A session of an earlier test may not be gone yet.
    wait_until(lambda: found(conn, "connections").get("32 of 37", ("",))[0] == "notice")
    opened += [psycopg.connect(night.url("night")) for _ in range(4)]
    wait_until(lambda: found(conn, "connections").get("36 of 37", ("",))[0] == "critical")
    for connection in opened:
        connection.close()
    gone(conn, "connections")


def test_a_listener_that_went_deaf_while_its_heartbeat_was_answered_is_named(
    night: Server, conn: Conn
) -> None:
    """Its server process is not idle before it has written what came meanwhile."""
    deaf = psycopg.connect(night.url("night"), autocommit=True)
    try:
        deaf.execute("LISTEN here")
        conn.execute("SELECT pg_advisory_lock(1)")
        deaf.pgconn.send_query(b'SELECT pg_advisory_lock(1) AS "pljobs.heartbeat_v1"')
        assert deaf.pgconn.flush() == 0
        waits = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND pid = %s"
        wait_until(
            lambda: conn.execute(waits, [deaf.info.backend_pid]).fetchone() is not None,
            what="its heartbeat is being answered",
        )
        conn.execute(
            "DO $$ BEGIN FOR i IN 1..1000 LOOP"
            " PERFORM pg_notify('here', lpad(i::text, 7000)); COMMIT; END LOOP; END $$"
        )
        conn.execute("SELECT pg_advisory_unlock(1)")
        name = f"pid {deaf.info.backend_pid}"
        wait_until(lambda: name in found(conn, "listeners"), what="it is named")
        state = "SELECT state FROM pg_stat_activity WHERE pid = %s"
        assert conn.execute(state, [deaf.info.backend_pid]).fetchone() == ("active",)
    finally:
        conn.execute("SELECT pg_terminate_backend(%s, 10000)", [deaf.info.backend_pid])
        deaf.close()
    gone(conn, "listeners")
