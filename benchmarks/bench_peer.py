"""Another queue's worker: `bench_peer.py NAME VERB URL [NUMBER]...`, run with the Python of .venv-bench.

VERB `install` makes the schema, `defer` NUMBER no-op jobs, `drain` is a worker that says "ready", waits for a
line, works until no job is left, and says what it measured as JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
import time
from collections.abc import Awaitable, Callable


def main() -> None:
    """Do as the command line says."""
    name, verb, url, *numbers = sys.argv[1:]
    logging.disable(logging.WARNING)
    peer = {"procrastinate": procrastinate_peer, "pgqueuer": pgqueuer_peer}[name]
    if name == "pgqueuer":
        import uvloop  # what its own command line runs on

        uvloop.run(peer(verb, url, [int(number) for number in numbers]))
    else:
        asyncio.run(peer(verb, url, [int(number) for number in numbers]))


async def procrastinate_peer(verb: str, url: str, numbers: list[int]) -> None:
    """procrastinate: concurrency 32, and a pool that its jobs need not wait for; all else as it comes."""
    import procrastinate

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, min_size=4, max_size=20))

    async def noop() -> None:
        return None

    task = app.task(name="noop")(noop)
    async with app.open_async():
        if verb == "install":
            await app.schema_manager.apply_schema_async()
        elif verb == "defer":
            for begin in range(0, numbers[0], 1000):
                await task.batch_defer_async(*[{}] * min(1000, numbers[0] - begin))
        else:
            await measured(
                lambda: app.run_worker_async(
                    concurrency=numbers[0], wait=False, install_signal_handlers=False
                )
            )


async def pgqueuer_peer(verb: str, url: str, numbers: list[int]) -> None:
    """pgqueuer: asyncpg, its autovacuum settings, durability `durable`; batch size and limit from numbers."""
    import asyncpg
    from pgqueuer import PgQueuer
    from pgqueuer.db import AsyncpgDriver
    from pgqueuer.domain.types import QueueExecutionMode
    from pgqueuer.queries import Queries

    connection = await asyncpg.connect(url)
    driver = AsyncpgDriver(connection)
    queries = Queries(driver)
    if verb == "install":
        await queries.install()
        await queries.optimize_autovacuum()
    elif verb == "defer":
        for begin in range(0, numbers[0], 1000):
            count = min(1000, numbers[0] - begin)
            await queries.enqueue(["noop"] * count, [None] * count, [0] * count)
    else:
        pgq = PgQueuer(driver)

        async def noop(job: object) -> None:  # noqa: ARG001
            return None

        pgq.entrypoint("noop")(noop)
        batch, most = numbers
        await measured(
            lambda: pgq.qm.run(
                batch_size=batch, max_concurrent_tasks=most or None, mode=QueueExecutionMode.drain
            )
        )
    await connection.close()


async def measured(work: Callable[[], Awaitable[None]]) -> None:
    """Say "ready", wait for a line, work, say how long it took."""
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    used, began = cpu(), time.monotonic()
    await work()
    print(json.dumps({"began": began, "ended": time.monotonic(), "cpu": cpu() - used}), flush=True)


def cpu() -> float:
    """Seconds of processor time that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
