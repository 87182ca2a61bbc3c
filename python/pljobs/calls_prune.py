"""The SQL functions that delete or archive what is over, stated once each; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from pljobs import checks
from pljobs.answers import Call, Pruned
from pljobs.calls import FINAL
from pljobs.jobs import Status


def prune_jobs(
    older_than: timedelta,
    *,
    statuses: Sequence[Status] = FINAL,
    queue: str | None = None,
    max_jobs: int = 10_000,
    archive: bool = False,
    since: datetime | None = None,
) -> Call[Pruned]:
    """Delete, or archive, a batch of jobs that ended longer than `older_than` ago."""
    return Call(
        "SELECT p.pruned, p.reached_at FROM pljobs.prune_jobs_v2(older_than => %(older_than)s::interval,"
        " statuses => %(statuses)s::text[], queue => %(queue)s::text,"
        " max_jobs => %(max_jobs)s::integer, archive => %(archive)s::boolean,"
        " since => %(since)s::timestamptz) AS p",
        {
            "older_than": older_than,
            "statuses": [str(status) for status in statuses],
            "queue": checks.optional_name("queue", queue),
            "max_jobs": max_jobs,
            "archive": archive,
            "since": since,
        },
        lambda rows: Pruned(**rows[0]),
    )


def prune_history(
    older_than: timedelta, *, max_rows: int = 10_000, since: datetime | None = None
) -> Call[Pruned]:
    """Delete a batch of old resolved requests, stopped workers, keys and marks of trees."""
    return Call(
        "SELECT p.pruned, p.reached_at FROM pljobs.prune_history_v2("
        "older_than => %(older_than)s::interval, max_rows => %(max_rows)s::integer,"
        " since => %(since)s::timestamptz) AS p",
        {"older_than": older_than, "max_rows": max_rows, "since": since},
        lambda rows: Pruned(**rows[0]),
    )
