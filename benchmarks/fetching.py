"""Fetch and finish by pgbench with many clients: the most that the server does, beside a bare claim."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from harness import Bench, connect, defer, empty, pgbench, server_cpu, server_cpu_since, vacuum

CLIENTS = 8


def bench_sql(bench: Bench) -> None:
    """By 1, 10 and 100 a call, 8 clients."""
    url = bench.database("ours")
    for batch, rows in (
        (1, bench.pick(80, 12_000)),
        (10, bench.pick(160, 80_000)),
        (100, bench.pick(800, 160_000)),
    ):
        sides = {
            "pljobs": partial(side, bench, url, "fetch_finish.sql", batch, rows),
            "floor": partial(side, bench, url, "bare.sql", batch, rows),
        }
        units = {"rate": "jobs/s", "server's processor time": "us/job"}
        bench.compare(f"fetch + finish {batch} a call, {CLIENTS} clients", sides, units)


def side(bench: Bench, url: str, script: str, batch: int, rows: int) -> Mapping[str, float]:
    """Fill both tables, and work one of them off."""
    with connect(url) as conn:
        empty(conn)
        if script == "bare.sql":
            conn.execute("INSERT INTO bench_bare (taken) SELECT false FROM generate_series(1, %s)", [rows])
        else:
            defer(conn, rows)
        vacuum(conn)
    used = server_cpu(bench.server)
    calls = rows // batch // CLIENTS
    run = pgbench(bench.server, url, script, clients=CLIENTS, transactions=calls, variables={"batch": batch})
    used = server_cpu_since(bench.server, used)
    return {"rate": batch * run.tps, "server's processor time": 1e6 * used / (calls * CLIENTS * batch)}
