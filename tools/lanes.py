"""Run tests in lanes, two at once: each on one server, or on the newer Pythons.

The tests mostly wait, for a worker or a server: two lanes take little longer than one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import time
from collections.abc import Mapping

from servers import REPO, bin_dir, debian_version

AT_ONCE = 2
PYTHONS = "pythons"
LONGEST_LINE = 2**24


def main() -> int:
    """Run the lanes that are asked for; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lanes", nargs="+", help="14 to 18, debian (servers); pythons (the newer ones)")
    parser.add_argument("--sql", action="store_true", help="in the lanes of servers, the SQL tests first")
    parser.add_argument("--args", default="", help="more for pytest, in the lanes of servers")
    options = parser.parse_args()
    lanes = [debian_version() if lane == "debian" else lane for lane in options.lanes]
    # Fetched before the first begins: a machine without a network says so at once.
    for lane in lanes:
        if lane != PYTHONS:
            bin_dir(lane)
    return asyncio.run(_all(lanes, shlex.split(options.args), sql=options.sql))


async def _all(lanes: list[str], arguments: list[str], *, sql: bool) -> int:
    turn = asyncio.Semaphore(AT_ONCE)
    codes = await asyncio.gather(*(_lane(lane, arguments, turn, sql=sql) for lane in lanes))
    return max(codes)


async def _lane(lane: str, arguments: list[str], turn: asyncio.Semaphore, *, sql: bool) -> int:
    async with turn:
        began = time.monotonic()
        more: dict[str, str] = {}
        if lane == PYTHONS:
            what, commands = "newer Pythons", [[str(REPO / "tools" / "newer_pythons")]]
        else:
            what, commands = f"PostgreSQL {lane}", [[sys.executable, "-m", "pytest", "-q", *arguments]]
            more["PLJOBS_TEST_PG"] = lane
            if sql:
                commands.insert(0, [sys.executable, str(REPO / "tools" / "run_tests.py"), "--server", lane])
        print(f"== {what}: begins", flush=True)
        codes = [await _run(what, command, more) for command in commands]
        took = time.monotonic() - began
        print(f"== {what}: {'FAILED' if any(codes) else 'passed'} in {took:.0f} s", flush=True)
        return int(any(codes))


async def _run(what: str, command: list[str], more: Mapping[str, str]) -> int:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=REPO,
        env={**os.environ, **more},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=LONGEST_LINE,
    )
    assert process.stdout is not None
    while line := await process.stdout.readline():
        print(f"{what}: {line.decode(errors='replace')}", end="", flush=True)
    return await process.wait()


if __name__ == "__main__":
    sys.exit(main())
