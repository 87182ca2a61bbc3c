"""The first release, 0.1.0, from its wheel: its schema in a database, and its driver in processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from pljobs.embedded import Server, environment
from workers import HERE, Process

REPO = HERE.parent
SQL = REPO / "sql"
WHEEL = HERE / "releases" / "pljobs-0.1.0-py3-none-any.whl"
MIGRATIONS = sorted(path.stem for path in (SQL / "migrations").glob("0*.sql"))
OWNER = "upgrade_owner"
LOGINS = {"upgrade_worker": "pljobs_worker", "upgrade_producer": "pljobs_producer"}

# Jobs in every state, and rows in every table.
SCENE = """
SELECT pljobs.register_worker_v1('mailer', 'host', 4711, lease => '1 s'),
       pljobs.register_worker_v1('other', 'host', 4712);
SELECT pljobs.unregister_worker_v1(2);
SELECT pljobs.defer_job('shop.t' || n, '{"n": 1}', lock => CASE WHEN n > 7 THEN 'lane' END)
  FROM generate_series(1, 10) AS n;
SELECT pljobs.fetch_jobs_v1(1, 5);
SELECT pljobs.finish_jobs_v1('[{"job_id": 1, "run_id": 1, "outcome": "succeeded", "result": 1},
    {"job_id": 2, "run_id": 2, "outcome": "failed", "message": "ValueError: no", "error": "Traceback"},
    {"job_id": 3, "run_id": 3, "outcome": "failed", "retry_at": "2100-01-01", "message": "later"}]');
SELECT pljobs.cancel_job(4, abort => true), pljobs.cancel_job(6), pljobs.cancel_tree(10);
SELECT pljobs.pause_queue('paused');
SELECT pljobs.defer_periodic_job_v1('p', now(), '{"task": "tick"}');
"""

# What _inventory() leaves out: owners, rights, storage settings.
RIGHTS = """
SELECT 'right', format('%s %s', o.what, o.name),
       format('%s %s %s', o.owner::regrole, o.columns, (
           SELECT string_agg(format('%s=%s', a.grantee::regrole, a.privilege_type), ' ' ORDER BY a.grantee,
                             a.privilege_type)
             FROM aclexplode(o.acl) AS a))
  FROM (SELECT 'schema', n.nspname, n.nspowner, coalesce(n.nspacl, acldefault('n', n.nspowner)), NULL
          FROM pg_namespace AS n WHERE n.nspname = 'pljobs'
        UNION ALL
        SELECT 'function', p.oid::regprocedure::text, p.proowner,
               coalesce(p.proacl, acldefault('f', p.proowner)), NULL
          FROM pg_proc AS p WHERE p.pronamespace = to_regnamespace('pljobs')
        UNION ALL
        SELECT c.relkind::text, c.relname, c.relowner,
               coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's'::"char" ELSE 'r' END,
                                             c.relowner)),
               (SELECT string_agg(format('%s %s', t.attname, t.attacl), ',' ORDER BY t.attnum)
                  FROM pg_attribute AS t WHERE t.attrelid = c.oid AND t.attacl IS NOT NULL)
          FROM pg_class AS c
         WHERE c.relnamespace = to_regnamespace('pljobs') AND c.relkind IN ('r', 'v', 'S')
       ) AS o(what, name, owner, acl, columns)
UNION ALL
SELECT 'storage', c.relname,
       (SELECT string_agg(o.option, ' ' ORDER BY o.option)
          FROM (SELECT unnest(c.reloptions) UNION ALL SELECT 'toast.' || unnest(t.reloptions)) AS o(option))
  FROM pg_class AS c LEFT JOIN pg_class AS t ON t.oid = c.reltoastrelid
 WHERE c.relnamespace = to_regnamespace('pljobs') AND c.relkind = 'r'
"""
LEDGER = "SELECT 'migration', name, checksum FROM pljobs.migration"
Catalogue = dict[tuple[str, str], str]


def catalogue(conn: psycopg.Connection) -> Catalogue:
    """All that schema pljobs is made of, read by queries of the test's own: so of any release."""
    function = (SQL / "functions" / "check_install.sql").read_text()
    inventory = function.split("AS $$\n", 1)[1].split("$$;", 1)[0]
    with conn.transaction():
        # Else names are shown with their schema or without, as the search_path has it.
        conn.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        rows = conn.execute(f"{inventory} UNION ALL {RIGHTS}".encode()).fetchall()
        if conn.execute("SELECT to_regclass('pljobs.migration')").fetchone() != (None,):
            rows += conn.execute(LEDGER).fetchall()
    return {(kind, name): definition for kind, name, definition in rows}


