"""Install or upgrade the schema from the packaged SQL, and tell where a database differs from it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TypeAlias

import psycopg
from psycopg.rows import TupleRow, tuple_row

from pljobs.db import translated

Target: TypeAlias = psycopg.Connection[object] | str
"""A connection, whose open transaction is joined, or a connection string."""

_INCLUDE = re.compile(r"\\ir ([\w./-]+)")
_MIGRATION = re.compile(r"pljobs\._migrate\('(\w+)', \$migration\$(.*?)\$migration\$\)", re.DOTALL)
_FUNCTION = re.compile(
    r"^CREATE OR REPLACE (?:FUNCTION|PROCEDURE) pljobs\.(?P<name>\w+)\((?P<header>.*?)"
    r"^AS \$\$(?P<body>.*?)\$\$;",
    re.DOTALL | re.MULTILINE,
)
# The catalogue keeps a value without its quotes.
_SETTING = re.compile(r"^SET (\w+) = '?(.+?)'?$", re.MULTILINE)
_SETTINGS = "current_setting('role'), current_setting('lock_timeout'), current_setting('search_path')"
_RESTORE = (
    "set_config('role', %s, true), set_config('lock_timeout', %s, true), set_config('search_path', %s, true)"
)
_VIEW = re.compile(r"^CREATE OR REPLACE VIEW pljobs\.(\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration: its name and the sum that the ledger keeps."""

    name: str
    checksum: str


@dataclass(frozen=True, slots=True, order=True)
class _Function:
    """What makes a function do what it does: an overload differs in its body."""

    name: str
    body: str
    security_definer: bool
    settings: tuple[str, ...]


@cache
def sql_folder() -> Traversable:
    """Return the packaged sql/ folder."""
    return files("pljobs") / "sql"


@cache
def install_files() -> tuple[tuple[str, str], ...]:
    """Return (name, text) of each file that sql/install.sql includes, in order."""
    found = []
    listing = (sql_folder() / "install.sql").read_text("utf-8")
    for number, line in enumerate(listing.splitlines(), 1):
        if not line.strip() or line.startswith("--"):
            continue
        match = _INCLUDE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"sql/install.sql line {number} is neither a comment nor an \\ir line: {line!r}")
        found.append((match[1], (sql_folder() / match[1]).read_text("utf-8")))
    return tuple(found)


def migrations() -> tuple[Migration, ...]:
    """Return the packaged migrations, in order."""
    return tuple(
        Migration(name=match[1], checksum=hashlib.sha256(match[2].encode()).hexdigest())
        for _, text in install_files()
        for match in _MIGRATION.finditer(text)
    )


def migrate(target: Target, *, lock_timeout: timedelta | None = None) -> tuple[str, ...]:
    """Install or upgrade the schema in one transaction, and return the names of the migrations applied.

    Runs the files of sql/install.sql, so that the outcome is psql's: `psql -1 -v ON_ERROR_STOP=1 -f
    sql/install.sql`. Safe to run again, and from many places at once: the others wait for the first one.
    `lock_timeout`: how long to wait for a table that somebody holds; by default 5 seconds, as with psql.
    Raises `MigrationEdited`, `SchemaTooNew` if a newer release was here, `ConnectorException`.
    """
    with _connected(target) as conn, conn.transaction():
        before: set[str] = set()
        settings = _rows(conn, f"SELECT {_SETTINGS}")[0]
        for position, (_, text) in enumerate(install_files()):
            # One string of many statements, as psql's \ir would send them; in the encoding that conn speaks.
            conn.execute(text.encode(conn.info.encoding), prepare=False)
            if position == 0:
                # The first file is the ledger: it has waited for other installers, then set a lock_timeout.
                before = set(_ledger(conn))
                if lock_timeout is not None:
                    milliseconds = int(lock_timeout.total_seconds() * 1000)
                    conn.execute("SELECT set_config('lock_timeout', %s, true)", [str(milliseconds)])
        # What the files set is for them, not for the rest of the caller's transaction.
        conn.execute(f"SELECT {_RESTORE}".encode(), settings)
        return tuple(sorted(set(_ledger(conn)) - before))


def check(target: Target) -> list[str]:
    """Compare a database with the package: say what differs and what to do; an empty list is a clean bill.

    Compares the ledger, each function's body, rights and settings, views, indexes, owners, and what is
    granted on tables and, to everybody, on functions. Changes nothing.
    """
    with _connected(target) as conn:
        if not _rows(conn, "SELECT 1 WHERE to_regclass('pljobs.migration') IS NOT NULL"):
            return ["schema pljobs is not in this database: run `pljobs migrate`"]
        return [
            *_ledger_differences(_ledger(conn)),
            *_function_differences(conn),
            *_relation_differences(conn),
            *_right_differences(conn),
        ]


@contextmanager
def _connected(target: Target) -> Iterator[psycopg.Connection[object]]:
    with translated():
        if isinstance(target, str):
            with psycopg.connect(target) as connection:
                yield connection
        else:
            yield target


def _rows(conn: psycopg.Connection[object], statement: str) -> list[TupleRow]:
    with conn.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(statement.encode()).fetchall()


def _ledger(conn: psycopg.Connection[object]) -> dict[str, str]:
    return dict(_rows(conn, "SELECT name, checksum FROM pljobs.migration"))


