"""What every command shares: exit codes, how errors are said, where the database is, and kinds of options."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from enum import IntEnum
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from pljobs import calls_cli, checks, db, exceptions, session
from pljobs.app import App
from pljobs.cli_output import one_line, visible
from pljobs.connector import PsycopgConnector
from pljobs.embedded import EmbeddedServerError

P = ParamSpec("P")
T = TypeVar("T")
Connection = psycopg.Connection[TupleRow]

CONNECT_TIMEOUT = 10
OWN_PROCESS = object()
"""The `obj` of the context where the process is the command's own, which may then end it."""
REACHED = "pljobs.reached"  # in what click keeps for a command: it has had a connection
UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Exit(IntEnum):
    """The codes that commands end with; listed for people in `pljobs --help`."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    TIMED_OUT = 5
    TAINTED = 6
    WARNING = 7
    CRITICAL = 8
    INTERRUPTED = 130


class Failure(click.ClickException):
    """End the command with one line on stderr and an exit code."""

    def __init__(self, message: str, code: Exit = Exit.ERROR) -> None:
        super().__init__(one_line(message))
        self.exit_code = int(code)  # type: ignore[misc]  # one class, many codes

    def show(self, file: object = None) -> None:  # noqa: ARG002 - click's signature
        """Print the line."""
        click.echo(f"pljobs: {self.message}", err=True)


class Commands(click.Group):
    """A group whose commands end with a line, not a traceback, for whatever pljobs raises on purpose."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """List commands in the order they were added in, not that of the alphabet."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except exceptions.PljobsException as error:
            raise Failure(*_explained(error, was_reached=REACHED in ctx.meta)) from error
        except KeyboardInterrupt:
            click.echo("pljobs: interrupted", err=True)
            ctx.exit(Exit.INTERRUPTED)


def _explained(error: exceptions.PljobsException, *, was_reached: bool) -> tuple[str, Exit]:
    """Return what to say about an error, and the exit code; `was_reached`: there was a connection before."""
    match error:
        case exceptions.SchemaMissing():
            said = str(error).split("\n", 1)[0]
            missing = "the schema pljobs is not (or not wholly) in this database"
            return f"{missing} ({said}): run `pljobs migrate`", Exit.ERROR
        case exceptions.DatabaseReadOnly():
            said = str(error).split("\n", 1)[0]
            return f"the database is read-only ({said}): connect to the primary", Exit.ERROR
        case exceptions.DatabaseUnavailable() if was_reached:
            return f"the connection to the database was lost: {error}", Exit.ERROR
        case exceptions.DatabaseUnavailable():
            where = "say where it is with --url, PLJOBS_URL, or libpq's own PGHOST, PGDATABASE ..."
            return f"can't reach the database: {error} ({where})", Exit.ERROR
        case exceptions.InvalidJob() | exceptions.InvalidArgument():
            return str(error), Exit.USAGE
        case exceptions.AlreadyEnqueued() | exceptions.KeyReused() | exceptions.TreeCancelled():
            return str(error), Exit.REFUSED
        case exceptions.JobNotFound():
            return str(error), Exit.NOT_FOUND
        case EmbeddedServerError():
            # In between is the server's log; its last line says what happened.
            first, *rest = str(error).splitlines()
            return " ... ".join([first, *rest[-1:]]), Exit.ERROR
        case _:
            return str(error), Exit.ERROR


def refuse(
    outcome: str, job_id: int, *, running: str = "", todo: str = "", finished: str = "nothing was changed"
) -> None:
    """End with the exit code, and the reason, of an outcome that changed nothing; say what to do."""
    match outcome:
        case "not_found":
            raise Failure(f"no job has the id {job_id}: {exceptions.NO_JOB}", Exit.NOT_FOUND)
        case "running":
            raise Failure(f"job {job_id}: {running}", Exit.REFUSED)
        case "todo":
            raise Failure(f"job {job_id}: it waits to be run: {todo}", Exit.REFUSED)
        case "already_finished" | "succeeded":
            raise Failure(f"job {job_id}: it is finished, {finished}", Exit.REFUSED)
        case _:
            return


def job_id(text: str) -> int:
    """Read the id of a job or a worker: a whole number of 64 bits."""
    # Not int() alone: it takes 1_000, and digits of every script.
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text) or abs(int(text)) > checks.MAX_INT64:
        raise click.BadParameter(f"{visible(text)!r} is not an id, a whole number")
    return int(text)


def duration(text: str) -> timedelta:
    """Read a length of time: `90`, `90s`, `15m`, `12h`, `7d`, `2w`, `500ms`."""
    if match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhdw]?)", text.replace(" ", "")):
        with contextlib.suppress(OverflowError):
            return timedelta(**{UNITS[match[2] or "s"]: float(match[1])})
    raise click.BadParameter(f"{visible(text)!r} is not a length of time such as 90, 500ms, 15m, 12h or 7d")