@dataclass(frozen=True)
class OldRelease:
    """The unpacked wheel: a folder to import from."""

    folder: Path

    @property
    def sql(self) -> Path:
        return self.folder / "pljobs" / "sql"

    @property
    def variables(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.folder)}

    def pljobs(self, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run its command line."""
        return run_pljobs(url, *arguments, variables=self.variables)

    @contextlib.contextmanager
    def worker(self, url: str, tmp_path: Path, name: str, **options: object) -> Iterator[Process]:
        """Run one of its workers, on the tasks of worker_process.py, until it is told to stop."""
        started = Process(url, tmp_path / f"{name}.log", self.variables, name=name, **options)
        try:
            started.until_said("started")
            yield started
        finally:
            started.kill()


def run_pljobs(
    url: str, *arguments: str, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "pljobs", *arguments],
        env={**environment(), "PLJOBS_URL": url, "NO_COLOR": "1", "COLUMNS": "200", **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


# Starting Python takes longer than most commands.
COMMANDS = """
import json, sys
from click.testing import CliRunner
from pljobs.cli_commands import cli
for command in sys.argv[1:]:
    done = CliRunner().invoke(cli, command.split())
    print(json.dumps([done.exit_code, done.output + str(done.exception or "")]))
"""


def run_commands(
    url: str, commands: Sequence[str], variables: dict[str, str] | None = None
) -> list[tuple[int, str]]:
    """Run one after the other in one process; return each one's exit code, and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, *commands],
        env={**environment(), "PLJOBS_URL": url, "COLUMNS": "200", **(variables or {})},
        capture_output=True,
        text=True,
        check=True,
    )
    return [(code, said) for code, said in map(json.loads, done.stdout.splitlines())]


def psql_command(server: Server, url: str, file: Path, *, whole: bool = True) -> list[str]:
    """The command that a DBA types, for all of a file, in one transaction or without any."""
    how = ["-1"] if whole else []
    return [str(server.bin_dir / "psql"), url, "-Xq", *how, "-v", "ON_ERROR_STOP=1", "-f", str(file)]


def psql_file(
    server: Server, url: str, file: Path, *, whole: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run it."""
    return subprocess.run(
        psql_command(server, url, file, whole=whole),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def upgrade(server: Server, url: str) -> None:
    """Upgrade by psql; fail if that does."""
    done = psql_file(server, url, SQL / "install.sql")
    assert done.returncode == 0, done.stderr


def migrator(server: Server, url: str, way: str) -> subprocess.Popen[str]:
    """Start an upgrade, by 'psql' or by 'pljobs migrate', which the database sees as `migrator`."""
    command = (
        psql_command(server, url, SQL / "install.sql")
        if way == "psql"
        else [sys.executable, "-m", "pljobs", "migrate"]
    )
    return subprocess.Popen(
        command,
        env={**environment(), "PLJOBS_URL": url, "PGAPPNAME": "migrator"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def login(url: str, role: str) -> str:
    """The same database, as another role."""
    return re.sub(r"//\w+@", f"//{role}@", url, count=1)


@pytest.fixture(scope="session")
def old_release(tmp_path_factory: pytest.TempPathFactory) -> OldRelease:
    folder = tmp_path_factory.mktemp("pljobs-0.1.0")
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(folder)
    release = OldRelease(folder)
    where = subprocess.run(
        [sys.executable, "-c", "import pljobs; print(pljobs.__file__)"],
        env={**os.environ, **release.variables},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(where.strip()).is_relative_to(folder), f"it is shadowed by {where}"
    return release


@pytest.fixture(scope="session")
def old_template(server: Server, old_release: OldRelease) -> str:
    """A database with schema 0.1.0."""
    install_old(server, old_release, "old_template")
    return "old_template"


def install_old(server: Server, old_release: OldRelease, name: str) -> None:
    """Make a database with schema 0.1.0 and its roles, installed by an owner who is no superuser."""
    if server.run_sql(f"SELECT datname FROM pg_database WHERE datname = '{name}'"):
        return  # for another module of tests
    for role, group in {OWNER: None, **LOGINS}.items():
        if not server.run_sql(f"SELECT rolname FROM pg_roles WHERE rolname = '{role}'"):
            server.run_sql(f"CREATE ROLE {role} LOGIN")
        if group is not None:
            done = psql_file(server, server.url(), old_release.sql / "roles.sql")
            assert done.returncode == 0, done.stderr
            server.run_sql(f"GRANT {group} TO {role}")
    server.run_sql(f"CREATE DATABASE {name} OWNER {OWNER}")
    done = psql_file(server, login(server.url(name), OWNER), old_release.sql / "install.sql")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def old_db_url(server: Server, old_template: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database with schema 0.1.0 and nothing in it, as its owner."""
    yield from _copy(server, old_template, "old_copy")


@pytest.fixture
def old_scene_url(server: Server, old_db_url: str) -> str:
    """The same, with jobs in every state."""
    with psycopg.connect(old_db_url, autocommit=True) as conn:
        conn.execute(SCENE)
    return old_db_url


def _copy(server: Server, template: str, name: str) -> Iterator[str]:
    server.run_sql(f"CREATE DATABASE {name} TEMPLATE {template} OWNER {OWNER}")
    yield login(server.url(name), OWNER)
    server.drop_database(name)
