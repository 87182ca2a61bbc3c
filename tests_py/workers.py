"""Run workers for tests, in the test's own event loop or as processes, and look at what they did."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pljobs import App
from pljobs.embedded import Server, environment
from pljobs.worker import Worker
from waiting import wait_until, wait_until_async

DEADLINE = 60.0
HERE = Path(__file__).parent

# Nothing but a notification can make such a worker look.
NOTIFIED: dict[str, Any] = {
    "listen_notify": True,
    "fetch_job_polling_interval": 600.0,
    "update_heartbeat_interval": 600.0,
    "stalled_worker_timeout": 3600.0,
}
# Nothing but polling can.
POLLING: dict[str, Any] = {
    "listen_notify": False,
    "fetch_job_polling_interval": 0.05,
    "update_heartbeat_interval": 600.0,
    "stalled_worker_timeout": 3600.0,
}
# Takes over from a lost one within about two seconds.
HASTY: dict[str, Any] = {
    "fetch_job_polling_interval": 0.1,
    "update_heartbeat_interval": 0.2,
    "stalled_worker_timeout": 2.0,
}
# Looks as often, and is not lost while its test goes on, however slow the machine is.
LASTING: dict[str, Any] = HASTY | {"stalled_worker_timeout": 600.0}


@contextlib.asynccontextmanager
async def running(app: App, **options: Any) -> AsyncIterator[Worker]:
    """Run a worker in this event loop; at the end it stops, and asks what still runs to abort."""
    worker = Worker(app, **({"install_signal_handlers": False} | options))
    task = asyncio.create_task(worker.run())
    try:
        await wait_until_async(lambda: worker.worker_id is not None or task.done())
        yield worker
    finally:
        worker.abort()
        async with asyncio.timeout(DEADLINE):
            await asyncio.wait([task])
        await task


def defer(conn: psycopg.Connection[Any], task: str, **options: object) -> int:
    """Defer a job as people do, with what defer_job takes; return its id."""
    named = "".join(f", {name} => %({name})s" for name in options)
    found = conn.execute(
        f"SELECT pljobs.defer_job(%(task)s{named})".encode(), {"task": task, **options}
    ).fetchone()
    assert found is not None
    return int(found[0])


def side(conn: psycopg.Connection[Any], job_id: int) -> list[str]:
    """Return what a job's bodies wrote over connections of their own."""
    rows = conn.execute("SELECT what FROM public.side WHERE job_id = %s ORDER BY id", [job_id])
    return [what for (what,) in rows]


def until_started(conn: psycopg.Connection[Any], job_id: int, *, times: int = 1) -> None:
    """Wait until so many bodies of a job have begun."""
    wait_until(lambda: side(conn, job_id).count("start") == times, DEADLINE, f"job {job_id} starts")


async def row(conn: psycopg.AsyncConnection[Any], query: str, *params: object) -> dict[str, Any] | None:
    """Return the first row of a query."""
    async with psycopg.AsyncCursor(conn, row_factory=dict_row) as cursor:
        return await (await cursor.execute(query.encode(), params)).fetchone()


async def job(conn: psycopg.AsyncConnection[Any], job_id: int) -> dict[str, Any]:
    """Return a job's row in the view; its status is 'gone' where there is none."""
    return await row(conn, "SELECT * FROM pljobs.jobs WHERE id = %s", job_id) or {"status": "gone"}


async def request(conn: psycopg.AsyncConnection[Any], job_id: int) -> dict[str, Any]:
    """Return the last request about a job that was not added to an open one."""
    found = await row(
        conn,
        "SELECT * FROM pljobs.requests WHERE job_id = %s AND resolution IS DISTINCT FROM 'joined'"
        " ORDER BY id DESC LIMIT 1",
        job_id,
    )
    return found or {}


async def until(
    conn: psycopg.AsyncConnection[Any], job_id: int, *statuses: str, deadline: float = DEADLINE
) -> dict[str, Any]:
    """Wait until the job has one of these statuses (by default: a final one, or none any more)."""
    wanted = statuses or ("succeeded", "failed", "cancelled", "aborted", "gone")

    async def reached() -> dict[str, Any] | None:
        found = await job(conn, job_id)
        return found if found["status"] in wanted else None

    found = await wait_until_async(reached, deadline, f"job {job_id} becomes {' or '.join(wanted)}")
    return found or {}


async def look(conn: psycopg.AsyncConnection[Any], job_id: int) -> None:
    """Make the job's worker call its heartbeat, if it listens."""
    await conn.execute(
        "SELECT pg_notify('pljobs_worker_' || worker_id, '') FROM pljobs.jobs WHERE id = %s", [job_id]
    )


async def psql(server: Server, db_url: str, sql: str) -> str:
    """Run SQL in psql as a person does, with the schema on the search path; return what it printed."""
    # As input: of several statements in -c, psql 14 prints the last one's answer alone.
    process = await asyncio.create_subprocess_exec(
        str(server.bin_dir / "psql"), db_url, "-XqAt", "-v", "ON_ERROR_STOP=1",
        env=environment() | {"PGOPTIONS": "-c search_path=pljobs"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate(sql.encode())
    assert process.returncode == 0, output.decode()
    return output.decode().strip()


# Workers as processes: `python worker_process.py URL OPTIONS`; their tasks write into a side table.

SIDE_TABLE = """
    CREATE TABLE IF NOT EXISTS public.side (
        id bigint GENERATED ALWAYS AS IDENTITY, job_id bigint, run_id bigint, pid integer, what text);
    GRANT SELECT, INSERT ON public.side TO PUBLIC;
"""


class Command:
    """A process; what it says is in `log`."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command,
                env={**environment(), **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        """Say whether it lives."""
        return self.popen.poll() is None

    def said(self, text: str) -> bool:
        """Say whether this is in the log."""
        return text in self.log.read_text(errors="replace")

    def until_said(self, text: str, deadline: float = DEADLINE) -> None:
        """Wait until this is in the log."""
        wait_until(lambda: self.said(text) or self._dead(text), deadline, f"the worker logs {text!r}")

    def _dead(self, text: str) -> bool:
        if self.popen.poll() is not None and not self.said(text):
            raise AssertionError(
                f"ended with {self.popen.returncode}:\n{self.log.read_text(errors='replace')}"
            )
        return False

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self, deadline: float = DEADLINE) -> int:
        """Wait for the end; return the exit code, negative for a signal."""
        return self.popen.wait(deadline)

    def kill(self) -> None:
        """End it by force, stopped or not."""
        if self.popen.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self.popen.wait(DEADLINE)


class Process(Command):
    """A worker process in Python; `variables`: for its environment, as to run another release of pljobs."""

    def __init__(
        self, url: str, log: Path, variables: Mapping[str, str] | None = None, /, **options: object
    ) -> None:
        command = [sys.executable, str(HERE / "worker_process.py"), url, json.dumps(options)]
        super().__init__(command, log, {"PYTHONUNBUFFERED": "1", **(variables or {})})


@contextlib.contextmanager
def process(url: str, tmp_path: Path, name: str = "worker", **options: object) -> Iterator[Process]:
    """Run a worker process; wait until it works; kill it at the end if it still lives."""
    started = Process(url, tmp_path / f"{name}.log", None, name=name, **options)
    try:
        started.until_said("started")
        yield started
    finally:
        started.kill()
