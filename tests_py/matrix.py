"""The privilege matrix of docs/security.md, read from the page that people read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "security.md"
GROUPS = ("reader", "producer", "worker", "canceller", "operator")
WORDS = {"-", "yes", "own", "all", "all, masked"}


@dataclass(frozen=True)
class Row:
    """What each group may do with one function or view."""

    kind: str
    name: str
    cells: dict[str, str]

    def may(self, *groups: str) -> set[str]:
        """The words of these groups together; empty: nothing."""
        return {self.cells[group] for group in groups} - {"-"}

    @property
    def grantees(self) -> set[str]:
        return {f"pljobs_{group}" for group in GROUPS if self.cells[group] != "-"}


def read_matrix() -> dict[str, Row]:
    """Return the rows by name."""
    section = PAGE.read_text().split("## The privilege matrix")[1].split("\n## ")[0]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    assert tuple(lines[0][1:]) == GROUPS
    rows = {}
    for first, *cells in lines[2:]:
        assert set(cells) <= WORDS, first
        kind = "view" if first.startswith("view ") else "function"
        for name in re.findall(r"`(\w+)`", first):
            assert name not in rows, f"{name} stands twice in the matrix"
            rows[name] = Row(kind=kind, name=name, cells=dict(zip(GROUPS, cells, strict=True)))
    return rows
