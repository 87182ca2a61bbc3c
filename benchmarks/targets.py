"""What pljobs wants to reach, and whether a run's figures do."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from backlog import KINDS
from harness import Figure, number


@dataclass(frozen=True, slots=True)
class Target:
    """`figure`'s ratio to `side` (or its own median without) is to be at least, or at most, so much."""

    what: str
    figure: str
    side: str | None
    least: float | None = None
    most: float | None = None

    @property
    def wanted(self) -> str:
        """The bound, in words."""
        return f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"

    def measured(self, figure: Figure) -> float | None:
        """The median, or that of the ratios; None if that side was not measured."""
        if self.side is None:
            return statistics.median(next(iter(figure.sides.values())))
        ratios = figure.ratios(self.side) if self.side in figure.sides else []
        return statistics.median(ratios) if ratios else None

    def met(self, value: float) -> bool:
        """Whether that is within the bound."""
        return value >= self.least if self.least is not None else value <= (self.most or 0.0)


DRAIN = "drain, one worker, 32 at once"
FLAT = [
    Target(f"fetch + finish, {kind}, x empty", f"fetch + finish 10, {{rows}} {kind}", "empty", most=1.3)
    for kind in KINDS
]
TARGETS = [
    Target("drain, x procrastinate", DRAIN, "procrastinate", least=10),
    Target("drain, x pgqueuer limited to 32 at once", DRAIN, "pgqueuer, 32 at once", least=2),
    Target("drain, x pgqueuer unbounded", DRAIN, "pgqueuer, unbounded", least=2),
    Target("server's work a job, x the floor's", "server's processor time", "floor", most=2),
    Target("round trips a no-op job under load", "drain, 32 at once: round trips", None, most=0.1),
    Target("pick-up p50, ms, idle", "pick-up, idle worker, p50", None, most=3),
    Target("pick-up p99, ms, idle", "pick-up, idle worker, p99", None, most=15),
    Target("abort p50, ms, idle", "abort, idle worker, p50", None, most=3),
    Target("abort p99, ms, idle", "abort, idle worker, p99", None, most=15),
    # A rate: 1.5 times the time of a bare INSERT.
    Target("single defer's rate, x a bare INSERT's (1 / 1.5)", "defer one by one", "floor", least=0.667),
    *FLAT,
    Target("fetch + finish of 1,000 locks, x a few in each", "fetch + finish 10 of {rows} in 1,000 locks",
           "a few in each", most=1.3),
    Target("rate under a held snapshot, end / start", "pljobs for {seconds} s, held by a snapshot",
           "at the start", least=0.8),
    Target("4 workers' rate, x that of 1", "drain, 4 worker processes", "pljobs", least=1),
]  # fmt: skip


def table(figures: Sequence[Figure]) -> Iterable[tuple[str, str, str, str]]:
    """Yield a row for each target: what, wanted, measured, met; nothing measured is said, too."""
    for target in TARGETS:
        begin, _, rest = target.figure.partition("{")
        end = rest.partition("}")[2]
        found = [
            figure
            for figure in figures
            if (figure.what == target.figure if not rest else figure.what.startswith(begin))
            and figure.what.endswith(end)
        ]
        value = target.measured(found[0]) if found else None
        # What it was measured with: how many jobs, how many seconds.
        what = f"{found[0].what}, x {target.side}" if found and rest else target.what
        if value is None:
            yield what, target.wanted, "-", "not measured"
        else:
            yield what, target.wanted, number(value, 3), "met" if target.met(value) else "NOT met"
