"""Check the SQL without running it: plpgsql_check, pgspot and squawk silent, install.sql complete, ASCII."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pljobs.install_files import install_files
from servers import REPO, SQL, TEMPLATE, debian_version, throw_away

# PS010 wants CREATE SCHEMA to fail where the schema exists; ledger.sql looks at whose it is first.
_PGSPOT_IGNORES = "PS010"
_LINE = 110
# Of a migration's timeouts and of running it once the ledger takes care; counts of attempts stay small.
_SQUAWK_IGNORES = (
    "require-lock-timeout,require-statement-timeout,prefer-robust-stmts,prefer-bigint-over-int,"
    "prefer-bigint-over-smallint"
)
_OLDEST = "14"
# A procedure that commits may have no settings: tests_sql/policy.sql sees that it qualifies all names.
_PGSPOT_PROCEDURES = re.compile(r"PS005: .*: pljobs\.(cancel_jobs_in_batches|wait_for_job)\(")
# Running the text that they are given is what these two are for; only the installer may call them.
_CHECK = """
SELECT p.oid::regprocedure || ' line ' || coalesce(c.lineno::text, '?') || ': ' || c.level || ': '
       || c.message || coalesce(' (' || c.detail || ')', '')
  FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang,
       LATERAL plpgsql_check_function_tb(p.oid, fatal_errors := false, extra_warnings := true,
                                         performance_warnings := true, security_warnings := true) AS c
 WHERE p.pronamespace = 'pljobs'::regnamespace AND l.lanname = 'plpgsql'
   AND NOT (p.proname IN ('_migrate', '_create_index') AND (c.level, c.statement) = ('security', 'EXECUTE'))
   -- A constant today, but not in the next release.
   AND NOT (p.proname = 'get_contract_v1' AND c.message LIKE '%should be IMMUTABLE')
   -- It changes something by the text that it runs alone.
   AND NOT (p.proname = '_replace_form' AND c.message LIKE '%should be STABLE')
 ORDER BY 1
"""


def main() -> int:
    """Print what is wrong; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pgspot", type=Path, default=REPO / ".venv-pgspot" / "bin" / "pgspot")
    parser.add_argument("--squawk", type=Path, default=Path(sys.executable).with_name("squawk"))
    options = parser.parse_args()
    found = [
        *_listing(), *_texts(), *_squawk(options.squawk), *_plpgsql_check(), *_pgspot(options.pgspot)
    ]  # fmt: skip
    print("\n".join(found) if found else "SQL checks: nothing to say")
    return 1 if found else 0


def _listing() -> Iterator[str]:
    """Each file is listed once, and the newest migration is the one that latest.sql names."""
    listed = [name for name, _ in install_files()]
    yield from (f"sql/install.sql lists {name} twice" for name in set(listed) if listed.count(name) > 1)
    for folder in ("functions", "migrations"):
        for path in sorted((SQL / folder).glob("*.sql")):
            if path.relative_to(SQL).as_posix() not in listed:
                yield f"sql/install.sql doesn't list {path.relative_to(SQL)}"
    migrations = sorted(path.stem for path in (SQL / "migrations").glob("[0-9]*.sql"))
    if f"'{migrations[-1]}'" not in (SQL / "migrations" / "latest.sql").read_text():
        yield f"sql/migrations/latest.sql doesn't name {migrations[-1]}"
    for name, text in install_files():
        if re.match(r"migrations/\d", name) and f"_migrate('{Path(name).stem}'," not in text:
            yield f"sql/{name} doesn't call _migrate with its own name"


def _texts() -> Iterator[str]:
    for name, text in install_files():
        for number, line in enumerate(text.splitlines(), 1):
            # Whatever the client's encoding, psql and Python then send the same bytes.
            if not line.isascii():
                yield f"sql/{name}:{number}: not ASCII"
            if len(line) > _LINE and name != "manifest.sql":  # generated
                yield f"sql/{name}:{number}: {len(line)} characters; a line has at most {_LINE}"
            if line != line.rstrip():
                yield f"sql/{name}:{number}: ends in a blank"
            if re.match(r"\s*\\", line):
                yield f"sql/{name}:{number}: a psql command, which `pljobs migrate` doesn't know"


def _squawk(program: Path) -> Iterator[str]:
    """Ask what locks a table for long, or breaks a client, of what migrations do to tables that hold rows."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in install_files():
            # The first one makes the tables.
            if re.match(r"migrations/(?!0001)\d", name):
                _, inside, _ = re.split(r"\$migration\$", text)
                (Path(folder) / Path(name).name).write_text(
                    "\n" * (text.split(inside)[0].count("\n") + 1) + inside
                )
        command = [
            str(program), "--pg-version", _OLDEST, "--assume-in-transaction", "--exclude", _SQUAWK_IGNORES,
            "--reporter", "gcc", *map(str, sorted(Path(folder).iterdir())),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in filter(None, map(str.strip, (done.stdout + done.stderr).split("\n"))):
        yield f"squawk: {line.replace(folder, 'sql/migrations')}"


def _plpgsql_check() -> Iterator[str]:
    with throw_away(debian_version()) as server:
        yield from filter(None, server.run_sql(_CHECK, TEMPLATE).split("\n"))


def _pgspot(program: Path) -> Iterator[str]:
    """Show pgspot all files as the one session that they are, so that it sees the search_path in force."""
    origins = []
    lines = []
    for name, text in install_files():
        # pgspot doesn't look into strings: of a migration, show it the inside.
        inside = re.sub(r"^.*\$migration\$.*$", "", text, flags=re.MULTILINE)
        for number, line in enumerate(inside.split("\n"), 1):
            origins.append(f"sql/{name}:{number}")
            lines.append(line)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write("\n".join(lines))
        file.flush()
        command = [str(program), "--ignore", _PGSPOT_IGNORES, file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in map(str.strip, (done.stdout + done.stderr).split("\n")):
        if _PGSPOT_PROCEDURES.match(line) or re.match(r"Errors: 0 Warnings: \d+ Unknown: 0$", line):
            continue
        if at := re.search(r" at line (\d+)$", line):
            yield f"pgspot: {origins[int(at[1]) - 1]}: {line[: at.start()]}"
        elif line:
            yield f"pgspot: {line}"


if __name__ == "__main__":
    sys.exit(main())
