"""Measure pljobs beside a floor and its peers: `make bench`, or `python benchmarks/run.py drain latency`.

Read ratios, not figures: the sides of a figure take turns, in one run, on one server that commits durably.
What is printed is the median of the rounds, and (least..most). The floor is the least durable work that could
be called a queue. All is written to build/bench/NAME.json too; of that, tables.py and charts.py make the
README's tables and the charts.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import peers
import targets
from backlog import bench_backlog
from cancelling import bench_cancel
from costs import bench_costs
from deferring import bench_defer, bench_notify
from draining import bench_drain
from fetching import bench_sql
from flowing import bench_flow
from harness import SETTINGS, Bench, Figure, Size, as_json, machine
from isolating import bench_isolation
from latency import bench_latency
from pljobs.embedded import Server
from snapshots import bench_snapshot
from stopping import bench_stopping
from upgrade import bench_upgrade

BUILD = Path(__file__).parent.parent / "build" / "bench"
DEFAULT: dict[str, Callable[[Bench], None]] = {
    "drain": bench_drain,
    "latency": bench_latency,
    "defer": bench_defer,
    "notify": bench_notify,
    "backlog": bench_backlog,
    "flow": bench_flow,
    "snapshot": bench_snapshot,
    "cancel": bench_cancel,
    "costs": bench_costs,
}
ONLY_WHEN_NAMED: dict[str, Callable[[Bench], None]] = {
    "sql": bench_sql,
    "isolation": bench_isolation,
    "stopping": bench_stopping,
    "upgrade": bench_upgrade,
}
BENCHES = DEFAULT | ONLY_WHEN_NAMED
LONG = ["backlog", "snapshot"]
LONGER = f"5 million jobs, three minutes (without a NAME: {', '.join(LONG)})"
SHORTER = "a little of everything: tells whether it works, not how fast it is"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--long", action="store_const", const="long", dest="size", help=LONGER)
    size.add_argument("--quick", action="store_const", const="quick", dest="size", help=SHORTER)
    parser.add_argument("--no-peers", action="store_true", help="leave procrastinate and pgqueuer out")
    parser.add_argument("--postgres", default="18", help="18 (the wheel's), or a major of Debian's")
    parser.add_argument("--into", type=Path, default=BUILD, help="the folder for the JSON")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(BENCHES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    chosen: Size = options.size or "default"
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # or the server would go on
    bin_dir = None if options.postgres == "18" else Path(f"/usr/lib/postgresql/{options.postgres}/bin")
    figures: list[Figure] = []
    with Server.start(bin_dir, settings=SETTINGS) as server:
        here = machine(server) | {"size": chosen} | ({} if options.no_peers else peers.versions())
        print(", ".join(f"{name}: {value}" for name, value in here.items()))
        template = ""
        for name in options.names or (LONG if chosen == "long" else DEFAULT):
            bench = Bench(server, chosen, peers=not options.no_peers, name=name, template=template)
            print(f"\n{name}: {(BENCHES[name].__doc__ or '').strip()}", flush=True)
            began = time.monotonic()
            BENCHES[name](bench)
            took = time.monotonic() - began
            print(f"  ({took:.0f} s)")
            keep(options.into, bench, here, took)
            figures += bench.figures
            template = bench.template
    rows = [row for row in targets.table(figures) if row[3] != "not measured" or not options.names]
    if rows:
        print("\ntargets")
    for what, wanted, measured, met in rows:
        print(f"  {what:<68} {wanted:<18} {measured:<12} {met}")


def keep(folder: Path, bench: Bench, here: dict[str, str], took: float) -> None:
    """Write what a benchmark found; what it found before in another size stays."""
    folder.mkdir(parents=True, exist_ok=True)
    name = bench.name if bench.size != "long" else f"{bench.name}-long"
    found = {
        "bench": bench.name,
        "machine": here,
        "seconds": round(took, 1),
        "figures": [as_json(figure) for figure in bench.figures],
        "series": bench.series,
    }
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
