"""What one job costs over its life: bytes of WAL and of table, statements, round trips."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import quote

import peers
import working
from harness import Bench, Conn, connect, defer, empty, interleave, pgbench, scalar, vacuum
from pljobs.embedded import PORT, SUPERUSER, Server

BATCH = 32
SIZE = "SELECT pg_total_relation_size('{}')"
CALLS = (
    "SELECT coalesce(sum(s.calls), 0) FROM pg_stat_statements AS s JOIN pg_database AS d ON d.oid = s.dbid"
    " WHERE d.datname = %s AND s.toplevel"
)


class Counter:
    """Passes connections on to the server's socket, and counts how often the client spoke and was answered.

    That is a round trip, whatever a driver puts into one: several statements in a pipeline are one.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self.trips = 0
        self._folder = folder
        self._server = str(server.base / f".s.PGSQL.{PORT}")

    def url(self, dbname: str) -> str:
        """The connection string of a database, by way of this."""
        return f"postgresql://{SUPERUSER}@/{quote(dbname, safe='')}?host={quote(str(self._folder), safe='')}"

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        """Work until told to stop."""
        listening = await asyncio.start_unix_server(self._pass, str(self._folder / f".s.PGSQL.{PORT}"))
        ready.set()
        await stop.wait()
        listening.close()

    async def _pass(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        server, ask = await asyncio.open_unix_connection(self._server)
        asked = False

        async def up() -> None:
            nonlocal asked
            while piece := await client.read(65536):
                self.trips += not asked
                asked = True
                ask.write(piece)
            ask.close()

        async def down() -> None:
            nonlocal asked
            while piece := await server.read(65536):
                asked = False
                answer.write(piece)
            answer.close()

        with contextlib.suppress(OSError):
            await asyncio.gather(up(), down())


@contextlib.contextmanager
def counting(server: Server) -> Iterator[Counter]:
    """Run a counter in a thread."""
    with tempfile.TemporaryDirectory() as folder:
        counter = Counter(server, Path(folder))
        loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
        thread = threading.Thread(
            target=lambda: loop.run_until_complete(counter.serve(ready, stop)), daemon=True
        )
        thread.start()
        ready.wait(10)
        try:
            yield counter
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(10)


def bench_costs(bench: Bench) -> None:
    """The whole life of jobs: deferred by 100, drained by one worker, 32 at once."""
    url = bench.database("ours")
    jobs = bench.pick(320, 9_600, 32_000)
    with connect(url) as conn:
        sides = {"pljobs": partial(ours, conn, url, jobs), "floor": partial(floor, bench, conn, url, jobs)}
        units = {"WAL": "bytes/job", "table and indexes": "bytes/job"}
        bench.compare("whole life", sides, units, "floor: insert, claim, delete; its table: rows kept")
    trips(bench, jobs)


def ours(conn: Conn, url: str, jobs: int) -> Mapping[str, float]:
    """Defer, drain, keep."""
    with grown(conn, "pljobs.job", jobs) as told:
        for _ in range(jobs // 100):
            defer(conn, 100)
        defer(conn, jobs % 100)
        working.drain([[*working.OURS, url, "async", str(BATCH)]])
    return told


def floor(bench: Bench, conn: Conn, url: str, rows: int) -> Mapping[str, float]:
    """Insert, claim, delete; the table's size is that before."""
    with grown(conn, "bench_bare", rows) as told:
        for _ in range(rows // 100):
            conn.execute("INSERT INTO bench_bare (taken) SELECT false FROM generate_series(1, 100)")
        size = scalar(conn, SIZE.format("bench_bare"))
        pgbench(bench.server, url, "bare.sql", transactions=rows // BATCH, variables={"batch": BATCH})
    told["table and indexes"] = size / rows
    return told


@contextlib.contextmanager
def grown(conn: Conn, table: str, jobs: int) -> Iterator[dict[str, float]]:
    """Tell, afterwards, how much WAL was written and the table grew, a job."""
    told: dict[str, float] = {}
    empty(conn)
    conn.execute("CHECKPOINT")
    vacuum(conn)
    position = "SELECT pg_current_wal_insert_lsn() - '0/0'"
    before, size = scalar(conn, position), scalar(conn, SIZE.format(table))
    yield told
    told["WAL"] = (scalar(conn, position) - before) / jobs
    told["table and indexes"] = (scalar(conn, SIZE.format(table)) - size) / jobs


def trips(bench: Bench, jobs: int) -> None:
    """Count round trips and statements of a worker that drains, beside the peers'."""
    with counting(bench.server) as counter, connect(bench.server.url("postgres")) as conn:
        conn.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")

        def side(url: str, fill: Callable[[], None], worker: list[str], jobs: int) -> Mapping[str, float]:
            fill()
            name = name_of(url)
            conn.execute(f"ALTER DATABASE \"{name}\" SET pg_stat_statements.track = 'top'".encode())
            calls, before = scalar(conn, CALLS, name), counter.trips
            working.drain([[counter.url(name) if word == url else word for word in worker]])
            return {
                "round trips": (counter.trips - before) / jobs,
                "statements": (scalar(conn, CALLS, name) - calls) / jobs,
            }

        url = bench.database("trips")
        sides = {
            "pljobs": partial(
                side, url, partial(refill, url, jobs), [*working.OURS, url, "async", str(BATCH)], jobs
            )
        }
        for peer in peers.available(bench):
            theirs = peer.install(bench)
            sides[peer.label] = partial(
                side, theirs, partial(peer.fill, theirs), peer.worker(theirs), peer.jobs
            )
        measured = interleave(bench.pick(1, 2, 3), sides)
        for what in ("round trips", "statements"):
            bench.add(
                f"drain, 32 at once: {what}", "per job", measured[what], "counted on the wire, by the server"
            )


def refill(url: str, jobs: int) -> None:
    """Leave it with so many jobs, and nothing else."""
    with connect(url) as conn:
        empty(conn)
        defer(conn, jobs)
        vacuum(conn)


def name_of(url: str) -> str:
    """The name of the database in a connection string."""
    from psycopg.conninfo import conninfo_to_dict

    return str(conninfo_to_dict(url)["dbname"])
