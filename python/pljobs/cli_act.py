"""The commands that change something: defer, cancel, retry, delete, pause, resume."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import click

from pljobs import calls_cli, calls_people, db
from pljobs.answers import CancelResult
from pljobs.app import App
from pljobs.calls_many import CANCELLABLE, RETRIABLE
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
    url_option,
    with_database,
)
from pljobs.cli_many import Filters, cancel_many, filter_options, retry_many
from pljobs.cli_output import Json, cell, from_json, say, to_json, visible, when

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5


@click.command()
@click.argument("task")
@click.argument("args", type=arguments, default="{}", metavar="[JSON]")
@click.option("--queue", metavar="NAME")
@click.option("--priority", type=int, help="Higher first.")
@click.option("--lock", metavar="NAME", help="No two jobs of one lock run at once.")
@click.option("--queueing-lock", metavar="NAME", help="No two jobs of one queueing lock wait at once.")
@click.option("--at", "schedule_at", type=instant, help="Not before this time: 2030-01-31T08:00+01:00.")
@click.option("--in", "schedule_in", type=duration, help="Not before this long from now: 90s, 15m, 12h, 7d.")
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
    schedule_at: datetime | None,
    schedule_in: timedelta | None,
    unknown: bool,
    app_path: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Defer a job.

    TASK is the task's name; the arguments are a JSON object, or @FILE, or - for stdin.
    With --app the task's own queue, priority and locks hold where no option says otherwise. Without,
    any name goes.
    """
    if schedule_at is not None and schedule_in is not None:
        raise Failure("give --at or --in, not both", Exit.USAGE)
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
@filter_options(CANCELLABLE)
@click.option("--abort", is_flag=True, help="Ask a running job to stop, too.")
@click.option("--delete", "delete_job", is_flag=True, help="Delete the job once it is cancelled or aborted.")
@click.option(
    "--force",
    is_flag=True,
    help="End a running job now, in the database; its worker is told. Implies --abort.",
)
@click.option("--wait", is_flag=True, help="With ID: wait until the job has ended, and say how.")
@click.option(
    "--timeout",
    type=duration,
    help="How long to --wait, as in 30s; the request stays.",
)
@audit_options
@json_option
@with_database
def cancel(
    conn: Connection,
    *,
    job_id: int | None,
    filters: Filters,
    abort: bool,
    delete_job: bool,
    force: bool,
    wait: bool,
    timeout: timedelta | None,
    reason: str | None,
    actor: str | None,
    as_json: bool,
) -> None:
    """Cancel a waiting job, or with --abort a running one; or all that match filters.

    Answers with a word: cancelled, deleted, abort_requested, abort_already_requested, aborted (by --force),
    already_cancelled (exit code 0); running, already_finished (4); not_found (3). With filters it shows
    what it would do, and with --yes does it, in batches; 4 if running jobs were left alone.
    """
    if timeout is not None and not wait:
        raise Failure("--timeout goes with --wait", Exit.USAGE)
    if filters.are_meant(job_id) or job_id is None:
        if wait:
            raise Failure("--wait goes with an ID", Exit.USAGE)
        options = {"abort": abort, "delete_job": delete_job, "force": force}
        cancel_many(conn, filters, options, reason=reason, actor=actor, as_json=as_json)
        return
    call = calls_people.cancel_job(
        job_id, abort=abort, delete_job=delete_job, force=force, reason=reason, actor=actor
    )
    result = db.run(conn, call)
    told = _told(job_id, result)
    ended: dict[str, Json] = {}
    if result and wait and result.request_id is not None:
        if not as_json and result.outcome.startswith("abort_"):
            say(f"job {job_id}: {told['outcome']}; waiting until it has ended")
        ended = _wait(conn, job_id, result.request_id, timeout)
    if as_json:
        click.echo(to_json(told | ({"request": ended} if ended else {})))
    else:
        click.echo(_ended_line(job_id, ended) if ended else f"job {job_id}: {told['outcome']}")
    _exit(result.outcome, job_id, running="it runs, and was left alone: --abort asks it to stop")


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
    result = db.run(conn, call)
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
    result = db.run(conn, calls_people.delete_job(job_id, reason=reason, actor=actor))
    _answer(job_id, result.outcome, as_json=as_json, status=result.status)


