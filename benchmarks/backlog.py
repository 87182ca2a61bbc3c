"""What fetch and finish cost the server with a million other jobs in the table, beside an empty one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from harness import Bench, connect, pgbench, vacuum

BATCH = 10
# Written straight into the table: what deferring, running and parking them would leave there, in less time.
FILL = """
    INSERT INTO pljobs.job (created_at, queue, task, priority, args, deferred_by, {columns})
    SELECT now(), {queue}, 'noop', {priority}, '{{}}', 'postgres', {values}
      FROM generate_series(1, %s) AS g
"""


def fill(columns: str, values: str, queue: str = "'live'", priority: int = -1) -> str:
    """A statement that fills the table with jobs of this kind, behind those that are fetched."""
    return FILL.format(columns=columns, values=values, queue=queue, priority=priority)


KINDS = {
    "waiting behind": fill("attempts", "0"),
    "scheduled ahead": fill(
        "waiting_for, scheduled_at",
        "'schedule', now() + interval '1 day' + g * interval '1 second'",
        priority=1,
    ),
    "finished and kept": fill(
        "status, attempts, worker_id, started_at, finished_at, last_run_id",
        "'succeeded', 1, 1, now() - interval '1 hour', now() - interval '1 hour', g",
    ),
    "in 1,000 locks, parked": fill("lock, waiting_for", "'lock ' || g %% 1000, 'lock'", priority=1),
    "in 99 other queues": fill("attempts", "0", queue="'queue ' || g %% 99", priority=1),
}
LANES = fill("lock", "'lock ' || g %% 1000")
READY = fill("attempts", "0", priority=0)


def bench_backlog(bench: Bench) -> None:
    """Fetch and finish 10 a call, one client, from the empty table and from each full one in turn."""
    rows = bench.pick(2_000, 1_000_000, 5_000_000)
    empty = bench.database("empty")
    costs: dict[str, dict[str, list[float]]] = {}
    for kind, statement in KINDS.items():
        full = filled(bench, statement, rows)
        by_queue = "queues" in kind
        sides = {"full": partial(work, bench, full, by_queue), "empty": partial(work, bench, empty, by_queue)}
        measured = bench.measure(sides)["ms"]
        bench.add(
            f"fetch + finish 10, {short(rows)} {kind}",
            "ms",
            measured,
            "by pgbench: the server's share of a drain",
        )
        costs[kind] = measured
        bench.drop(full)
    lanes = filled(bench, LANES, rows)
    few = bench.database("few")
    measured = bench.measure(
        {
            "lanes": partial(work, bench, lanes, False, 0),
            "a few in each": partial(work, bench, few, False, kind=LANES),
            "empty": partial(work, bench, empty, False),
        }
    )["ms"]
    bench.add(
        f"fetch + finish 10 of {short(rows)} in 1,000 locks",
        "ms",
        measured,
        "each lane strictly in order; a few in each: of as many as are worked off; empty: without locks",
    )
    costs["of 1,000 locks"] = measured
    bench.series["cost"] = {"rows": rows, "ms": costs}
    bench.drop(lanes, few, empty)


def filled(bench: Bench, statement: str, rows: int) -> str:
    """Make a database with so many jobs of a kind."""
    url = bench.database("full")
    with connect(url) as conn:
        conn.execute(statement.encode(), [rows])
        vacuum(conn, "pljobs.job")
        conn.execute("CHECKPOINT")
    return url


def work(
    bench: Bench, url: str, by_queue: bool, ready: int | None = None, kind: str = READY
) -> Mapping[str, float]:
    """Put jobs before all others, and work off as many; return how long a fetch and finish takes."""
    calls = bench.pick(20, 800, 2_000)
    with connect(url) as conn:
        conn.execute(kind.encode(), [BATCH * calls if ready is None else ready])
        vacuum(conn, "pljobs.job")
    script = "fetch_finish_queue.sql" if by_queue else "fetch_finish.sql"
    return {
        "ms": pgbench(bench.server, url, script, transactions=calls, variables={"batch": BATCH}).latency_ms
    }


def short(rows: int) -> str:
    """A million, or what it is."""
    return f"{rows // 1_000_000} M" if rows >= 1_000_000 else f"{rows:,}"
