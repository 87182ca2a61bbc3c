"""What an upgrade finds of a DBA's own, and what it leaves to be done afterwards."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest

from old_release import (
    OWNER,
    SQL,
    catalogue,
    login,
    old_db_url,
    old_release,
    old_scene_url,
    old_template,
    psql_command,
    psql_file,
    run_pljobs,
    upgrade,
)
from pljobs.embedded import Server, environment
from waiting import wait_until

DEADLINE = 60.0
CHECK = "SELECT name, problem FROM pljobs.check_install()"


@pytest.fixture
def superuser(old_scene_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(login(old_scene_url, "postgres"), autocommit=True) as conn:
        yield conn


# Storage settings

BY_HAND = [
    ("job", "fillfactor=70"),
    ("job", "autovacuum_vacuum_scale_factor=0.5"),
    ("job", "autovacuum_enabled=false"),
    ("job", "toast.autovacuum_vacuum_threshold=7"),
    ("job", "toast.autovacuum_enabled=false"),
    ("job", "vacuum_truncate=true"),
    ("job_event", "autovacuum_vacuum_threshold=77"),
    ("request", "fillfactor=60"),
    ("worker", "autovacuum_vacuum_scale_factor=0.3"),
    ("queue", "fillfactor=99"),
]


def settings(conn: psycopg.Connection) -> set[tuple[str, str]]:
    return {
        (name, option)
        for (kind, name), options in catalogue(conn).items()
        if kind == "storage"
        for option in (options or "").split()
    }


def set_by_hand(conn: psycopg.Connection) -> None:
    for table, option in BY_HAND:
        conn.execute(f"ALTER TABLE pljobs.{table} SET ({option})".encode())
    conn.execute("ALTER TABLE pljobs.job RESET (autovacuum_analyze_threshold)")


def test_storage_settings_that_a_dba_made_before_the_upgrade_stay(
    server: Server, old_scene_url: str, superuser: psycopg.Connection
) -> None:
    set_by_hand(superuser)
    before = settings(superuser)
    assert set(BY_HAND) <= before
    upgrade(server, old_scene_url)

    after = settings(superuser)
    assert before <= after
    assert ("job_event", "vacuum_truncate=false") in after
    assert not [option for _, option in after if option.startswith("autovacuum_analyze_threshold")]


def test_storage_settings_that_a_dba_makes_after_the_upgrade_stay(
    server: Server, old_scene_url: str, superuser: psycopg.Connection
) -> None:
    upgrade(server, old_scene_url)
    set_by_hand(superuser)
    superuser.execute("ALTER TABLE pljobs.job_event RESET (vacuum_truncate, autovacuum_vacuum_scale_factor)")
    before = settings(superuser)
    upgrade(server, old_scene_url)
    assert run_pljobs(old_scene_url, "migrate").returncode == 0

    assert settings(superuser) == before


# Grants

# It has a parameter more than in the first release, so it is another function (as prune_jobs is).
DEFER_JOB = (
    "pljobs.defer_job(text,jsonb,text,integer,text,text,timestamptz,timestamptz,interval,interval,text,bigint,"
    "text,text)"
)


def may(conn: psycopg.Connection, role: str, what: str) -> bool:
    kind, name, right = what.split(" ", 2)
    row = conn.execute(f"SELECT has_{kind}_privilege(%s, %s, %s)".encode(), [role, name, right]).fetchone()
    assert row is not None
    return bool(row[0])


def test_grants_become_those_of_the_new_release(
    server: Server, old_scene_url: str, superuser: psycopg.Connection
) -> None:
    superuser.execute("DROP ROLE IF EXISTS somebody; CREATE ROLE somebody")
    superuser.execute(
        # By hand, and as a release that had this function might have left it.
        "CREATE FUNCTION pljobs.former() RETURNS integer LANGUAGE sql RETURN 1;"
        f"ALTER FUNCTION pljobs.former() OWNER TO {OWNER};"
        "GRANT EXECUTE ON FUNCTION pljobs.former() TO pljobs_reader, pljobs_operator, somebody, PUBLIC;"
        "GRANT EXECUTE ON FUNCTION pljobs.pause_queue TO pljobs_producer, somebody;"
        "GRANT EXECUTE ON FUNCTION pljobs.defer_job TO somebody;"
        "GRANT EXECUTE ON FUNCTION pljobs.prune_jobs TO somebody;"
        "GRANT SELECT ON pljobs.job TO pljobs_reader; GRANT UPDATE (status) ON pljobs.job TO pljobs_worker;"
        "GRANT USAGE ON SEQUENCE pljobs.run_id TO pljobs_worker;"
        "GRANT CREATE ON SCHEMA pljobs TO pljobs_operator;"
        "GRANT SELECT ON pljobs.jobs TO somebody; GRANT USAGE ON SCHEMA pljobs TO somebody"
    )
    columns = (
        "SELECT count(*) FROM pg_attribute WHERE attrelid = 'pljobs.jobs'::regclass AND attacl IS NOT NULL"
    )
    assert superuser.execute(columns).fetchone() == (22,)
    assert not may(superuser, "pljobs_reader", "table pljobs.jobs SELECT")
    upgrade(server, old_scene_url)

    assert superuser.execute(columns).fetchone() == (0,)
    for role, what in (
        ("pljobs_reader", "table pljobs.jobs SELECT"),
        ("pljobs_canceller", "table pljobs.jobs SELECT"),
        ("somebody", "table pljobs.jobs SELECT"),
        ("somebody", "function pljobs.former() EXECUTE"),
        ("somebody", "function pljobs.pause_queue(text,text,text) EXECUTE"),
        ("somebody", f"function {DEFER_JOB} EXECUTE"),
        ("somebody", "function pljobs.prune_jobs(interval,text[],text,integer,boolean) EXECUTE"),
    ):
        assert may(superuser, role, what), f"{role}: {what}"
    for role, what in (
        ("pljobs_reader", "function pljobs.former() EXECUTE"),
        ("pljobs_operator", "function pljobs.former() EXECUTE"),
        ("upgrade_worker", "function pljobs.former() EXECUTE"),
        ("pljobs_producer", "function pljobs.pause_queue(text,text,text) EXECUTE"),
        ("pljobs_reader", "table pljobs.job SELECT"),
        ("pljobs_worker", "sequence pljobs.run_id USAGE"),
        ("pljobs_operator", "schema pljobs CREATE"),
    ):
        assert not may(superuser, role, what), f"{role}: {what}"
    written = superuser.execute("SELECT has_any_column_privilege('pljobs_worker', 'pljobs.job', 'UPDATE')")
    assert written.fetchone() == (False,)
    assert superuser.execute(CHECK).fetchall() == [("former()", "unknown")]
    superuser.execute("DROP FUNCTION pljobs.former(); DROP OWNED BY somebody; DROP ROLE somebody")


def test_what_a_group_was_given_to_pass_on_goes_with_what_it_passed_on(
    server: Server, old_scene_url: str, superuser: psycopg.Connection
) -> None:
    superuser.execute("DROP ROLE IF EXISTS somebody; CREATE ROLE somebody")
    superuser.execute(
        "GRANT SELECT ON pljobs.jobs TO pljobs_operator WITH GRANT OPTION; SET ROLE pljobs_operator;"
        "GRANT SELECT ON pljobs.jobs TO somebody; RESET ROLE"
    )
    upgrade(server, old_scene_url)

    assert not may(superuser, "somebody", "table pljobs.jobs SELECT")
    assert superuser.execute(CHECK).fetchall() == []
    superuser.execute("DROP OWNED BY somebody; DROP ROLE somebody")


def test_a_view_that_a_dba_has_added_stays_as_it_is(
    server: Server, old_scene_url: str, superuser: psycopg.Connection
) -> None:
    superuser.execute(
        f"SET ROLE {OWNER}; CREATE VIEW pljobs.mine AS SELECT id FROM pljobs.jobs; RESET ROLE".encode()
    )
    before = catalogue(superuser)["view", "mine"]
    upgrade(server, old_scene_url)

    assert catalogue(superuser)["view", "mine"] == before
    assert superuser.execute(CHECK).fetchall() == [("mine", "unknown")]
    # Nor is it a reason to do anything, which would have to wait for this.
    with psycopg.connect(login(old_scene_url, "postgres")) as reader:
        reader.execute("SELECT FROM pljobs.jobs")
        assert run_pljobs(old_scene_url, "migrate", "--lock-timeout", "1s").returncode == 0


# Indexes on large tables

LATER = "job_event_rescued"
LARGE = """
INSERT INTO pljobs.job_event (job_id, at, attempt, kind, message)
SELECT n, now(), 1, 'retried', repeat('x', 1000) FROM generate_series(1, 20000) AS n
"""
# Before that phase the index is not there for others, not even as an invalid one.
BUILDING = "SELECT pid FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting for writers%'"
LIVES = "SELECT FROM pg_stat_activity WHERE pid = %s"


@pytest.fixture
def large(server: Server, old_scene_url: str, superuser: psycopg.Connection) -> str:
    """A database whose history is large, upgraded by psql: its new index is left for later."""
    superuser.execute(LARGE)
    done = psql_file(server, old_scene_url, SQL / "install.sql")
    assert done.returncode == 0, done.stderr
    assert "pljobs.job_event is large: its new index is not made" in done.stderr
    assert "psql -f sql/indexes.sql" in done.stderr
    assert superuser.execute(CHECK).fetchall() == [(LATER, "missing")]
    return old_scene_url


def indexes(server: Server, url: str) -> subprocess.Popen[str]:
    """Start sql/indexes.sql."""
    return subprocess.Popen(
        psql_command(server, url, SQL / "indexes.sql", whole=False),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until_building(conn: psycopg.Connection) -> int:
    (pid,) = wait_until(lambda: conn.execute(BUILDING).fetchone(), DEADLINE, "the index is being built")
    return int(pid)


def test_a_large_tables_index_is_made_while_writers_go_on(
    server: Server, large: str, superuser: psycopg.Connection
) -> None:
    with psycopg.connect(login(large, "postgres")) as writer:
        writer.execute(LARGE)
        process = indexes(server, large)
        until_building(superuser)
        # It waits for the writer, who goes on, and for whom nobody waits.
        writer.execute(LARGE)
        superuser.execute("SET lock_timeout = '2s'")
        superuser.execute(LARGE)
        assert process.poll() is None
        writer.commit()
    said, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, said
    assert superuser.execute(CHECK).fetchall() == []


@pytest.mark.parametrize("how", ["kill -9", "terminate"])
def test_a_build_that_broke_off_is_named_and_mended(
    server: Server, large: str, superuser: psycopg.Connection, how: str
) -> None:
    with psycopg.connect(login(large, "postgres")) as writer:
        writer.execute(LARGE)
        process = indexes(server, large)
        pid = until_building(superuser)
        if how == "kill -9":
            process.kill()  # its server process goes on until it wants to say something
        superuser.execute("SELECT pg_terminate_backend(%s)", [pid])
        process.communicate(timeout=DEADLINE)
        assert process.returncode != 0
        wait_until(lambda: not superuser.execute(LIVES, [pid]).fetchall(), DEADLINE, "its backend ends")
        assert superuser.execute(CHECK).fetchall() == [(LATER, "invalid")]
        writer.commit()
    process = indexes(server, large)
    said, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, said
    assert superuser.execute(CHECK).fetchall() == []


def test_of_two_that_make_indexes_one_says_so_and_stops(
    server: Server, large: str, superuser: psycopg.Connection
) -> None:
    with psycopg.connect(login(large, "postgres")) as writer:
        writer.execute(LARGE)
        first = indexes(server, large)
        until_building(superuser)
        second = indexes(server, large)
        said, _ = second.communicate(timeout=DEADLINE)
        assert "another session is making the indexes of pljobs" in said
        assert second.returncode == 3
        assert first.poll() is None
        writer.commit()
    first.communicate(timeout=DEADLINE)
    assert first.returncode == 0
    assert superuser.execute(CHECK).fetchall() == []


def test_pljobs_migrate_makes_them_by_itself(old_scene_url: str, superuser: psycopg.Connection) -> None:
    superuser.execute(LARGE)
    done = run_pljobs(old_scene_url, "migrate")

    assert done.returncode == 0, done.stderr
    assert "applied 0002_expand_roles" in done.stdout
    assert superuser.execute(CHECK).fetchall() == []


def test_pljobs_migrate_that_was_killed_meanwhile_goes_on_the_next_time(
    large: str, superuser: psycopg.Connection
) -> None:
    with psycopg.connect(login(large, "postgres")) as writer:
        writer.execute(LARGE)
        process = subprocess.Popen(
            [sys.executable, "-m", "pljobs", "migrate"], env={**environment(), "PLJOBS_URL": large}
        )
        pid = until_building(superuser)
        process.kill()
        process.wait()
        superuser.execute("SELECT pg_terminate_backend(%s)", [pid])
        wait_until(lambda: not superuser.execute(LIVES, [pid]).fetchall(), DEADLINE, "its backend ends")
        assert superuser.execute(CHECK).fetchall() == [(LATER, "invalid")]
        writer.commit()
    assert run_pljobs(large, "migrate").returncode == 0
    assert superuser.execute(CHECK).fetchall() == []


@pytest.mark.parametrize("call", ["defer_job('t')", "prune_jobs('1 day')"])
def test_an_object_that_depends_on_what_goes_stops_the_upgrade_and_is_named(
    server: Server, old_scene_url: str, superuser: psycopg.Connection, call: str
) -> None:
    superuser.execute(
        f"CREATE FUNCTION public.mine() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT pljobs.{call}; END"
    )
    before = catalogue(superuser)
    ended = run_pljobs(old_scene_url, "migrate")

    assert ended.returncode != 0
    assert "mine()" in ended.stdout + ended.stderr
    assert catalogue(superuser) == before
    superuser.execute("DROP FUNCTION public.mine()")
    assert run_pljobs(old_scene_url, "migrate").returncode == 0
