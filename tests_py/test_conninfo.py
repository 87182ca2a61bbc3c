"""Where to connect to: host names are looked up beside the event loop, and as psycopg does otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_attempts, conninfo_to_dict, make_conninfo

from pljobs import App, PsycopgConnector
from pljobs.conninfo import addresses
from pljobs.embedded import Server
from pljobs.exceptions import DatabaseUnavailable
from proxy import running_proxy
from waiting import DEADLINE
from workers import HASTY, running, until

AConn = psycopg.AsyncConnection[Any]

NAMES = {
    "one.test": ["10.0.0.1"],
    "two.test": ["fe80::2", "10.0.0.2"],
    "localhost": ["127.0.0.1"],
}


@pytest.fixture
def named_url(server: Server, db_url: str) -> Iterator[str]:
    """The test's database by a host's name."""
    with running_proxy(server, host="localhost") as proxy:
        yield make_conninfo(
            db_url, host="localhost", port=proxy.port, sslmode="disable", gssencmode="disable"
        )


@contextlib.contextmanager
def no_thread_left() -> Iterator[None]:
    """Have the event loop's executor full of threads that wait, as cancelled jobs may leave it."""
    release = threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    loop.run_in_executor(None, release.wait)
    try:
        yield
    finally:
        release.set()


async def cut_all(aconn: AConn) -> None:
    """Terminate all connections to the database but this one, and wait until they are."""
    await aconn.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def test_a_worker_reconnects_though_no_thread_of_the_executor_is_free(
    named_url: str, aconn: AConn
) -> None:
    app = App(named_url)

    @app.task(name="t")
    async def task() -> None: ...

    async with app.open_async(), running(app, **HASTY):
        await until(aconn, await task.defer_async(), "succeeded")
        with no_thread_left():
            await cut_all(aconn)
            await aconn.execute("SELECT pljobs.defer_job('t')")
            row = await (await aconn.execute("SELECT max(id) FROM pljobs.jobs")).fetchone()
            assert row is not None
            await until(aconn, row[0], "succeeded")


async def test_the_apps_pool_reconnects_too(named_url: str, aconn: AConn) -> None:
    app = App(PsycopgConnector(named_url, max_size=1))
    async with app.open_async():
        with no_thread_left():
            await cut_all(aconn)
            assert await app.check_connection_async()


@pytest.mark.parametrize(
    ("conninfo", "environment"),
    [
        ("host=one.test", {}),
        ("host=two.test", {}),
        ("host=two.test port=5433", {}),
        ("host=two.test,one.test port=5433,5434", {}),
        ("host=two.test,one.test port=5433", {}),
        ("host=two.test,one.test port=5433,", {}),
        ("host=/tmp,two.test,10.1.1.1,,localhost port=1,2,3,4,5", {}),
        ("host=/tmp,nowhere.test", {}),
        ("host=nowhere.test,one.test,nowhere.test,two.test", {}),
        ("host=one.test hostaddr=10.9.9.9", {}),
        ("host=one.test,two.test hostaddr=10.9.9.9,", {}),
        ("host=two.test", {"PGHOSTADDR": "10.9.9.9"}),
        ("hostaddr=10.9.9.9,10.8.8.8 port=1,2", {}),
        ("", {"PGHOST": "two.test", "PGPORT": "5433"}),
        ("host=two.test,one.test", {"PGPORT": "5433,5434"}),
        ("port=5433,5434", {"PGHOST": "two.test,one.test"}),
        ("host=", {"PGHOST": "two.test"}),
        ("host=one.test", {"PGHOST": "two.test"}),
        ("host=two.test,one.test target_session_attrs=prefer-standby", {}),
        ("dbname=d user=u", {}),
    ],
)
async def test_hosts_become_the_attempts_that_psycopg_would_make(
    conninfo: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    resolve(monkeypatch, asked)
    for name in ("PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    expected = attempts(conninfo, environment)
    found = await addresses(conninfo, {})
    asked.clear()
    assert attempts(conninfo, environment, **found) == expected
    assert not asked


def attempts(conninfo: str, environment: dict[str, str], **found: str) -> list[tuple[str, ...]]:
    """Return what psycopg tries: hosts, addresses, ports, and which servers are wanted."""
    names = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "target_session_attrs": ""}
    return [
        tuple(str(attempt.get(key, environment.get(name, ""))) for key, name in names.items())
        for attempt in conninfo_attempts(conninfo_to_dict(conninfo, **found))
    ]


def resolve(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    """Have the names above be all that there are."""

    def getaddrinfo(host: str, port: object, **kind: int) -> list[tuple[object, ...]]:
        asked.append(host)
        if host not in NAMES:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (address, port)) for address in NAMES[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


async def test_settings_say_where_too(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, [])
    settings: dict[str, object] = {"host": "two.test", "port": 5433, "row_factory": print, "autocommit": True}
    assert await addresses("host=one.test dbname=d", settings) == {
        "host": "two.test,two.test", "hostaddr": "fe80::2,10.0.0.2", "port": "5433,5433",
    }  # fmt: skip


@pytest.mark.parametrize("conninfo", ["host=nowhere.test", f"host={'a' * 70}.test", "host=no.test,way.test"])
async def test_hosts_none_of_which_has_an_address_are_unavailable(
    conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "a" * 70 not in conninfo:  # that one the real resolver refuses without asking anybody
        resolve(monkeypatch, [])
    with pytest.raises(DatabaseUnavailable, match="failed to resolve host"):
        await PsycopgConnector(conninfo).connect_async()


async def test_lists_that_dont_match_are_refused_as_psycopg_does() -> None:
    for conninfo in ("host=one.test,two.test port=1,2,3", "host=one.test,two.test hostaddr=10.0.0.1"):
        with pytest.raises(DatabaseUnavailable, match="could not match"):
            await PsycopgConnector(conninfo).connect_async()


async def test_a_name_that_nobody_answers_for_holds_up_neither_the_others_nor_for_ever(
    named_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **kind: Any) -> object:
        if host == "silent.test":
            release.wait()
        return real(host, *args, **kind)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(DatabaseUnavailable, match="no answer within 2 s"):
                await PsycopgConnector(named_url, host="silent.test").connect_async(connect_timeout=2)
            connector = PsycopgConnector(named_url, host="silent.test,localhost")
            # Longer: it is for the host that answers, too.
            await (await connector.connect_async(connect_timeout=5)).close()
    finally:
        release.set()


async def test_a_host_that_cant_be_looked_up_for_want_of_a_thread_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(DatabaseUnavailable, match="can't start new thread"):
        await PsycopgConnector("host=localhost").connect_async()
