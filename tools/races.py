"""Run PostgreSQL's isolationtester over tests_sql/races/*.spec and compare with the .out beside each."""

from __future__ import annotations

import difflib
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from pljobs.embedded import Server, environment
from servers import TEMPLATE, isolationtester

_TIMEOUT = "30"  # seconds that one step may take before isolationtester cancels it
# Without one, a person's cancel waits a second: on a busy machine too short for the next step.
_PATIENCE = "-c lock_timeout=60s"


def run_specs(
    server: Server, specs: Iterable[Path], *, accept: bool, before_drop: Callable[[str], None]
) -> list[Path]:
    """Run each spec in a database of its own, so that ids are the same each time; return those that differ.

    `accept` writes what was printed as the expected output; a NAME_1.out beside it is as right.
    """
    failed = []
    for number, spec in enumerate(specs, 1):
        dbname = f"race_{number}"
        url = server.create_database(dbname, TEMPLATE)
        done = subprocess.run(
            [str(isolationtester()), url],
            stdin=spec.open(),
            capture_output=True,
            text=True,
            check=False,
            env=environment()
            | {
                "PG_TEST_TIMEOUT_DEFAULT": _TIMEOUT,
                "PGISOLATIONTIMEOUT": _TIMEOUT,
                "PGOPTIONS": _PATIENCE,
            },
        )
        printed = done.stdout + done.stderr
        before_drop(dbname)
        server.drop_database(dbname)
        expected = spec.with_suffix(".out")
        if accept:
            expected.write_text(printed)
        answers = [
            path.read_text() for path in (expected, spec.with_name(f"{spec.stem}_1.out")) if path.exists()
        ]
        if printed in answers and done.returncode == 0:
            print(f"{spec.relative_to(spec.parents[2])} .. ok")
            continue
        failed.append(spec)
        print(f"{spec.relative_to(spec.parents[2])} .. FAILED (exit {done.returncode})")
        wanted = answers[0] if answers else ""
        lines = difflib.unified_diff(
            wanted.splitlines(), printed.splitlines(), "expected", "printed", lineterm=""
        )
        print("\n".join(lines))
    return failed
