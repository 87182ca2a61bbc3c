"""Tell where a database differs from the packaged SQL, and what an install would do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row

from pljobs import calls_read, db, release
from pljobs.db import translated
from pljobs.exceptions import ConnectorException, MigrationEdited
from pljobs.install_files import Migration, install_files, migrations

Connection: TypeAlias = psycopg.Connection[object]
Target: TypeAlias = Connection | str
"""A connection, whose open transaction is joined, or a connection string."""

ROLES = tuple(f"pljobs_{name}" for name in ("owner", "reader", "producer", "worker", "canceller", "operator"))
_CHECKERS = {
    ("function", f"{name}()") for name in ("_inventory", "_manifest", "_privileges", "check_install")
}
_PINNED = {
    "search_path": "pg_catalog, pg_temp",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "intervalstyle": "postgres",
    "datestyle": "iso",
}
_ROW = re.compile(r"^    \('(.*?)', '((?:[^']|'')*)', '((?:[^']|'')*)'\)[,;]$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Difference:
    """One object that is not as it should be: `problem` as check_install() says it, `fix` what to do."""

    kind: str
    name: str
    problem: str
    fix: str

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.kind} {self.name}: {self.problem}; {self.fix}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What an install would do to a database: names, in order; nothing in it means nothing to do."""

    roles: tuple[str, ...] = ()
    migrations: tuple[Migration, ...] = ()
    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """Other differences that an install, or the building of indexes after it, takes away."""


def check(target: Target) -> list[Difference]:
    """Compare a database with the package; an empty list is a clean bill. Changes nothing.

    Looks at the ledger, each function and view, tables, columns, constraints, indexes, owners, grants; see
    `pljobs.check_install()`. Raises `ConnectorException`.
    """
    with connected(target) as conn, conn.transaction(), _pinned(conn):
        _refuse_for_a_superuser(conn)
        if not rows(conn, "SELECT 1 WHERE to_regclass('pljobs.migration') IS NOT NULL"):
            return [Difference("schema", "pljobs", "missing", "run `pljobs migrate`")]
        if not rows(conn, "SELECT has_table_privilege('pljobs.migration', 'SELECT')")[0][0]:
            # Not the owner: what there is to ask is the database's own word, about the release that it is.
            return [*_another_release(conn), *_asked(conn)]
        packaged, found = _packaged(), _found(conn)
        # Only if what says it is this release's, the database's own word is good.
        if all(
            found.get(key) == packaged[key] for key in packaged if key[0] == "migration" or key in _CHECKERS
        ):
            return _asked(conn)
        return list(_compared(packaged, found))


def is_complete(conn: Connection) -> bool:
    """Say whether an install would find nothing to do: what others have added, or may do, is not for it.

    Nothing is asked of a schema that is another's.
    """
    try:
        if not _may_install(conn):
            return False
        differences = [d for d in check(conn) if d.problem != "unknown" or d.kind == "migration"]
        return not differences and not (_missing_roles(conn) and _may_create_roles(conn))
    except ConnectorException:
        # The install says better why not.
        return False


def plan(target: Target) -> Plan:
    """Return what `migrate` would do to this database; locks and changes nothing."""
    with connected(target) as conn:
        if not _may_install(conn):
            raise MigrationEdited("schema pljobs belongs to another role: only that one can upgrade it")
        missing = _missing_roles(conn)
        differences = check(conn)
        fresh = [difference.kind for difference in differences] == ["schema"]
        applied = {} if fresh else ledger(conn)
        to_apply = tuple(migration for migration in migrations() if migration.name not in applied)
        if fresh:
            names = tuple(
                f"{kind} {name}" for kind, name in _packaged() if kind in {"function", "procedure", "view"}
            )
            return Plan(roles=missing, migrations=to_apply, added=names)
        by_problem: dict[str, list[str]] = {"missing": [], "differs": [], "": []}
        for difference in differences:
            if difference.kind in {"function", "procedure", "view"} and difference.problem in by_problem:
                by_problem[difference.problem].append(f"{difference.kind} {difference.name}")
            elif difference.kind != "migration" and not to_apply:
                by_problem[""].append(str(difference))
        return Plan(
            missing,
            to_apply,
            tuple(by_problem["missing"]),
            tuple(by_problem["differs"]),
            tuple(by_problem[""]),
        )


def index_fixes(conn: Connection) -> list[str]:
    """Return the statements, for outside of a transaction, that make missing and invalid indexes."""
    found = rows(
        conn,
        "SELECT pg_catalog.regexp_split_to_table(c.fix, '(?<=;) ') FROM pljobs.check_install() AS c"
        " WHERE c.kind OPERATOR(pg_catalog.=) 'index' AND c.problem OPERATOR(pg_catalog.<>) 'unknown'",
    )
    return [str(fix) for (fix,) in found]


@contextmanager
def connected(target: Target) -> Iterator[Connection]:
    """Yield the connection, or one of its own in autocommit; raises what `db.translated` does."""
    with translated():
        if isinstance(target, str):
            with psycopg.connect(target, autocommit=True) as connection:
                yield connection
        else:
            yield target