def instant(text: str) -> datetime:
    """Read a point in time, in ISO 8601 with an offset."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{visible(text)!r} is not a time such as 2030-01-31T08:00+01:00") from None
    if at.utcoffset() is None:
        raise click.BadParameter(f"{text} doesn't say in which time zone: end it with Z or +01:00")
    return at


def arguments(text: str) -> dict[str, object]:
    """Read a job's arguments: a JSON object, `@FILE`, or `-` for stdin."""
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text("utf-8")
        parsed = json.loads(text)
    except OSError as error:
        raise click.BadParameter(f"can't read {visible(text[1:])}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not JSON: {one_line(str(error))}") from None
    if not isinstance(parsed, dict):
        raise click.BadParameter("""arguments are a JSON object, as in '{"path": "/tmp/x"}'""")
    return parsed


def url_option(command: Callable[..., T]) -> Callable[..., T]:
    """Add `--url`."""
    # PLJOBS_URL is read by the group alone: here it would win over `pljobs --url ... command`.
    return click.option("--url", metavar="CONNINFO", help="The database, as in `pljobs --help`.")(command)


def app_option(command: Callable[..., T]) -> Callable[..., T]:
    """Add `--app`."""
    return click.option(
        "-a",
        "--app",
        "app_path",
        envvar="PLJOBS_APP",
        metavar="MODULE:ATTR",
        help="The application's App, as in package.module:app. Default: PLJOBS_APP.",
    )(command)


def json_option(command: Callable[..., T]) -> Callable[..., T]:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for scripts.")(command)


def audit_options(command: Callable[..., T]) -> Callable[..., T]:
    """Add `--reason` and `--actor`."""
    reason = click.option("--reason", metavar="TEXT", help="Why; kept in the audit trail.")
    actor = click.option(
        "--actor",
        envvar="PLJOBS_ACTOR",
        metavar="TEXT",
        help="On whose behalf; kept too. Default: PLJOBS_ACTOR.",
    )
    return reason(actor(command))


def with_database(command: Callable[Concatenate[Connection, P], T]) -> Callable[..., T]:
    """Give a command `--url`, and a connection as its first argument."""

    @functools.wraps(command)
    def connected_command(*args: P.args, **kwargs: P.kwargs) -> T:
        url = kwargs.pop("url")
        source = connector(url if isinstance(url, str) else None)
        click.get_current_context().obj = source
        with connected(source) as conn:
            return command(conn, *args, **kwargs)

    return url_option(connected_command)


def connector(url: str | None) -> PsycopgConnector:
    """Return a connector to the database that the options name; raises `Failure` for what is no conninfo."""
    if url is None:
        context = click.get_current_context(silent=True)
        url = context.find_root().params.get("url") if context is not None else None
    try:
        given = conninfo_to_dict(url or "")
    except (psycopg.ProgrammingError, UnicodeEncodeError):  # an argument of bytes that are no text
        # libpq's message repeats the text, and with it the password.
        raise Failure(
            "--url or PLJOBS_URL is no connection string: postgresql://user@host/database, or key=value ...",
            Exit.USAGE,
        ) from None
    own = "connect_timeout" in given or "PGCONNECT_TIMEOUT" in os.environ
    return PsycopgConnector(url or "", kwargs=None if own else {"connect_timeout": CONNECT_TIMEOUT})


@contextmanager
def connected(source: PsycopgConnector, **settings: object) -> Iterator[Connection]:
    """Open a connection in autocommit, and close it at the end."""
    # Whatever the database's encoding is, JSON and names come as text.
    with source.connect(client_encoding="utf8", **settings) as conn:
        # What somebody killed had asked for must not be done minutes later. Of a pooler's session it would
        # stay: there a call that may wait sets it for its own transaction.
        if not session.is_pooled(conn):
            db.run(conn, calls_cli.mind_client(is_local=False))
        if context := click.get_current_context(silent=True):
            context.meta[REACHED] = True
        yield conn


def load_app(path: str | None, url: str | None) -> App:
    """Load the App that the options name, with the current folder on the path, as `python -m` has it."""
    if path is None:
        raise Failure("which App? --app package.module:app, or PLJOBS_APP", Exit.USAGE)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        app = App.from_path(path)
        app.perform_import_paths()
    except exceptions.PljobsException:
        raise
    except Exception as error:
        # The application's own mistake: one line that says where.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename}:{frame.lineno}"
        raise Failure(f"can't load {path}: {type(error).__name__}: {error} ({where})") from error
    if url is None:
        context = click.get_current_context(silent=True)
        url = context.find_root().params.get("url") if context is not None else None
    # Its own connector unless the command line says otherwise: tasks that defer jobs use it as well.
    if url is not None:
        app.connector = connector(url)
    return app
