"""What a task may know of the job that it runs, and whether it should stop."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pljobs.jobs import AbortReason, Job

if TYPE_CHECKING:
    from pljobs.app import App
    from pljobs.tasks import Task

STRENGTH = {reason: strength for strength, reason in enumerate(reversed(AbortReason))}


class AbortFlag:
    """Carry from the worker to the task why it should stop; raised from any thread, never lowered."""

    def __init__(self) -> None:
        self._raised = threading.Event()
        self._lock = threading.Lock()
        self._reason: AbortReason | None = None

    def set(self, reason: AbortReason) -> bool:
        """Raise the flag; say whether that changed the reason: only a stronger one replaces another."""
        with self._lock:
            if self._reason is not None and STRENGTH[self._reason] >= STRENGTH[reason]:
                return False
            self._reason = reason
        self._raised.set()
        return True

    def is_set(self) -> bool:
        """Say whether the flag is up."""
        return self._raised.is_set()

    @property
    def reason(self) -> AbortReason | None:
        """Return the strongest reason so far."""
        return self._reason

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until the flag is up, at most `timeout` seconds; say whether it is."""
        return self._raised.wait(timeout)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """Know the job, its task, app and worker; the first argument of tasks with `pass_context=True`.

    `start_timestamp` is the time of the start, in seconds as `time.time()` gives. `additional_context` holds
    what `run_worker(additional_context=...)` was given. Follows procrastinate's class of the same name.
    """

    app: App
    job: Job
    task: Task[..., object, ...]
    worker_name: str | None = None
    worker_id: int | None = None
    worker_queues: Sequence[str] | None = None
    additional_context: Mapping[str, object] = dataclasses.field(default_factory=dict, repr=False)
    start_timestamp: float = dataclasses.field(default_factory=time.time)
    abort_flag: AbortFlag = dataclasses.field(default_factory=AbortFlag, repr=False)

    @property
    def worker(self) -> str | None:
        """Return the worker's name."""
        return self.worker_name

    def should_abort(self) -> bool:
        """Say whether the task should stop, for whatever reason; once True, it stays True."""
        return self.abort_flag.is_set()

    def abort_reason(self) -> AbortReason | None:
        """Say why the task should stop; None while it should go on."""
        return self.abort_flag.reason

    def evolve(self, **changes: object) -> JobContext:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