def rows(conn: Connection, statement: str) -> list[TupleRow]:
    """Run a statement, whatever the connection makes of rows."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(statement.encode(), prepare=False).fetchall()


def ledger(conn: Connection) -> dict[str, str]:
    """Return name and checksum of each migration that the database has run."""
    return dict(rows(conn, "SELECT name, checksum FROM pljobs.migration"))


def _may_install(conn: Connection) -> bool:
    return not rows(
        conn,
        "SELECT 1 FROM pg_catalog.pg_namespace AS n WHERE n.nspname OPERATOR(pg_catalog.=) 'pljobs'"
        " AND NOT pg_catalog.pg_has_role(n.nspowner, 'USAGE')",
    )


def _refuse_for_a_superuser(conn: Connection) -> None:
    """Raise `MigrationEdited` before anything of the schema runs with a superuser's rights; see begin.sql."""
    found = rows(
        conn,
        "SELECT o.oid::regrole::text FROM pg_namespace AS n JOIN pg_roles AS o ON o.oid = n.nspowner"
        " JOIN pg_roles AS c ON c.rolname = current_user"
        " WHERE n.nspname = 'pljobs' AND c.rolsuper AND NOT o.rolsuper AND o.rolname <> 'pljobs_owner'",
    )
    for (owner,) in found:
        raise MigrationEdited(
            f"schema pljobs belongs to {owner}, and this is a superuser\nConnect as {owner}. Or, only if you"
            f" trust {owner} with a superuser's rights: SET ROLE {owner} first."
        )


def _missing_roles(conn: Connection) -> tuple[str, ...]:
    there = {name for (name,) in rows(conn, "SELECT rolname FROM pg_catalog.pg_roles")}
    return tuple(role for role in ROLES if role not in there)


def _may_create_roles(conn: Connection) -> bool:
    return bool(
        rows(conn, "SELECT rolsuper OR rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user")[
            0
        ][0]
    )


@contextmanager
def _pinned(conn: Connection) -> Iterator[None]:
    """Let names mean what they mean in the catalogue, and be printed alike, whatever the settings are.

    And take the time that it takes.
    """
    former = {name: rows(conn, f"SELECT pg_catalog.current_setting('{name}')")[0][0] for name in _PINNED}
    for name, value in _PINNED.items():
        rows(conn, f"SELECT pg_catalog.set_config('{name}', '{value}', true)")
    yield
    if conn.info.transaction_status == TransactionStatus.INTRANS:
        for name, value in former.items():
            conn.execute("SELECT pg_catalog.set_config(%s, %s, true)", [name, value])


def _asked(conn: Connection) -> list[Difference]:
    return [
        Difference(*row) for row in rows(conn, "SELECT kind, name, problem, fix FROM pljobs.check_install()")
    ]


def _another_release(conn: Connection) -> list[Difference]:
    can_tell = rows(conn, "SELECT 1 WHERE to_regprocedure('pljobs.get_contract_v1()') IS NOT NULL")
    found = db.run(conn, calls_read.get_contract())["release"] if can_tell else "0.1.0"
    if found == release.version():
        return []
    problem = f"is of release {found}, and this is {release.version()}"
    return [Difference("schema", "pljobs", problem, "run `pljobs migrate` of the newer one, as its owner")]


@cache
def _packaged() -> dict[tuple[str, str], str]:
    """Return the definition of each object of this release, by kind and name."""
    packaged = {
        (kind, _unquoted(name)): _unquoted(definition)
        for kind, name, definition in _ROW.findall(_text("manifest.sql"))
    }
    packaged |= {("migration", migration.name): migration.checksum for migration in migrations()}
    # Left out of the inventory, for it holds it: compared as it is.
    packaged["function", "_manifest()"] = _body("manifest.sql", "_manifest")
    return packaged


def _found(conn: Connection) -> dict[tuple[str, str], str]:
    """Return the same of the database. The query is the body of the packaged `_inventory()`."""
    query = _body("functions/check_install.sql", "_inventory")
    found = {(kind, name): definition for kind, name, definition in rows(conn, query)}
    found |= {("migration", name): checksum for name, checksum in ledger(conn).items()}
    manifest = rows(conn, "SELECT prosrc FROM pg_proc WHERE oid = to_regprocedure('pljobs._manifest()')")
    return found | dict.fromkeys([("function", "_manifest()")], str(manifest[0][0])) if manifest else found


def _compared(
    packaged: dict[tuple[str, str], str], found: dict[tuple[str, str], str]
) -> Iterator[Difference]:
    for kind, name in sorted(packaged.keys() | found.keys()):
        wanted, there = packaged.get((kind, name)), found.get((kind, name))
        if wanted == there:
            continue
        if wanted is None and kind == "migration":
            yield Difference(kind, name, "unknown", "a newer pljobs was here: install that one")
        elif wanted is None:
            yield Difference(
                kind, name, "unknown", "not of this release: drop it, if it is not there on purpose"
            )
        elif kind == "migration" and there is not None:
            yield Difference(
                kind, name, "differs", "the database ran another text: reinstall the pljobs package"
            )
        else:
            yield Difference(kind, name, "missing" if there is None else "differs", "run `pljobs migrate`")


def _text(name: str) -> str:
    return dict(install_files())[name]


def _body(file: str, function: str) -> str:
    match = re.search(
        rf"FUNCTION pljobs\.{function}\(\).*?^AS \$\$(.*?)^\$\$;", _text(file), re.DOTALL | re.MULTILINE
    )
    if match is None:
        raise ValueError(f"sql/{file} holds no function {function}()")
    return match[1]


def _unquoted(literal: str) -> str:
    return literal.replace("''", "'")
