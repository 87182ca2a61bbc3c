"""The command of flow control: throttle."""

from __future__ import annotations

import re
from datetime import timedelta

import click

from pljobs import calls_flow, db
from pljobs.calls_flow import Limits, Throttle
from pljobs.cli_base import Connection, duration, json_option, with_database
from pljobs.cli_output import print_table, to_json, visible


def rate(text: str) -> tuple[int, timedelta]:
    """Parse `100/1m`: how many, and in how long."""
    match = re.fullmatch(r"(\d+)/(\w+)", text)
    if match is None:
        raise click.BadParameter("give it as NUMBER/PERIOD: 10/1s, 100/1m, 5000/1d")
    return int(match[1]), duration(match[2])


@click.command()
@click.argument("queue", required=False)
@click.option("--task", metavar="NAME", help="Limit a task, in whatever queues, instead of a queue.")
@click.option("--each-key", is_flag=True, help="Limit each fairness key of the queue, beside the queue.")
@click.option("--max-running", type=click.IntRange(1), metavar="N", help="At most so many run at once.")
@click.option("--rate", "pace", type=rate, metavar="N/PERIOD", help="So many start per period: 100/1m.")
@click.option(
    "--burst", type=click.IntRange(1), metavar="N", help="So many at once after a while. Default: the rate."
)
@click.option("--remove", is_flag=True, help="Take the limits away.")
@json_option
@with_database
def throttle(
    conn: Connection,
    *,
    queue: str | None,
    task: str | None,
    each_key: bool,
    max_running: int | None,
    pace: tuple[int, timedelta] | None,
    burst: int | None,
    remove: bool,
    as_json: bool,
) -> None:
    """Limit how much of a queue or task runs, over all workers; without either, list the limits.

    Replaces what was set before. What runs goes on, and counts.
    """
    per = (None, None) if pace is None else pace
    limits = Limits(max_running=max_running, rate=per[0], period=per[1], burst=burst)
    if queue is None and task is None:
        if limits != Limits() or each_key or remove:
            raise click.UsageError("name a QUEUE or a --task")
        _list(db.run(conn, calls_flow.list_throttles()), as_json=as_json)
        return
    if task is not None and (queue is not None or each_key):
        raise click.UsageError("give one QUEUE, with or without --each-key, or one --task")
    if remove is not (limits == Limits()):
        raise click.UsageError("give limits (--max-running, --rate), or --remove")
    if queue is not None:
        outcome = db.run(conn, calls_flow.throttle_queue(queue, limits, each_key=each_key))
        kind, name = ("each key of queue" if each_key else "queue"), queue
    else:
        name = task or ""
        outcome = db.run(conn, calls_flow.throttle_task(name, limits))
        kind = "task"
    said = f"{kind} {visible(name)}: {outcome}"
    click.echo(to_json({"name": name, "outcome": outcome}) if as_json else said)


def _list(found: list[Throttle], *, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "scope": t.scope, "name": t.name, "max_running": t.max_running, "running": t.running,
                "rate": t.rate, "period": t.period and t.period.total_seconds(), "burst": t.burst,
                "set_by": t.set_by, "set_at": t.set_at.isoformat(),
            }
            for t in found
        ]  # fmt: skip
        click.echo(to_json(rows))
        return
    table = [
        [
            "each key of queue" if t.scope == "key" else t.scope,
            visible(t.name),
            "" if t.running is None else str(t.running),
            "" if t.max_running is None else str(t.max_running),
            "" if t.rate is None else f"{t.rate} per {t.period}, {t.burst} at once",
            visible(t.set_by),
        ]
        for t in found
    ]
    print_table(
        ["limit of", "name", "running", "at most", "rate", "set by"], table, empty="nothing is limited"
    )
