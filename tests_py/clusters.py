"""What tests of copies share: a database that holds some of everything, and servers besides the run's own."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from conftest import in_memory
from pljobs import embedded
from pljobs.embedded import PORT, SUPERUSER, THROW_AWAY, Server

INSTALL = Path(__file__).parent.parent / "sql" / "install.sql"
TEXT = "\N{CAT FACE} \\N \\. \t\r\n ' \" $$ %s"
Conn = psycopg.Connection[Any]

TABLES = """
    SELECT c.relname FROM pg_catalog.pg_class AS c
     WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind = 'r' ORDER BY c.relname
"""


class Filled:
    """A database that the public functions have filled: a job in each state, and all that surrounds jobs.

    Each job is the only one of its queue, which is named as its attribute here. The worker that runs some of
    them is not there any more, and its lease is over.
    """

    def __init__(self, conn: Conn) -> None:
        self._conn = conn
        self.worker_id = self._one("pljobs.register_worker_v1('before', 'elsewhere', 7)")
        self.todo = self._defer("todo")
        args = {"text": TEXT, "number": 1e300, "nothing": None}
        self.scheduled = self._defer(
            "scheduled", args=args, scheduled_in="1 day", start_within="1 day", timeout="1 h"
        )
        self.unique = self._defer("unique", scheduled_in="1 day", queueing_lock=TEXT)
        self.paused = self._defer("paused")
        self._one("pljobs.pause_queue('paused', reason => %s)", TEXT)
        self.doing = self._start("doing", lock=TEXT)[0]
        self.behind = self._defer("behind", lock=TEXT)
        self._parked()
        self.progressing, run_id = self._start("progressing")
        self._heartbeat(
            {"job_id": self.progressing, "run_id": run_id, "progress": 0.5, "progress_message": TEXT}
        )
        self.asked = self._start("asked")[0]
        self._one("pljobs.cancel_job(%s, abort => true, reason => %s, actor => 'a user')", self.asked, TEXT)
        self.succeeded = self._finish(
            "succeeded", outcome="succeeded", result={"text": TEXT, "list": [1, None]}
        )
        self.failed = self._finish("failed", outcome="failed", message="it broke", error=TEXT)
        self.retried = self._finish("retried", outcome="failed", message="again", retry_in="1 day")
        self.aborted = self._finish("aborted", asked=True, outcome="aborted")
        self.cancelled = self._defer("cancelled")
        self._one("pljobs.cancel_job(%s, reason => %s)", self.cancelled, TEXT)
        self.deleted = self._defer("deleted")
        self._one("pljobs.cancel_job(%s, delete_job => true)", self.deleted)
        self.root = self._start("root")[0]
        self.child = self._defer("child", parent_id=self.root)
        self.grandchild = self._defer("grandchild", parent_id=self.child)
        self._conn.execute("SELECT pljobs.cancel_tree(%s, delete_job => true)", [self.child])
        self.periodic = self._one(
            "(pljobs.defer_periodic_job_v1('each day', '2030-01-01Z', %s)).job_id",
            Jsonb({"task": "quick", "queue": "periodic"}),
        )
        self._conn.execute(
            "UPDATE pljobs.worker"
            " SET heartbeat_at = heartbeat_at - interval '1 h', expires_at = expires_at - interval '1 h'"
        )

    def archive(self) -> int:
        """Have a job moved to the archive, and return its id: not there at first, for its table is not."""
        job_id = self._defer("archived", args={"text": TEXT})
        self._one("pljobs.cancel_job(%s)", job_id)
        self._one("pljobs.prune_jobs('0', queue => 'archived', archive => true)")
        return job_id

    @property
    def running(self) -> set[int]:
        """The jobs that a worker ran, and that nobody asked to abort."""
        return {self.doing, self.progressing, self.root}

    @property
    def waiting(self) -> set[int]:
        """The jobs that can run as soon as there is a worker, or those that run have ended."""
        return {self.todo, self.behind, self.periodic}

    def _one(self, expression: str, *params: object) -> Any:
        return self._conn.execute(f"SELECT {expression}".encode(), params).fetchall()[0][0]

    def _defer(self, queue: str, **fields: object) -> int:
        job = {"task": "quick", "queue": queue} | fields
        return int(self._one("(pljobs.defer_jobs_v1(%s))[1]", Jsonb([job])))

    def _start(self, queue: str, **fields: object) -> tuple[int, int]:
        job_id = self._defer(queue, **fields)
        fetched = self._conn.execute(
            "SELECT job_id, run_id FROM pljobs.fetch_jobs_v1(%s, queues => ARRAY[%s])",
            [self.worker_id, queue],
        ).fetchall()
        assert [found[0] for found in fetched] == [job_id]
        return job_id, int(fetched[0][1])

    def _finish(self, queue: str, *, asked: bool = False, **end: object) -> int:
        job_id, run_id = self._start(queue)
        if asked:
            self._one("pljobs.cancel_job(%s, abort => true)", job_id)
        self._one("pljobs.finish_jobs_v1(%s)", Jsonb([{"job_id": job_id, "run_id": run_id} | end]))
        return job_id

    def _heartbeat(self, observed: dict[str, object]) -> None:
        self._conn.execute(
            "SELECT pljobs.heartbeat_v1(%s, ARRAY[%s::bigint], %s)",
            [self.worker_id, observed["run_id"], Jsonb([observed])],
        )

    def _parked(self) -> None:
        """Have a fetch meet the job whose lane is taken, which parks it."""
        fetched = self._conn.execute(
            "SELECT FROM pljobs.fetch_jobs_v1(%s, queues => '{behind}')", [self.worker_id]
        ).fetchall()
        assert fetched == []


def contents(conn: Conn) -> dict[str, list[str]]:
    """Return the rows of every table of the schema, as text."""
    conn.execute("SET TIME ZONE 'UTC'")
    tables = [name for (name,) in conn.execute(TABLES.encode()).fetchall()]
    return {
        name: sorted(row for (row,) in conn.execute(f"SELECT t::text FROM pljobs.{name} AS t".encode()))
        for name in tables
    }


def statuses(conn: Conn) -> dict[int, str]:
    """Return each job's status."""
    return dict(conn.execute("SELECT id, status FROM pljobs.jobs").fetchall())


