"""A throw-away PostgreSQL for the whole run, and a fresh database with the schema for each test."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from pljobs import App
from pljobs.embedded import THROW_AWAY, Server
from servers import bin_dir

INSTALL = Path(__file__).parent.parent / "sql" / "install.sql"

_names = itertools.count(1)


# These have a server of their own, the wheel's, whatever this run is on: once is enough.
collect_ignore = (
    ["test_demo.py", "test_embedded.py"] if os.environ.get("PLJOBS_TEST_PG", "18") != "18" else []
)


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
    server.run_sql("GRANT pg_signal_backend TO pljobs_owner", "pljobs_template")
    return "pljobs_template"


@pytest.fixture
def empty_db_url(server: Server) -> Iterator[str]:
    """A fresh database with nothing in it."""
    name = f"empty_{next(_names)}"
    yield server.create_database(name)
    server.drop_database(name)


@pytest.fixture
def db_url(server: Server, template: str) -> Iterator[str]:
    """A fresh database with the schema installed."""
    name = f"test_{next(_names)}"
    yield server.create_database(name, template)
    server.drop_database(name)


@pytest.fixture
def conn(db_url: str) -> Iterator[psycopg.Connection]:
    """A connection to the test's database that commits each statement."""
    with psycopg.connect(db_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def aconn(db_url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """The same, for async tests."""
    async with await psycopg.AsyncConnection.connect(db_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def app(db_url: str) -> AsyncIterator[App]:
    """An app on the test's database, open for sync and async calls."""
    opened = App(db_url)
    async with opened.open_async():
        yield opened
