"""`migrate` and psql install the same thing; `check` tells where a database differs from the package."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from pljobs import App, exceptions, install, install_check, install_files, release
from pljobs.embedded import Server, environment
from pljobs.listener import queue_hash
from waiting import wait_until

REPO = Path(__file__).parent.parent
MISSING = "schema pljobs: missing; run `pljobs migrate`"


@pytest.fixture
def migrated(empty_db_url: str) -> Iterator[psycopg.Connection]:
    """A connection to a database that `migrate` has installed."""
    install.migrate(empty_db_url)
    with psycopg.connect(empty_db_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Lets a test change the packaged files."""
    yield monkeypatch
    install_check._packaged.cache_clear()


def with_text(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    files = tuple((name, text.replace(old, new)) for name, text in install_files.install_files())
    assert files != install_files.install_files()
    for module in (install, install_check, install_files):
        monkeypatch.setattr(module, "install_files", lambda: files)
    install_check._packaged.cache_clear()


def catalogue(server: Server, url: str) -> str:
    """All that pg_dump knows about the schema: definitions, owners, rights, comments, settings."""
    command = [str(server.bin_dir / "pg_dump"), "--schema=pljobs", "--schema-only", url]
    dumped = subprocess.run(command, capture_output=True, text=True, check=True, env=environment()).stdout
    return re.sub(r"(?m)^\\(un)?restrict .*$", "", dumped)


HOSTILE = (
    "default_transaction_isolation = 'serializable'",
    "default_transaction_read_only = on",
    "standard_conforming_strings = off",
    "quote_all_identifiers = on",
    "datestyle = 'German'",
    "intervalstyle = 'sql_standard'",
    "search_path = 'nowhere'",
    "check_function_bodies = off",
    "statement_timeout = '50ms'",
)


def test_a_databases_settings_change_nothing_of_what_is_installed(
    server: Server, admin_url: str, empty_db_url: str
) -> None:
    with psycopg.connect(empty_db_url, autocommit=True) as conn:
        for setting in HOSTILE:
            conn.execute(f"ALTER DATABASE {conn.info.dbname} SET {setting}".encode())
    install.migrate(empty_db_url)
    assert install_check.check(empty_db_url) == []
    with psycopg.connect(empty_db_url, autocommit=True) as conn:
        conn.execute("SET statement_timeout = 0; SET default_transaction_read_only = off")
        assert conn.execute("SELECT * FROM pljobs.check_install()").fetchall() == []
        conn.execute(f"ALTER DATABASE {conn.info.dbname} RESET ALL".encode())  # pg_dump would show them
    assert catalogue(server, empty_db_url) == catalogue(server, admin_url)


def test_migrate_and_psql_make_the_same_database(server: Server, admin_url: str, empty_db_url: str) -> None:
    applied = install.migrate(empty_db_url)

    assert applied == tuple(migration.name for migration in install_files.migrations())
    made = catalogue(server, empty_db_url)
    assert "CREATE TABLE pljobs.job " in made
    assert made == catalogue(server, admin_url)
    with psycopg.connect(empty_db_url) as ours, psycopg.connect(admin_url) as psqls:
        ledger = "SELECT name, checksum FROM pljobs.migration ORDER BY name"
        assert ours.execute(ledger).fetchall() == psqls.execute(ledger).fetchall()


def test_the_checksum_is_the_servers_own(migrated: psycopg.Connection) -> None:
    ledger = migrated.execute("SELECT name, checksum FROM pljobs.migration ORDER BY name").fetchall()

    assert ledger == [(migration.name, migration.checksum) for migration in install_files.migrations()]


def test_migrating_again_changes_nothing(
    server: Server, empty_db_url: str, migrated: psycopg.Connection
) -> None:
    before = catalogue(server, empty_db_url)
    migrated.execute("SELECT pljobs.defer_job('kept')")

    assert install.migrate(empty_db_url) == ()
    assert catalogue(server, empty_db_url) == before
    assert migrated.execute("SELECT task FROM pljobs.jobs").fetchall() == [("kept",)]


def test_psql_upgrades_what_migrate_installed(server: Server, migrated: psycopg.Connection) -> None:
    server.run_sql(f"BEGIN;\n\\i '{REPO / 'sql' / 'install.sql'}'\nCOMMIT;", migrated.info.dbname)

    assert install_check.check(migrated) == []


def test_migrate_joins_the_callers_transaction(empty_db_url: str) -> None:
    with psycopg.connect(empty_db_url, row_factory=dict_row) as conn:
        conn.execute("SET LOCAL search_path = information_schema; SET LOCAL lock_timeout = '7s'")
        install.migrate(conn)
        assert conn.execute("SHOW search_path").fetchone() == {"search_path": "information_schema"}
        assert conn.execute("SHOW lock_timeout").fetchone() == {"lock_timeout": "7s"}
        assert install_check.check(conn) == []
        conn.rollback()
        assert [str(difference) for difference in install_check.check(conn)] == [MISSING]


def test_an_edited_migration_is_refused(migrated: psycopg.Connection, edited: pytest.MonkeyPatch) -> None:
    with_text(edited, "CREATE INDEX job_ready ", "CREATE INDEX job_redy ")

    with pytest.raises(exceptions.MigrationEdited, match="was edited after this database ran it"):
        install.migrate(migrated)
    assert "migration 0001_expand_core: differs" in " ".join(map(str, install_check.check(migrated)))


def test_a_newer_database_is_refused(migrated: psycopg.Connection) -> None:
    migrated.execute("INSERT INTO pljobs.migration (name, checksum) VALUES ('9999_expand_later', 'x')")

    with pytest.raises(exceptions.SchemaTooNew, match="9999_expand_later"):
        install.migrate(migrated)
    assert [str(difference) for difference in install_check.check(migrated)] == [
        "migration 9999_expand_later: unknown; a newer release was here: install that one"
    ]


def test_many_migrate_at_once(empty_db_url: str) -> None:
    outcomes: list[tuple[str, ...] | BaseException] = []

    def run() -> None:
        try:
            outcomes.append(install.migrate(empty_db_url))
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    everything = tuple(migration.name for migration in install_files.migrations())
    assert sorted(outcomes, key=repr) == sorted([everything] + [()] * 5, key=repr)
    assert install_check.check(empty_db_url) == []


def test_killed_in_the_middle_it_was_never_there(
    empty_db_url: str, edited: pytest.MonkeyPatch, server: Server
) -> None:
    # Views come after all tables and functions: the process dies with nearly everything done.
    script = f"from pljobs import install; install.migrate({empty_db_url!r})"
    with psycopg.connect(empty_db_url, autocommit=True) as conn:
        conn.execute("SELECT pg_advisory_lock(1)")
        slow = f"""
from pljobs import install
files = install.install_files()
at = [name for name, _ in files].index("views.sql")
held = (("held", "SELECT pg_advisory_xact_lock(1)"),)
install.install_files = lambda: files[:at] + held + files[at:]
{script}
"""
        migrator = subprocess.Popen([sys.executable, "-c", slow])
        waiting = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        wait_until(lambda: conn.execute(waiting).fetchall(), what="the migrator to be held up")
        migrator.kill()
        migrator.wait()
        conn.execute("SELECT pg_advisory_unlock(1)")
        backends = (
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        wait_until(lambda: not conn.execute(backends).fetchall(), what="its backend to end")

        assert [str(difference) for difference in install_check.check(conn)] == [MISSING]
        install.migrate(conn)
        assert install_check.check(conn) == []


def test_a_held_table_is_waited_for_briefly(migrated: psycopg.Connection, empty_db_url: str) -> None:
    with psycopg.connect(empty_db_url) as holder:
        # A view is replaced under an exclusive lock.
        holder.execute("SELECT FROM pljobs.jobs")
        migrated.execute("DROP FUNCTION pljobs.rescue_jobs()")
        with pytest.raises(exceptions.ConnectorException, match=rf"held.* pid {holder.info.backend_pid} "):
            install.migrate(migrated, lock_timeout=timedelta(milliseconds=100))
    assert len(install_check.check(migrated)) == 1
    install.migrate(migrated)
    assert install_check.check(migrated) == []


def test_where_nothing_is_to_do_nothing_is_waited_for(
    migrated: psycopg.Connection, empty_db_url: str
) -> None:
    with psycopg.connect(empty_db_url) as holder:
        holder.execute("SELECT FROM pljobs.jobs")
        assert install.migrate(migrated, lock_timeout=timedelta(milliseconds=1)) == ()


def test_install_sql_holds_nothing_but_comments_and_includes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "install.sql").write_text("-- fine\n\n\\ir ledger.sql\n\\set x 1\n")
    (tmp_path / "ledger.sql").write_text("SELECT 1;")
    monkeypatch.setattr(install_files, "sql_folder", lambda: tmp_path)

    with pytest.raises(ValueError, match="line 4"):
        install_files.install_files.__wrapped__()


# What check_install() says is tests_sql/functions/check_install.sql's; here is what reaches Python.
DRIFTS = {
    "CREATE OR REPLACE FUNCTION pljobs.rescue_jobs() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER"
    " SET search_path = pg_catalog, pg_temp AS 'BEGIN RETURN 0; END'":
        "function rescue_jobs(): differs; install again",
    "DROP INDEX pljobs.job_finished":
        "index job_finished: missing; CREATE INDEX CONCURRENTLY job_finished ON pljobs.job USING btree"
        " (finished_at) WHERE (finished_at IS NOT NULL);",
    "GRANT EXECUTE ON FUNCTION pljobs.rescue_jobs() TO PUBLIC":
        "function rescue_jobs: EXECUTE is granted to PUBLIC;"
        " REVOKE ALL ON ROUTINE pljobs.rescue_jobs() FROM PUBLIC;",
    "UPDATE pljobs.migration SET checksum = 'x' WHERE name = '0001_expand_core'":
        "migration 0001_expand_core: differs; the database ran another text: reinstall the pljobs package",
    "DROP SCHEMA pljobs CASCADE": MISSING,
    # The database's own word is asked only where what says it is this release's.
    "CREATE OR REPLACE FUNCTION pljobs.check_install() RETURNS TABLE (kind text, name text, problem text,"
    " fix text) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'BEGIN END'":
        "function check_install(): differs; run `pljobs migrate`",
    "CREATE OR REPLACE FUNCTION pljobs._manifest() RETURNS TABLE (kind text, name text, definition text)"
    " LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS 'BEGIN END'":
        "function _manifest(): differs; run `pljobs migrate`",
}  # fmt: skip


@pytest.mark.parametrize("drift", DRIFTS)
def test_check_says_what_differs(conn: psycopg.Connection, drift: str) -> None:
    assert install_check.check(conn) == []
    conn.execute(drift.encode())

    assert [str(difference) for difference in install_check.check(conn)] == [DRIFTS[drift]]


def test_migrate_puts_functions_views_and_rights_back(conn: psycopg.Connection) -> None:
    conn.execute(
        "DROP VIEW pljobs.stalled_jobs; DROP FUNCTION pljobs.rescue_jobs();"
        "ALTER FUNCTION pljobs.wake_lanes_v1() RESET ALL;"
        "GRANT EXECUTE ON FUNCTION pljobs.wake_lanes_v1() TO PUBLIC; GRANT SELECT ON pljobs.job TO PUBLIC"
    )
    assert {difference.kind for difference in install_check.check(conn)} == {"view", "function", "table"}
    install.migrate(conn)

    assert install_check.check(conn) == []


@pytest.mark.slow
def test_sdist_and_wheel_carry_the_sql(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(REPO)]
    subprocess.run(command, check=True, capture_output=True)  # the sdist, and the wheel from it
    subprocess.run(
        [*command, "--wheel", "--outdir", str(tmp_path / "direct")], check=True, capture_output=True
    )

    in_tree = {path.relative_to(REPO).as_posix() for path in (REPO / "sql").rglob("*.sql")}
    for folder in (tmp_path, tmp_path / "direct"):
        (wheel,) = folder.glob("*.whl")
        names = set(zipfile.ZipFile(wheel).namelist())
        assert {f"pljobs/{name}" for name in in_tree} <= names
        assert {"pljobs/py.typed", "pljobs/install.py"} <= names


@pytest.fixture
def app_owner(empty_db_url: str) -> Iterator[psycopg.Connection]:
    """A login, no superuser, that may create schemas in the test's database."""
    with psycopg.connect(empty_db_url, autocommit=True) as conn:
        name = conn.info.dbname
        conn.execute("DROP ROLE IF EXISTS app_owner; CREATE ROLE app_owner LOGIN")
        conn.execute(f"GRANT CREATE ON DATABASE {name} TO app_owner".encode())
        try:
            with psycopg.connect(empty_db_url, user="app_owner", autocommit=True) as owner:
                yield owner
        finally:
            conn.execute("DROP SCHEMA IF EXISTS pljobs CASCADE; DROP OWNED BY app_owner; DROP ROLE app_owner")


def test_a_superuser_upgrades_somebody_elses_schema_only_as_that_one(
    empty_db_url: str, app_owner: psycopg.Connection
) -> None:
    install.migrate(app_owner)
    with psycopg.connect(empty_db_url, autocommit=True) as conn:
        # As if this release brought a function that the former had not.
        conn.execute("DROP FUNCTION pljobs.rescue_jobs()")
        with pytest.raises(exceptions.MigrationEdited, match="SET ROLE app_owner"):
            install.migrate(conn)

        conn.execute("SET ROLE app_owner")
        install.migrate(conn)
        owners = conn.execute(
            "SELECT DISTINCT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'pljobs'::regnamespace"
        ).fetchall()
        assert owners == [("app_owner",)]
        assert conn.execute("SELECT current_user::text").fetchone() == ("app_owner",)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(empty_db_url: str) -> None:
    with psycopg.connect(empty_db_url, autocommit=True) as conn:
        fresh = install_check.plan(conn)
        assert [migration.name for migration in fresh.migrations] == [
            m.name for m in install_files.migrations()
        ]
        assert fresh.migrations[1].locks == ("worker", "job_event")
        assert "view jobs" in fresh.added
        assert conn.execute("SELECT to_regnamespace('pljobs')").fetchone() == (None,)

        install.migrate(conn)
        assert install_check.plan(conn) == install_check.Plan()

        conn.execute(
            "DROP FUNCTION pljobs.rescue_jobs(); ALTER FUNCTION pljobs.wake_lanes_v1() RESET ALL;"
            "DROP INDEX pljobs.job_finished"
        )
        changed = install_check.plan(conn)
        assert changed.added == ("function rescue_jobs()",)
        assert changed.replaced == ("function wake_lanes_v1()",)
        assert changed.others[0].startswith("index job_finished: missing; CREATE INDEX CONCURRENTLY")
        assert len(install_check.check(conn)) == 3


def test_one_file_installs_the_same(server: Server, admin_url: str, empty_db_url: str) -> None:
    with psycopg.connect(empty_db_url, autocommit=True) as conn:
        # Sent as one string it is one transaction.
        conn.execute(install_files.one_file().encode())
        assert install_check.check(conn) == []

    assert catalogue(server, empty_db_url) == catalogue(server, admin_url)


@pytest.mark.parametrize("stops", [True, False], ids=["stops at an error", "goes on"])
def test_statement_by_statement_nothing_is_installed(
    server: Server, empty_db_url: str, tmp_path: Path, stops: bool
) -> None:
    script = tmp_path / "pljobs.sql"
    script.write_text(install_files.one_file())
    psql = [str(server.bin_dir / "psql"), "-X", "-f", str(script), empty_db_url]
    psql += ["-v", "ON_ERROR_STOP=1"] if stops else []
    done = subprocess.run(psql, capture_output=True, text=True, check=False, env=environment())

    assert done.returncode == (3 if stops else 0)
    assert "this has to run in one transaction" in done.stderr
    with psycopg.connect(empty_db_url) as conn:
        assert conn.execute("SELECT to_regnamespace('pljobs')").fetchone() == (None,)


def test_missing_and_invalid_indexes_are_made_afterwards(migrated: psycopg.Connection) -> None:
    migrated.execute(
        "DROP INDEX pljobs.job_finished;"
        "UPDATE pg_catalog.pg_index SET indisvalid = false WHERE indexrelid = 'pljobs.job_timeout'::regclass"
    )
    assert {difference.problem for difference in install_check.check(migrated)} == {"missing", "invalid"}

    assert install.migrate(migrated) == ()
    assert install_check.check(migrated) == []


def test_inside_a_transaction_they_are_left_and_named(
    migrated: psycopg.Connection, empty_db_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    migrated.execute("DROP INDEX pljobs.job_finished")
    with psycopg.connect(empty_db_url) as joined:
        install.migrate(joined)

    assert "CREATE INDEX CONCURRENTLY job_finished" in caplog.text
    assert [difference.name for difference in install_check.check(migrated)] == ["job_finished"]


def test_the_schema_says_which_release_it_is(migrated: psycopg.Connection) -> None:
    row = migrated.execute("SELECT release, newest FROM pljobs.get_contract_v1()").fetchone()

    assert row == (
        tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"],
        release.CONTRACT,
    )


async def test_an_app_installs_its_schema_as_it_did_with_procrastinate(empty_db_url: str) -> None:
    async with App(empty_db_url).open_async() as app:
        await app.schema_manager.apply_schema_async()
        app.schema_manager.apply_schema()  # again: nothing is left to do
        job_id = await app.configure_task("t").defer_async()
        assert await app.job_manager.get_job_status_async(job_id) == "todo"
        with pytest.raises(exceptions.NoResult):
            await app.job_manager.get_job_status_async(job_id + 1)
    assert app.schema_manager.get_schema() == install_files.one_file()


def test_an_app_that_is_not_open_installs_nothing(empty_db_url: str) -> None:
    with pytest.raises(exceptions.AppNotOpen):
        App(empty_db_url).schema_manager.apply_schema()


@pytest.fixture
def impatient_db(empty_db_url: str) -> Iterator[psycopg.Connection]:
    """Another session in a database that ends each transaction early."""
    with psycopg.connect(empty_db_url, autocommit=True) as other:
        if other.info.server_version < 170000:
            pytest.skip("transaction_timeout is of 17 and later")
        other.execute(f"ALTER DATABASE {other.info.dbname} SET transaction_timeout = '300ms'".encode())
        yield other


def psql_waits(server: Server, other: psycopg.Connection, url: str, *arguments: str) -> subprocess.Popen[str]:
    """Start psql, and wait until it has waited for longer than the limit of its transactions."""
    command = [str(server.bin_dir / "psql"), url, "-XqAt", "-v", "ON_ERROR_STOP=1", *arguments]
    psql = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )
    waits = (
        "SELECT FROM pg_stat_activity WHERE application_name = 'psql' AND datname = current_database()"
        " AND wait_event_type = 'Lock' AND clock_timestamp() - xact_start > interval '0.6 s'"
    )
    wait_until(lambda: psql.poll() is not None or other.execute(waits.encode()).fetchone() is not None)
    return psql


def test_an_install_by_psql_outlasts_a_limit_on_transactions(
    server: Server, empty_db_url: str, impatient_db: psycopg.Connection
) -> None:
    # Another install.
    key = "hashtextextended('pljobs.install', 0)"
    impatient_db.execute(f"SELECT pg_advisory_lock({key})".encode())
    psql = psql_waits(
        server, impatient_db, empty_db_url, "-1", "-f", str(REPO / "sql" / "install.sql"),
        "-c", "SHOW transaction_timeout",
    )  # fmt: skip
    impatient_db.execute(f"SELECT pg_advisory_unlock({key})".encode())
    said, _ = psql.communicate(timeout=60)
    assert psql.returncode == 0, said
    assert said.splitlines()[-1] == "300ms"  # the rest of the transaction has it back


def test_indexes_are_made_by_psql_however_long_they_take(
    server: Server, empty_db_url: str, impatient_db: psycopg.Connection
) -> None:
    install.migrate(empty_db_url)
    impatient_db.execute("DROP INDEX pljobs.job_finished")
    with psycopg.connect(empty_db_url, options="-c transaction_timeout=0") as holder:
        holder.execute("SELECT pljobs.defer_job('waited for')")
        psql = psql_waits(server, impatient_db, empty_db_url, "-f", str(REPO / "sql" / "indexes.sql"))
    said, _ = psql.communicate(timeout=60)
    assert psql.returncode == 0, said
    assert impatient_db.execute("SELECT * FROM pljobs.check_install()").fetchall() == []


@pytest.mark.parametrize(
    ("encoding", "queue", "told"),
    [
        ("LATIN1", "U&'k\\00e4se'", queue_hash("käse")),
        ("SQL_ASCII", "convert_from('\\x6bc3a47365', 'SQL_ASCII')", queue_hash("käse")),
        ("SQL_ASCII", "convert_from('\\x6be47365', 'SQL_ASCII')", ""),  # of no known encoding: for all
    ],
)
def test_queues_are_told_of_by_their_names_in_utf_8_whatever_the_database_speaks(
    server: Server, empty_db_url: str, encoding: str, queue: str, told: str
) -> None:
    name = f"{conninfo_to_dict(empty_db_url)['dbname']}_encoded"
    server.run_sql(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    try:
        with psycopg.connect(
            make_conninfo(empty_db_url, dbname=name, client_encoding="UTF8"), autocommit=True
        ) as conn:
            install.migrate(conn.info.dsn)
            conn.execute("LISTEN pljobs_todo")
            conn.execute(f"SELECT pljobs._notify_todo(ARRAY[{queue}])".encode())
            conn.execute("SELECT 1")
            heard = [each.payload for each in conn.notifies(timeout=60, stop_after=1)]
    finally:
        server.run_sql(f"DROP DATABASE {name}")
    assert heard == [told]
