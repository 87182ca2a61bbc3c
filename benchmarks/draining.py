"""How fast no-op jobs are worked off: by one worker, several, in threads; beside the floor and the peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import peers
import working
from harness import Bench, connect, defer, empty, interleave, pgbench, server_cpu, server_cpu_since, vacuum

FLOOR = "floor"
ONE = "pljobs"
BATCH = 32


def bench_drain(bench: Bench) -> None:
    """Drain a full queue: all sides take turns."""
    url = bench.database("ours")
    jobs = bench.pick(200, 60_000, 100_000)
    sides: dict[str, Callable[[], Mapping[str, float]]] = {
        ONE: partial(ours, bench, url, jobs),
        FLOOR: partial(floor, bench, url, bench.pick(320, 96_000, 192_000)),
        "2 processes": partial(ours, bench, url, jobs, processes=2),
        "4 processes": partial(ours, bench, url, jobs, processes=4),
        "200 at once": partial(ours, bench, url, jobs, concurrency=200),
        "threads": partial(ours, bench, url, jobs // 2, kind="threads"),
    }
    others = peers.available(bench)
    for peer in others:
        sides[peer.label] = partial(theirs, bench, peer, peer.install(bench))
    measured = interleave(bench.rounds, sides)
    rate, labels = measured["rate"], [peer.label for peer in others]

    def of(*names: str, ours: str = ONE) -> dict[str, list[float]]:
        return {name: rate[name] for name in (ours, *names)}

    bench.add("drain, one worker, 32 at once", "jobs/s", of(FLOOR, *labels), f"floor: {BATCH} rows a call")
    bench.add("drain, one worker, 200 at once", "jobs/s", of(ONE, *labels[2:], ours="200 at once"))
    bench.add("drain, 2 worker processes", "jobs/s", of(ONE, ours="2 processes"))
    bench.add("drain, 4 worker processes", "jobs/s", of(ONE, ours="4 processes"))
    bench.add("drain, sync jobs in 32 threads", "jobs/s", of(ONE, ours="threads"))
    server, worker = measured["server"], measured["worker"]
    both = {n: [a + b for a, b in zip(server[n], worker[n], strict=True)] for n in (ONE, *labels)}
    bench.add("server's processor time", "us/job", {n: server[n] for n in (ONE, FLOOR, *labels)})
    bench.add("worker's processor time", "us/job", {n: worker[n] for n in (ONE, *labels)})
    # What limits the rate where all run on the same cores; less noisy than the rate.
    bench.add("both together", "us/job", both)


def ours(
    bench: Bench, url: str, jobs: int, *, kind: str = "async", concurrency: int = 32, processes: int = 1
) -> dict[str, float]:
    """Defer so many jobs, and let so many of our workers work them off."""
    with connect(url) as conn:
        empty(conn)
        defer(conn, jobs)
        vacuum(conn)
    return drained(bench, [[*working.OURS, url, kind, str(concurrency)]] * processes, jobs)


def theirs(bench: Bench, peer: peers.Peer, url: str) -> dict[str, float]:
    """Let one worker of a peer work off what it was given."""
    peer.fill(url)
    return drained(bench, [peer.worker(url)], peer.jobs)


def drained(bench: Bench, commands: list[list[str]], jobs: int) -> dict[str, float]:
    """Run the workers; return the rate, and the processor time of server and worker."""
    used = server_cpu(bench.server)
    took, cpu = working.drain(commands)
    used = server_cpu_since(bench.server, used)
    return {"rate": jobs / took, "server": 1e6 * used / jobs, "worker": 1e6 * cpu / jobs}


def floor(bench: Bench, url: str, rows: int) -> dict[str, float]:
    """Claim rows and delete them, as many a call as the worker runs jobs at once."""
    with connect(url) as conn:
        empty(conn)
        conn.execute("INSERT INTO bench_bare (taken) SELECT false FROM generate_series(1, %s)", [rows])
        vacuum(conn)
    used = server_cpu(bench.server)
    run = pgbench(bench.server, url, "bare.sql", transactions=rows // BATCH, variables={"batch": BATCH})
    used = server_cpu_since(bench.server, used)
    return {"rate": BATCH * run.tps, "server": 1e6 * used / rows}
