"""The command that stops jobs: cancel one, a tree, or all that match; wait until it has stopped."""

from __future__ import annotations

import dataclasses
from collections import Counter
from datetime import timedelta

import click

from pljobs import calls_cli, calls_people, cli_holders, db, exceptions
from pljobs.answers import CancelResult, TreeAnswer
from pljobs.calls_many import CANCELLABLE
from pljobs.calls_people import StopOptions
from pljobs.cli_base import (
    Connection,
    Exit,
    Failure,
    audit_options,
    duration,
    job_id,
    json_option,
    refuse,
    with_database,
)
from pljobs.cli_many import SHOWN, Filters, cancel_many, filter_options, summary
from pljobs.cli_output import Json, asked_by, cell, from_json, print_json, print_table, say, to_json, when
from pljobs.cli_waiting import FOR_EVER, Patience, ended_line, patience, unseen, wait_for_end
from pljobs.manager_stop import STOPPED

UNASKED = "nothing is asked yet"
SQL_WAYS = {
    "server": "the statement that it was running was cancelled",
    "asked": "its statement will be cancelled by its worker, for the owner of pljobs may not:"
    " GRANT pg_signal_backend to it",
    "busy": "its SQL could not be cancelled at once; it is tried again",
    "none": "it is in no statement that can be cancelled: on no connection of context.connection(), or behind"
    " a pooler; it is tried again",
}


@click.command()
@click.argument("job_id", type=job_id, metavar="[ID]", required=False)
@filter_options(CANCELLABLE)
@click.option("--abort", is_flag=True, help="Ask a running job to stop, too.")
@click.option(
    "--grace",
    type=duration,
    help="Stop a running job by force if it hasn't stopped by itself after that: 10s, 500ms; 0: at once.",
)
@click.option(
    "--term-grace", type=duration, help="With --grace: so long from terminating to killing. Default: 5s."
)
@click.option("--sql", is_flag=True, help="Cancel the SQL that a running job is in, now.")
@click.option("--delete", "delete_job", is_flag=True, help="Delete the job once it is cancelled or aborted.")
@click.option(
    "--force",
    is_flag=True,
    help="End a running job now, in the database; its worker is told. Implies --abort.",
)
@click.option("--tree", is_flag=True, help="With ID: and all that was deferred inside of it, and of those.")
@click.option("--dry-run", is_flag=True, help="With --tree: show what it would do.")
@click.option(
    "--wait",
    type=patience,
    is_flag=False,
    flag_value=FOR_EVER,
    metavar="[SECONDS]",
    help="With ID, behind it: wait until the job has ended, at most so long (30, 5m), and say how.",
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
    grace: timedelta | None,
    term_grace: timedelta | None,
    sql: bool,
    delete_job: bool,
    force: bool,
    tree: bool,
    dry_run: bool,
    wait: Patience | None,
    reason: str | None,
    actor: str | None,
    as_json: bool,
) -> None:
    """Cancel a waiting job, or with --abort a running one; or its tree; or all that match filters.

    Answers with a word: cancelled, deleted, abort_requested, abort_already_requested, aborted (by --force),
    already_cancelled (exit code 0); running, already_finished (4); not_found (3). With --wait also 4 if the
    job ended otherwise before it stopped, 5 if it still runs, or if somebody held it and nothing could be
    asked in that time. With filters it shows what it would do, and with --yes does it, in batches; 4 if
    running jobs were left alone.
    """
    how: StopOptions = {
        "abort": abort, "delete_job": delete_job, "force": force, "reason": reason, "actor": actor,
        "grace": grace, "term_grace": term_grace, "sql": sql,
    }  # fmt: skip
    if dry_run and not tree:
        raise Failure("--dry-run goes with --tree; by filters nothing is done without --yes", Exit.USAGE)
    is_missing = wait is not None and job_id is None
    if filters.are_meant(job_id, hint=" (--wait 33 is a time: give the ID first)" if is_missing else ""):
        if wait is not None or tree:
            raise Failure("--wait and --tree go with an ID", Exit.USAGE)
        cancel_many(conn, filters, how, as_json=as_json)
    elif job_id is not None and tree:
        if wait is not None:
            raise Failure("--wait goes with one job, not with --tree", Exit.USAGE)
        _cancel_tree(conn, job_id, how, dry_run=dry_run, as_json=as_json)
    elif job_id is not None:
        _cancel_one(conn, job_id, how, wait, as_json=as_json)


