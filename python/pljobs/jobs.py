"""What a job is: its statuses, and the row as Python sees it."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from enum import StrEnum

DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 0


def in_one_line(text: str) -> str:
    """Return text that somebody else wrote so that it can't look like a log line of its own."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


class Status(StrEnum):
    """Name where a job is in its life."""

    TODO = "todo"
    DOING = "doing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ABORTED = "aborted"

    @property
    def is_final(self) -> bool:
        """Say whether no worker will touch the job any more."""
        return self not in {Status.TODO, Status.DOING}


class DeleteJobCondition(StrEnum):
    """Say which jobs a worker deletes when they end."""

    NEVER = "never"
    SUCCESSFUL = "successful"
    ALWAYS = "always"


class AbortReason(StrEnum):
    """Say why a running job should stop, strongest first: a stronger reason replaces a weaker one.

    `USER_REQUEST`: somebody asked for it. `RUN_LOST`: this run is no longer the job's (it was forced to end,
    or rescued while its worker seemed dead), so that whatever it does will not be recorded. `DEADLINE`: it
    ran longer than its timeout. `LEASE`: its worker can't reach the database, so that another one may soon
    start the job; it will run again. `SHUTDOWN`: the worker stops; the job will run again.
    """

    USER_REQUEST = "user_request"
    RUN_LOST = "run_lost"
    DEADLINE = "deadline"
    LEASE = "lease"
    SHUTDOWN = "shutdown"

    @property
    def will_run_again(self) -> bool:
        """Say whether it is about the worker, not about the job."""
        return self in {AbortReason.LEASE, AbortReason.SHUTDOWN}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Hold one job as it was when it was read; a copy, which changes nothing.

    `repr()` and `log_context()` never show what is in the job: arguments, result, error, messages.
    `attempts` counts the runs that ended: 0 while the job runs for the first time, as in procrastinate (the
    view, for people, counts the starts). `args_error` says why the arguments could not be read; they are
    then empty. `timeout`: how long a run may take, and `grace` how long it then has to stop; `start_by`:
    when it is cancelled if it has not started; `parent_id`: the job that deferred it; `on_cancelled`: the
    task that runs after it was cancelled or aborted; `fairness_key`: with which others it takes turns;
    `progress` and `progress_message`: what the task said last of how far it is.
    """

    id: int | None = None
    status: Status | None = None
    queue: str = DEFAULT_QUEUE
    priority: int = DEFAULT_PRIORITY
    lock: str | None = None
    queueing_lock: str | None = None
    task_name: str
    task_kwargs: dict[str, object] = dataclasses.field(default_factory=dict, repr=False, hash=False)
    scheduled_at: datetime | None = None
    scheduled_in: timedelta | None = None
    start_by: datetime | None = None
    start_within: timedelta | None = None
    timeout: timedelta | None = None
    grace: timedelta | None = None
    on_cancelled: str | None = None
    parent_id: int | None = None
    fairness_key: str | None = None
    attempts: int = 0
    abort_requested: bool = False
    worker_id: int | None = None
    run_id: int | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    waiting_for: str | None = None
    crashes: int = 0
    progress: float | None = None
    progress_message: str | None = dataclasses.field(default=None, repr=False)
    message: str | None = dataclasses.field(default=None, repr=False)
    error: str | None = dataclasses.field(default=None, repr=False)
    result: object = dataclasses.field(default=None, repr=False, hash=False)
    args_error: str | None = None

    def evolve(self, **changes: object) -> Job:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    @property
    def call_string(self) -> str:
        """Name the job for a log line: the task and the id, never the arguments."""
        return f"{in_one_line(self.task_name)}[{self.id}]"

    def log_context(self) -> dict[str, object]:
        """Return what a log record may say of this job: ids, names and times, never the arguments."""
        shown = (
            "id", "run_id", "status", "queue", "priority", "lock", "queueing_lock", "task_name", "attempts",
            "worker_id", "parent_id",
        )  # fmt: skip
        context: dict[str, object] = {name: getattr(self, name) for name in shown}
        context["scheduled_at"] = self.scheduled_at.isoformat() if self.scheduled_at else None
        context["job_id"] = self.id
        context["call_string"] = self.call_string
        return context
