"""What the demo shows: progress while it runs, and what became of the jobs, as SQL tells it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import click
import psycopg
from psycopg.rows import TupleRow
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pljobs.cli_output import cell, heading, print_table, visible

Connection = psycopg.Connection[TupleRow]

# Nothing here says pljobs.: the database's search_path does, for whoever opens psql on it.
COUNTS = "SELECT status, count(*) FROM jobs WHERE task = 'hash_file' GROUP BY status"
BECAME = """
    SELECT task, status, count(*), sum((result->>'words')::bigint), sum((result->>'bytes')::bigint)
      FROM jobs WHERE task <> 'hash_again_async' OR id = ANY (%(asked)s) GROUP BY task, status
     UNION ALL
    SELECT task, 'deleted', count(*), NULL, NULL FROM requests WHERE resolution = 'deleted' GROUP BY task
     ORDER BY 1, 2
"""
ASKED = """
    SELECT r.job_id, r.task, coalesce(j.status, 'deleted'), j.message,
           extract(epoch FROM r.delivered_at - r.requested_at),
           extract(epoch FROM r.resolved_at - r.requested_at), r.resolution
      FROM requests AS r LEFT JOIN jobs AS j ON j.id = r.job_id
     WHERE r.job_id = ANY (%(asked)s) ORDER BY r.requested_at
"""
FAILED = "SELECT id, args->>'path', message FROM jobs WHERE status = 'failed' ORDER BY id LIMIT 5"


@dataclass(slots=True)
class Screen:
    """Show a bar on a terminal; elsewhere a line for each quarter of the way."""

    total: int
    _bar: Progress | None = field(default=None, init=False)
    _quarters: int = field(default=0, init=False)

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show progress until the end of the `with`."""
        if not sys.stdout.isatty():
            yield
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[running]} running"),
        )
        with Progress(*columns) as self._bar:
            self._bar.add_task("hash_file", total=self.total, running=0)
            yield

    def show(self, counts: dict[str, int]) -> None:
        """Show how many jobs there are in each status."""
        done = sum(count for status, count in counts.items() if status not in {"todo", "doing"})
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, running=counts.get("doing", 0))
            return
        quarters = done * 4 // self.total
        if quarters > self._quarters:
            self._quarters = quarters
            click.echo(f"  hash_file: {done} of {self.total} jobs are done")

    def tell(self, text: str) -> None:
        """Print a line, above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(text)


def counts(conn: Connection) -> dict[str, int]:
    """Count the jobs that hash a file, by status."""
    return dict(conn.execute(COUNTS).fetchall())


def print_report(conn: Connection, asked: dict[int, tuple[str, str]]) -> None:
    """Print what became of the jobs; `asked`: by id, whence each of the six was asked, and the answer."""
    heading("What became of the jobs (from the view jobs; deleted ones from the view requests)")
    rows = [
        [
            task,
            status,
            f"{count:,}",
            "" if words is None else f"{int(words):,}",
            "" if size is None else _size(int(size)),
        ]
        for task, status, count, words, size in conn.execute(BECAME, {"asked": list(asked)}).fetchall()
    ]
    print_table(["task", "status", "jobs", "words", "bytes"], rows)
    heading("The six that were asked to stop (from the view requests)")
    rows = [
        [
            str(job_id),
            task,
            *asked[job_id],
            status,
            milliseconds(delivered),
            milliseconds(resolved),
            resolution,
            cell(message),
        ]
        for job_id, task, status, message, delivered, resolved, resolution in conn.execute(
            ASKED, {"asked": list(asked)}
        ).fetchall()
    ]
    headings = [
        "id",
        "task",
        "asked from",
        "answer",
        "status now",
        "worker knew after",
        "ended after",
        "resolution",
        "message",
    ]
    print_table(headings, rows)
    failed = conn.execute(FAILED).fetchall()
    if failed:
        heading("Some that failed")
        print_table(["id", "file", "message"], [[str(i), visible(str(p)), cell(m)] for i, p, m in failed])


def ended_after(conn: Connection, job_id: int) -> tuple[str, str] | None:
    """Say what a job ended as that was asked to abort, and how long after that; None: it still runs."""
    row = conn.execute(ASKED, {"asked": [job_id]}).fetchone()
    if row is None or row[5] is None:
        return None
    return str(row[2]), milliseconds(row[5])


def milliseconds(seconds: object) -> str:
    """Return a number of seconds in milliseconds."""
    return "" if seconds is None else f"{float(str(seconds)) * 1000:.1f} ms"


def print_end(lines: Sequence[str]) -> None:
    """Print how to go on."""
    click.echo("")
    for line in lines:
        click.echo(line)


def _size(size: int) -> str:
    return f"{size:,}" if size < 10_000_000 else f"{size / 1_000_000:,.1f} M"