def _cancel_one(
    conn: Connection, job_id: int, how: StopOptions, wait: Patience | None, *, as_json: bool
) -> None:
    call = calls_people.cancel_job(job_id, **how)
    try:
        result = cli_holders.run(
            conn, call, f"job {job_id}", undone=UNASKED, end=None if wait is None else wait.end
        )
    except KeyboardInterrupt:
        # It cancels the statement, unless that is done already.
        said = f"interrupted: job {job_id} is most likely not asked: `pljobs show {job_id}` says"
        raise Failure(said, Exit.INTERRUPTED) from None
    except exceptions.DatabaseReadOnly:
        raise
    except exceptions.DatabaseUnavailable as error:
        said = (
            f"the connection was lost: `pljobs show {job_id}` says whether job {job_id} was asked ({error})"
        )
        raise Failure(said) from None
    if result.sql_way is not None and not as_json:
        say(f"job {job_id}: {SQL_WAYS[result.sql_way]}")
    ended: dict[str, Json] = {}
    in_vain: Failure | None = None
    if result and wait is not None and result.request_id is not None:
        if not as_json and result.outcome.startswith("abort_"):
            say(f"job {job_id}: {result.outcome}; waiting until it has ended")
        try:
            ended = wait_for_end(conn, job_id, result.request_id, wait)
        except Failure as failure:
            in_vain = failure
        except exceptions.PljobsException as error:
            in_vain = Failure(unseen(job_id, result.request_id, str(error)), Exit.TIMED_OUT)
        except KeyboardInterrupt:
            said = f"interrupted: the request {result.request_id} was made, and stays: `pljobs show {job_id}`"
            in_vain = Failure(said, Exit.INTERRUPTED)
    if as_json:
        click.echo(to_json(_told(job_id, result) | ({"request": ended} if ended else {})))
    if in_vain is not None:
        raise in_vain
    if not as_json:
        click.echo(ended_line(job_id, ended) if ended else f"job {job_id}: {result.outcome}")
    if ended and ended["resolution"] not in STOPPED:
        raise Failure(f"job {job_id} was not stopped: {cell(ended['resolution'])}", Exit.REFUSED)
    if result.outcome == "running" and result.request_id is not None:
        raise Failure(f"job {job_id}: {_asked_before(conn, result.request_id)}", Exit.REFUSED)
    refuse(
        result.outcome,
        job_id,
        running="it runs, and was left alone: --abort asks it to stop",
        finished=f"nothing was changed: `pljobs delete {job_id}` deletes it",
    )


def _asked_before(conn: Connection, request_id: int) -> str:
    """Say of a running job that it has been asked to stop, by whom and when."""
    rows = db.run(conn, calls_cli.await_request(request_id))
    by = ""
    if rows:  # it may have been pruned
        request = from_json(rows[0])
        who = "its timeout" if request["source"] == "deadline" else asked_by(request)
        by = f" by {who} at {when(request['requested_at'], fine=True)}"
    asked = f"it runs, and has been asked to stop{by} (request {request_id})"
    return f"{asked}: `pljobs stuck` shows what became of it"


def _cancel_tree(conn: Connection, root: int, how: StopOptions, *, dry_run: bool, as_json: bool) -> None:
    call = calls_people.cancel_tree(root, dry_run=dry_run, **how)
    answers = cli_holders.run(conn, call, f"a job of the tree of {root}", undone=UNASKED)
    if as_json:
        print_json([to_json(dataclasses.asdict(answer)) for answer in answers])
    else:
        print_table(
            ["id", "parent", "queue", "task", "status", "outcome"],
            [_tree_row(answer) for answer in answers[:SHOWN]],
        )
    if not answers:
        raise Failure(
            f"no job has the id {root}, and none that was deferred inside of it waits or runs, as far as this"
            f" login may see: {exceptions.NO_JOB}",
            Exit.NOT_FOUND,
        )
    counts = Counter[str](answer.outcome for answer in answers)
    undone = "; nothing was changed: without --dry-run it is done" if dry_run else ""
    more = f" ({SHOWN} of them are shown)" if len(answers) > SHOWN and not as_json else ""
    say(f"{summary(counts)}{undone}{more}")
    if dry_run:
        return
    if counts["running"]:
        raise Failure(
            f"{counts['running']} jobs run, and were left alone: --abort asks them to stop", Exit.REFUSED
        )
    if not any(answers):
        refuse(answers[0].outcome, root)


def _tree_row(answer: TreeAnswer) -> list[str]:
    names = [cell(answer.job_id), cell(answer.parent_id), cell(answer.queue), cell(answer.task)]
    return [*names, cell(answer.status_before), answer.outcome]


def _told(job_id: int, result: CancelResult) -> dict[str, object]:
    return {"job_id": job_id, **dataclasses.asdict(result)}
