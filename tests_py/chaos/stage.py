"""The servers that rows run on: one for all that leave theirs whole, and one for each row that harms it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

import oracle
from chaos.logs import LOG_LINE_PREFIX
from chaos.rig import Rig
from chaos.rows import Row
from conftest import INSTALL, in_memory
from pljobs.embedded import THROW_AWAY, Server

TEMPLATE = "chaos_template"
SETTINGS = {**THROW_AWAY, "max_connections": "300", "log_line_prefix": LOG_LINE_PREFIX}


class Stage:
    """Make a rig for each repetition: a database of its own, on the right server."""

    def __init__(self, binaries: Path | None, folder: Path, *, long: bool) -> None:
        self._binaries, self._folder, self._long = binaries, folder, long
        self._servers: dict[str, Server] = {}
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def rig(self, row: Row, seed: int) -> Iterator[Rig]:
        """Set the stage for one repetition, and clear it afterwards; its logs stay if it fails."""
        server = self._server(row)
        dbname = f"chaos_{next(self._numbers)}"
        _run(server, f"CREATE DATABASE {dbname} TEMPLATE {TEMPLATE}{_how(server)}")
        folder = self._folder / f"{row.name}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        rig = Rig(server, dbname, folder, seed, long=self._long)
        try:
            yield rig
        finally:
            rig.close()
            with contextlib.suppress(psycopg.Error):
                _run(server, f"DROP DATABASE IF EXISTS {dbname} WITH (FORCE)")

    def leave(self, row: Row) -> None:
        """Stop the row's own server."""
        if (server := self._servers.pop(row.name, None)) is not None:
            server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers.values():
            server.stop()
        self._servers.clear()

    def _server(self, row: Row) -> Server:
        key = row.name if row.own_server else ""
        found = self._servers.get(key)
        if found is not None and not _answers(found):
            del self._servers[key]
            found.stop()
            found = None
        if found is None:
            found = self._servers[key] = _started(self._binaries, row.settings)
        return found


def _started(binaries: Path | None, settings: Mapping[str, str]) -> Server:
    with in_memory():
        server = Server.start(binaries, settings={**SETTINGS, **settings})
    try:
        url = server.create_database(TEMPLATE)
        server.run_sql(f"BEGIN;\n\\i '{INSTALL}'\nCOMMIT;", TEMPLATE)
        server.run_sql("GRANT pg_signal_backend, pg_read_all_stats TO pljobs_owner", TEMPLATE)
        with psycopg.connect(url, autocommit=True) as conn:
            oracle.install(conn)
    except BaseException:
        server.stop()
        raise
    return server


def _answers(server: Server) -> bool:
    if server.pid is None:
        return False
    try:
        _run(server, "SELECT 1")
    except psycopg.Error:
        return False
    return True


def _run(server: Server, sql: str) -> None:
    with psycopg.connect(server.url(), autocommit=True, connect_timeout=10) as conn:
        conn.execute(sql.encode())


def _how(server: Server) -> str:
    with psycopg.connect(server.url(), connect_timeout=10) as conn:
        # By copying files, where there is a choice: the log would hold each database once more.
        return " STRATEGY FILE_COPY" if conn.info.server_version >= 150000 else ""
