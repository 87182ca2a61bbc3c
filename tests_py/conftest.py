"""A throw-away PostgreSQL for the whole run, and a fresh database with the schema for each test."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

import slowly
from pljobs import App
from pljobs.embedded import THROW_AWAY, Server
from servers import bin_dir

INSTALL = Path(__file__).parent.parent / "sql" / "install.sql"
LOGIN = "pljobs_tests"

_names = itertools.count(1)

slowly.if_asked()

# Whether another run has what would be the same with any server: what asks for none, or hardly cares.
SERVER_ONLY = bool(os.environ.get("PLJOBS_TEST_SERVER_ONLY"))
# And what is the same with any server that isolation and planner are alike in: `make test-majors` has that.
BRIEFLY = bool(os.environ.get("PLJOBS_TEST_BRIEFLY"))

collect_ignore: list[str] = []
collect_ignore_glob: list[str] = []
if os.environ.get("PLJOBS_TEST_PG", "18") != "18":
    # These have a server of their own, the wheel's, whatever this run is on.
    collect_ignore += ["test_demo.py", "test_embedded.py"]
if SERVER_ONLY:
    # The command line, processes, others' tools, an installation that is killed or kept waiting: the server
    # is only what they need besides.
    collect_ignore += [
        "test_migration_tools.py",
        "test_names.py",
        "test_processes.py",
        "test_upgrade_trouble.py",
    ]
    collect_ignore_glob += ["test_cli*.py"]
if BRIEFLY:
    # Races of the functions, which SQL's own lane tries on this server, too; a million rows; the driver's own
    # affairs; what the documentation shows; which workers an upgraded schema lets work, and under which load.
    collect_ignore += [
        "test_docs.py",
        "test_examples.py",
        "test_fetching.py",
        "test_health_scale.py",
        "test_howto.py",
        "test_isolation.py",
        "test_lease.py",
        "test_model_sql.py",
        "test_pairs.py",
        "test_readme.py",
        "test_scale.py",
        "test_stranger.py",
        "test_upgrade.py",
        "test_upgrade_versions.py",
        "test_worker_process.py",
        "test_worker_trouble.py",
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what asks for no server, where another run has it: so nobody has to mark such tests.

    Files with slow tests come first: else a worker of pytest-xdist's begins one when the others are done.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if not SERVER_ONLY:
        return
    left_out = [item for item in items if "server" not in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def pytest_configure() -> None:
    """Have Ctrl-C reach what tests start: a shell has it ignored in its background, and by all from there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"PostgreSQL: {os.environ.get('PLJOBS_TEST_PG', '18')} (PLJOBS_TEST_PG=14..18|/folder/of/binaries)"


@contextlib.contextmanager
def in_memory() -> Iterator[None]:
    """Make temporary folders in memory, where that can be: each test makes a database of some 300 files."""
    memory, former = Path("/dev/shm"), tempfile.tempdir
    if "TMPDIR" not in os.environ and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**31:
        tempfile.tempdir = str(memory)
    try:
        yield
    finally:
        tempfile.tempdir = former


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server of this run: 18 from the wheel, unless PLJOBS_TEST_PG says otherwise."""
    wanted = os.environ.get("PLJOBS_TEST_PG", "18")
    folder = Path(wanted) if "/" in wanted else bin_dir(wanted)
    with in_memory():
        started = Server.start(folder, settings={**THROW_AWAY, "max_connections": "300"})
    with started:
        yield started


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """The name of a database that holds the schema, as psql installs it."""
    server.create_database("pljobs_template")
    # Through psql's own \ir: the way that needs no Python.
    server.run_sql(f"BEGIN;\n\\i '{INSTALL}'\nCOMMIT;", "pljobs_template")
    # As a DBA does, so that cancel_job(sql => true) reaches the statement at once.
    server.run_sql("GRANT pg_signal_backend, pg_read_all_stats TO pljobs_owner", "pljobs_template")
    server.run_sql(f"CREATE ROLE {LOGIN} LOGIN; GRANT pljobs_operator TO {LOGIN}", "pljobs_template")
    return "pljobs_template"


class Databases:
    """Make and drop databases quickly: each test takes one. Over a connection, and by copying files."""

    def __init__(self, server: Server, conn: psycopg.Connection[TupleRow]) -> None:
        self._server = server
        self._conn = conn
        self._how = " STRATEGY FILE_COPY" if conn.info.server_version >= 150000 else ""

    @contextlib.contextmanager
    def made(self, name: str, template: str = "template1") -> Iterator[str]:
        """Make one, yield its URL, drop it."""
        self._conn.execute(f"CREATE DATABASE {name} TEMPLATE {template}{self._how}".encode())
        try:
            yield self._server.url(name)
        finally:
            self._conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


@pytest.fixture(scope="session")
def databases(server: Server) -> Iterator[Databases]:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        yield Databases(server, connection)


@pytest.fixture
def empty_db_url(databases: Databases) -> Iterator[str]:
    """A fresh database with nothing in it."""
    with databases.made(f"empty_{next(_names)}") as url:
        yield url


@pytest.fixture
def admin_url(databases: Databases, template: str) -> Iterator[str]:
    """A fresh database with the schema, as a superuser: to look into tables, and to arrange things."""
    with databases.made(f"test_{next(_names)}", template) as url:
        yield url


@pytest.fixture
def db_url(admin_url: str) -> str:
    """The same database as whoever uses pljobs: no superuser, not the owner, a member of pljobs_operator."""
    return make_conninfo(admin_url, user=LOGIN)


@pytest.fixture
def conn(admin_url: str) -> Iterator[psycopg.Connection]:
    """A superuser's connection to the test's database that commits each statement."""
    with psycopg.connect(admin_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def aconn(admin_url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """The same, for async tests."""
    async with await psycopg.AsyncConnection.connect(admin_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def app(db_url: str) -> AsyncIterator[App]:
    """An app on the test's database, open for sync and async calls."""
    opened = App(db_url)
    async with opened.open_async():
        yield opened


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make what a test has printed text that another process can be sent: some print what is no text."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report