# Servers


@contextlib.contextmanager
def another_server(server: Server, **settings: str) -> Iterator[Server]:
    """Start a server of the same release as this one; nothing is in it."""
    with in_memory():
        started = Server.start(server.bin_dir, settings={**THROW_AWAY, **settings})
    with started:
        yield started


@contextlib.contextmanager
def standby_of(primary: Server, **settings: str) -> Iterator[Server]:
    """Start a streaming standby that answers queries."""
    with in_memory():
        folder = embedded._temporary_folder(embedded._account(), "pljobs-standby-")
    line = make_conninfo("", host=str(primary.base), port=PORT, user=SUPERUSER)
    command = [
        str(primary.bin_dir / "pg_basebackup"),
        "-d",
        line,
        "-D",
        str(folder / "data"),
        "-c",
        "fast",
        "-R",
    ]
    try:
        run_as_server([*command, "--no-sync"], cwd=folder)
        started = Server.start(
            primary.bin_dir, folder, {**THROW_AWAY, "primary_conninfo": line, "hot_standby": "on", **settings}
        )
        try:
            yield started
        finally:
            started.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_as_server(command: list[str], *, cwd: Path) -> None:
    """Run a command as the account that servers run as."""
    embedded._as(embedded._account(), command, cwd=cwd)


def tool(
    server: Server, name: str, *arguments: str, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of PostgreSQL's own commands, of the server's release, and return what became of it."""
    return subprocess.run(
        [str(server.bin_dir / name), *arguments],
        input=stdin, capture_output=True, text=True, check=False, env=embedded.environment(), cwd="/",
    )  # fmt: skip


def with_login(url: str, role: str) -> str:
    """Return the connection string of another role."""
    return make_conninfo(url, user=role)
