"""Upgrades that are killed, that meet each other, or somebody who is in the way."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import oracle
from old_release import (
    MIGRATIONS,
    OWNER,
    SQL,
    Catalogue,
    OldRelease,
    catalogue,
    install_old,
    login,
    migrator,
    old_db_url,
    old_release,
    old_scene_url,
    old_template,
    psql_file,
    upgrade,
)
from pljobs.embedded import THROW_AWAY, Server, environment
from upgrade_load import Probe, Producer, Repeated, until
from waiting import wait_until
from workers import HASTY

KILLS = int(os.environ.get("PLJOBS_UPGRADE_KILLS", "10"))
SEED = int(os.environ.get("PLJOBS_UPGRADE_SEED", "4"))
DEADLINE = 60.0
WAYS = ["psql", "pljobs migrate"]
MIGRATOR = (
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'migrator' AND datname = current_database()"
)
IN_LINE = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
INSTALLING = "pg_catalog.hashtextextended('pljobs.install', 0)"


@pytest.fixture
def superuser(old_scene_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(login(old_scene_url, "postgres"), autocommit=True) as conn:
        yield conn


def installed_anew(server: Server, sql: Path = SQL) -> Catalogue:
    """What this release makes of an empty database, as the same owner."""
    server.run_sql(f"CREATE DATABASE new_copy OWNER {OWNER}")
    url = login(server.url("new_copy"), OWNER)
    try:
        done = psql_file(server, url, sql / "install.sql")
        assert done.returncode == 0, done.stderr
        with psycopg.connect(url) as conn:
            return catalogue(conn)
    finally:
        server.drop_database("new_copy")


def until_seen(conn: psycopg.Connection, process: subprocess.Popen[str]) -> int | None:
    """Wait for the migrator to connect; return its backend's pid, or None if it has ended already."""

    def seen() -> tuple[int | None] | None:
        row = conn.execute(MIGRATOR.encode()).fetchone()
        return row or ((None,) if process.poll() is not None else None)

    return wait_until(seen, DEADLINE, "the migrator connects")[0]


# Killed


