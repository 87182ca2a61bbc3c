"""Releases that meet: an old driver on the new schema, a new one on the old, and one that takes away."""

# ruff: noqa: F401, F811 - fixtures are imported, and are parameters of the same names

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from old_release import (
    MIGRATIONS,
    OWNER,
    REPO,
    SCENE,
    SQL,
    OldRelease,
    catalogue,
    login,
    migrator,
    old_db_url,
    old_release,
    old_scene_url,
    old_template,
    psql_command,
    psql_file,
    run_commands,
    run_pljobs,
    upgrade,
)
from pljobs.embedded import Server, environment
from waiting import wait_until
from workers import HASTY, HERE, LASTING, SIDE_TABLE, Process

DEADLINE = 60.0
WORKERS = "SELECT count(*) FROM pljobs.worker"


@pytest.fixture
def superuser(old_scene_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(login(old_scene_url, "postgres"), autocommit=True) as conn:
        conn.execute(SIDE_TABLE)
        conn.execute("GRANT ALL ON public.side TO PUBLIC")
        yield conn


# A new driver, the old schema


def test_a_new_worker_refuses_an_old_schema(
    old_scene_url: str, superuser: psycopg.Connection, tmp_path: Path
) -> None:
    before, workers = catalogue(superuser), superuser.execute(WORKERS).fetchone()
    worker = Process(login(old_scene_url, "upgrade_worker"), tmp_path / "new.log")
    try:
        assert worker.wait(DEADLINE) != 0
    finally:
        worker.kill()
    assert worker.said("older than this one")
    assert worker.said("run `pljobs migrate`")
    assert superuser.execute(WORKERS).fetchone() == workers
    assert superuser.execute("SELECT count(*) FROM pljobs.job WHERE worker_id > 2").fetchone() == (0,)
    assert catalogue(superuser) == before


@pytest.fixture
def shop(tmp_path: Path) -> dict[str, str]:
    """What lets a command line find an app."""
    (tmp_path / "shop.py").write_text("from pljobs import App\napp = App('')\n")
    return {"PYTHONPATH": f"{REPO / 'python'}:{tmp_path}"}


def test_so_does_its_command_line(
    old_scene_url: str, superuser: psycopg.Connection, shop: dict[str, str]
) -> None:
    workers = superuser.execute(WORKERS).fetchone()
    done = run_pljobs(old_scene_url, "worker", "--app", "shop:app", variables=shop)
    assert done.returncode == 1, done.stderr
    assert "run `pljobs migrate`" in done.stderr
    assert "Traceback" not in done.stderr
    assert superuser.execute(WORKERS).fetchone() == workers


def test_a_supervisor_starts_them_again_until_somebody_has_migrated(
    server: Server,
    old_scene_url: str,
    superuser: psycopg.Connection,
    shop: dict[str, str],
    tmp_path: Path,
) -> None:
    log = tmp_path / "supervisor.log"
    with log.open("wb") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "pljobs", "worker", "--app", "shop:app", "--processes", "2"],
            env={**environment(), **shop, "PLJOBS_URL": old_scene_url},
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: "run `pljobs migrate`" in log.read_text(), DEADLINE, "they refuse")
        upgrade(server, old_scene_url)
        alive = "SELECT count(*) FROM pljobs.workers WHERE state = 'alive' AND contract = 3"
        wait_until(lambda: superuser.execute(alive).fetchone() == (2,), DEADLINE, "they work")
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(DEADLINE) == 0
    finally:
        supervisor.kill()


COMMANDS = (
    "list", "list --stalled", "show 1", "queues", "workers", "stuck", "defer mail", "cancel 7",
    "cancel --abort 5", "rescind 4", "retry 2", "delete 1", "pause mail", "resume mail", "schema",
    "healthcheck", "prune --older-than 1d --history", "rescue",
)  # fmt: skip


def test_a_new_command_line_on_an_old_schema_works_or_says_what_to_do(
    old_scene_url: str, superuser: psycopg.Connection
) -> None:
    before = catalogue(superuser)
    commands = (*COMMANDS, "schema --check", "migrate --dry-run")
    for command, (code, said) in zip(commands, run_commands(old_scene_url, commands), strict=True):
        assert (code, "run `pljobs migrate`" in said) in {(0, False), (1, True)}, f"{command}: {said}"
        assert "Traceback" not in said, f"{command}: {said}"
    assert catalogue(superuser) == before


# An old driver, the new schema


