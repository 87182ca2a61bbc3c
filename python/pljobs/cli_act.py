"""The commands that change something: defer, retry, delete, pause, resume."""

from __future__ import annotations

from datetime import datetime, timedelta

import click

from pljobs import calls_people, cli_holders
from pljobs.app import App
from pljobs.calls_many import RETRIABLE
from pljobs.cli_base import (
    Connection,
    Exit,
    Failure,
    app_option,
    arguments,
    audit_options,
    connected,
    connector,
    duration,
    instant,
    job_id,
    json_option,
    load_app,
    refuse,
    url_option,
    with_database,
)
from pljobs.cli_many import Filters, filter_options, retry_many
from pljobs.cli_output import to_json, visible


@click.command()
@click.argument("task")
@click.argument("args", type=arguments, default="{}", metavar="[JSON]")
@click.option("--queue", metavar="NAME")
@click.option("--priority", type=int, help="Higher first.")
@click.option("--lock", metavar="NAME", help="No two jobs of one lock run at once.")
@click.option("--queueing-lock", metavar="NAME", help="No two jobs of one queueing lock wait at once.")
@click.option("--fairness-key", metavar="KEY", help="The keys of a queue take turns.")
@click.option("--at", "schedule_at", type=instant, help="Not before this time: 2030-01-31T08:00+01:00.")
@click.option("--in", "schedule_in", type=duration, help="Not before this long from now: 90s, 15m, 12h, 7d.")
@click.option("--start-by", type=instant, help="Cancel it if it hasn't started by then.")
@click.option("--start-within", type=duration, help="The same, so long after it could: 90s, 15m, 12h, 7d.")
@click.option("--timeout", type=duration, help="Stop a run that takes longer.")
@click.option("--grace", type=duration, help="How long it then has to stop by itself. Default: 10s.")
@click.option("--on-cancelled", metavar="TASK", help="A task to run after the job was cancelled or aborted.")
@click.option(
    "--parent", type=job_id, metavar="ID", help="The job that it belongs to: `cancel --tree` takes both."
)
@click.option(
    "--idempotency-key", metavar="KEY", help="Defer once: whoever comes with it again is told that job's id."
)
@click.option("--unknown", is_flag=True, help="With --app: defer even a task that the App doesn't know.")
@app_option
@url_option
@json_option
def defer(
    *,
    task: str,
    args: dict[str, object],
    queue: str | None,
    priority: int | None,
    lock: str | None,
    queueing_lock: str | None,
    fairness_key: str | None,
    schedule_at: datetime | None,
    schedule_in: timedelta | None,
    start_by: datetime | None,
    start_within: timedelta | None,
    timeout: timedelta | None,
    grace: timedelta | None,
    on_cancelled: str | None,
    parent: int | None,
    idempotency_key: str | None,
    unknown: bool,
    app_path: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Defer a job.

    TASK is the task's name; the arguments are a JSON object, or @FILE, or - for stdin.
    With --app the task's own queue, priority, locks and limits hold where no option says otherwise. Without,
    any name goes.
    """
    if schedule_at is not None and schedule_in is not None:
        raise Failure("give --at or --in, not both", Exit.USAGE)
    if start_by is not None and start_within is not None:
        raise Failure("give --start-by or --start-within, not both", Exit.USAGE)
    app = App(connector(url)) if app_path is None else load_app(app_path, url)
    with connected(app.connector) as conn:
        deferrer = app.configure_task(
            task,
            allow_unknown=unknown or app_path is None,
            queue=queue,
            priority=priority,
            lock=lock,
            queueing_lock=queueing_lock,
            schedule_at=schedule_at,
            schedule_in=schedule_in,
            start_by=start_by if start_by is not None else start_within,
            timeout=timeout,
            grace=grace,
            on_cancelled=on_cancelled,
            parent=parent,
            idempotency_key=idempotency_key,
            fairness_key=fairness_key,
            connection=conn,
        )
        job_id = deferrer.batch_defer(args)[0]
    job = deferrer.job
    if as_json:
        click.echo(to_json({"job_id": job_id, "task": job.task_name, "queue": job.queue}))
        return
    click.echo(f"job {job_id} deferred: {visible(job.task_name)} on the queue {visible(job.queue)}")


@click.command()
@click.argument("job_id", type=job_id, metavar="[ID]", required=False)
@filter_options(RETRIABLE)
@click.option("--to-queue", metavar="NAME", help="With ID: put it on this queue.")
@click.option("--to-lock", metavar="NAME", help="With ID: put it into this lane.")
@click.option("--priority", type=int, help="With ID: its new priority.")
@click.option("--at", "retry_at", type=instant, help="With ID: not before 2030-01-31T08:00+01:00.")
@audit_options
@json_option
@with_database
def retry(
    conn: Connection,
    *,
    job_id: int | None,
    filters: Filters,
    to_queue: str | None,
    to_lock: str | None,
    priority: int | None,
    retry_at: datetime | None,
    reason: str | None,
    actor: str | None,
    as_json: bool,
) -> None:
    """Put a failed, cancelled or aborted job back in line; or all that match filters.

    With filters it shows what it would do, and with --yes does it, in batches.
    """
    if filters.are_meant(job_id, hint=" (to put the job elsewhere: --to-queue, --to-lock)") or job_id is None:
        if (to_queue, to_lock, priority, retry_at) != (None, None, None, None):
            raise Failure("--to-queue, --to-lock, --priority and --at go with an ID", Exit.USAGE)
        retry_many(conn, filters, reason=reason, actor=actor, as_json=as_json)
        return
    call = calls_people.retry_job(
        job_id, retry_at=retry_at, queue=to_queue, priority=priority, lock=to_lock, reason=reason, actor=actor
    )
    result = cli_holders.run(conn, call, f"job {job_id}")
    _answer(job_id, result.outcome, as_json=as_json, status=result.status)


@click.command()
@click.argument("job_id", type=job_id, metavar="ID")
@audit_options
@json_option
@with_database
def delete(conn: Connection, *, job_id: int, reason: str | None, actor: str | None, as_json: bool) -> None:
    """Delete a finished job.

    A waiting one is deleted by `pljobs cancel ID --delete`; a running one by that with --abort.
    """
    call = calls_people.delete_job(job_id, reason=reason, actor=actor)
    result = cli_holders.run(conn, call, f"job {job_id}")
    _answer(job_id, result.outcome, as_json=as_json, status=result.status, option=" --delete")


@click.command()
@click.argument("queue")
@audit_options
@json_option
@with_database
def pause(conn: Connection, *, queue: str, reason: str | None, actor: str | None, as_json: bool) -> None:
    """Keep workers from fetching from a queue. Running jobs go on; so does deferring."""
    call = calls_people.pause_queue(queue, reason=reason, actor=actor)
    outcome = cli_holders.run(conn, call, f"queue {visible(queue)}")
    _answer_queue(queue, outcome, as_json=as_json)


@click.command()
@click.argument("queue")
@audit_options
@json_option
@with_database
def resume(conn: Connection, *, queue: str, reason: str | None, actor: str | None, as_json: bool) -> None:
    """Let workers fetch from a paused queue again."""
    call = calls_people.resume_queue(queue, reason=reason, actor=actor)
    outcome = cli_holders.run(conn, call, f"queue {visible(queue)}")
    _answer_queue(queue, outcome, as_json=as_json)


def _answer(job_id: int, outcome: str, *, as_json: bool, status: str | None, option: str = "") -> None:
    """Print the answer to a retry or a delete, and end with its exit code.

    `option`: what `pljobs cancel` is called with besides, where it is meant because the job has not ended.
    """
    if as_json:
        click.echo(to_json({"job_id": job_id, "outcome": outcome, "status": status}))
    else:
        click.echo(f"job {job_id}: {outcome}")
    refuse(
        outcome,
        job_id,
        todo=f"`pljobs cancel {job_id}{option}` cancels it",
        running=f"it runs: `pljobs cancel {job_id} --abort{option}` asks it to stop",
    )


def _answer_queue(queue: str, outcome: str, *, as_json: bool) -> None:
    said = f"queue {visible(queue)}: {outcome}"
    click.echo(to_json({"queue": queue, "outcome": outcome}) if as_json else said)
