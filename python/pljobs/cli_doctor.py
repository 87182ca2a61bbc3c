"""The command `doctor`: what a DBA would check at night, worst first, each with what to do."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import click
from psycopg import sql

from pljobs import calls_health, calls_read, db, release
from pljobs.calls_health import Finding, Server
from pljobs.cli_base import Connection, Exit, Failure, json_option, with_database
from pljobs.cli_output import print_table, say, to_json, visible
from pljobs.exceptions import ConnectorException, NotPermitted, SchemaMissing

SEVERITIES = ("critical", "warning", "notice", "ok")
COLOURS = {"critical": "red", "warning": "yellow", "notice": "cyan", "ok": "green"}
EXITS = {"critical": Exit.CRITICAL, "warning": Exit.WARNING}
# A table that somebody holds for as long keeps workers waiting, too.
LOCK_TIMEOUT_MS = 3000
LISTEN_PATIENCE = 2.0
HEADINGS = ("severity", "item", "subject", "detail", "what to do")
NOT_LOOKED_AT = "not looked at: "
ASK_AS = "ask as a member of pljobs_reader or pljobs_operator"


@click.command()
@click.option("--all", "show_all", is_flag=True, help="Show what is fine, too.")
@json_option
@with_database
def doctor(conn: Connection, *, show_all: bool, as_json: bool) -> None:
    """Look at all that a DBA would check at night; say what is wrong, and what to do.

    What the view pljobs.health finds (any SQL client can read it), and what can be seen from here alone: the
    releases of driver and schema, whether notifications arrive, whether the schema is what it should be.

    \b
    Exit codes:
      0  nothing worse than notices
      7  warnings
      8  something critical
    """
    server = db.run(conn, calls_health.describe_server())
    if not server.has_schema:
        raise SchemaMissing("there is no view pljobs.jobs")
    if not server.has_health:
        raise Failure(
            "this schema is of release 0.1.0, which has no view pljobs.health:"
            " run `pljobs migrate`, then ask again"
        )
    findings = sorted(_look(conn, server), key=lambda finding: SEVERITIES.index(finding.severity))
    worst = findings[0].severity
    shown = [finding for finding in findings if show_all or finding.severity != "ok"]
    if as_json:
        told = {
            "ok": worst not in EXITS,
            "severity": worst,
            "driver": release.driver(),
            "server": server.version,
            "standby": server.is_standby,
            "findings": [dataclasses.asdict(finding) for finding in shown],
        }
        click.echo(to_json(told))
    else:
        _print(shown)
        _say_summary(findings)
    if worst in EXITS:
        raise click.exceptions.Exit(EXITS[worst])


def _look(conn: Connection, server: Server) -> Iterator[Finding]:
    """Yield what is found, and an ok for each item that is fine."""
    db.run(conn, calls_health.set_patience(LOCK_TIMEOUT_MS))
    try:
        yield from db.run(conn, calls_health.list_findings())
    except NotPermitted as error:
        raise Failure(f"{_first_line(error)}: {ASK_AS}") from error
    except ConnectorException as error:
        if error.sqlstate != "55P03":
            raise
        yield from db.run(conn, calls_health.list_lockers()) or [
            Finding(
                "blocked_sessions",
                "critical",
                "pljobs",
                f"a table could not be read for {LOCK_TIMEOUT_MS / 1000:g} s, and health was not looked at",
                "ask again; SELECT * FROM pg_locks shows who holds it",
            )
        ]
    yield _versions(conn)
    yield _notifications(conn, server)
    yield _install(conn)


def _versions(conn: Connection) -> Finding:
    """Compare this driver with the schema."""
    try:
        contract = db.run(conn, calls_read.get_contract())
    except NotPermitted as error:
        return Finding("versions", "notice", "schema", f"{NOT_LOOKED_AT}{_first_line(error)}", ASK_AS)
    said = f"{release.driver()}, and a schema of {contract['release']}"
    oldest, newest = (int(str(contract[name])) for name in ("oldest", "newest"))
    if newest < release.CONTRACT:
        return Finding(
            "versions", "warning", "schema", f"{said}: it refuses workers of this driver", "pljobs migrate"
        )
    if oldest > release.CONTRACT:
        return Finding(
            "versions",
            "warning",
            "driver",
            f"{said}: the schema refuses workers of this driver",
            f"install pljobs {contract['release']} here",
        )
    ours, theirs = _numbers(release.version()), _numbers(str(contract["release"]))
    if ours > theirs > ():
        return Finding("versions", "notice", "schema", said, "pljobs migrate")
    if theirs > ours > ():
        return Finding("versions", "notice", "driver", said, f"install pljobs {contract['release']} here")
    return Finding("versions", "ok", None, said, None)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, to compare; none for an unknown one."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def _notifications(conn: Connection, server: Server) -> Finding:
    """Listen, notify oneself, and see whether it arrives: not through a transaction pooler."""
    item, polling = (
        "notifications",
        "workers that come this way only poll: connect directly, or in session mode",
    )
    if server.is_standby:
        return Finding(item, "notice", "standby", f"{NOT_LOOKED_AT}a standby sends none", "ask the primary")
    if server.pid != conn.info.backend_pid:
        return Finding(
            item, "warning", "this connection", "a pooler is between that changes server processes", polling
        )
    channel = f"pljobs_doctor_{os.getpid()}_{server.pid}"
    listen, unlisten = (
        sql.SQL(verb).format(sql.Identifier(channel)) for verb in ("LISTEN {}", "UNLISTEN {}")
    )
    try:
        with db.translated():
            conn.execute(listen)
        db.run(conn, calls_health.notify_oneself(channel))
        with db.translated():
            arrived = any(True for _ in conn.notifies(timeout=LISTEN_PATIENCE, stop_after=1))
            conn.execute(unlisten)
    except ConnectorException as error:
        return Finding(
            item, "notice", "this connection", f"{NOT_LOOKED_AT}{_first_line(error)}", "mend that, ask again"
        )
    if not arrived:
        return Finding(
            item,
            "warning",
            "this connection",
            "a notification to oneself does not arrive: a pooler?",
            polling,
        )
    return Finding(item, "ok", None, "notifications arrive on this connection", None)


def _install(conn: Connection) -> Finding:
    """Ask the schema itself whether it is what its release should be."""
    try:
        count = db.run(conn, calls_health.count_differences())
    except ConnectorException as error:
        return Finding(
            "install",
            "notice",
            "check_install()",
            f"{NOT_LOOKED_AT}{_first_line(error)}",
            ASK_AS,
        )
    if count:
        what = f"differs from what its release should be, in {count} place{'s' if count > 1 else ''}"
        return Finding("install", "warning", "schema pljobs", what, "pljobs schema --check names them")
    return Finding("install", "ok", None, "the schema is what its release should be", None)


def _first_line(error: ConnectorException) -> str:
    """Return what the database said, without its hint."""
    return str(error).split("\n", 1)[0]


def _print(findings: Sequence[Finding]) -> None:
    """Print a paragraph each on a terminal, a line each into a pipe."""
    rows = [
        [
            visible(text or "")
            for text in (found.severity, found.item, found.subject, found.detail, found.action)
        ]
        for found in findings
    ]
    if not sys.stdout.isatty():
        print_table(HEADINGS, rows)
        return
    width = max((len(severity) for severity, *_ in rows), default=0)
    for severity, item, subject, detail, action in rows:
        head = " ".join(filter(None, [click.style(item, bold=True), subject]))
        click.echo(f"{click.style(severity.ljust(width), fg=COLOURS[severity])}  {head}")
        click.echo(f"{' ' * width}  {detail}")
        if action:
            click.echo(f"{' ' * width}  -> {action}")


def _say_summary(findings: Sequence[Finding]) -> None:
    counts = Counter(finding.severity for finding in findings)
    said = [
        f"{counts[severity]} {severity}{'s' if counts[severity] > 1 and severity != 'critical' else ''}"
        for severity in SEVERITIES[:-1]
        if counts[severity]
    ]
    items = len({finding.item for finding in findings})
    say(f"looked at {items} items: {', '.join(said) or 'all is well'}")