def test_an_old_worker_works_on_the_new_schema(
    server: Server, old_release: OldRelease, old_scene_url: str, superuser: psycopg.Connection, tmp_path: Path
) -> None:
    upgrade(server, old_scene_url)
    (job_id,) = superuser.execute("SELECT pljobs.defer_job('quick')").fetchone() or (0,)
    with old_release.worker(login(old_scene_url, "upgrade_worker"), tmp_path, "old", **HASTY) as worker:
        status = "SELECT status FROM pljobs.jobs WHERE id = %s"
        wait_until(lambda: superuser.execute(status, [job_id]).fetchone() == ("succeeded",), DEADLINE)
        known = "SELECT contract, driver, registered_by FROM pljobs.workers WHERE name = 'old'"
        assert superuser.execute(known).fetchone() == (1, None, "upgrade_worker")
        worker.signal(signal.SIGTERM)
        assert worker.wait(DEADLINE) == 0


@pytest.mark.parametrize("version", ["0.2.0", "0.3.0", "0.3.1", "0.3.2", "0.3.3", "0.3.4", "0.3.5", "0.3.6"])
def test_a_release_between_is_upgraded_while_its_worker_works(
    server: Server, old_template: str, tmp_path: Path, version: str
) -> None:
    with zipfile.ZipFile(HERE / "releases" / f"pljobs-{version}-py3-none-any.whl") as wheel:
        wheel.extractall(tmp_path / "wheel")
    release = OldRelease(tmp_path / "wheel")
    server.run_sql(f"CREATE DATABASE between OWNER {OWNER}")
    url = login(server.url("between"), OWNER)
    try:
        done = psql_file(server, url, release.sql / "install.sql")
        assert done.returncode == 0, done.stderr
        with (
            psycopg.connect(url, autocommit=True) as conn,
            release.worker(login(url, "upgrade_worker"), tmp_path, "between", **HASTY) as worker,
        ):
            with psycopg.connect(login(url, "postgres"), autocommit=True) as superuser:
                superuser.execute(SIDE_TABLE)
                superuser.execute("GRANT ALL ON public.side TO PUBLIC")
            conn.execute(SCENE)
            in_months = version in {"0.3.0", "0.3.1"}
            if in_months:  # a rate of months, all used: as they counted them, in months
                conn.execute(
                    "SELECT pljobs.throttle_queue('months', rate => 1, period => '1 month', burst => 12)"
                )
                conn.execute(
                    "INSERT INTO pljobs.bucket (scope, name, key, set_at, full_at)"
                    " SELECT t.scope, t.name, '', t.set_at, clock_timestamp() + interval '1 year'"
                    " FROM pljobs.throttle AS t"
                )
            upgrade(server, url)
            assert conn.execute("SELECT * FROM pljobs.check_install()").fetchall() == []
            room = "SELECT pljobs._room('queue', 'months')"
            assert not in_months or conn.execute(room.encode()).fetchone() == (0,)
            (job_id,) = conn.execute("SELECT pljobs.defer_job('quick', fairness_key => 'k')").fetchone() or (
                0,
            )
            status = "SELECT status FROM pljobs.jobs WHERE id = %s"
            wait_until(lambda: conn.execute(status, [job_id]).fetchone() == ("succeeded",), DEADLINE)
            worker.signal(signal.SIGTERM)
            assert worker.wait(DEADLINE) == 0
    finally:
        server.drop_database("between")


def test_an_old_command_line_works_on_the_new_schema(
    server: Server, old_release: OldRelease, old_scene_url: str
) -> None:
    upgrade(server, old_scene_url)
    done = run_commands(old_scene_url, COMMANDS, old_release.variables)
    for command, (code, said) in zip(COMMANDS, done, strict=True):
        assert code == 0, f"{command}: {said}"


@pytest.mark.parametrize("way", ["psql", "pljobs migrate"])
def test_an_old_installer_changes_nothing_in_the_new_schema(
    server: Server, old_release: OldRelease, old_scene_url: str, superuser: psycopg.Connection, way: str
) -> None:
    upgrade(server, old_scene_url)
    before = catalogue(superuser)
    if way == "psql":
        assert psql_file(server, old_scene_url, old_release.sql / "install.sql").returncode == 3
    else:
        assert old_release.pljobs(old_scene_url, "migrate").returncode == 1

    assert catalogue(superuser) == before


