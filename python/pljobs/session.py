"""What a role's defaults, or a pooler, would change of a connection: found out, and made good."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import psycopg
from psycopg.pq import TransactionStatus

from pljobs.answers import Call

AnyConnection: TypeAlias = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

# What a worker's call may still wait for, a lane or a queueing lock that somebody is inserting, it waits for
# so long.
LOCK_TIMEOUT = "500ms"
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_PINNED = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "lock_timeout": LOCK_TIMEOUT,
    "datestyle": "ISO",
    "intervalstyle": "postgres",
}
_PINNED_FOR_ALL = {
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "idle_session_timeout": "0",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What a new connection is like."""

    pid: int
    is_standby: bool
    isolation: str
    read_only: bool


_pooled: WeakKeyDictionary[AnyConnection, bool] = WeakKeyDictionary()
_begins: WeakKeyDictionary[AnyConnection, str] = WeakKeyDictionary()


def look() -> Call[Found]:
    """Ask a new connection what it is like."""
    return Call(
        "SELECT pg_catalog.pg_backend_pid() AS pid, pg_catalog.pg_is_in_recovery() AS is_standby,"
        " pg_catalog.current_setting('transaction_isolation') AS isolation,"
        " pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool AS read_only",
        {},
        lambda rows: Found(**rows[0]),
    )


def adopt(conn: AnyConnection, found: Found, *, keep_prepared: bool = False) -> None:
    """Make this connection fit for calls, whatever it is like.

    Behind a pooler statements are not prepared, unless `keep_prepared`: the next one may go to another server
    process, which does not know them. Where a role's defaults would make transactions read-only, or have them
    fail for what others do at the same time, each call begins one that is not; what else the connection is
    used for, by the jobs themselves for instance, has the role's defaults.
    """
    _pooled[conn] = found.pid != conn.info.backend_pid
    if _pooled[conn] and not keep_prepared:
        conn.prepare_threshold = None
    # On a standby, which may be another server tomorrow, it would be an error of another kind.
    writes = " READ WRITE" if found.read_only and not found.is_standby else ""
    if writes or found.isolation != "read committed":
        _begins[conn] = BEGIN + writes


def is_pooled(conn: AnyConnection) -> bool:
    """Say whether a pooler is between: the next transaction may be another server process's."""
    return _pooled.get(conn, False)


def is_odd(conn: AnyConnection) -> bool:
    """Say whether times are written here in a way that psycopg does not read: then they come in binary."""
    styles = conn.info.parameter_status("DateStyle"), conn.info.parameter_status("IntervalStyle")
    return not (styles[0] or "ISO").startswith("ISO") or styles[1] not in {"postgres", None}


def pin(conn: AnyConnection) -> str | None:
    """Return what makes a worker's own connection independent of any defaults; None: each call does it.

    Behind a pooler: what is set for the session would be set for others.
    """
    new = {"transaction_timeout": "0"} if conn.info.server_version >= 170000 else {}
    if is_pooled(conn):
        local = (f"SET LOCAL {name} = '{value}'" for name, value in (_PINNED | new).items())
        _begins[conn] = "; ".join([_begins.get(conn, BEGIN), *local])
        return None
    _begins.pop(conn, None)
    return "; ".join(f"SET {name} = '{value}'" for name, value in (_PINNED_FOR_ALL | _PINNED | new).items())


def beginning(conn: AnyConnection) -> str | None:
    """Return what has to begin the next call, None where it is a transaction of its own, or in one."""
    begin = _begins.get(conn)
    if begin is None or not conn.autocommit or conn.info.transaction_status != TransactionStatus.IDLE:
        return None
    return begin
