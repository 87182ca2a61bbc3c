"""Run tests in lanes, some at once: each on one server, or all that is written in SQL.

The tests wait as much as they compute, for a worker or a server: lanes side by side keep the machine busy.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import time
from collections.abc import Mapping

from servers import REPO, WHEEL, bin_dir, debian_version

AT_ONCE = 3
# Each has a server of its own, and takes file after file. The lane that leaves nothing out has one more.
WORKERS, MOST_WORKERS = 2, 3
SQL = "sql"
NEWEST = "3.13"
LONGEST_LINE = 2**24


def main() -> int:
    """Run the lanes that are asked for; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "lanes", nargs="+",
        help="14 to 18, debian: pytest on a server; sql: all of SQL on 18 and Debian's",
    )  # fmt: skip
    parser.add_argument("--sql", action="store_true", help="in the lanes of servers, the SQL tests first")
    parser.add_argument("--args", default="", help="more for pytest, in the lanes of servers")
    parser.add_argument(
        "--pairs", action="store_true",
        help="Debian's server with the newest Python, for what depends on either: not each with each",
    )  # fmt: skip
    options = parser.parse_args()
    debian = debian_version()
    lanes = [debian if lane == "debian" else lane for lane in options.lanes]
    # Fetched before the first begins: a machine without a network says so at once.
    for lane in lanes:
        if lane != SQL:
            bin_dir(lane)
    paired = {debian: NEWEST} if options.pairs else {}
    return asyncio.run(Lanes(shlex.split(options.args), paired, sql_first=options.sql).run(lanes))


class Lanes:
    """Run lanes; `arguments`: for pytest; `paired`: servers whose tests run on another Python."""

    def __init__(self, arguments: list[str], paired: Mapping[str, str], *, sql_first: bool) -> None:
        self._arguments = arguments
        self._paired = paired
        self._sql_first = sql_first
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def run(self, lanes: list[str]) -> int:
        """Run all of these; return 1 if one failed."""
        failed = max(await asyncio.gather(*map(self._lane, lanes)))
        print("\n".join(["", *_failures]) if failed else "== all passed", flush=True)
        return failed

    async def _lane(self, lane: str) -> int:
        async with self._turn:
            began = time.monotonic()
            if lane == SQL:
                what, failed = "SQL", await self._sql("SQL")
            else:
                what, failed = f"PostgreSQL {lane}", await self._server(f"PostgreSQL {lane}", lane)
            took = time.monotonic() - began
            print(f"== {what}: {'FAILED' if failed else 'passed'} in {took:.0f} s", flush=True)
            return int(failed)

    async def _sql(self, what: str, *arguments: str) -> bool:
        return await _run(what, [sys.executable, str(REPO / "tools" / "run_tests.py"), *arguments]) != 0

    async def _server(self, what: str, version: str) -> bool:
        failed = self._sql_first and await self._sql(what, "--server", version)
        python, more, workers = sys.executable, {"PLJOBS_TEST_PG": version}, MOST_WORKERS
        if version in self._paired:
            python = await _python(self._paired[version])
        if version != WHEEL:
            # What needs no server is the same there as in the lane of 18.
            more["PLJOBS_TEST_SERVER_ONLY"] = "1"
            workers = WORKERS
        if version in self._paired:
            more["PLJOBS_TEST_BRIEFLY"] = "1"
        print(f"== {what}, {python}: begins", flush=True)
        spread = ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
        return (
            await _run(what, [python, "-m", "pytest", "-q", *spread, *self._arguments], more) != 0 or failed
        )


async def _python(version: str) -> str:
    """Return the interpreter of this version, with what tests need, or else our own."""
    script = str(REPO / "tools" / "python_environment")
    process = await asyncio.create_subprocess_exec(script, version, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    return said.decode().strip() if process.returncode == 0 else sys.executable


# The lines that name what failed: said once more at the end, behind the output of all lanes.
_failures: list[str] = []


async def _run(what: str, command: list[str], more: Mapping[str, str] | None = None) -> int:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=REPO,
        env={**os.environ, **(more or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=LONGEST_LINE,
    )
    assert process.stdout is not None
    while line := await process.stdout.readline():
        said = f"{what}: {line.decode(errors='replace')}"
        print(said, end="", flush=True)
        if line.startswith((b"FAILED ", b"ERROR ", b"not ok ")):
            _failures.append(said.rstrip())
    return await process.wait()


if __name__ == "__main__":
    sys.exit(main())
