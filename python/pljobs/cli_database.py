"""The commands about the database itself: migrate, schema, healthcheck, prune, rescue."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import click

from pljobs import calls, calls_cli, calls_prune, calls_read, db, install, install_check, install_files
from pljobs.answers import Pruned
from pljobs.cli_base import (
    Connection,
    Exit,
    Failure,
    connected,
    connector,
    duration,
    json_option,
    url_option,
    with_database,
)
from pljobs.cli_output import print_json, print_table, say, to_json
from pljobs.exceptions import SchemaMissing
from pljobs.jobs import Status

BATCH = 10_000
FINAL = [str(status) for status in calls.FINAL]


@click.command()
@click.option(
    "--lock-timeout", type=duration, help="How long to try for tables that somebody holds. Default: 5s."
)
@click.option("--dry-run", is_flag=True, help="Print what it would do, and do nothing.")
@json_option
@with_database
def migrate(conn: Connection, *, lock_timeout: timedelta | None, dry_run: bool, as_json: bool) -> None:
    """Install or upgrade the schema pljobs.

    In one transaction; safe to run again; then makes the indexes that large tables have to wait for.
    """
    if dry_run:
        _print_plan(install_check.plan(conn), as_json=as_json)
        return
    applied = install.migrate(conn, lock_timeout=lock_timeout)
    if as_json:
        click.echo(to_json({"applied": applied}))
        return
    for name in applied:
        click.echo(f"applied {name}")
    click.echo("the schema pljobs is up to date")


def _print_plan(plan: install_check.Plan, *, as_json: bool) -> None:
    if as_json:
        click.echo(to_json(dataclasses.asdict(plan)))
        return
    lines = [
        *(f"create the role {role}" for role in plan.roles),
        *(f"add the {name}" for name in plan.added),
        *(f"replace the {name}" for name in plan.replaced),
        *(f"apply {migration.name}{_locking(migration.locks)}" for migration in plan.migrations),
        *(f"mend: {other}" for other in plan.others),
    ]
    for line in lines or ["do nothing: the schema pljobs is up to date"]:
        click.echo(f"would {line}")


def _locking(tables: Sequence[str]) -> str:
    return f", which locks {', '.join(tables)} and the views until it is done" if tables else ""


@click.command()
@click.option(
    "--check", is_flag=True, help="Say where this database differs from this release; exit code 1 if it does."
)
@click.option(
    "--sql", "as_sql", is_flag=True, help="Print the whole schema as one file of SQL; needs no database."
)
@json_option
@url_option
def schema(*, url: str | None, check: bool, as_sql: bool, as_json: bool) -> None:
    """List migrations, --check the schema against this release, or print it as --sql."""
    if as_sql:
        click.echo(install_files.one_file(), nl=False)
        return
    with connected(connector(url)) as conn:
        if check:
            _check(conn, as_json=as_json)
        else:
            _list_migrations(conn, as_json=as_json)


def _check(conn: Connection, *, as_json: bool) -> None:
    differences = install_check.check(conn)
    if as_json:
        click.echo(
            to_json({"ok": not differences, "differences": list(map(dataclasses.asdict, differences))})
        )
    else:
        for difference in differences:
            click.echo(str(difference))
        if not differences:
            click.echo("the schema pljobs is this release's")
    if differences:
        raise click.exceptions.Exit(Exit.ERROR)


def _list_migrations(conn: Connection, *, as_json: bool) -> None:
    applied = db.run(conn, calls_cli.list_migrations()) if db.run(conn, calls_read.has_schema()) else {}
    names = [migration.name for migration in install_files.migrations()]
    rows = [[name, applied.get(name, "not applied")] for name in [*names, *sorted(set(applied) - set(names))]]
    if as_json:
        print_json([to_json({"migration": name, "applied_at": applied.get(name)}) for name, _ in rows])
        return
    print_table(["migration", "applied"], rows)
    say(f"by hand: psql -1 -v ON_ERROR_STOP=1 -f {install_files.sql_folder() / 'install.sql'}")


@click.command()
@click.option(
    "--min-workers", type=click.IntRange(min=0), default=0, show_default=True, help="Fail with fewer alive."
)
@json_option
@with_database
def healthcheck(conn: Connection, *, min_workers: int, as_json: bool) -> None:
    """Check that the database has the schema, and workers.

    The exit code is 1 if not.
    """
    if not db.run(conn, calls_read.has_schema()):
        raise SchemaMissing("there is no view pljobs.jobs")
    workers = db.run(conn, calls_cli.count_workers())
    healthy = workers["alive"] >= min_workers
    if as_json:
        click.echo(to_json({"ok": healthy, "database": True, "schema": True, "workers": workers}))
    else:
        click.echo("database  reachable")
        click.echo("schema    installed")
        click.echo(f"workers   {workers['alive']} alive, {workers['stalled']} stalled")
    if not healthy:
        raise Failure(f"{workers['alive']} workers are alive, fewer than {min_workers}")


@click.command()
@click.option(
    "--older-than", type=duration, required=True, help="As in 12h, 30d, 8w: finished longer ago than that."
)
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice(FINAL), help="May be repeated. Default: all."
)
@click.option("--queue", metavar="NAME", help="Only of this queue.")
@click.option(
    "--archive",
    is_flag=True,
    help="Move jobs to the archive, the view pljobs.archive, rather than delete them.",
)
@click.option(
    "--history", is_flag=True, help="Also the audit trail and stopped workers of that age, of every queue."
)
@json_option
@with_database
def prune(
    conn: Connection,
    *,
    older_than: timedelta,
    statuses: tuple[str, ...],
    queue: str | None,
    archive: bool,
    history: bool,
    as_json: bool,
) -> None:
    """Delete or archive finished jobs, in batches that hold nobody up."""
    chosen = [Status(status) for status in statuses or FINAL]

    def batch_of_jobs(since: datetime | None) -> Pruned:
        call = calls_prune.prune_jobs(
            older_than, statuses=chosen, queue=queue, max_jobs=BATCH, archive=archive, since=since
        )
        return db.run(conn, call)

    def batch_of_history(since: datetime | None) -> Pruned:
        return db.run(conn, calls_prune.prune_history(older_than, max_rows=BATCH, since=since))

    jobs = _until_none_is_left(batch_of_jobs)
    rows = _until_none_is_left(batch_of_history) if history else 0
    if as_json:
        click.echo(to_json({"jobs": jobs, "history": rows}))
        return
    done = "archived" if archive else "deleted"
    click.echo(
        f"{done} {jobs} jobs"
        + (f", {'deleted ' if archive else ''}{rows} rows of history" if history else "")
    )


def _until_none_is_left(batch: Callable[[datetime | None], Pruned]) -> int:
    total, since = 0, None
    while (done := batch(since)).pruned:
        total, since = total + done.pruned, done.reached_at
    return total


@click.command()
@click.option(
    "--max-crashes",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Fail a job lost so often.",
)
@json_option
@with_database
def rescue(conn: Connection, *, max_crashes: int, as_json: bool) -> None:
    """Take the jobs of lost workers back, now.

    Workers and the manager do it by themselves.
    """
    rescued: dict[int, str] = {}
    while answers := db.run(conn, calls.rescue_jobs(max_crashes=max_crashes)):
        rescued |= {answer.job_id: answer.outcome for answer in answers}
    if as_json:
        print_json([to_json({"job_id": job_id, "outcome": outcome}) for job_id, outcome in rescued.items()])
        return
    print_table(["job", "outcome"], [[str(job_id), outcome] for job_id, outcome in rescued.items()])
    counted = ", ".join(f"{count} {outcome}" for outcome, count in Counter(rescued.values()).items())
    say(f"rescued {len(rescued)} jobs" + (f": {counted}" if counted else ""))
