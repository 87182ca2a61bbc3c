"""What people ask besides, stated once each: cancel and retry by filter, take back, see what became of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Unpack

from pljobs import arguments, checks
from pljobs.answers import Call, JobAnswer, RescindResult, Row, statuses
from pljobs.arguments import JsonDumps
from pljobs.calls_people import STOP, StopOptions, stop_params
from pljobs.exceptions import InvalidArgument
from pljobs.jobs import Status

CANCELLABLE = (Status.TODO, Status.DOING)
RETRIABLE = (Status.FAILED, Status.CANCELLED, Status.ABORTED)

MAX_JOBS = 2**31 - 1

_FILTERS = (
    "job_ids => %(job_ids)s::bigint[], queue => %(queue)s::text, task => %(task)s::text,"
    " lock => %(lock)s::text, args => %(args)s::jsonb, older_than => %(older_than)s::interval,"
    " status => %(status)s::text, parent_id => %(parent_id)s::bigint"
)
_PAGE = "dry_run => %(dry_run)s::boolean, max_jobs => %(max_jobs)s::integer, after_id => %(after_id)s::bigint"
_COLUMNS = "r.job_id, r.queue_name AS queue, r.task_name AS task, r.status_before, r.outcome"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Choose jobs: those that match all that is given.

    `args`: contained in the job's arguments. `parent`: deferred inside of that job itself.
    """

    job_ids: Iterable[int] | None = None
    queue: str | None = None
    task: str | None = None
    lock: str | None = None
    args: Mapping[str, object] | None = None
    older_than: checks.Interval | None = None
    status: Status | str | None = None
    parent: int | None = None

    def params(self, allowed: Iterable[Status], dumps: JsonDumps | None = None) -> dict[str, object]:
        """Check what is given; return it as parameters, the arguments as JSON."""
        if self.status is not None and self.status not in set(allowed):
            wanted = ", ".join(allowed)
            raise InvalidArgument(f"status must be one of {wanted}, not {self.status!r}")
        # One that can be read once is read once: batches ask again.
        ids = None if self.job_ids is None else [checks.identifier("job_ids", each) for each in self.job_ids]
        return {
            "job_ids": ids,
            "queue": checks.optional_name("queue", self.queue),
            "task": checks.optional_name("task", self.task),
            "lock": checks.optional_name("lock", self.lock),
            "args": None if self.args is None else arguments.encode_filter(self.args, dumps),
            "older_than": checks.optional_interval("older_than", self.older_than),
            "status": None if self.status is None else str(self.status),
            "parent_id": checks.optional_identifier("parent", self.parent),
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Say how many jobs, those of the lowest ids behind `after_id`; `dry_run`: to be shown only."""

    dry_run: bool
    max_jobs: int
    after_id: int | None = None


def cancel_jobs(
    chosen: Mapping[str, object],
    page: Page,
    **how: Unpack[StopOptions],
) -> Call[list[JobAnswer]]:
    """Cancel the waiting jobs that are chosen (`Selection.params`); `abort`: stop the running ones too."""
    return Call(
        f"SELECT {_COLUMNS} FROM pljobs.cancel_jobs_v1({_FILTERS}, {STOP}, {_PAGE}) AS r ORDER BY r.job_id",  # noqa: S608
        {**chosen, **stop_params(how), **_page(page)},
        _answers,
    )


def retry_jobs(
    chosen: Mapping[str, object], page: Page, *, reason: str | None = None, actor: str | None = None
) -> Call[list[JobAnswer]]:
    """Put the failed, cancelled and aborted jobs that are chosen back to todo."""
    return Call(
        f"SELECT {_COLUMNS} FROM pljobs.retry_jobs_v1({_FILTERS}, reason => %(reason)s::text,"  # noqa: S608
        f" actor => %(actor)s::text, {_PAGE}) AS r ORDER BY r.job_id",
        {
            **chosen,
            "reason": checks.text("reason", reason),
            "actor": checks.text("actor", actor),
            **_page(page),
        },
        _answers,
    )


def rescind_request(
    job_id: int, *, reason: str | None = None, actor: str | None = None
) -> Call[RescindResult]:
    """Take back a request to abort that its worker has not heard of."""
    return Call(
        "SELECT r.outcome, r.request_id FROM pljobs.rescind_request_v1(job_id => %(job_id)s::bigint,"
        " reason => %(reason)s::text, actor => %(actor)s::text) AS r",
        {
            "job_id": checks.identifier("job_id", job_id),
            "reason": checks.text("reason", reason),
            "actor": checks.text("actor", actor),
        },
        lambda rows: RescindResult(**rows[0]),
    )


def get_words(job_ids: Iterable[int], request_ids: Iterable[int]) -> Call[dict[tuple[str, int], str]]:
    """Read each job's status, `deleted` or `not_found`, and each request's resolution, `open` or `not_found`.

    By ("job", id) and ("request", id).
    """
    return Call(
        "SELECT 'job' AS kind, s.job_id AS id, s.status AS word"
        " FROM pljobs.get_job_statuses_v1(job_ids => %(job_ids)s::bigint[]) AS s"
        " UNION ALL SELECT 'request', r.request_id, r.resolution"
        " FROM pljobs.get_resolutions_v1(request_ids => %(request_ids)s::bigint[]) AS r",
        {"job_ids": list(job_ids), "request_ids": list(request_ids)},
        lambda rows: {(str(row["kind"]), int(row["id"])): str(row["word"]) for row in rows},
    )


def _page(page: Page) -> dict[str, object]:
    return {
        "dry_run": checks.flag("dry_run", page.dry_run),
        "max_jobs": page.max_jobs,
        "after_id": page.after_id,
    }


def _answers(rows: list[Row]) -> list[JobAnswer]:
    return [JobAnswer(**row | statuses(row, "status_before")) for row in rows]
