"""The commands about many jobs: cancel and retry by filter; rescind, stuck."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pljobs import calls_cli, calls_many, cli_holders, db, exceptions
from pljobs.answers import Call, JobAnswer
from pljobs.calls_many import CANCELLABLE, RETRIABLE, Page, Selection
from pljobs.calls_people import StopOptions
from pljobs.cli_base import (
    Connection,
    Exit,
    Failure,
    arguments,
    audit_options,
    duration,
    job_id,
    json_option,
    refuse,
    with_database,
)
from pljobs.cli_output import cell, from_json, print_json, print_table, say, to_json
from pljobs.jobs import Status
from pljobs.manager_many import pages

P = ParamSpec("P")
T = TypeVar("T")
Ask = Callable[[Page], Call[list[JobAnswer]]]

SHOWN = 50
LEVELS = {"0": "0 not told", "1": "1 told", "2": "2 its SQL", "3": "3 terminate", "4": "4 kill"}


@dataclasses.dataclass(frozen=True, slots=True)
class Filters:
    """What the options say: which jobs, and whether to do it or to show it."""

    selection: Selection
    given: tuple[str, ...]
    yes: bool

    def are_meant(self, job_id: int | None, hint: str = "") -> bool:
        """Say whether many jobs are meant; raises `Failure` where an id is given too, or nothing at all."""
        if job_id is not None and self.given:
            raise Failure(f"give an ID or filters, not both: {', '.join(self.given)}{hint}", Exit.USAGE)
        if job_id is None and not set(self.given) - {"--status", "--yes"}:
            raise Failure(
                "which jobs? An ID, or --ids, --queue, --task, --lock, --args, --older-than or --parent"
                + hint,
                Exit.USAGE,
            )
        return job_id is None


def filter_options(
    statuses: Sequence[Status],
) -> Callable[[Callable[Concatenate[Connection, P], T]], Callable[..., T]]:
    """Give a command the filters, as its parameter `filters`."""
    options = [
        click.option(
            "--ids", type=_ids, metavar="ID,ID...", help="Instead of ID, all that match: these ids."
        ),
        click.option("--queue", metavar="NAME", help="All of this queue."),
        click.option("--task", metavar="NAME", help="All of this task."),
        click.option("--lock", metavar="NAME", help="All of this lane."),
        click.option(
            "--args", type=arguments, metavar="JSON", help='All with these arguments: {"to": "ann"}.'
        ),
        click.option("--older-than", type=duration, help="All deferred longer ago: 90s, 15m, 12h, 7d."),
        click.option("--parent", type=job_id, metavar="ID", help="All deferred inside of this job itself."),
        click.option("--status", type=click.Choice([str(s) for s in statuses]), help="Only these."),
        click.option("--yes", is_flag=True, help="With filters: do it. Default: show what it would do."),
    ]

    def decorate(command: Callable[Concatenate[Connection, P], T]) -> Callable[..., T]:
        def filtered(*positional: object, **given: object) -> T:
            taken = {
                name: given.pop(name)
                for name in ("ids", "queue", "task", "lock", "args", "older_than", "parent", "status")
            }
            yes = given.pop("yes") is True
            names = [f"--{name.replace('_', '-')}" for name, value in taken.items() if value is not None]
            taken["job_ids"] = taken.pop("ids")
            chosen = Selection(**taken)  # type: ignore[arg-type]
            filters = Filters(chosen, tuple([*names, "--yes"] if yes else names), yes)
            return command(*positional, filters=filters, **given)  # type: ignore[arg-type]

        # click keeps a command's parameters, and its help, on the function.
        filtered.__dict__.update(command.__dict__)
        filtered.__name__, filtered.__doc__ = command.__name__, command.__doc__
        for option in reversed(options):
            option(filtered)
        return filtered

    return decorate


def cancel_many(
    conn: Connection,
    filters: Filters,
    how: StopOptions,
    *,
    as_json: bool,
) -> None:
    """Cancel all jobs that match, or show them."""
    chosen = filters.selection.params(CANCELLABLE)

    def ask(page: Page) -> Call[list[JobAnswer]]:
        return calls_many.cancel_jobs(chosen, page, **how)

    counts = _run(conn, ask, filters, as_json=as_json)
    if filters.yes and counts["running"]:
        raise Failure(
            f"{counts['running']} jobs run, and were left alone: --abort asks them to stop", Exit.REFUSED
        )


def retry_many(
    conn: Connection, filters: Filters, *, reason: str | None, actor: str | None, as_json: bool
) -> None:
    """Put all jobs that match back, or show them."""
    chosen = filters.selection.params(RETRIABLE)

    def ask(page: Page) -> Call[list[JobAnswer]]:
        return calls_many.retry_jobs(chosen, page, reason=reason, actor=actor)

    _run(conn, ask, filters, as_json=as_json)


@click.command()
@click.argument("job_id", type=job_id, metavar="ID")
@audit_options
@json_option
@with_database
def rescind(conn: Connection, *, job_id: int, reason: str | None, actor: str | None, as_json: bool) -> None:
    """Take back a request to abort, if the job's worker has not heard of it.

    Answers with a word: rescinded (exit code 0); already_delivered, no_request (4); not_found (3).
    """
    call = calls_many.rescind_request(job_id, reason=reason, actor=actor)
    result = cli_holders.run(conn, call, f"job {job_id}")
    told = {"job_id": job_id, "outcome": result.outcome, "request_id": result.request_id}
    click.echo(to_json(told) if as_json else f"job {job_id}: {result.outcome}")
    match result.outcome:
        case "not_found":
            refuse(result.outcome, job_id)
        case "already_delivered":
            said = "its worker has heard of it, or its SQL was cancelled: the task may be stopping"
            raise Failure(f"job {job_id}: {said}", Exit.REFUSED)
        case "no_request":
            said = (
                f"no request to abort it is open: nobody asked, or it has ended: `pljobs show {job_id}` says"
            )
            raise Failure(f"job {job_id}: {said}", Exit.REFUSED)
        case "rescinded":
            return


@click.command()
@json_option
@with_database
def stuck(conn: Connection, *, as_json: bool) -> None:
    """List jobs that were asked to abort and still run, how far it got, and what is or can be done next.

    Level 1: the task was told; 2: its SQL is cancelled; 3: it is terminated; 4: it is killed.
    """
    found = db.run(conn, calls_cli.list_stuck_aborts())
    if as_json:
        print_json(found)
        return
    rows = [
        [
            cell(row["job_id"]),
            f"{float(str(row['asked_ago'])):.0f} s",
            cell(row["task"]),
            cell(row["queue"]),
            " for ".join(cell(row[name]) for name in ("requested_by", "actor") if row[name]),
            cell(row["source"]),
            cell(row["worker"]),
            LEVELS.get(str(row["level"]), ""),
            cell(row["handling"]),
            cell(row["sql_way"]),
            cell(row["next"]),
        ]
        for row in map(from_json, found)
    ]
    asked = ["job", "asked ago", "task", "queue", "asked by", "source"]
    headings = [*asked, "worker", "level", "handling", "sql", "next"]
    print_table(headings, rows, empty="no job was asked to abort and still runs")


def _run(conn: Connection, ask: Ask, filters: Filters, *, as_json: bool) -> Counter[str]:
    """Show or do it, and print what became of the jobs; return how many of which outcome."""
    yes, left = filters.yes, set(filters.selection.job_ids or ())
    matching = sum(len(answers) for answers in _answers(conn, ask, dry_run=True)) if yes else 0
    counts: Counter[str] = Counter()
    first: list[JobAnswer] = []
    with _progress(matching) as advance:
        try:
            for answers in _answers(conn, ask, dry_run=not yes):
                counts.update(answer.outcome for answer in answers)
                left.difference_update(answer.job_id for answer in answers)
                # For a script all of them; for people the first few.
                first.extend(answers if as_json else answers[: max(0, SHOWN - len(first))])
                advance(len(answers))
        except KeyboardInterrupt:
            say(f"stopped after {summary(counts)}; that is done, and stays so")
            raise
    if as_json:
        print_json([to_json(dataclasses.asdict(answer)) for answer in first])
    elif not yes:
        _print_jobs(first)
    if counts:
        undone = "" if yes else "; nothing was changed: --yes does it"
        more = f" ({SHOWN} of them are shown)" if not (as_json or yes) and counts.total() > SHOWN else ""
        said = f"{summary(counts)}{undone}{more}"
        # What was done is the answer; what would be done is said about one.
        if yes and not as_json:
            click.echo(said)
        else:
            say(said)
    elif not as_json:
        say("no job matches")
    _tell_of_ids(conn, left, none_matches=not counts)
    return counts


def _tell_of_ids(conn: Connection, ids: set[int], *, none_matches: bool) -> None:
    """Say why jobs that were named did not match; raises `Failure` where none did, and none is there."""
    if not ids:
        return
    words = db.run(conn, calls_many.get_words(sorted(ids), []))
    absent = {job_id for job_id in ids if words["job", job_id] in {"not_found", "deleted"}}
    there = sorted(ids - absent)
    if there:
        statuses = ", ".join(f"{job_id} ({words['job', job_id]})" for job_id in there[:SHOWN])
        say(f"not matched: {statuses}{_more(len(there))}")
    if absent:
        said = f"not found: {', '.join(map(str, sorted(absent)[:SHOWN]))}{_more(len(absent))}"
        if none_matches and not there:
            raise Failure(f"{said}: {exceptions.NO_JOB}", Exit.NOT_FOUND)
        say(said)


def _more(number: int) -> str:
    return f" ... ({number} in all)" if number > SHOWN else ""


def _answers(conn: Connection, ask: Ask, *, dry_run: bool) -> Iterator[list[JobAnswer]]:
    for page, answers in pages(dry_run=dry_run):
        undone = "nothing is done yet of this batch"
        answers.extend(cli_holders.run(conn, ask(page), "one of these jobs", undone=undone))
        yield answers


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, while there is something to do."""
    if not total or not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("jobs", total=total)
        yield lambda number: bar.advance(task, number)


def _print_jobs(jobs: Sequence[JobAnswer]) -> None:
    rows = [
        [cell(job.job_id), cell(job.queue), cell(job.task), cell(job.status_before), job.outcome]
        for job in jobs
    ]
    print_table(["id", "queue", "task", "status", "outcome"], rows)


def summary(counts: Counter[str]) -> str:
    """Say how many jobs, and how many of which outcome."""
    said = [f"{number} {outcome}" for outcome, number in counts.most_common()]
    return f"{counts.total()} jobs: {', '.join(said)}" if said else "none"


def _ids(text: str) -> list[int]:
    return [job_id(part.strip()) for part in text.split(",")]


_ids.__name__ = "ids"
