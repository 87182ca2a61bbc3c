"""What it costs to defer: one by one, in batches, a million; and from many connections with notifications."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import psycopg

from harness import Bench, Conn, connect, empty, pgbench
from pljobs import App, PsycopgConnector

Side = Callable[[], Mapping[str, float]]
RATE = {"": "jobs/s"}
BARE_ROW = "INSERT INTO bench_bare (taken) VALUES (false) RETURNING id"
BARE_ROWS = "INSERT INTO bench_bare (taken) SELECT false FROM generate_series(1, %s) RETURNING id"
# How the defers of many clients tell the workers: the script of pgbench, and the variables that it takes.
NOTIFYING: dict[str, tuple[str, dict[str, str]]] = {
    "pljobs": ("defer.sql", {"notify": "true"}),
    "pljobs, no notification": ("defer.sql", {"notify": "false"}),
    "floor": ("insert.sql", {}),
    "floor with NOTIFY": ("insert_notify.sql", {}),
}
# The same for tasks of one Python process. A way that the driver adds (one ping after many commits, say) is
# one more line: its name, and the settings of a connector that work so.
WAYS: dict[str, dict[str, Any]] = {"pljobs": {}}


def bench_defer(bench: Bench) -> None:
    """One client in Python: pljobs's `defer` beside the bare INSERT by psycopg."""
    url = bench.database("ours")
    app = App(url)
    with app.open(), connect(url) as conn, psycopg.connect(url) as mine:
        conn.execute("CREATE TABLE bench_order (id bigint GENERATED ALWAYS AS IDENTITY, paid boolean)")
        noop = app.configure_task("noop")
        joined = app.configure_task("noop", connection=mine)
        many = bench.pick(2_000, 1_000_000)
        insert = "floor: the bare INSERT, by psycopg"
        compare(bench, conn, "defer one by one", 1, noop.defer, partial(conn.execute, BARE_ROW), insert)
        compare(
            bench, conn, "defer one in the caller's transaction", 1,
            partial(in_transaction, mine, joined.defer),
            partial(in_transaction, mine, partial(mine.execute, BARE_ROW)), insert,
        )  # fmt: skip
        for size in (100, 1_000):
            compare(
                bench, conn, f"defer {size:,} in a batch", size,
                partial(noop.batch_defer, *[{}] * size), partial(conn.execute, BARE_ROWS, [size]), insert,
            )  # fmt: skip
        compare(
            bench, conn, f"defer {many:,} at once", many,
            partial(noop.batch_defer, *[{}] * many), partial(copy, mine, many),
            "floor: COPY of narrow rows; one round", rounds=bench.pick(1, 1, 3),
        )  # fmt: skip


def compare(
    bench: Bench,
    conn: Conn,
    what: str,
    jobs: int,
    ours: Callable[[], object],
    bare: Callable[[], object],
    note: str,
    rounds: int | None = None,
) -> None:
    """Do each again and again for some seconds a round, from empty tables."""
    seconds = bench.pick(0.1, 2.5, 10.0)

    def side(do: Callable[[], object]) -> Side:
        def measured() -> Mapping[str, float]:
            empty(conn)
            began = time.perf_counter()
            times = 0
            while not times or time.perf_counter() < began + seconds:
                do()
                times += 1
            return {"": times * jobs / (time.perf_counter() - began)}

        return measured

    bench.compare(what, {"pljobs": side(ours), "floor": side(bare)}, RATE, note, rounds)


def in_transaction(conn: Conn, do: Callable[[], object]) -> None:
    """Write a row of the application's, do this, commit."""
    with conn.transaction():
        conn.execute("INSERT INTO bench_order (paid) VALUES (true)")
        do()


def copy(conn: Conn, rows: int) -> None:
    """COPY so many narrow rows, and commit."""
    with (
        conn.transaction(),
        conn.cursor() as cursor,
        cursor.copy("COPY bench_bare (taken) FROM STDIN") as out,
    ):
        for _ in range(rows):
            out.write_row((False,))


def bench_notify(bench: Bench) -> None:
    """16 clients that defer one job a transaction, with somebody who listens, beside a bare INSERT."""
    url = bench.database("ours")
    clients, seconds = bench.pick(4, 16), bench.pick(1, 4, 10)
    with connect(url) as conn, connect(url) as listener:
        listener.execute("LISTEN pljobs_todo")

        def side(script: str, variables: Mapping[str, str]) -> Side:
            def measured() -> Mapping[str, float]:
                empty(conn)
                run = pgbench(
                    bench.server, url, script, clients=clients, seconds=seconds, variables=variables
                )
                for _ in listener.notifies(timeout=0):  # as a worker would
                    pass
                return {"rate": run.tps}

            return measured

        sides = {name: side(script, variables) for name, (script, variables) in NOTIFYING.items()}
        measured = bench.measure(sides)["rate"]
        ours, silent = "pljobs", "pljobs, no notification"
        others = {name: rates for name, rates in measured.items() if name != ours}
        bench.add(f"defer by {clients} clients, notifying", "jobs/s", {ours: measured[ours], **others})
        quiet = {name: measured[name] for name in (silent, "floor")}
        bench.add(f"defer by {clients} clients, silent", "jobs/s", quiet)
        awaited = {
            name: partial(deferred_by_tasks, conn, url, clients, seconds, way) for name, way in WAYS.items()
        }
        bench.compare(
            f"defer by {clients} tasks of one process",
            {**awaited, "floor": partial(deferred_by_tasks, conn, url, clients, seconds, None)},
            RATE,
            "floor: the bare INSERT, by as many connections of psycopg",
        )


def deferred_by_tasks(
    conn: Conn, url: str, clients: int, seconds: float, way: dict[str, Any] | None
) -> Mapping[str, float]:
    """Defer one job a transaction by so many asyncio tasks (None: insert a bare row); return the rate."""
    empty(conn)

    async def main() -> float:
        async with contextlib.AsyncExitStack() as stack:
            if way is None:
                connecting = [psycopg.AsyncConnection.connect(url, autocommit=True) for _ in range(clients)]
                mine = [await stack.enter_async_context(await one) for one in connecting]
                todo: list[Callable[[], Awaitable[object]]] = [partial(one.execute, BARE_ROW) for one in mine]
            else:
                app = App(PsycopgConnector(url, min_size=clients, max_size=clients, **way))
                await stack.enter_async_context(app.open_async())
                todo = [app.configure_task("noop").defer_async] * clients
            ends = time.perf_counter() + seconds

            async def again(do: Callable[[], Awaitable[object]]) -> int:
                done = 0
                while time.perf_counter() < ends:
                    await do()
                    done += 1
                return done

            return sum(await asyncio.gather(*map(again, todo))) / seconds

    return {"": asyncio.run(main())}
