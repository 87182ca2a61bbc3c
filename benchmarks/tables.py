"""Write the tables of benchmarks/README.md, between its markers, from build/bench/*.json."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import targets
from harness import Figure
from peers import SETTINGS

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "bench"
README = HERE / "README.md"
ORDER = ["drain", "latency", "defer", "notify", "backlog", "snapshot", "cancel", "costs"]
BETWEEN = re.compile(r"(?<=<!-- tables -->\n).*(?=<!-- end of tables -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Found:
    """What one benchmark found, as it was kept."""

    name: str
    machine: dict[str, str]
    figures: list[Figure]
    series: dict[str, object]


def load(folder: Path) -> list[Found]:
    """Read what there is, in the order of a whole run; each long one behind its short one."""
    found = []
    for path in folder.glob("*.json"):
        kept = json.loads(path.read_text())
        figures = [Figure(**figure) for figure in kept["figures"]]
        found.append(Found(path.stem, kept["machine"], figures, kept["series"]))
    places = {name: place for place, name in enumerate(ORDER)}
    return sorted(found, key=lambda f: (places.get(f.name.removesuffix("-long"), 99), f.name))


def written(found: Sequence[Found]) -> str:
    """Return the tables as Markdown."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Sequence[Found]) -> Iterator[str]:
    whole = [f for f in found if not f.name.endswith("-long")]
    if not whole:
        return
    yield ""
    yield "Measured on: " + ", ".join(f"{name} {value}" for name, value in whole[0].machine.items()) + "."
    yield ""
    yield "## Targets"
    yield ""
    # Where there is a long run, it is the one that the targets speak of.
    longest = {f.name.removesuffix("-long"): f for f in found}
    figures = [figure for f in longest.values() for figure in f.figures]
    yield from _table(["target", "wanted", "measured", ""], targets.table(figures))
    yield ""
    yield "Peers: " + "; ".join(f"*{name}*: {how}" for name, how in SETTINGS.items()) + "."
    for f in found:
        yield ""
        yield f"## {f.name}"
        yield ""
        if f.machine != whole[0].machine:
            differing = {
                name: value for name, value in f.machine.items() if whole[0].machine.get(name) != value
            }
            yield "Measured on: " + ", ".join(f"{name} {value}" for name, value in differing.items()) + "."
            yield ""
        yield from _table(["what", "pljobs", "beside", "ratio"], _rows(f.figures))
        notes = dict.fromkeys(figure.note for figure in f.figures if figure.note)
        if notes:
            yield ""
            yield from (f"- {note}" for note in notes)
    yield ""


def _rows(figures: Iterable[Figure]) -> Iterator[tuple[str, ...]]:
    for figure in figures:
        for what, ours, beside, ratio in figure.lines():
            yield what, ours if what else "", beside, ratio


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--found", type=Path, default=BUILD, help="the folder with the JSON")
    parser.add_argument("--readme", type=Path, default=README)
    options = parser.parse_args(arguments)
    found = load(options.found)
    if not found:
        parser.error(f"nothing in {options.found}: run benchmarks/run.py first")
    text, count = BETWEEN.subn(lambda _: written(found), options.readme.read_text())
    if count != 1:
        parser.error(f"{options.readme} has no place for tables")
    options.readme.write_text(text)


if __name__ == "__main__":
    main()
