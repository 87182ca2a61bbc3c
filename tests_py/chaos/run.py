"""Run the rows of the fault matrix, each as often as it says or as there is time, and report what broke.

`make chaos`, with ARGS='--rows W1,D4 --scale 0.1 --seed 7 --minutes 30'.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import sys
import time
import traceback
from collections import Counter

from chaos.rows import Row, all_rows
from chaos.stage import Stage
from oracle import Violation
from servers import REPO, bin_dir

REPORT = REPO / "build" / "chaos"


@dataclasses.dataclass(slots=True)
class Broken:
    """One repetition that broke a rule, or broke down."""

    seed: int
    invariant: str
    tale: str
    again: str


@dataclasses.dataclass(slots=True)
class Result:
    """What came of a row."""

    row: str
    fault: str
    invariants: str
    wanted: int
    repetitions: int = 0
    jobs: int = 0
    seconds: float = 0.0
    harms: Counter[str] = dataclasses.field(default_factory=Counter)
    ended: Counter[str] = dataclasses.field(default_factory=Counter)
    notes: Counter[str] = dataclasses.field(default_factory=Counter)
    broken: list[Broken] = dataclasses.field(default_factory=list)


def main() -> int:
    """Run what is asked for; return 1 if a rule was broken."""
    options = _options()
    rows = _chosen(options.rows)
    shutil.rmtree(REPORT, ignore_errors=True)
    results = []
    began = time.monotonic()
    with Stage(bin_dir(options.server), REPORT, long=not options.short) as stage:
        for place, row in enumerate(rows):
            share = None
            if options.minutes is not None:  # what a row leaves of its share is the others'
                left = began + 60 * options.minutes - time.monotonic()
                share = max(0.0, left / (len(rows) - place))
            times = options.times or max(1, round((row.push if options.short else row.long) * options.scale))
            result = _run(stage, row, times, options.seed, share, short=options.short)
            results.append(result)
            print(_line(result), flush=True)
    report = {
        "server": options.server,
        "seed": options.seed,
        "seconds": round(time.monotonic() - began),
        "rows": [_as_json(result) for result in results],
    }
    REPORT.mkdir(parents=True, exist_ok=True)
    (REPORT / "report.json").write_text(json.dumps(report, indent=1))
    print(_table(results))
    print(
        f"PostgreSQL {options.server}, seed {options.seed}, {report['seconds']} s; {REPORT / 'report.json'}"
    )
    return int(any(result.broken for result in results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="make chaos ARGS=")
    parser.add_argument("--rows", help="which, as W1,D4; a letter means all that begin so (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="times the repetitions of each")
    parser.add_argument("--times", type=int, help="so many repetitions of each")
    parser.add_argument("--seed", type=int, help="of the first repetition; the next has the next one")
    parser.add_argument("--minutes", type=float, help="begin no repetition after that; rows share it")
    parser.add_argument("--short", action="store_true", help="as in make test")
    parser.add_argument("--server", default="18", help="14 to 18 (default: 18)")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.randrange(10**6)
    return options


def _chosen(names: str | None) -> list[Row]:
    rows = all_rows()
    if names is None:
        return rows
    chosen: list[Row] = []
    for name in names.split(","):
        found = [row for row in rows if row.name == name or (name.isalpha() and row.name[:1] == name)]
        if not found:
            sys.exit(f"no row {name}; there are {', '.join(row.name for row in rows)}")
        chosen += [row for row in found if row not in chosen]
    return chosen


def _run(stage: Stage, row: Row, times: int, seed: int, share: float | None, *, short: bool) -> Result:
    result = Result(row.name, row.fault, row.invariants, times)
    began = time.monotonic()
    for number in range(times):
        if share is not None and time.monotonic() - began > share:
            break
        _repeat(stage, row, seed + number, result, short=short)
    stage.leave(row)
    result.seconds = round(time.monotonic() - began, 1)
    return result


def _repeat(stage: Stage, row: Row, seed: int, result: Result, *, short: bool) -> None:
    result.repetitions += 1
    again = f"make chaos ARGS='--rows {row.name} --seed {seed} --times 1{' --short' if short else ''}'"
    try:
        with stage.rig(row, seed) as rig:
            try:
                row.repetition(rig)
            finally:
                result.harms += rig.harms
                result.notes += rig.notes
                result.ended += Counter(rig.ended)
                result.jobs += sum(rig.ended.values())
    except Violation as violation:
        broken = Broken(seed, violation.invariant, str(violation), again)
    except Exception:
        broken = Broken(seed, "error", traceback.format_exc(), again)
    else:
        shutil.rmtree(REPORT / f"{row.name}-{seed}", ignore_errors=True)
        return
    result.broken.append(broken)
    print(f"{row.name}, {row.fault}, seed {seed}: {broken.tale}\n{again}", flush=True)


def _as_json(result: Result) -> dict[str, object]:
    # A Counter is no mapping to `asdict`.
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return {**fields, "broken": [dataclasses.asdict(each) for each in result.broken]}


def _line(result: Result) -> str:
    return (
        f"{result.row}: {result.repetitions} of {result.wanted} repetitions, {result.jobs} jobs"
        f" {dict(result.ended)}, {dict(result.harms)}, {len(result.broken)} broken, {result.seconds:.0f} s"
    )


def _table(results: list[Result]) -> str:
    heads = ["row", "fault", "checked", "repetitions", "harms", "jobs", "violations", "seconds"]
    lines = [
        [
            each.row, each.fault, each.invariants, str(each.repetitions), str(each.harms.total()),
            str(each.jobs), str(len(each.broken)), f"{each.seconds:.0f}",
        ]
        for each in results
    ]  # fmt: skip
    widths = [max(len(line[place]) for line in [heads, *lines]) for place in range(len(heads))]
    printed = [
        " | ".join(
            text.ljust(width) if place < 3 else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in [heads, ["-" * width for width in widths], *lines]
    ]
    again = [
        f"{result.row} broke {each.invariant}: {each.again}" for result in results for each in result.broken
    ]
    return "\n".join(["", *(f"| {line} |" for line in printed), *again])


if __name__ == "__main__":
    sys.exit(main())
