"""The packaged SQL: its files, its migrations, all of it as one text."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from pljobs import release

_INCLUDE = re.compile(r"\\ir ([\w./-]+)")
_MIGRATION = re.compile(r"pljobs\._migrate\('(\w+)', \$migration\$(.*?)\$migration\$\)", re.DOTALL)
_ONE_FILE = """\
-- The schema of pljobs {version}, all in one file: what sql/install.sql includes, in its order. It installs,
-- and upgrades whatever release was there before. It has to run in one transaction, and may run again:
--
--     psql -1 -v ON_ERROR_STOP=1 -f pljobs.sql
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration: its name, the sum that the ledger keeps, the tables that it locks."""

    name: str
    checksum: str
    locks: tuple[str, ...]


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


def one_file() -> str:
    """Return all of the schema as one text, readable, for a DBA or a migration tool of their own."""
    header = _ONE_FILE.format(version=release.version())
    return header + "".join(f"\n\n-- ======== {name}\n\n{text.strip()}\n" for name, text in install_files())


def migrations() -> tuple[Migration, ...]:
    """Return the packaged migrations, in order."""
    return tuple(
        Migration(
            name=match[1],
            checksum=hashlib.sha256(match[2].encode()).hexdigest(),
            locks=tuple(
                table
                for names in re.findall(r"_lock_relations\('{(.*?)}'\)", match[2])
                for table in names.split(",")
            ),
        )
        for _, text in install_files()
        for match in _MIGRATION.finditer(text)
    )