@pytest.mark.parametrize("way", ["psql", "pljobs migrate"])
def test_a_database_that_a_newer_release_migrated_is_refused_before_anything_is_locked(
    server: Server, old_scene_url: str, superuser: psycopg.Connection, way: str
) -> None:
    upgrade(server, old_scene_url)
    superuser.execute("INSERT INTO pljobs.migration (name, checksum) VALUES ('9999_expand_later', 'x')")
    # What a newer release may look like, to which this one's views are no match.
    superuser.execute("ALTER VIEW pljobs.queues RENAME COLUMN paused TO halted")
    with psycopg.connect(login(old_scene_url, "postgres")) as reader:
        reader.execute("SELECT FROM pljobs.jobs")
        process = migrator(server, old_scene_url, way)
        said, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode != 0
    assert "this database has been migrated to 9999_expand_later" in said


def test_what_follows_an_install_in_its_transaction_finds_its_settings(
    server: Server, old_scene_url: str, tmp_path: Path
) -> None:
    script = tmp_path / "more.sql"
    script.write_text(
        "SET LOCAL search_path = public, pljobs; SET LOCAL lock_timeout = '7s';\n"
        "SET LOCAL statement_timeout = '1min';\n"
        f"\\i '{SQL / 'install.sql'}'\n"
        "SELECT concat_ws('|', current_setting('search_path'), current_setting('lock_timeout'),"
        " current_setting('statement_timeout'), current_user) AS found \\gset\n\\warn found :found\n"
    )
    # One of those who may become the owner of the schema, and do so meanwhile.
    server.run_sql(f"DROP ROLE IF EXISTS upgrade_member; CREATE ROLE upgrade_member LOGIN IN ROLE {OWNER}")
    done = psql_file(server, login(old_scene_url, "upgrade_member"), script)
    assert done.returncode == 0, done.stderr
    assert "found public, pljobs|7s|1min|upgrade_member" in done.stderr
    server.run_sql("DROP ROLE upgrade_member")


HARMFUL = [
    "default_transaction_isolation = serializable", "search_path = nowhere", "client_min_messages = error",
    "DateStyle = 'German, DMY'", "IntervalStyle = sql_standard", "quote_all_identifiers = on",
    "check_function_bodies = off", "row_security = off",
]  # fmt: skip


def test_the_settings_of_whoever_installs_do_no_harm(server: Server, old_scene_url: str) -> None:
    planned = run_pljobs(old_scene_url, "migrate", "--dry-run").stdout
    for setting in HARMFUL:
        server.run_sql(f"ALTER ROLE {OWNER} IN DATABASE old_copy SET {setting}")
    try:
        assert run_pljobs(old_scene_url, "migrate", "--dry-run").stdout == planned
        upgrade(server, old_scene_url)
        with psycopg.connect(old_scene_url, autocommit=True) as conn:
            assert conn.execute("SELECT * FROM pljobs.check_install()").fetchall() == []
        done = run_pljobs(old_scene_url, "schema", "--check")
        assert done.returncode == 0, done.stdout
    finally:
        server.run_sql(f"ALTER ROLE {OWNER} IN DATABASE old_copy RESET ALL")


# A release that takes away what 0.1.0 calls

CONTRACT = """SELECT pljobs._migrate('9999_contract_workers', $migration$
SELECT pljobs._refuse_old_workers(2);
{more}
$migration$);
"""
DROP = "DROP FUNCTION pljobs.register_worker_v1(text, text, integer, text[], integer, interval, bigint);"
# For longer than a migration waits for a lock: a worker takes its time to start on a busy machine.
HOLD = "SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock(3);"


class FutureRelease:
    """A copy of the package whose schema no longer serves contract 1."""

    def __init__(self, folder: Path, *, drops: bool, holds: bool = False) -> None:
        self.folder = folder
        shutil.copytree(
            REPO / "python" / "pljobs", folder / "pljobs", ignore=shutil.ignore_patterns("__pycache__")
        )
        self.sql = folder / "pljobs" / "sql"
        more = "\n".join([DROP] * drops + [HOLD] * holds)
        (self.sql / "migrations" / "9999_contract_workers.sql").write_text(CONTRACT.format(more=more))
        self._edit(
            "install.sql",
            f"{MIGRATIONS[-1]}.sql\n",
            f"{MIGRATIONS[-1]}.sql\n\\ir migrations/9999_contract_workers.sql\n",
        )
        self._edit("migrations/latest.sql", MIGRATIONS[-1], "9999_contract_workers")
        self._edit("functions/get_contract.sql", "oldest := 1", "oldest := 2")
        if drops:
            self._edit("grants.sql", "('function', 'register_worker_v1', c_work), ", "")
            text = (self.sql / "functions" / "register_worker.sql").read_text()
            start = text.index("CREATE OR REPLACE FUNCTION pljobs.register_worker_v1")
            (self.sql / "functions" / "register_worker.sql").write_text(text[:start])

    def _edit(self, name: str, old: str, new: str) -> None:
        text = (self.sql / name).read_text()
        assert old in text
        (self.sql / name).write_text(text.replace(old, new))

    def migrate(self, server: Server, url: str, way: str) -> subprocess.CompletedProcess[str]:
        if way == "psql":
            return psql_file(server, url, self.sql / "install.sql")
        return run_pljobs(url, "migrate", variables={"PYTHONPATH": str(self.folder)})


