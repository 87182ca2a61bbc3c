"""Run pytest in lanes, two at once: each on one server, or on the newer Pythons.

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

from servers import REPO, debian_version

AT_ONCE = 2
LONGEST_LINE = 2**24


def main() -> int:
    """Run the lanes that are asked for; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lanes", nargs="+", help="18 or debian (servers); pythons (the newer ones)")
    parser.add_argument("--args", default="", help="more for pytest, in the lanes of servers")
    options = parser.parse_args()
    return asyncio.run(_all(options.lanes, shlex.split(options.args)))


async def _all(lanes: list[str], arguments: list[str]) -> int:
    turn = asyncio.Semaphore(AT_ONCE)
    codes = await asyncio.gather(*(_lane(lane, arguments, turn) for lane in lanes))
    return max(codes)


async def _lane(lane: str, arguments: list[str], turn: asyncio.Semaphore) -> int:
    async with turn:
        began = time.monotonic()
        if lane == "pythons":
            what, command, more = "newer Pythons", [str(REPO / "tools" / "newer_pythons")], {}
        else:
            version = debian_version() if lane == "debian" else lane
            what = f"PostgreSQL {version}"
            command = [sys.executable, "-m", "pytest", "-q", *arguments]
            more = {"PLJOBS_TEST_PG": version}
        print(f"== {what}: begins", flush=True)
        code = await _run(what, command, more)
        took = time.monotonic() - began
        print(f"== {what}: {'passed' if code == 0 else 'FAILED'} in {took:.0f} s", flush=True)
        return min(abs(code), 1)


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
