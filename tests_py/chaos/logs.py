"""What the logs of workers and servers may say after a fault, and what they may not."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from oracle import Violation

# With the database and the SQLSTATE: by which `server_errors` finds them.
LOG_LINE_PREFIX = "%m [%p] %d %e "
# Clients that vanished; stopped, crashed and starting servers; cancelled statements; locks not had in time; a
# lease that ran out.
EXPECTED_STATES = frozenset({"08006", "57P01", "57P02", "57P03", "57014", "55P03", "PJ003"})
DEADLOCK = "40P01"

_ERROR = re.compile(r"\[\d+\] (\S*) ([0-9A-Z]{5}) (?:ERROR|FATAL|PANIC): .*")
_RECORD = re.compile(r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL):[\w.]+:")
_FRAME = re.compile(r"^[\s|+]*(?:Exception Group )?Traceback \(most recent call last\)")


def check_server_log(log: Path, start: int, dbname: str, allowed: Collection[str]) -> None:
    """Raise Violation if from `start` on there is an error of this database with another SQLSTATE (I14)."""
    with log.open("rb") as file:
        file.seek(start)
        said = file.read().decode(errors="replace")
    for found in _ERROR.finditer(said):
        database, state = found.groups()
        if database in {dbname, "", "[unknown]"} and (state not in allowed or state == DEADLOCK):
            context = said[found.start() : found.start() + 1500]
            raise Violation("I14", f"SQLSTATE {state}: {context}")


def check_worker_log(log: Path, allowed: Collection[str]) -> None:
    """Raise Violation if there is a traceback whose last line no pattern of `allowed` matches."""
    said = log.read_text(errors="replace")
    for error in tracebacks(said):
        if not any(re.search(pattern, error) for pattern in allowed):
            raise Violation("log", f"{log.name} has a traceback that ends with {error!r}:\n{said[-6000:]}")


def tracebacks(said: str) -> list[str]:
    """Return the last line of each traceback: what was raised."""
    raised = []
    inside = False
    for line in said.splitlines():
        if inside and _RECORD.match(line):
            continue  # of another thread, meanwhile
        if _FRAME.match(line):
            inside = True
        elif inside and (text := line.lstrip(" |+")) and (line[:1] != " " or "|" in line[:6]):
            # In a group, the frames have the group's margin before their own.
            margin = line[: len(line) - len(text)]
            if "|" in margin and margin.rpartition("|")[2] != " ":
                continue
            raised.append(text)
            inside = False
    if inside:
        raised.append("(cut off)")
    return raised