@pytest.mark.parametrize("way", ["psql", "pljobs migrate"])
def test_a_contract_refuses_while_a_worker_of_the_old_one_lives(
    server: Server,
    old_release: OldRelease,
    old_scene_url: str,
    superuser: psycopg.Connection,
    tmp_path: Path,
    way: str,
) -> None:
    upgrade(server, old_scene_url)
    # The scene's own, long lost.
    superuser.execute("UPDATE pljobs.worker SET expires_at = now() - interval '1 s'")
    future = FutureRelease(tmp_path / "future", drops=True)
    worker_url = login(old_scene_url, "upgrade_worker")
    with old_release.worker(worker_url, tmp_path, "old", **LASTING) as worker:
        before = catalogue(superuser)
        done = future.migrate(server, old_scene_url, way)
        assert done.returncode == (3 if way == "psql" else 1)
        assert f":{worker.pid}, contract 1)" in done.stderr
        assert "Upgrade and restart them" in done.stderr
        assert catalogue(superuser) == before
        worker.signal(signal.SIGTERM)
        assert worker.wait(DEADLINE) == 0

    done = future.migrate(server, old_scene_url, way)
    assert done.returncode == 0, done.stderr
    applied = superuser.execute("SELECT max(name) FROM pljobs.migration").fetchone()
    assert applied == ("9999_contract_workers",)


@pytest.mark.parametrize("drops", [True, False], ids=["dropped", "kept as a door"])
def test_an_old_worker_that_starts_after_a_contract_is_told_and_not_registered(
    server: Server,
    old_release: OldRelease,
    old_scene_url: str,
    superuser: psycopg.Connection,
    tmp_path: Path,
    drops: bool,
) -> None:
    superuser.execute("UPDATE pljobs.worker SET expires_at = now() - interval '1 s'")
    future = FutureRelease(tmp_path / "future", drops=drops)
    assert future.migrate(server, old_scene_url, "psql").returncode == 0
    workers = superuser.execute(WORKERS).fetchone()
    late = Process(login(old_scene_url, "upgrade_worker"), tmp_path / "late.log", old_release.variables)
    try:
        assert late.wait(DEADLINE) != 0
    finally:
        late.kill()
    told = (
        "function pljobs.register_worker_v1(name => text"
        if drops
        else "The worker is too old for this schema: upgrade it."
    )
    assert late.said(told), late.log.read_text()
    assert superuser.execute(WORKERS).fetchone() == workers


@pytest.mark.parametrize("drops", [True, False], ids=["dropped", "kept as a door"])
def test_an_old_worker_that_registers_while_a_contract_is_being_made_is_not_registered(
    server: Server,
    old_release: OldRelease,
    old_scene_url: str,
    superuser: psycopg.Connection,
    tmp_path: Path,
    drops: bool,
) -> None:
    upgrade(server, old_scene_url)
    superuser.execute("UPDATE pljobs.worker SET expires_at = now() - interval '1 s'")
    future = FutureRelease(tmp_path / "future", drops=drops, holds=True)
    workers = superuser.execute(WORKERS).fetchone()
    superuser.execute("SELECT pg_advisory_lock(3)")
    process = subprocess.Popen(
        psql_command(server, old_scene_url, future.sql / "install.sql"), env=environment()
    )
    waits = "SELECT FROM pg_locks WHERE NOT granted AND {}"
    held = waits.format("locktype = 'advisory'")
    wait_until(lambda: superuser.execute(held).fetchall(), DEADLINE, "the migration is held up")
    late = Process(login(old_scene_url, "upgrade_worker"), tmp_path / "late.log", old_release.variables)
    try:
        registers = waits.format("relation = 'pljobs.worker'::regclass")
        wait_until(lambda: superuser.execute(registers).fetchall(), DEADLINE, "it registers")
        superuser.execute("SELECT pg_advisory_unlock(3)")
        assert process.wait(DEADLINE) == 0
        assert late.wait(DEADLINE) != 0
    finally:
        process.kill()
        late.kill()
    assert late.said("speaks contract 1, and this schema, of release"), late.log.read_text()
    assert superuser.execute(WORKERS).fetchone() == workers
