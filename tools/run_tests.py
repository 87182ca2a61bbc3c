"""Run the SQL tests on throw-away servers: pgTAP, isolation specs, PL/pgSQL statement coverage."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from coverage_sql import Coverage
from pljobs.embedded import PORT, SUPERUSER, Server, environment
from races import run_specs
from servers import REPO, TEMPLATE, WHEEL, debian_version, install_pgtap, throw_away

TESTS = REPO / "tests_sql"


def main() -> int:
    """Run what the command line asks for, or everything; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", action="append", help="14 to 18; by default 18 and Debian's")
    parser.add_argument(
        "--accept", action="store_true", help="write what the specs print as their expected output"
    )
    parser.add_argument("--verbose", action="store_true", help="show each assertion")
    parser.add_argument(
        "files", nargs="*", type=Path, help=".sql and .spec files; by default all, with coverage"
    )
    options = parser.parse_args()
    tap, specs = _chosen(options.files)
    passed = [
        _run(version, tap, specs, accept=options.accept, verbose=options.verbose, complete=not options.files)
        for version in options.server or [WHEEL, debian_version()]
    ]
    return 0 if all(passed) else 1


def _run(
    version: str, tap: Sequence[Path], specs: Sequence[Path], *, accept: bool, verbose: bool, complete: bool
) -> bool:
    """Run the tests on one server; on Debian's, which has plpgsql_check, count statements too."""
    profiled = version == debian_version()
    coverage = Coverage()
    with throw_away(version, profiled=profiled) as server:
        print(f"== PostgreSQL {server.run_sql('SHOW server_version')} ({server.bin_dir})", flush=True)

        def collect(name: str) -> None:
            if profiled:
                coverage.collect(server, name)

        server.create_database("pgtap", TEMPLATE)
        install_pgtap(server, "pgtap")
        proved = _prove(server, "pgtap", tap, verbose=verbose)
        raced = not run_specs(server, specs, accept=accept, before_drop=collect)
        collect(TEMPLATE)
        collect("pgtap")
    # The same tests run on every server: one server's counts are enough.
    covered = coverage.report() if profiled and complete else True
    return proved and raced and covered


def _chosen(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    if not files:
        tap = sorted((TESTS / "functions").glob("*.sql")) + sorted(TESTS.glob("*.sql"))
        return tap, sorted((TESTS / "races").glob("*.spec"))
    absolute = [path.resolve() for path in files]
    return [p for p in absolute if p.suffix == ".sql"], [p for p in absolute if p.suffix == ".spec"]


def _prove(server: Server, dbname: str, files: Sequence[Path], *, verbose: bool) -> bool:
    if not files:
        return True
    command = [
        "pg_prove",
        "--psql-bin", str(server.bin_dir / "psql"),
        "--host", str(server.base),
        "--port", str(PORT),
        "--username", SUPERUSER,
        "--dbname", dbname,
        # Each file rolls back, but two at once would meet in each other's locks: one after the other, and the
        # other server's turn is what the second core is for.
        "--jobs", "1",
        "--norc",
        "--failures",
        "--comments",
    ]  # fmt: skip
    if verbose:
        command.append("--verbose")
    relative = [os.path.relpath(path, REPO) for path in files]
    return subprocess.run([*command, *relative], check=False, cwd=REPO, env=environment()).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
