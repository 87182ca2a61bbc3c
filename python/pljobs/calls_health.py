"""What `pljobs doctor` asks of a database, stated once each."""

from __future__ import annotations

import dataclasses

from pljobs.answers import Call


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One row of `pljobs.health`: what was looked at, how bad it is, what about, what is so, what to do."""

    item: str
    severity: str
    subject: str | None
    detail: str
    action: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """What a server tells of itself, with or without the schema."""

    version: str
    pid: int
    is_standby: bool
    has_schema: bool
    has_health: bool


def describe_server() -> Call[Server]:
    """Read which server this is, and whether it has the schema, and its view of health."""
    return Call(
        "SELECT pg_catalog.current_setting('server_version') AS version,"
        " pg_catalog.pg_backend_pid() AS pid, pg_catalog.pg_is_in_recovery() AS is_standby,"
        " pg_catalog.to_regclass('pljobs.jobs') IS NOT NULL AS has_schema,"
        " pg_catalog.to_regclass('pljobs.health') IS NOT NULL AS has_health",
        {},
        lambda rows: Server(**rows[0]),
    )


def set_patience(milliseconds: int) -> Call[None]:
    """Wait for locks no longer than that in this session, and compile nothing for a view of many parts."""
    return Call(
        "SELECT pg_catalog.set_config('lock_timeout', %(lock_timeout)s::text, false),"
        " pg_catalog.set_config('jit', 'off', false)",
        {"lock_timeout": str(milliseconds)},
        lambda _: None,
    )


def list_findings() -> Call[list[Finding]]:
    """Read what there is to look at, worst first."""
    return Call(
        "SELECT h.item, h.severity, h.subject, h.detail, h.action FROM pljobs.health AS h",
        {},
        lambda rows: [Finding(**row) for row in rows],
    )


def list_lockers() -> Call[list[Finding]]:
    """Read who keeps everybody from reading a table or view of the schema: all that can be read then."""
    return Call(
        "SELECT 'blocked_sessions' AS item, 'critical' AS severity, 'pid ' || l.pid AS subject,"
        " pg_catalog.concat_ws(', ', a.usename, nullif(a.application_name, ''), a.state)"
        " || ': holds ' || pg_catalog.string_agg(DISTINCT 'pljobs.' || c.relname, ', ')"
        " || ' exclusively; nobody can read it, and health was not looked at' AS detail,"
        " pg_catalog.format('let it end, or: SELECT pg_terminate_backend(%%s);', l.pid) AS action"
        " FROM pg_catalog.pg_locks AS l"
        " JOIN pg_catalog.pg_class AS c ON c.oid = l.relation"
        " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = 'pljobs'"
        " JOIN pg_catalog.pg_database AS d ON d.oid = l.database"
        " LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid"
        " WHERE d.datname = pg_catalog.current_database() AND l.granted AND l.mode = 'AccessExclusiveLock'"
        " GROUP BY l.pid, a.usename, a.application_name, a.state ORDER BY l.pid",
        {},
        lambda rows: [Finding(**row) for row in rows],
    )


def count_differences() -> Call[int]:
    """Count where the schema differs from what its release should be."""
    return Call(
        "SELECT count(*) AS count FROM pljobs.check_install()", {}, lambda rows: int(rows[0]["count"])
    )


def notify_oneself(channel: str) -> Call[None]:
    """Send a notification on this channel."""
    return Call(
        "SELECT pg_catalog.pg_notify(%(channel)s::text, 'doctor')", {"channel": channel}, lambda _: None
    )
