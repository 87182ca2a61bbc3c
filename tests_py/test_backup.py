"""What a dump holds and a restore brings back: jobs, history, sequences, the ledger, owners and grants."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from clusters import INSTALL, Filled, another_server, contents, run_as_server, statuses, tool, with_login
from conftest import in_memory
from pljobs import App, embedded, install_check
from pljobs.embedded import THROW_AWAY, Server, environment
from test_docs import documented, run_sql
from waiting import wait_until_async
from workers import DEADLINE, HASTY, running

REPO = Path(__file__).parent.parent
DB = "app"
LOGINS = """
    CREATE ROLE app_producer LOGIN IN ROLE pljobs_producer;
    CREATE ROLE app_worker LOGIN IN ROLE pljobs_worker;
    CREATE ROLE app_reader LOGIN IN ROLE pljobs_reader;
    CREATE ROLE app_stranger LOGIN;
"""
SEQUENCES = "SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'pljobs'"
COMPLAINTS = "SELECT kind, name, problem FROM pljobs.check_install()"

ARCHIVE = ("--section=pre-data", "--section=data", "--table=pljobs.job_archive_*")


@dataclass(frozen=True)
class Origin:
    """What is dumped: a database with some of everything, one job of app_producer's own, and four logins."""

    server: Server
    filled: Filled
    own: int
    contents: dict[str, list[str]]
    drawn: dict[str, int]

    @property
    def url(self) -> str:
        return self.server.url(DB)


@pytest.fixture(scope="module")
def origin(server: Server) -> Iterator[Origin]:
    with another_server(server) as started:
        url = started.create_database(DB)
        install_in(started, url)
        started.run_sql(LOGINS)
        started.run_sql("SELECT pljobs.limit_queues('app_producer', 'defer', '{own}')", DB)
        own = as_login(url, "app_producer", "SELECT pljobs.defer_job('quick', queue => 'own')")
        with psycopg.connect(url, autocommit=True) as conn:
            filled = Filled(conn)
            filled.archive()
            assert conn.execute(COMPLAINTS.encode()).fetchall() == []
            yield Origin(
                started, filled, own, contents(conn), dict(conn.execute(SEQUENCES.encode()).fetchall())
            )


@pytest.fixture
def other(server: Server) -> Iterator[Server]:
    """Another cluster, which knows no role of ours."""
    with another_server(server) as started:
        yield started


