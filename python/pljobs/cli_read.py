"""The commands that only read: list, show, queues, workers."""

from __future__ import annotations

import click

from pljobs import calls_cli, db, exceptions
from pljobs.calls_read import JobFilter
from pljobs.cli_base import Connection, Exit, Failure, job_id, json_option, with_database
from pljobs.cli_many import LEVELS
from pljobs.cli_output import (
    Json,
    asked_by,
    cell,
    from_json,
    heading,
    print_fields,
    print_json,
    print_table,
    safe_json,
    say,
    to_json,
    visible,
    when,
)
from pljobs.jobs import Status

PERMISSION_DENIED = "42501"
BAR = 20


@click.command("list")
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([str(s) for s in Status]),
    help="May be repeated.",
)
@click.option("--queue", metavar="NAME")
@click.option("--task", metavar="NAME")
@click.option("--lock", metavar="NAME")
@click.option("--queueing-lock", metavar="NAME")
@click.option(
    "--worker",
    "worker_id",
    type=job_id,
    metavar="ID",
    help="Jobs that this worker (its id) runs, or ran last.",
)
@click.option("--parent", "parent_id", type=job_id, metavar="ID", help="Jobs deferred inside of this one.")
@click.option("--abort-requested", is_flag=True, help="Running jobs that somebody asked to abort.")
@click.option("--stalled", is_flag=True, help="Running jobs whose worker's lease ran out.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="0: all of them.")
@click.option("--oldest-first", is_flag=True, help="By ascending id. Default: the newest first.")
@click.option(
    "--full", is_flag=True, help="With lock, arguments and message; with --json error and result, too."
)
@json_option
@with_database
def list_jobs(
    conn: Connection,
    *,
    statuses: tuple[str, ...],
    queue: str | None,
    task: str | None,
    lock: str | None,
    queueing_lock: str | None,
    worker_id: int | None,
    parent_id: int | None,
    abort_requested: bool,
    stalled: bool,
    limit: int,
    oldest_first: bool,
    full: bool,
    as_json: bool,
) -> None:
    """List jobs, and how far the running ones say they are."""
    chosen = JobFilter(
        queue=queue, task=task, lock=lock, queueing_lock=queueing_lock, worker_id=worker_id,
        parent_id=parent_id,
    )  # fmt: skip
    call = calls_cli.list_jobs(
        chosen,
        statuses=[Status(status) for status in statuses],
        abort_requested=abort_requested,
        stalled=stalled,
        full=full,
        oldest_first=oldest_first,
        limit=limit or None,
    )
    found = db.run(conn, call)
    if limit and len(found) == limit:
        say(f"{limit} jobs are shown, there may be more: --limit 0 lists all")
    if as_json:
        print_json(found)
        return
    headings = ["id", "status", "queue", "task", "priority", "attempts", "created", "started", "finished"]
    more = ["lock", "args", "message"] if full else []
    rows = [_job_row(from_json(row), more) for row in found]
    print_table([*headings, *more], rows, empty="no jobs")


@click.command()
@click.argument("job_id", type=job_id, metavar="ID")
@json_option
@with_database
def show(conn: Connection, *, job_id: int, as_json: bool) -> None:
    """Show one job, its history, and who asked what of it.

    What was asked outlives a deleted job, and is shown; the exit code is then 3, as for an id that never was.
    """
    jobs = db.run(conn, calls_cli.show_job(job_id))
    history = db.run(conn, calls_cli.show_history(job_id))
    requests = _requests(conn, job_id)
    if as_json:
        parts = {"job": jobs[0] if jobs else "null", "history": _array(history), "requests": _array(requests)}
        body = ",\n ".join(f"{to_json(name)}: {part}" for name, part in parts.items())
        click.echo(safe_json_object(body))
    elif jobs or history or requests:
        if jobs:
            _print_job(from_json(jobs[0]))
        if jobs or history:
            _print_history([from_json(row) for row in history])
        _print_requests(None if requests is None else [from_json(row) for row in requests])
    if not jobs:
        told = "; the above is what is left of it" if history or requests else ""
        raise Failure(
            f"no job has the id {job_id}: it was archived, or {exceptions.NO_JOB}{told}", Exit.NOT_FOUND
        )


@click.command()
@json_option
@with_database
def queues(conn: Connection, *, as_json: bool) -> None:
    """List queues, with the number of their jobs in each status."""
    found = db.run(conn, calls_cli.list_queues())
    if as_json:
        print_json(found)
        return
    counts = [str(status) for status in Status]
    rows = []
    for row in map(from_json, found):
        paused = f"paused {when(row['paused_at'])} by {cell(row['paused_by'])}" if row["paused"] else ""
        why = f": {cell(row['pause_reason'])}" if row["pause_reason"] else ""
        rows.append([cell(row["queue"]), *(cell(row[name]) for name in counts), paused + why])
    print_table(["queue", *counts, "paused"], rows, empty="no queue has jobs or settings")


@click.command()
@click.option("--all", "stopped", is_flag=True, help="Those that have stopped, too.")
@json_option
@with_database
def workers(conn: Connection, *, stopped: bool, as_json: bool) -> None:
    """List workers.

    alive, or stalled: the lease ran out, the jobs are about to be rescued. tainted: it gave up a job whose
    code may still run, and is given no more.
    """
    found = db.run(conn, calls_cli.list_workers(stopped=stopped))
    if as_json:
        print_json(found)
        return
    rows = [
        [
            cell(row["id"]),
            cell(row["state"]) + (" (tainted)" if row["tainted_at"] else ""),
            cell(row["name"]),
            f"{cell(row['host'])}:{cell(row['pid'])}",
            f"{cell(row['running'])} of {cell(row['concurrency'])}",
            ", ".join(cell(queue) for queue in row["queues"]) if isinstance(row["queues"], list) else "all",
            when(row["started_at"]),
            when(row["stopped_at"] or row["heartbeat_at"]),
            "" if row["loop_lag"] is None else f"{cell(row['loop_lag'])} s",
        ]
        for row in map(from_json, found)
    ]
    headings = ["id", "state", "name", "host:pid", "running", "queues", "started", "last seen", "loop lag"]
    print_table(headings, rows, empty="no worker is registered")


def safe_json_object(body: str) -> str:
    """Return the members of a JSON object as that object, safe to print."""
    # The newlines between the members are ours; those inside of strings are escaped already.
    return "{" + "\n".join(safe_json(line) for line in body.split("\n")) + "}"


def _array(rows: list[str] | None) -> str:
    return "null" if rows is None else f"[{', '.join(rows)}]"


def _requests(conn: Connection, job_id: int) -> list[str] | None:
    """Read the requests, or None where this role may see jobs, but not what was asked of them."""
    try:
        return db.run(conn, calls_cli.show_requests(job_id))
    except exceptions.ConnectorException as error:
        if error.sqlstate != PERMISSION_DENIED:
            raise
        return None


def _state(job: dict[str, Json]) -> str:
    """Say where a job is, and what it waits for."""
    if job["waiting_for"] is not None:
        return f"todo (waits for its {cell(job['waiting_for'])})"
    more = []
    if job["status"] == "doing" and isinstance(job["progress"], int | float):
        more.append(f"{job['progress']:.0%}")
    if job["abort_requested"]:
        more.append("abort requested")
    return cell(job["status"]) + (f" ({', '.join(more)})" if more else "")


def _progress(job: dict[str, Json]) -> str:
    """Show how far the job's last run said that it was: a bar, the share, its message, and when."""
    if job["progress_at"] is None:
        return ""
    parts = []
    if isinstance(job["progress"], int | float):
        full = int(job["progress"] * BAR)
        parts.append(f"[{'#' * full}{'-' * (BAR - full)}] {job['progress']:.0%}")
    if job["progress_message"]:
        parts.append(cell(job["progress_message"]))
    return f"{' '.join(parts)} (at {when(job['progress_at'], fine=True)})"


def _length(seconds: Json) -> str:
    return "" if seconds is None else f"{cell(seconds)} s"


def _job_row(job: dict[str, Json], more: list[str]) -> list[str]:
    named = [_state(job), *(cell(job[name]) for name in ("queue", "task", "priority", "attempts"))]
    times = [when(job[name]) for name in ("created_at", "started_at", "finished_at")]
    return [cell(job["id"]), *named, *times, *(cell(job[name]) for name in more)]


def _print_job(job: dict[str, Json]) -> None:
    times = {"created", "scheduled", "start by", "started", "times out", "finished", "abort requested"}
    fields = {"job": job["id"], "task": job["task"], "status": _state(job), "queue": job["queue"]}
    fields |= {"priority": job["priority"], "lock": job["lock"], "queueing lock": job["queueing_lock"]}
    fields |= {
        "attempts": job["attempts"],
        "crashes": job["crashes"] or None,
        "deferred by": job["deferred_by"],
        "parent": job["parent_id"],
    }
    fields |= {"created": job["created_at"], "scheduled": job["scheduled_at"], "start by": job["start_by"]}
    fields |= {"started": job["started_at"], "timeout": _length(job["timeout"])}
    fields |= {"times out": job["timeout_at"], "grace": _length(job["grace"])}
    fields |= {
        "fairness key": job["fairness_key"],
        "on cancelled": job["on_cancelled"],
        "progress": _progress(job),
    }
    fields |= {"abort requested": job["abort_requested_at"], "finished": job["finished_at"]}
    fields |= {"worker": job["worker_id"], "run": job["run_id"], "message": job["message"]}
    shown = {name: when(value, fine=True) if name in times else cell(value) for name, value in fields.items()}
    for name in ("args", "result"):
        shown[name] = "" if job[name] is None else visible(to_json(job[name]))
    print_fields(shown)
    if isinstance(job["error"], str):
        heading("Error")
        click.echo(visible(job["error"], lines=True))


def _print_history(history: list[dict[str, Json]]) -> None:
    heading("History")
    rows = [
        [
            when(row["at"], fine=True),
            *(cell(row[name]) for name in ("event", "attempt", "worker", "who")),
            # A traceback is shown above; its last line says what it was.
            visible(str(row["detail"] or "").strip().rsplit("\n", 1)[-1]),
        ]
        for row in history
    ]
    print_table(["at", "event", "attempt", "worker", "who", "detail"], rows)


def _print_requests(requests: list[dict[str, Json]] | None) -> None:
    if requests is None:
        say("(this role may not read pljobs.requests)")
    elif requests:
        heading("Requests")
        rows = []
        for row in requests:
            strength = [
                name for name, given in (("force", row["force"]), ("delete", row["delete_job"])) if given
            ]
            # Of a deletion both say so.
            kind = " + ".join(dict.fromkeys([cell(row["kind"]), *strength]))
            who = asked_by(row)
            times = [when(row[name], fine=True) for name in ("requested_at", "delivered_at", "resolved_at")]
            words = [cell(row[name]) for name in ("handling", "sql_way", "resolution", "reason")]
            rows.append([kind, who, cell(row["source"]), *times, _level(row), *words])
        headings = [
            "request",
            "who",
            "source",
            "requested",
            "delivered",
            "resolved",
            "level",
            "handling",
            "sql",
            "resolution",
            "reason",
        ]
        print_table(headings, rows)


def _level(request: dict[str, Json]) -> str:
    return LEVELS.get(str(request["level"]), "") if request["kind"] == "abort" else ""