def _ledger_differences(ledger: dict[str, str]) -> Iterator[str]:
    packaged = {migration.name: migration.checksum for migration in migrations()}
    for name, checksum in packaged.items():
        if name not in ledger:
            yield f"migration {name} has not been applied: run `pljobs migrate`"
        elif ledger[name] != checksum:
            yield f"migration {name} is not the one that this database ran: reinstall the pljobs package"
    for name in sorted(ledger.keys() - packaged.keys()):
        yield f"migration {name} is unknown to this release: a newer pljobs was here, install that one"


@cache
def _packaged_functions() -> Counter[_Function]:
    return Counter(
        _Function(
            name=match["name"],
            body=match["body"],
            security_definer="SECURITY DEFINER" in match["header"],
            settings=tuple(sorted(f"{name}={value}" for name, value in _SETTING.findall(match["header"]))),
        )
        for _, text in install_files()
        for match in _FUNCTION.finditer(text)
    )


def _function_differences(conn: psycopg.Connection[object]) -> Iterator[str]:
    installed = Counter(
        _Function(name=name, body=body, security_definer=definer, settings=tuple(sorted(settings)))
        for name, body, definer, settings in _rows(
            conn,
            "SELECT p.proname, p.prosrc, p.prosecdef, coalesce(p.proconfig, '{}')"
            " FROM pg_catalog.pg_proc AS p WHERE p.pronamespace = 'pljobs'::regnamespace",
        )
    )
    packaged = _packaged_functions()
    missing, unknown = packaged - installed, installed - packaged
    known = {function.name for function in packaged}
    for name in sorted({function.name for function in missing}):
        if any(function.name == name for function in unknown):
            yield f"function pljobs.{name} differs from this release's: run `pljobs migrate`"
        else:
            yield f"function pljobs.{name} is missing: run `pljobs migrate`"
    for name in sorted({function.name for function in unknown} - {function.name for function in missing}):
        said = "has an overload that is not of this release" if name in known else "is not of this release"
        yield f"function pljobs.{name} {said}: drop it if it is yours"


def _relation_differences(conn: psycopg.Connection[object]) -> Iterator[str]:
    views = {name for _, text in install_files() for name in _VIEW.findall(text)}
    installed = {
        name
        for (name,) in _rows(
            conn,
            "SELECT c.relname FROM pg_catalog.pg_class AS c"
            " WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind = 'v'",
        )
    }
    for name in sorted(views - installed):
        yield f"view pljobs.{name} is missing: run `pljobs migrate`"
    indexes = {
        name: (definition, valid)
        for name, definition, valid in _rows(
            conn,
            "SELECT c.relname, pg_catalog.pg_get_indexdef(c.oid), i.indisvalid FROM pg_catalog.pg_class AS c"
            " JOIN pg_catalog.pg_index AS i ON i.indexrelid = c.oid"
            " WHERE c.relnamespace = 'pljobs'::regnamespace",
        )
    }
    for name, wanted in _packaged_indexes().items():
        definition, valid = indexes.get(name, (None, False))
        if definition is None:
            yield f"index pljobs.{name} is missing: {wanted};"
        elif definition != wanted:
            yield f"index pljobs.{name} differs: drop it, then {wanted};"
        elif not valid:
            yield f"index pljobs.{name} is invalid: REINDEX INDEX CONCURRENTLY pljobs.{name};"


@cache
def _packaged_indexes() -> dict[str, str]:
    """Return name and definition of each index that is not a constraint's, from the generated schema.sql."""
    text = (sql_folder() / "schema.sql").read_text("utf-8")
    found = re.findall(r"^(CREATE (?:UNIQUE )?INDEX (\w+) .*);$", text, re.MULTILINE)
    return {name: definition for definition, name in found}


def _right_differences(conn: psycopg.Connection[object]) -> Iterator[str]:
    """CREATE OR REPLACE keeps old rights, and people grant by hand: tell what nobody should have."""
    for (function,) in _rows(
        conn,
        "SELECT DISTINCT p.oid::regprocedure::text FROM pg_catalog.pg_proc AS p,"
        " LATERAL pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) AS a"
        " WHERE p.pronamespace = 'pljobs'::regnamespace AND a.grantee = 0 ORDER BY 1",
    ):
        yield f"everybody may call {function}: REVOKE ALL ON ROUTINE {function} FROM PUBLIC;"
    for table, role in _rows(
        conn,
        "SELECT DISTINCT c.oid::regclass::text,"
        " CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END"
        " FROM pg_catalog.pg_class AS c, LATERAL pg_catalog.aclexplode(c.relacl) AS a"
        " WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind IN ('r', 'p', 'S')"
        " AND a.grantee <> c.relowner ORDER BY 1, 2",
    ):
        yield f"{role} has rights on {table}, past all functions: REVOKE ALL ON {table} FROM {role};"
    for kind, name, owner in _rows(
        conn,
        "SELECT o.kind, o.name, n.nspowner::regrole::text FROM pg_catalog.pg_namespace AS n, LATERAL ("
        " SELECT 'ROUTINE', p.oid::regprocedure::text, p.proowner FROM pg_catalog.pg_proc AS p"
        " WHERE p.pronamespace = n.oid"
        " UNION ALL SELECT CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,"
        " c.oid::regclass::text, c.relowner FROM pg_catalog.pg_class AS c"
        " WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'v', 'S')"
        ") AS o(kind, name, owner) WHERE n.nspname = 'pljobs' AND o.owner <> n.nspowner ORDER BY 1, 2",
    ):
        yield f"{name} doesn't belong to the schema's owner: ALTER {kind} {name} OWNER TO {owner};"
