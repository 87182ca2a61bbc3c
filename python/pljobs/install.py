"""Install or upgrade the schema from the packaged SQL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus

from pljobs.careful import careful_logger
from pljobs.install_check import Connection, Target, connected, index_fixes, is_complete, ledger, rows
from pljobs.install_files import install_files

logger = careful_logger(__name__)

_ANOTHER = 0.2  # seconds: how often it is looked whether another session's builds are done
# Every name is qualified: nothing may be found in the search_path that the connection came with.
_KEPT = ("role", "lock_timeout", "search_path")
_SETTINGS = ", ".join(f"pg_catalog.current_setting('{name}')" for name in _KEPT)
_RESTORE = ", ".join(f"pg_catalog.set_config('{name}', %s, true)" for name in _KEPT)
_FOR_INDEXES = {"lock_timeout": "0", "statement_timeout": "0", "default_transaction_read_only": "off"}
_INDEX_KEY = "pg_catalog.hashtextextended('pljobs.indexes', 0)"


def migrate(target: Target, *, lock_timeout: timedelta | None = None) -> tuple[str, ...]:
    """Install or upgrade the schema in one transaction, and return the names of the migrations applied.

    Runs the files of sql/install.sql, so that the outcome is psql's: `psql -1 -v ON_ERROR_STOP=1 -f
    sql/install.sql`. Safe to run again, and from many places at once: the others wait for the first one;
    where all is as it should be, nothing is locked. Then makes the indexes that a large table had to wait
    for, CONCURRENTLY; not inside of a caller's transaction: then it logs what is left to do.
    `lock_timeout`: how long to try for tables that somebody holds; by default 5 seconds, as with psql.
    Workers are never kept waiting for long by that. Raises `MigrationEdited`, `SchemaTooNew` if a newer
    release was here, `OldWorkersAlive`, `NotPermitted`, `ConnectorException`.
    """
    with connected(target) as conn:
        if is_complete(conn):
            return ()
        applied = _install(conn, lock_timeout)
        with _settings(conn, statement_timeout="0"):
            left = index_fixes(conn)
        if left and conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
            _make_indexes(conn)
        elif left:
            logger.warning("indexes are left to make, outside of a transaction: %s", " ".join(left))
        return applied


def _install(conn: Connection, lock_timeout: timedelta | None) -> tuple[str, ...]:
    before: set[str] = set()
    with _as_it_must_be(conn), conn.transaction():
        settings = rows(conn, f"SELECT {_SETTINGS}")[0]
        for name, text in install_files():
            # One string of many statements, as psql's \ir would send them; in the encoding that conn speaks.
            conn.execute(text.encode(conn.info.encoding), prepare=False)
            if name == "begin.sql" and lock_timeout is not None:
                milliseconds = int(lock_timeout.total_seconds() * 1000)
                conn.execute("SELECT pg_catalog.set_config('lock_timeout', %s, true)", [str(milliseconds)])
            elif name == "ledger.sql":
                before = set(ledger(conn))
        # What the files set is for them, not for the rest of the caller's transaction.
        conn.execute(f"SELECT {_RESTORE}".encode(), settings)
        return tuple(sorted(set(ledger(conn)) - before))


@contextmanager
def _as_it_must_be(conn: Connection) -> Iterator[None]:
    """Have the transaction that begins next, if it is ours to begin, write, and see what others have done."""
    if conn.info.transaction_status != TransactionStatus.IDLE or not conn.autocommit:
        yield
        return
    former = conn.isolation_level, conn.read_only
    conn.isolation_level = IsolationLevel.READ_COMMITTED
    # A standby says better itself that it takes no writes.
    conn.read_only = None if rows(conn, "SELECT pg_catalog.pg_is_in_recovery()")[0][0] else False
    try:
        yield
    finally:
        if not conn.closed:
            conn.isolation_level, conn.read_only = former


def _make_indexes(conn: Connection) -> None:
    """Do what sql/indexes.sql does."""
    # Not by waiting in the server: who waits there holds a snapshot, which the other's build would wait for.
    while not rows(conn, f"SELECT pg_catalog.pg_try_advisory_lock({_INDEX_KEY})")[0][0]:
        time.sleep(_ANOTHER)
    try:
        with _settings(conn, **_FOR_INDEXES), _as_owner(conn):
            for fix in index_fixes(conn):
                logger.info("%s", fix)
                conn.execute(fix.encode(), prepare=False)
    finally:
        rows(conn, f"SELECT pg_catalog.pg_advisory_unlock({_INDEX_KEY})")


@contextmanager
def _settings(conn: Connection, **values: str) -> Iterator[None]:
    former = {name: rows(conn, f"SHOW {name}")[0][0] for name in values}
    for name, value in values.items():
        conn.execute("SELECT pg_catalog.set_config(%s, %s, false)", [name, value])
    try:
        yield
    finally:
        for name, value in former.items():
            conn.execute("SELECT pg_catalog.set_config(%s, %s, false)", [name, value])


@contextmanager
def _as_owner(conn: Connection) -> Iterator[None]:
    owner = rows(
        conn,
        "SELECT pg_catalog.pg_get_userbyid(n.nspowner) FROM pg_catalog.pg_namespace AS n"
        " WHERE n.nspname OPERATOR(pg_catalog.=) 'pljobs'",
    )
    with _settings(conn, role=str(owner[0][0])):
        yield
