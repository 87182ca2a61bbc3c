"""The rows of the fault matrix: each is a function that does one repetition, registered by `@row`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chaos.rig import Rig


@dataclass(frozen=True, slots=True)
class Row:
    """One row; `push` and `long`: how often `make test` and `make chaos` repeat it.

    `own_server`: it harms its server, which therefore is nobody else's; its repetitions share it, as long as
    it answers. `settings`: of that server.
    """

    name: str
    fault: str
    repetition: Callable[[Rig], None]
    invariants: str
    push: int
    long: int
    own_server: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


_rows: dict[str, Row] = {}


def row(
    name: str,
    fault: str,
    *,
    invariants: str,
    push: int,
    long: int,
    own_server: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Callable[[Callable[[Rig], None]], Callable[[Rig], None]]:
    """Register a function as a row's repetition."""

    def registered(repetition: Callable[[Rig], None]) -> Callable[[Rig], None]:
        assert name not in _rows, f"two rows {name}"
        assert own_server or not settings, f"{name}: settings are for a server of its own"
        _rows[name] = Row(name, fault, repetition, invariants, push, long, own_server, settings or {})
        return repetition

    return registered


def all_rows() -> list[Row]:
    """Return all rows, by name."""
    for path in sorted(Path(__file__).parent.glob("rows_*.py")):
        importlib.import_module(f"chaos.{path.stem}")
    return sorted(_rows.values(), key=lambda each: [int(p) if p.isdigit() else p for p in _parts(each.name)])


def _parts(name: str) -> list[str]:
    return re.findall(r"\D+|\d+", name)