@click.command()
@click.argument("queue")
@audit_options
@json_option
@with_database
def pause(conn: Connection, *, queue: str, reason: str | None, actor: str | None, as_json: bool) -> None:
    """Keep workers from fetching from a queue. Running jobs go on; so does deferring."""
    outcome = db.run(conn, calls_people.pause_queue(queue, reason=reason, actor=actor))
    _answer_queue(queue, outcome, as_json=as_json)


@click.command()
@click.argument("queue")
@audit_options
@json_option
@with_database
def resume(conn: Connection, *, queue: str, reason: str | None, actor: str | None, as_json: bool) -> None:
    """Let workers fetch from a paused queue again."""
    outcome = db.run(conn, calls_people.resume_queue(queue, reason=reason, actor=actor))
    _answer_queue(queue, outcome, as_json=as_json)


def _told(job_id: int, result: CancelResult) -> dict[str, object]:
    return {
        "job_id": job_id,
        "outcome": result.outcome,
        "status_before": result.status_before,
        "status_after": result.status_after,
        "request_id": result.request_id,
        "worker_id": result.worker_id,
        "run_id": result.run_id,
    }


def _wait(conn: Connection, job_id: int, request_id: int, timeout: timedelta | None) -> dict[str, Json]:
    """Wait until a request is resolved, and return it; raises `Failure` when the time is over.

    Its own request, not the job's status: after somebody's retry the job may be running again.
    """
    end = None if timeout is None else time.monotonic() + timeout.total_seconds()
    pause = FIRST_PAUSE
    while True:
        rows = db.run(conn, calls_cli.await_request(request_id))
        if not rows:
            raise Failure(f"job {job_id}: its request was pruned while waiting for it", Exit.NOT_FOUND)
        request = from_json(rows[0])
        if request["resolved_at"] is not None:
            return request
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            heard = {"swallowed": ", and swallowed its abort", "handling": ", and is handling its abort"}
            doing = heard.get(str(request["handling"]), "")
            unheard = "" if request["delivered_at"] else ", and its worker hasn't heard of it"
            raise Failure(
                f"job {job_id} still runs after {timeout}{doing}{unheard}; the request stays",
                Exit.TIMED_OUT,
            )
        time.sleep(pause if left is None else min(pause, left))
        pause = min(pause * 1.5, LONGEST_PAUSE)


def _ended_line(job_id: int, request: dict[str, Json]) -> str:
    """Say how a job ended that was asked to, who asked, and how long it took."""
    status = cell(request["status"]) or "deleted"
    how = {
        "finished_first": " (it finished before it stopped)",
        "failed_first": " (it failed before it stopped)",
        "worker_lost": " (its worker was lost)",
        "forced": " (by force)",
        "rescinded": " (somebody took the request back)",
    }.get(str(request["resolution"]), "")
    who = " for ".join(cell(request[name]) for name in ("requested_by", "actor") if request[name])
    took = _between(request["requested_at"], request["resolved_at"])
    asked, ended = when(request["requested_at"], fine=True), when(request["resolved_at"], fine=True)
    return f"job {job_id}: {status}{how}; asked by {who} at {asked}, ended at {ended}{took}"


def _between(first: Json, last: Json) -> str:
    if not isinstance(first, str) or not isinstance(last, str):
        return ""
    seconds = (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
    return f", after {seconds * 1000:.0f} ms" if seconds < 10 else f", after {seconds:.0f} s"


def _answer(job_id: int, outcome: str, *, as_json: bool, status: str | None) -> None:
    """Print the answer to a retry or a delete, and end with its exit code."""
    if as_json:
        click.echo(to_json({"job_id": job_id, "outcome": outcome, "status": status}))
    else:
        click.echo(f"job {job_id}: {outcome}")
    _exit(outcome, job_id, running="it runs: `pljobs cancel ID --abort` asks it to stop")


def _answer_queue(queue: str, outcome: str, *, as_json: bool) -> None:
    said = f"queue {visible(queue)}: {outcome}"
    click.echo(to_json({"queue": queue, "outcome": outcome}) if as_json else said)


def _exit(outcome: str, job_id: int, *, running: str) -> None:
    match outcome:
        case "not_found":
            raise Failure(f"no job has the id {job_id}: it never existed, or was deleted", Exit.NOT_FOUND)
        case "running":
            raise Failure(f"job {job_id}: {running}", Exit.REFUSED)
        case "todo":
            raise Failure(f"job {job_id}: it waits to be run: `pljobs cancel ID` cancels it", Exit.REFUSED)
        case "already_finished" | "succeeded":
            raise Failure(f"job {job_id}: it is finished, nothing was changed", Exit.REFUSED)
        case _:
            return
