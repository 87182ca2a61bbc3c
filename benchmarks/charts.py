"""Draw docs/benchmarks/*.svg of build/bench/*.json: rate under a held snapshot, cost by backlog, latency."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).parent.parent
Json: TypeAlias = Mapping[str, Mapping[str, object]]
OURS, FLOOR = "#1f6fb4", "#999999"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what there are figures for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--found", type=Path, default=ROOT / "build" / "bench", help="the folder with the JSON"
    )
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "benchmarks")
    options = parser.parse_args(arguments)
    # The same figures give the same file.
    mpl.use("svg")
    mpl.rcParams |= {
        "svg.hashsalt": "pljobs",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    found: dict[str, Json] = {
        path.stem: json.loads(path.read_text())["series"] for path in options.found.glob("*.json")
    }
    options.into.mkdir(parents=True, exist_ok=True)
    drawn = {
        "snapshot": (snapshot, longest(found, "snapshot")),
        "backlog": (backlog, longest(found, "backlog")),
        "latency": (latency, found.get("latency")),
    }
    for name, (draw, series) in drawn.items():
        if series is None:
            print(f"no figures for {name}.svg")
            continue
        figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
        draw(axes, series)
        figure.savefig(options.into / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


def longest(found: Mapping[str, Json], name: str) -> Json | None:
    """The long run's figures, or the short one's."""
    return found.get(f"{name}-long", found.get(name))


def snapshot(axes: Axes, series: Json) -> None:
    """Draw each second's rate, as a share of the start's, while somebody holds a snapshot."""
    styles = {
        "pljobs, nobody": ("nobody holds one", OURS, ":"),
        "pljobs, a snapshot": ("pljobs, a held snapshot", OURS, "-"),
        "pljobs, an idle writing transaction": ("pljobs, an idle writing transaction", "#d95f02", "-"),
        "pljobs, readers that scan": ("pljobs, readers that scan", "#1b9e77", "-"),
        "floor, a snapshot": ("floor, a held snapshot", FLOOR, "-"),
    }
    for name, (label, color, style) in styles.items():
        rates = numbers(series.get(name))
        if rates:
            start = statistics.mean(rates[: min(10, max(1, len(rates) // 4))])
            axes.plot(
                range(1, len(rates) + 1), [r / start for r in smooth(rates)], style, color=color, label=label
            )
    axes.set(xlabel="seconds", ylabel="rate, as a share of the start's", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)


def backlog(axes: Axes, series: Json) -> None:
    """Draw how much longer fetch and finish take than in an empty table."""
    kinds = series["cost"]["ms"]
    if not isinstance(kinds, Mapping):
        raise TypeError(kinds)
    for place, sides in enumerate(kinds.values()):
        full, bare, *_ = (numbers(side) for side in sides.values())
        ratios = [a / b for a, b in zip(full, bare, strict=True)]
        middle = statistics.median(ratios)
        spread = [[middle - min(ratios)], [max(ratios) - middle]]
        axes.barh(place, middle, xerr=spread, color=OURS, height=0.6)
    axes.axvline(1, color=FLOOR, linewidth=1)
    axes.axvline(1.3, color=FLOOR, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(kinds)), list(kinds))
    axes.invert_yaxis()
    axes.set_xlabel(
        f"time of fetch + finish with {series['cost']['rows']:,} other jobs; 1: none (dotted: the target)"
    )


def latency(axes: Axes, series: Json) -> None:
    """Draw which share of jobs was picked up, or aborted, after how long."""
    colors = {"pick-up, idle worker": OURS, "abort, idle worker": "#d95f02", "abort, busy worker": "#1b9e77"}
    for what, color in colors.items():
        if what in series:
            took = sorted(numbers(series[what]["pljobs"]))
            axes.plot(took, shares(took), color=color, label=what)
    heard = sorted(ms for what in colors if what in series for ms in numbers(series[what]["floor"]))
    axes.plot(heard, shares(heard), color=FLOOR, label="floor: a NOTIFY heard, a row claimed")
    axes.set(xlabel="milliseconds", ylabel="share of jobs", xscale="log", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def shares(values: Sequence[float]) -> list[float]:
    """1/n, 2/n, ... 1."""
    return [place / len(values) for place in range(1, len(values) + 1)]


def smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """The median of each value and its neighbours: one checkpoint is no trend."""
    half = width // 2
    return [statistics.median(values[max(0, at - half) : at + half + 1]) for at in range(len(values))]


def numbers(values: object) -> list[float]:
    """What JSON holds as a list of numbers; none where it holds nothing."""
    return [float(value) for value in values] if isinstance(values, list) else []


if __name__ == "__main__":
    main()
