"""What a call is, and what the SQL functions answer, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Generic, Literal, TypeVar

from pljobs.jobs import Status

T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")
Row = dict[str, Any]

CancelOutcome = Literal[
    "cancelled", "deleted", "abort_requested", "abort_already_requested", "aborted", "running",
    "already_cancelled", "already_finished", "not_found",
]  # fmt: skip
SqlWay = Literal["server", "asked", "busy", "none"]
STOPPING = {"cancelled", "deleted", "abort_requested", "abort_already_requested", "aborted"}
Outcome = Literal["succeeded", "failed", "aborted", "interrupted", "unstarted", "killed", "abandoned"]
FinishStatus = Literal["succeeded", "failed", "aborted", "todo", "deleted", "stale", "not_found", "locked"]


@dataclasses.dataclass(frozen=True, slots=True)
class Call(Generic[T_co]):
    """State a statement, its parameters by name, and how to read its rows, mappings of columns. No I/O."""

    statement: str
    params: Mapping[str, object] = dataclasses.field(repr=False)
    read: Callable[[list[Row]], T_co]

    def then(self, change: Callable[[T_co], U]) -> Call[U]:
        """Return the same call, its answer changed by a function."""
        read = self.read
        return Call(self.statement, self.params, lambda rows: change(read(rows)))


@dataclasses.dataclass(frozen=True, slots=True)
class Pruned:
    """Tell how many rows a prune has taken away, and where the next one goes on."""

    pruned: int
    reached_at: datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class CancelResult:
    """Tell what became of a request to cancel; true where the job is, or is asked to be, stopped.

    `sql_way`, where the cancelling of the running job's SQL was asked for: its statement was cancelled
    (`server`); its worker will do it, for the database may not (`asked`); it is tried again (`busy`); it was
    in none that can be cancelled, and is looked at again (`none`).
    """

    outcome: CancelOutcome
    status_before: Status | None = None
    status_after: Status | None = None
    request_id: int | None = None
    worker_id: int | None = None
    run_id: int | None = None
    sql_way: SqlWay | None = None

    def __bool__(self) -> bool:
        return self.outcome in STOPPING


@dataclasses.dataclass(frozen=True, slots=True)
class DeleteResult:
    """Tell whether a job was deleted; `status` is the one it had."""

    outcome: Literal["deleted", "todo", "running", "not_found"]
    status: Status | None = None

    def __bool__(self) -> bool:
        return self.outcome == "deleted"


@dataclasses.dataclass(frozen=True, slots=True)
class RetryResult:
    """Tell whether a job will run again; `status` is the one it had."""

    outcome: Literal["requeued", "todo", "running", "succeeded", "not_found"]
    status: Status | None = None

    def __bool__(self) -> bool:
        return self.outcome == "requeued"


@dataclasses.dataclass(frozen=True, slots=True)
class JobAnswer:
    """Tell what became of one of many jobs, or would (`would_...`, `running`), where it is only shown.

    `changed`, `not_found`: it matched until it was locked, and was left alone; true where something was done.
    """

    job_id: int
    queue: str | None
    task: str | None
    status_before: Status | None
    outcome: Literal[
        "cancelled", "deleted", "abort_requested", "abort_already_requested", "aborted", "requeued",
        "running", "changed", "not_found",
        "would_cancel", "would_delete", "would_abort", "would_force", "would_requeue",
    ]  # fmt: skip

    def __bool__(self) -> bool:
        left_alone = self.outcome in {"running", "changed", "not_found"}
        return not left_alone and not self.outcome.startswith("would_")


@dataclasses.dataclass(frozen=True, slots=True)
class TreeAnswer:
    """Tell what became of one job of a tree, or would (`would_...`), where it is only shown.

    `parent_id`: the job inside of which it was deferred. True where it was stopped, or asked to stop.
    """

    job_id: int
    parent_id: int | None
    queue: str
    task: str
    status_before: Status
    outcome: Literal[
        "cancelled", "deleted", "abort_requested", "abort_already_requested", "aborted", "running",
        "already_cancelled", "already_finished", "would_cancel", "would_delete", "would_abort", "would_force",
    ]  # fmt: skip

    def __bool__(self) -> bool:
        return self.outcome in STOPPING


@dataclasses.dataclass(frozen=True, slots=True)
class RescindResult:
    """Tell whether a request was taken back; `request_id` is the one that is, or was, open."""

    outcome: Literal["rescinded", "already_delivered", "no_request", "not_found"]
    request_id: int | None = None

    def __bool__(self) -> bool:
        return self.outcome == "rescinded"


@dataclasses.dataclass(frozen=True, slots=True)
class PeriodicResult:
    """Tell what became of one tick of a periodic task."""

    outcome: Literal["deferred", "already_deferred", "already_enqueued"]
    job_id: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """Tell what a heartbeat answers for one run: go on, abort (and who asked), kill, or lost.

    `level`: how far the abort has got (0: none, 1: asked, 2: cancel its SQL, 3: terminate, 4: kill);
    `look_in`: when to ask about this run again, at the latest. `sql_way`: how its SQL is cancelled, `asked`
    where the worker has to. `term_at`: when level 3 begins.
    """

    run_id: int
    job_id: int | None
    verdict: Literal["ok", "abort", "kill", "lost"]
    level: int = 0
    look_in: timedelta | None = None
    sql_way: str | None = None
    request_id: int | None = None
    source: Literal["user", "tree", "deadline"] | None = None
    requested_by: str | None = None
    actor: str | None = None
    reason: str | None = None
    requested_at: datetime | None = None
    term_at: datetime | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Tell what a worker sees of one of its runs, for a heartbeat to take along; None: nothing to tell.

    `handling`: what the task does with its abort; `sql_way`: how the worker cancelled its SQL, or why it
    could not; `progress`: how far the task says that it is, from 0 to 1, and a text.
    """

    job_id: int
    run_id: int
    handling: Literal["handling", "swallowed"] | None = None
    sql_way: str | None = None
    progress: tuple[float | None, str | None] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """Report how one run ended. Whatever it carries, it can be sent: what doesn't fit is cut or left out."""

    job_id: int
    run_id: int
    outcome: Outcome
    result: object = None
    message: str | None = None
    error: str | None = None
    retry_at: datetime | None = None
    retry_in: timedelta | None = None
    retry_queue: str | None = None
    retry_priority: int | None = None
    retry_lock: str | None = None
    delete_job: bool = False
    sql_cancelled: bool = False
    progress: tuple[float | None, str | None] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class FinishAnswer:
    """Tell what the database wrote for one finished run."""

    job_id: int
    run_id: int
    status: FinishStatus


@dataclasses.dataclass(frozen=True, slots=True)
class LimitAnswer:
    """Tell what was done about a job that is over one of its limits."""

    job_id: int
    outcome: Literal["expired", "abort_requested", "sql_cancelled"]


@dataclasses.dataclass(frozen=True, slots=True)
class RescueAnswer:
    """Tell what became of one job whose worker was lost."""

    job_id: int
    outcome: Literal["todo", "failed", "aborted", "deleted"]


def statuses(row: Row, *columns: str) -> dict[str, Status | None]:
    """Read these columns of a row as statuses."""
    return {column: None if row[column] is None else Status(row[column]) for column in columns}


def length(seconds: Decimal | None) -> timedelta | None:
    """Read a length. Asked for in seconds: an interval is written in the server's IntervalStyle."""
    # Nor as a float8, of which extra_float_digits may leave one digit.
    return None if seconds is None else timedelta(microseconds=int(seconds * 1_000_000))
