"""What the command line prints: tables for people, plain columns for pipes, JSON for scripts."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeAlias

import click
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

Json: TypeAlias = dict[str, "Json"] | list["Json"] | str | int | float | bool | None

# Control characters, which drive a terminal; what turns the direction of writing, or ends a line; surrogates.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_COLOURS = {
    "todo": "cyan",
    "doing": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
    "aborted": "magenta",
    "alive": "green",
    "stalled": "red",
    "stopped": "dim",
    "deleted": "dim",
}
# Columns that are never cut in two.
_IDS, _STATES = {"id", "job", "parent"}, {"status", "status now", "state", "outcome"}
# Between columns; and what each of the others has at least, where it is not narrower by itself.
GAP, FOLDED = 2, 6


def visible(text: str, *, lines: bool = False) -> str:
    """Return text from anywhere with its control characters spelled out; `lines` keeps ends of lines."""
    if lines:
        return "\n".join(
            visible(line.replace("\t", "    ")) for line in text.replace("\r\n", "\n").split("\n")
        )
    return _CONTROLS.sub(_spelled, text)


def safe_json(encoded: str) -> str:
    """Return the same JSON with every control character escaped: jsonb leaves some of them as they are."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", encoded)


def to_json(value: object) -> str:
    """Return a value as one line of JSON; times in ISO form."""
    return safe_json(json.dumps(value, ensure_ascii=False, default=_plain))


def from_json(encoded: str) -> dict[str, Json]:
    """Read one row that the database wrote as JSON."""
    # PostgreSQL holds numbers of more digits than Python reads.
    parsed = json.loads(encoded, parse_int=lambda digits: int(digits) if len(digits) < 4000 else digits)
    return dict(parsed)


def print_json(rows: Iterable[str]) -> None:
    """Print rows that are JSON already as one array, a row a line."""
    body = ",\n ".join(safe_json(row) for row in rows)
    click.echo(f"[{body}]")


def cell(value: Json) -> str:
    """Return a value as it stands in a table: empty for nothing, local time for a time."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case str():
            return visible(value)
        case float():
            return f"{value:g}"
        case int():
            return str(value)
        case _:
            return visible(json.dumps(value, ensure_ascii=False))


def when(value: Json, *, fine: bool = False) -> str:
    """Return a time as the database wrote it in local time, to the second, or `fine` to the millisecond."""
    if not isinstance(value, str):
        return cell(value)
    try:
        local = datetime.fromisoformat(value).astimezone()
    except (ValueError, OverflowError):  # infinity, and years that Python doesn't have
        return visible(value)
    return local.isoformat(sep=" ", timespec="milliseconds" if fine else "seconds")[: 23 if fine else 19]


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str = "") -> None:
    """Print rows: a table on a terminal that is wide enough, else plain columns.

    These are one line a row, never cut or coloured.
    """
    if not rows:
        if empty:
            say(empty)
        return
    console = Console()
    folded = [
        [_at_words(value) if name in _STATES else value for name, value in zip(headings, row, strict=True)]
        for row in rows
    ]
    if sys.stdout.isatty() and _least_width(headings, folded) <= console.width:
        console.print(_table(headings, folded))
        return
    for line in _columns([list(headings), *(list(row) for row in rows)]):
        click.echo(line)


def print_fields(fields: Mapping[str, str]) -> None:
    """Print names and values, one a line, leaving out what is empty."""
    shown = {name: value for name, value in fields.items() if value}
    width = max((cell_len(name) for name in shown), default=0)
    for name, value in shown.items():
        click.echo(f"{name.ljust(width)}  {value}")


def heading(text: str) -> None:
    """Print the heading of a part."""
    click.echo(f"\n{click.style(text, bold=True)}")


def say(text: str) -> None:
    """Print a sentence for people; goes to stderr, so that a pipe holds nothing but what was asked for."""
    click.echo(visible(text, lines=True), err=True)


def one_line(text: str) -> str:
    """Return a message of many lines as one that a terminal can show."""
    return visible(" ".join(part.strip() for part in text.splitlines() if part.strip()))


def asked_by(request: Mapping[str, Json]) -> str:
    """Say who asked, and for whom."""
    return " for ".join(cell(request[name]) for name in ("requested_by", "actor") if request[name])


def _least_width(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return how wide a terminal has to be for a table that can be read."""
    total = GAP * (len(headings) - 1)
    for heading, *values in zip(headings, *rows, strict=True):
        width = max(cell_len(part) for value in [heading, *values] for part in value.split("\n"))
        total += width if heading in _IDS | _STATES else min(width, FOLDED)
    return total


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in headings:
        # An id that is cut is no id.
        table.add_column(Text(heading), no_wrap=heading in _IDS | _STATES, overflow="fold")
    for row in rows:
        # Text, never markup: what stands in square brackets is the job's, not a style.
        table.add_row(
            *(
                Text(value, style=_colour(value) if heading in _STATES else "")
                for heading, value in zip(headings, row, strict=True)
            )
        )
    return table


def _colour(state: str) -> str:
    first, *_ = state.split() or [""]
    return _COLOURS.get(first, "")


def _at_words(state: str) -> str:
    """Fold a status with what is said about it, between words."""
    return textwrap.fill(state, 16, break_long_words=False, break_on_hyphens=False)


def _columns(rows: list[list[str]]) -> Iterable[str]:
    widths = [max(cell_len(row[number]) for row in rows) for number in range(len(rows[0]))]
    for row in rows:
        padded = (value + " " * (width - cell_len(value)) for value, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()


def _spelled(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