@pytest.mark.slow
@pytest.mark.timeout(120 + 10 * KILLS)
def test_killed_at_any_point_it_leaves_the_old_schema_or_the_new_one(
    server: Server, old_scene_url: str, superuser: psycopg.Connection
) -> None:
    # Other points on each server.
    seed = SEED + superuser.info.server_version // 10000
    chance = random.Random(seed)
    old, new = catalogue(superuser), installed_anew(server)
    server.run_sql("CREATE DATABASE killed TEMPLATE template0")
    longest = dict.fromkeys(WAYS, 0.5)
    outcomes: list[str] = []
    superuser.close()  # else it could not be copied
    for turn in range(KILLS):
        server.drop_database("killed")
        server.run_sql(f"CREATE DATABASE killed TEMPLATE old_copy OWNER {OWNER}")
        url = server.url("killed")
        way, how = WAYS[turn % 2], ["kill -9", "terminate"][turn // 2 % 2]
        with psycopg.connect(url, autocommit=True) as conn:
            process = migrator(server, login(url, OWNER), way)
            pid = until_seen(conn, process)
            began = time.monotonic()
            # The first of each way shows how long it takes undisturbed.
            with contextlib.suppress(subprocess.TimeoutExpired):
                # The first that is killed has hardly begun.
                wait = 0 if turn == len(WAYS) else chance.uniform(0, longest[way])
                process.wait(None if turn < len(WAYS) else wait)
            if turn < len(WAYS):
                longest[way] = time.monotonic() - began
            elif how == "kill -9":
                process.kill()
            elif pid is not None:
                conn.execute("SELECT pg_terminate_backend(%s)", [pid])
            said, _ = process.communicate(timeout=DEADLINE)
            wait_until(lambda: not conn.execute(MIGRATOR.encode()).fetchall(), DEADLINE, "its backend ends")
            found = catalogue(conn)
            assert found in (old, new), f"{way}, {how}, seed {seed}, turn {turn}: {said}"
            if process.returncode == 0:
                assert found == new
            outcomes.append("new" if found == new else "old")
            upgrade(server, login(url, OWNER))
            assert catalogue(conn) == new
            assert conn.execute("SELECT count(*) FROM pljobs.job").fetchone() == (11,)
    server.drop_database("killed")
    print(
        f"\n{KILLS} kills: {outcomes.count('old')} left the old schema, {outcomes.count('new')} the new one"
    )
    assert "old" in outcomes


# Eight at once


def eight(server: Server, conn: psycopg.Connection, url: str) -> list[str]:
    """Let eight migrators loose on a database at once, three of them psql; return what they said."""
    conn.execute(f"SELECT pg_advisory_lock({INSTALLING})".encode())
    processes = [migrator(server, url, WAYS[0] if turn < 3 else WAYS[1]) for turn in range(8)]
    try:
        wait_until(lambda: conn.execute(IN_LINE.encode()).fetchone() == (8,), DEADLINE, "eight wait in line")
        conn.execute(f"SELECT pg_advisory_unlock({INSTALLING})".encode())
        said = [process.communicate(timeout=DEADLINE)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * 8, said
    return said[3:]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_of_eight_at_once_on_an_old_database_one_upgrades_it(
    server: Server, old_scene_url: str, superuser: psycopg.Connection
) -> None:
    said = eight(server, superuser, old_scene_url)

    assert sum("applied 0002_expand_roles" in text for text in said) <= 1
    assert catalogue(superuser) == installed_anew(server)
    applied = superuser.execute("SELECT name FROM pljobs.migration ORDER BY applied_at").fetchall()
    assert [name for (name,) in applied] == MIGRATIONS


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_of_eight_at_once_on_an_empty_database_one_installs(server: Server, old_template: str) -> None:
    server.run_sql(f"CREATE DATABASE eight OWNER {OWNER}")
    # Whatever transactions are here unless they say otherwise.
    server.run_sql("ALTER DATABASE eight SET default_transaction_isolation = 'serializable'")
    try:
        with psycopg.connect(server.url("eight"), autocommit=True) as conn:
            eight(server, conn, login(server.url("eight"), OWNER))
            assert catalogue(conn) == installed_anew(server)
    finally:
        server.drop_database("eight")


# Somebody is in the way

IN_THE_WAY = [
    ("psql", "SELECT FROM pljobs.job_event"),
    ("psql", "SELECT FROM pljobs.worker"),
    ("psql", "SELECT FROM pljobs.jobs"),
    ("pljobs migrate", "SELECT FROM pljobs.worker"),
]


def blocked(server: Server, url: str, way: str, seconds: int) -> subprocess.Popen[str]:
    """Start an upgrade that tries for so many seconds."""
    command = [
        str(server.bin_dir / "psql"),
        url,
        "-Xq1",
        "-v",
        "ON_ERROR_STOP=1",
        "-f",
        str(SQL / "install.sql"),
    ]
    if way != "psql":
        command = [sys.executable, "-m", "pljobs", "migrate", "--lock-timeout", f"{seconds}s"]
    options = f"-c pljobs.lock_timeout={seconds}s" if way == "psql" else ""
    return subprocess.Popen(
        command,
        env={**environment(), "PLJOBS_URL": url, "PGAPPNAME": "migrator", "PGOPTIONS": options},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("way", "read"), IN_THE_WAY)
def test_while_it_waits_for_a_reader_workers_work_and_then_it_gives_up(
    server: Server,
    old_release: OldRelease,
    old_scene_url: str,
    superuser: psycopg.Connection,
    read: str,
    way: str,
    tmp_path: Path,
) -> None:
    oracle.install(superuser)
    superuser.execute("GRANT ALL ON public.side, public.event TO PUBLIC")
    before = catalogue(superuser)
    ended = "SELECT count(*) FROM public.event WHERE is_now IN ('succeeded', 'todo')"
    worker_url = login(old_scene_url, "upgrade_worker")
    tasks: list[tuple[str, dict[str, object]]] = [("quick", {}), ("work", {"fail": True})]
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(psycopg.connect(login(old_scene_url, "postgres")))
        reader.execute(read.encode())
        worker = stack.enter_context(old_release.worker(worker_url, tmp_path, "old", **HASTY))
        threads: list[Repeated] = [
            stack.enter_context(Producer(login(old_scene_url, "upgrade_producer"), tasks)),
            probe := stack.enter_context(Probe(worker_url)),
        ]
        process = blocked(server, old_scene_url, way, 4)
        until_seen(superuser, process)
        began, done = time.monotonic(), superuser.execute(ended.encode()).fetchone()
        said, _ = process.communicate(timeout=DEADLINE)
        gave_up, then_done = time.monotonic(), superuser.execute(ended.encode()).fetchone()
        quarter = (gave_up - began) / 4
        asked = sum(began + quarter <= at <= gave_up - quarter for at, _ in probe.asked)
        for thread in threads:
            thread.stop()
        assert worker.popen.poll() is None
        assert process.returncode != 0
        assert f"pid {reader.info.backend_pid} " in said
        assert done is not None
        assert then_done is not None
        assert then_done[0] > done[0]
        print(
            f"\n{way}, {read}: gave up after {gave_up - began:.1f} s; {then_done[0] - done[0]} runs ended"
            f" meanwhile, and in half of that time {asked} fetches were begun"
        )
        # What waits behind it waits for a moment, and not for as long as it does: then none would be begun
        # between its first moments and its last.
        assert asked >= 5
    assert catalogue(superuser) == before


@pytest.mark.parametrize(("way", "read"), IN_THE_WAY)
def test_once_the_reader_has_gone_it_goes_on(
    server: Server, old_scene_url: str, superuser: psycopg.Connection, read: str, way: str
) -> None:
    with psycopg.connect(login(old_scene_url, "postgres")) as reader:
        reader.execute(read.encode())
        process = blocked(server, old_scene_url, way, 50)
        asleep = f"{MIGRATOR} AND wait_event IN ('PgSleep', 'relation')"
        wait_until(lambda: superuser.execute(asleep.encode()).fetchall(), DEADLINE, "it waits")
        assert process.poll() is None
    said, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, said
    assert superuser.execute("SELECT * FROM pljobs.check_install()").fetchall() == []


def test_it_names_who_is_in_the_way_whatever_the_statement_timeout(
    server: Server, old_scene_url: str
) -> None:
    server.run_sql(f"ALTER ROLE {OWNER} IN DATABASE old_copy SET statement_timeout = '3s'")
    with psycopg.connect(login(old_scene_url, "postgres")) as reader:
        reader.execute("SELECT FROM pljobs.worker")
        said, _ = blocked(server, old_scene_url, "psql", 6).communicate(timeout=DEADLINE)
        assert f"pid {reader.info.backend_pid} " in said


class Vacuum:
    """A VACUUM of a table that takes very long: until the end of the block."""

    def __init__(self, conn: psycopg.Connection, table: str) -> None:
        self.conn, self.table = conn, table
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self.conn.execute("SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1")
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.conn.cancel_safe()
        self.thread.join()

    def _run(self) -> None:
        with contextlib.suppress(psycopg.errors.QueryCanceled):
            self.conn.execute(f"VACUUM {self.table}".encode())


def fill(conn: psycopg.Connection) -> None:
    """Make history of some hundred pages, and arguments of a megabyte."""
    conn.execute(
        "INSERT INTO pljobs.job_event (job_id, at, attempt, kind)"
        " SELECT n, now(), 1, 'retried' FROM generate_series(1, 20000) AS n;"
        "UPDATE pljobs.job SET args = jsonb_build_object('text', repeat(id::text, 200000))"
    )


def test_a_vacuum_in_the_way_is_named(
    server: Server, old_scene_url: str, superuser: psycopg.Connection
) -> None:
    fill(superuser)
    before = catalogue(superuser)
    with psycopg.connect(login(old_scene_url, "postgres"), autocommit=True) as cleaner:
        with Vacuum(cleaner, "pljobs.job_event"):
            cleaning = "SELECT FROM pg_stat_progress_vacuum"
            wait_until(lambda: superuser.execute(cleaning).fetchall(), DEADLINE, "it vacuums")
            process = blocked(server, old_scene_url, "psql", 1)
            said, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == 3
        assert f"pljobs.job_event was held by others for too long: pid {cleaner.info.backend_pid} (" in said
    assert catalogue(superuser) == before


def test_a_backup_in_the_way_is_named(
    server: Server, old_scene_url: str, superuser: psycopg.Connection
) -> None:
    fill(superuser)
    before = catalogue(superuser)
    # Nobody reads what it writes: it gets as far as the pipe is long.
    command = [str(server.bin_dir / "pg_dump"), "--schema=pljobs", login(old_scene_url, "postgres")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as dump:
        holding = (
            "SELECT a.pid FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid"
            " WHERE a.application_name = 'pg_dump' AND l.relation = 'pljobs.worker'::regclass"
        )
        (pid,) = wait_until(lambda: superuser.execute(holding).fetchone(), DEADLINE, "the backup has begun")
        process = blocked(server, old_scene_url, "psql", 1)
        said, _ = process.communicate(timeout=DEADLINE)
        dump.kill()
    assert process.returncode == 3
    assert f"pid {pid} (postgres, pg_dump" in said
    assert catalogue(superuser) == before


# On a server of their own, for its settings


@pytest.fixture(scope="module")
def busy_server(server: Server) -> Iterator[Server]:
    """A server with autovacuum, which looks every second, and prepared transactions."""
    settings = {**THROW_AWAY, "autovacuum": "on", "autovacuum_naptime": "1", "max_prepared_transactions": "2"}
    with Server.start(server.bin_dir, settings=settings) as started:
        yield started


def test_an_autovacuum_gives_way(busy_server: Server, old_release: OldRelease) -> None:
    install_old(busy_server, old_release, "vacuumed")
    with psycopg.connect(busy_server.url("vacuumed"), autocommit=True) as conn:
        conn.execute(
            "ALTER TABLE pljobs.job_event SET (autovacuum_vacuum_threshold = 1,"
            " autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_limit = 1,"
            " autovacuum_vacuum_cost_delay = 100)"
        )
        fill(conn)
        conn.execute("DELETE FROM pljobs.job_event")
        cleaning = "SELECT FROM pg_stat_progress_vacuum WHERE relid = 'pljobs.job_event'::regclass"
        wait_until(lambda: conn.execute(cleaning).fetchall(), DEADLINE, "it vacuums")
        upgrade(busy_server, login(busy_server.url("vacuumed"), OWNER))
        assert conn.execute("SELECT * FROM pljobs.check_install()").fetchall() == []


def test_a_prepared_transaction_in_the_way_is_named(busy_server: Server, old_release: OldRelease) -> None:
    install_old(busy_server, old_release, "prepared")
    with psycopg.connect(busy_server.url("prepared"), autocommit=True) as conn:
        conn.execute("BEGIN; SELECT FROM pljobs.worker; PREPARE TRANSACTION 'forgotten'")
        process = blocked(busy_server, login(busy_server.url("prepared"), OWNER), "psql", 1)
        said, _ = process.communicate(timeout=DEADLINE)
        conn.execute("ROLLBACK PREPARED 'forgotten'")
    assert process.returncode == 3
    assert "a prepared transaction (see pg_prepared_xacts)" in said
