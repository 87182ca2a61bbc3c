"""Worker processes that are told when to begin, and tell how long they took: ours and the peers'."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
OURS = [sys.executable, str(HERE / "bench_worker.py")]


@dataclass(slots=True)
class Worked:
    """What one worker process told: when it began and ended, the processor time it took meanwhile."""

    began: float
    ended: float
    cpu: float


def drain(commands: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Run these worker processes at once until there is no job left; return seconds taken, and used."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(started(command)) for command in commands]
        for process in processes:
            tell(process, "go")
        told = [Worked(**json.loads(hear(process))) for process in processes]
    return max(t.ended for t in told) - min(t.began for t in told), sum(t.cpu for t in told)


@contextlib.contextmanager
def started(
    command: Sequence[str], variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start a worker process, and return once it is ready; at the end wait for it, or kill it."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(variables or {})},
    )
    try:
        if (said := hear(process)) != "ready":
            raise RuntimeError(f"{command}: {said}")
        yield process
        if process.stdin is not None:
            process.stdin.close()
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Write a line to a process."""
    if process.stdin is not None:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    """Read a line from a process."""
    line = process.stdout.readline() if process.stdout is not None else ""
    if not line:
        raise RuntimeError(f"{process.args!r} ended with {process.wait(30)}")
    return line.rstrip("\n")