@pytest.fixture(scope="module")
def dump(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump of the whole database, in pg_restore's format."""
    path = tmp_path_factory.mktemp("dump") / "app.dump"
    done(tool(origin.server, "pg_dump", "-Fc", "-f", str(path), origin.url))
    return path


def done(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stderr
    return process.stdout


def install_in(server: Server, url: str) -> None:
    done(tool(server, "psql", "-Xq", "-1", "-v", "ON_ERROR_STOP=1", "-f", str(INSTALL), url))


def psql(server: Server, url: str, script: str, *options: str) -> None:
    """Run a plain dump, all of it or nothing."""
    done(tool(server, "psql", "-Xq", "-1", "-v", "ON_ERROR_STOP=1", *options, url, stdin=script))


def as_login(url: str, role: str, query: str, *params: object) -> Any:
    """Return the first value that a login is answered."""
    with psycopg.connect(with_login(url, role), autocommit=True) as conn:
        return conn.execute(query.encode(), params).fetchall()[0][0]


def complaints(url: str) -> list[Any]:
    """Return what differs from this release's schema."""
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute(COMPLAINTS.encode()).fetchall()


def assert_same(origin: Origin, url: str, *, but: frozenset[str] = frozenset()) -> None:
    """Every row is there, and so is the schema as it was installed."""
    with psycopg.connect(url, autocommit=True) as conn:
        found = contents(conn)
    assert {name: rows for name, rows in found.items() if name not in but} == {
        name: rows for name, rows in origin.contents.items() if name not in but
    }
    assert complaints(url) == []
    assert install_check.check(url) == []


def assert_goes_on(origin: Origin, url: str) -> None:
    """Logins may what they might, and nothing else; no id is drawn that was drawn before."""

    def refused(role: str, query: str, sqlstate: str = "42501") -> None:
        with pytest.raises(psycopg.Error) as caught:
            as_login(url, role, query)
        assert caught.value.sqlstate == sqlstate

    job_id = as_login(url, "app_producer", "SELECT pljobs.defer_job('quick', queue => 'own')")
    assert job_id > origin.drawn["job_id_seq"]
    own = as_login(url, "app_producer", "SELECT array_agg(j.id ORDER BY j.id) FROM pljobs.jobs AS j")
    assert own == [origin.own, job_id]
    request_id = as_login(url, "app_producer", "SELECT request_id FROM pljobs.cancel_job_v1(%s)", job_id)
    assert request_id > origin.drawn["request_id_seq"]
    theirs = as_login(url, "app_producer", "SELECT pljobs.cancel_job(%s)", origin.filled.todo)
    assert theirs == "not_found"
    refused("app_producer", "SELECT pljobs.defer_job('quick', queue => 'another')", "PJ010")
    refused("app_producer", "SELECT pljobs.fetch_jobs_v1(1)")

    worker_id = as_login(url, "app_worker", "SELECT pljobs.register_worker_v1('after', 'here', 7)")
    assert worker_id > origin.drawn["worker_id_seq"]
    run_id = as_login(
        url, "app_worker", "SELECT run_id FROM pljobs.fetch_jobs_v1(%s, queues => '{todo}')", worker_id
    )
    assert run_id > origin.drawn["run_id"]
    refused("app_worker", "SELECT count(*) FROM pljobs.job")
    refused("app_worker", "SELECT pljobs.defer_job('quick')")

    assert as_login(url, "app_reader", "SELECT count(*) FROM pljobs.jobs") == len(origin.contents["job"]) + 1
    assert as_login(url, "app_reader", "SELECT count(args) FROM pljobs.jobs") == 0
    refused("app_stranger", "SELECT count(*) FROM pljobs.jobs")
    refused("app_stranger", "SELECT pljobs.defer_job('quick')")


# The whole of it


@pytest.mark.parametrize("how", ["custom", "directory", "plain", "schema alone"])
def test_a_restored_database_is_the_same_and_goes_on(origin: Origin, tmp_path: Path, how: str) -> None:
    url = origin.server.create_database(how)
    if how == "plain":
        psql(origin.server, url, done(tool(origin.server, "pg_dump", origin.url)))
    else:
        path = tmp_path / "app.dump"
        options = {"directory": ["-Fd", "-j2"], "schema alone": ["-Fc", "--schema=pljobs"]}.get(how, ["-Fc"])
        done(tool(origin.server, "pg_dump", *options, "-f", str(path), origin.url))
        jobs = ["-j2"] if how == "directory" else ["-1"]
        done(tool(origin.server, "pg_restore", "--exit-on-error", *jobs, "-d", url, str(path)))
    assert_same(origin, url)
    assert_goes_on(origin, url)


async def test_the_first_worker_of_a_restored_database_rescues_what_ran_and_runs_the_rest(
    origin: Origin, dump: Path
) -> None:
    url = origin.server.create_database("rescued")
    done(tool(origin.server, "pg_restore", "--exit-on-error", "-d", url, str(dump)))
    app = App(with_login(url, "app_worker"))

    @app.task(name="quick")
    def quick() -> str:
        return "done"

    filled = origin.filled
    runs = filled.running | filled.waiting | {origin.own}
    with psycopg.connect(url, autocommit=True) as conn:

        async def all_done() -> bool:
            found = await asyncio.to_thread(statuses, conn)
            return {found[job_id] for job_id in runs} == {"succeeded"} and found[filled.asked] == "aborted"

        async with app.open_async(), running(app, **HASTY):
            await wait_until_async(all_done, DEADLINE)
        before, after = rows_of(origin), statuses(conn)
        assert {
            job_id: status for job_id, status in after.items() if job_id not in runs | {filled.asked}
        } == {job_id: status for job_id, status in before.items() if job_id not in runs | {filled.asked}}
        kinds = conn.execute("SELECT count(*) FROM pljobs.history WHERE event = 'rescued'").fetchall()
        assert kinds == [(len(filled.running),)]


def rows_of(origin: Origin) -> dict[int, str]:
    with psycopg.connect(origin.url, autocommit=True) as conn:
        return statuses(conn)


def test_a_copy_whose_queues_are_paused_runs_nothing(origin: Origin, dump: Path) -> None:
    url = origin.server.create_database("paused")
    done(tool(origin.server, "pg_restore", "--exit-on-error", "-d", url, str(dump)))
    run_sql(origin.server, "paused", documented("'a copy'"))
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SELECT pljobs.rescue_jobs()")
        fetched = conn.execute(
            "SELECT f.job_id FROM pljobs.register_worker_v1('after', 'here', 7) AS w(id),"
            " LATERAL pljobs.fetch_jobs_v1(w.id, 100) AS f"
        )
        assert fetched.fetchall() == []


# Another cluster


def test_the_documented_commands_bring_a_database_with_its_roles_into_another_cluster(
    origin: Origin, other: Server, tmp_path: Path
) -> None:
    for line in documented("pg_dumpall").text.splitlines():
        at = origin.server if line.startswith("pg_dump") else other
        path = f"{at.bin_dir}{os.pathsep}{os.environ['PATH']}"
        variables = environment() | {"PGHOST": str(at.base), "PGUSER": "postgres", "PATH": path}
        process = subprocess.run(
            line, shell=True, capture_output=True, text=True, check=False, cwd=tmp_path, env=variables
        )
        done(process)
    assert_same(origin, other.url(DB))
    assert_goes_on(origin, other.url(DB))


def test_without_roles_and_owners_a_dump_goes_on_once_it_is_installed_over(
    origin: Origin, other: Server, dump: Path
) -> None:
    other.run_sql("CREATE ROLE dba LOGIN CREATEROLE; CREATE DATABASE moved OWNER dba")
    url = other.url("moved")
    without = ["--no-owner", "--no-privileges"]
    done(
        tool(other, "pg_restore", "--exit-on-error", "-1", *without, "-d", with_login(url, "dba"), str(dump))
    )
    as_owner = with_login(url, "dba")
    assert ("function", "defer_job", "EXECUTE is granted to PUBLIC") in complaints(as_owner)
    install_in(other, as_owner)
    other.run_sql(LOGINS)
    assert_same(origin, as_owner)
    assert_goes_on(origin, as_owner)
    assert owner(other, "moved") == "dba"


def test_installing_over_it_completes_a_restore_that_met_no_roles(
    origin: Origin, other: Server, dump: Path
) -> None:
    url = other.create_database("moved")
    restored = tool(other, "pg_restore", "-d", url, str(dump))
    assert 'role "pljobs_owner" does not exist' in restored.stderr
    install_in(other, url)
    other.run_sql(LOGINS)
    assert_same(origin, url)
    assert_goes_on(origin, url)


def owner(server: Server, dbname: str) -> str:
    return server.run_sql("SELECT nspowner::regrole FROM pg_namespace WHERE nspname = 'pljobs'", dbname)


# Parts of it


def test_data_alone_goes_into_a_fresh_install_without_the_ledger(origin: Origin) -> None:
    url = origin.server.create_database("data")
    install_in(origin.server, url)
    archive = "--exclude-table=pljobs.job_archive_*"
    whole = done(tool(origin.server, "pg_dump", "--data-only", "--schema=pljobs", archive, origin.url))
    refused = tool(origin.server, "psql", "-Xq", "-1", "-v", "ON_ERROR_STOP=1", url, stdin=whole)
    assert "migration_pkey" in refused.stderr
    without = ("--exclude-table-data=pljobs.migration", archive)
    psql(
        origin.server,
        url,
        done(tool(origin.server, "pg_dump", "--data-only", "--schema=pljobs", *without, origin.url)),
    )
    archives = [name for name in origin.contents if name.startswith("job_archive_")]
    assert len(archives) == 1
    assert_same(origin, url, but=frozenset({"migration", *archives}))
    # The archive's months are tables; their keys come with their being attached.
    psql(origin.server, url, done(tool(origin.server, "pg_dump", *ARCHIVE, origin.url)))
    assert_same(origin, url, but=frozenset({"migration"}))
    assert_goes_on(origin, url)


def test_a_schema_alone_needs_the_rows_of_its_ledger(origin: Origin) -> None:
    url = origin.server.create_database("bare")
    psql(origin.server, url, done(tool(origin.server, "pg_dump", "--schema-only", origin.url)))
    assert {kind for kind, _, _ in complaints(url)} == {"migration"}
    again = tool(origin.server, "psql", "-Xq", "-1", "-v", "ON_ERROR_STOP=1", "-f", str(INSTALL), url)
    assert 'relation "job" already exists' in again.stderr
    ledger = tool(origin.server, "pg_dump", "--data-only", "--table=pljobs.migration", origin.url)
    psql(origin.server, url, done(ledger))
    assert complaints(url) == []
    install_in(origin.server, url)


def test_a_login_that_may_read_all_data_can_dump_and_one_of_ours_cannot(origin: Origin) -> None:
    origin.server.run_sql("CREATE ROLE app_backup LOGIN IN ROLE pg_read_all_data")
    done(tool(origin.server, "pg_dump", "-f", "/dev/null", with_login(origin.url, "app_backup")))
    refused = tool(origin.server, "pg_dump", "-f", "/dev/null", with_login(origin.url, "app_worker"))
    assert "permission denied for table" in refused.stderr


# Another major


def majors() -> list[str]:
    """The majors to upgrade from: the run's own, and the oldest that has been fetched."""
    return ["", *sorted(path.name for path in (REPO / ".majors").glob("[0-9]*"))[:1]]


@pytest.mark.slow
@pytest.mark.parametrize("old_major", majors())
def test_pg_upgrade_keeps_everything(server: Server, old_major: str) -> None:
    new = server.bin_dir
    old = REPO / ".majors" / old_major / "bin" if old_major else new
    if old_major and int(old_major) >= major(new):
        pytest.skip("not newer")
    with in_memory():
        folder = embedded._temporary_folder(embedded._account(), "pljobs-upgraded-")
        former = Server.start(old, settings=THROW_AWAY)
    try:
        with former:
            url = former.create_database(DB)
            install_in(former, url)
            with psycopg.connect(url, autocommit=True) as conn:
                Filled(conn).archive()
                before = contents(conn)
                drawn = dict[str, int](conn.execute(SEQUENCES.encode()).fetchall())
            former._pg_ctl("stop", "-m", "fast")
            initdb(new, folder / "data", checksums=major(old) >= 18)
            arguments = ["-b", str(old), "-B", str(new), "-d", str(former.data), "-D", str(folder / "data")]
            run_as_server(
                [str(new / "pg_upgrade"), *arguments, "-U", "postgres", "-s", str(folder)], cwd=folder
            )
        with Server.start(new, folder, THROW_AWAY) as upgraded:
            url = upgraded.url(DB)
            assert complaints(url) == []
            with psycopg.connect(url, autocommit=True) as conn:
                assert contents(conn) == before
                assert dict(conn.execute(SEQUENCES.encode()).fetchall()) == drawn
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def major(bin_dir: Path) -> int:
    said = subprocess.run([bin_dir / "postgres", "--version"], capture_output=True, text=True, check=True)
    return int(said.stdout.split()[2].split(".")[0])


def initdb(bin_dir: Path, data: Path, *, checksums: bool) -> None:
    """Make a cluster as `Server.start` does, but with checksums or without: both must agree on that."""
    embedded._initdb(bin_dir, data, embedded._account())
    if major(bin_dir) >= 18 and not checksums:
        run_as_server([str(bin_dir / "pg_checksums"), "--disable", "-D", str(data)], cwd=data.parent)
