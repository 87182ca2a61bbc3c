"""The run of an isolated job, seen from the worker."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import json
import logging
import os
import pickle
import signal
import socket
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import cast, get_args

from pljobs.answers import Outcome, RunEnd
from pljobs.careful import careful_logger
from pljobs.endings import Ended, with_retry
from pljobs.exceptions import JobTimeout, ProcessDied
from pljobs.frames import LINE_LOST, MAX_FRAME, Garbled, Line
from pljobs.isolated import Abort, Order
from pljobs.isolation import Processes
from pljobs.job_context import JobContext, current
from pljobs.jobs import AbortReason, DeleteJobCondition
from pljobs.run import LAST_WORDS, SHUTDOWN_GRACE, VOID_GRACE, OnEnd, Run

logger = careful_logger(__name__)

# Seconds for a process to stop on SIGTERM, and to die of SIGKILL.
DEATH_TAKES = 5.0
OUTCOMES: tuple[str, ...] = get_args(Outcome)
OPTIONAL_TEXT = ("message", "error", "retry_queue", "retry_lock")


class IsolatedRun(Run):
    """Run a task's function in a process of its own."""

    killable = True
    standstill = LAST_WORDS + DEATH_TAKES

    def __init__(
        self,
        context: JobContext,
        *,
        processes: Processes,
        delete_jobs: DeleteJobCondition,
        on_end: OnEnd,
    ) -> None:
        super().__init__(context, on_end=on_end)
        if self.job.id is None or self.job.run_id is None:
            raise ValueError(f"{self.job.call_string} is not a run: it has no id")
        self.job_id, self.run_id = self.job.id, self.job.run_id
        self._processes = processes
        self._delete_jobs = delete_jobs
        self._loop = asyncio.get_running_loop()
        self._environment = contextvars.copy_context()
        self._environment.run(current.set, context)
        self._line: Line | None = None
        self._order = b""
        self._has_process = False
        self._signal: Callable[[str], None] = lambda _how: None
        self._told: Abort | None = None
        self._forced: str | None = None
        self._unwanted: set[AbortReason] = set()
        self._timers: list[asyncio.TimerHandle] = []
        self._report: RunEnd | None = None
        self._trouble: str | None = None

    def start(self) -> None:
        """Start a process; raises what pickle does of what it is sent, ValueError if that is too large."""
        self._order = self._pickled(self._made_order())
        try:
            ours, theirs = socket.socketpair()
            self._line = Line(ours, on_payload=self._heard, on_end=self._hung_up)
            self._signal = self._processes.begin(self, theirs)
        except OSError as error:
            self.lack("process", error)

    def process_started(self) -> None:
        """Tell the process what to do, now that there is one: until then, nothing can have been done."""
        if self._line is None or self.ended:
            return  # it will find its line closed, and end
        if self.context.should_abort():  # the control thread has heard of it already
            self.end_unstarted()
            return
        self._has_process = True
        self._line.send(self._order)
        self._order = b""

    def process_ended(self, status: int) -> None:
        """Take note that the process, and all that it had started, is dead; `status` as wait gives it."""
        self.died(described(status))

    def died(self, how: str, *, is_unfit: bool = False) -> None:
        """End the run, whose process is gone: as it has reported, else by how it died.

        One that never had a process goes back, unless none can be made for it (`is_unfit`).
        """
        if self._line is not None:
            self._line.drain()  # its report may have come by the other way, and not been read yet
        how, reason = self._trouble or how, self.context.abort_reason()
        if self._report is not None:
            self.finish(self._report)
        elif not self._has_process and not is_unfit:
            self.lack("process", how)
        elif self._forced is None:
            hint = " (out of memory?)" if how == "killed by SIGKILL" else ""
            self.finish(Ended(exception=ProcessDied(f"{how}{hint}")))
        else:
            end = RunEnd(
                job_id=self.job_id,
                run_id=self.run_id,
                outcome="interrupted" if reason is not None and reason.will_run_again else "killed",
                message=f"{self._forced} ({how})",
                delete_job=self._delete_jobs == DeleteJobCondition.ALWAYS,
                progress=self.context.reported_progress.last(),
            )
            if reason is AbortReason.DEADLINE:
                error = JobTimeout(f"job {self.job_id} ran longer than its timeout")
                end = with_retry(end, self.context, error)
            self.finish(end)

    def finish(self, ended: Ended | RunEnd) -> None:
        """Report the end, once, and close the line: a process that is left, given up, ends by that."""
        if self._line is not None:
            self._line.close()
        for timer in self._timers:
            timer.cancel()  # each would keep the run, and what it returned
        super().finish(ended)

    @property
    def begun(self) -> bool:
        """Say whether it has a process: the nursery may be importing for a long time."""
        return self._has_process

    def _stop(self, reason: AbortReason) -> None:
        flag = self.context.abort_flag
        abort = Abort(flag.reason or reason, flag.request)
        if self._line is not None and abort != self._told:
            self._told = abort
            self._line.send(pickle.dumps(abort))
        graces = {AbortReason.RUN_LOST: VOID_GRACE, AbortReason.SHUTDOWN: SHUTDOWN_GRACE}
        if reason in graces and reason not in self._unwanted:
            # Another run of the job may have begun, or will.
            self._unwanted.add(reason)
            self._later(graces[reason], self._terminate)
            self._later(graces[reason] + DEATH_TAKES, self._kill)

    def _terminate(self) -> None:
        self._forced = self._forced or "terminated: it had not stopped in time"
        self._signal("term")

    def _kill(self) -> None:
        self._forced = "killed: it had not stopped in time"
        self._signal("kill")
        self._later(DEATH_TAKES, self._give_up)

    def _give_up(self) -> None:
        if self._report is not None:
            self.finish(self._report)
        else:
            self.abandon()

    def _heard(self, payload: bytes) -> None:
        try:
            match json.loads(payload):
                case ["log", dict(fields)]:
                    self._log(fields)
                case ["progress", (float() | int() | None) as fraction, (str() | None) as message]:
                    self.context.progress(fraction, message)
                case ["sql_way", ("none" | "pooled" | "denied" | "busy") as way]:
                    self.context.sql_way.set(way)
                case ["end", dict(fields)]:
                    if isinstance(progress := fields.get("progress"), list):
                        self.context.progress(*progress)
                    self._report = dataclasses.replace(
                        _end_from(fields, self.job_id, self.run_id),
                        progress=self.context.reported_progress.last(),
                    )
                    # It ends now, unless something holds it.
                    self._later(DEATH_TAKES, self._end_at_last)
                case _:
                    raise Garbled("an unknown message")
        except RecursionError:  # what was logged; a result is never so deep
            logger.warning("A message of job %s is nested too deep, and lost", self.job.call_string)
        except (ValueError, TypeError) as error:
            raise Garbled(str(error)) from error

    def _hung_up(self, garbled: Garbled | None) -> None:
        if garbled is not None:
            self._trouble = f"killed: it had sent its worker what is no message ({garbled})"
            self._signal("kill")
        # Else it is about to be seen dead, or has closed its line by mistake, and is left to end.

    def _end_at_last(self) -> None:
        self._signal("kill")
        self._later(DEATH_TAKES, self._give_up)

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self._timers.append(self._loop.call_later(seconds, what))

    def _log(self, fields: Mapping[str, object]) -> None:
        if not isinstance(fields.get("name"), str) or not isinstance(fields.get("levelno"), int):
            raise Garbled("no log record")
        job = self.job  # the ids as logs.JobLogFilter adds them
        ids = {"job_id": job.id, "run_id": job.run_id, "task_name": job.task_name}
        record = logging.makeLogRecord({**ids, **fields})
        log = logging.getLogger(record.name)
        if log.isEnabledFor(record.levelno):
            try:
                self._environment.run(log.handle, record)
            except Exception:  # an application's handler or filter
                logger.exception("A log record of job %s can't be handled", self.job.call_string)

    def _pickled(self, order: Order) -> bytes:
        pickled = pickle.dumps(order)
        if len(pickled) > MAX_FRAME:
            sizes = {f"additional_context[{name!r}]": len(value) for name, value in order.context.items()}
            sizes["what the job was deferred with"] = len(pickle.dumps(order.job))
            largest = max(sizes, key=lambda name: sizes[name])
            raise ValueError(
                f"an isolated job's process is sent {_mib(MAX_FRAME)} at most, not {_mib(len(pickled))}:"
                f" {largest} is {_mib(sizes[largest])}; pass where it is, and load it in the task"
            )
        return pickled

    def _made_order(self) -> Order:
        function, context = self.task.func, self.context
        known = list(logging.root.manager.loggerDict.values())  # first: threads may make more at any moment
        loggers = [log for log in known if isinstance(log, logging.Logger)]
        return Order(
            job=self.job,
            function=(function.__module__, function.__qualname__),
            app=self._processes.place_of(self.task.blueprint.bound_to()),
            worker_name=context.worker_name,
            worker_id=context.worker_id,
            worker_queues=context.worker_queues,
            context=self._processes.pickled_context,
            start_timestamp=context.start_timestamp,
            delete_jobs=self._delete_jobs,
            address=context.app.connector.address(),
            levels={"": logging.root.level, **{log.name: log.level for log in loggers if log.level}},
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def described(status: int) -> str:
    """Say how a process died that has not reported; `status` as wait gives it."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:  # a real-time signal
            name = f"signal {number}"
        return f"killed by {name}"
    code = os.WEXITSTATUS(status)
    why = " (it had closed its line to the worker)" if code == LINE_LOST else ""
    return f"exited with status {code} without a result{why}"


def _end_from(fields: Mapping[str, object], job_id: int, run_id: int) -> RunEnd:
    """Read what `isolated.to_wire` wrote; raises `Garbled` for anything else."""
    outcome, result = fields.get("outcome"), fields.get("result")
    retry_at, retry_in = fields.get("retry_at"), fields.get("retry_in")
    priority = fields.get("retry_priority")
    if (
        outcome not in OUTCOMES
        or not isinstance(result, str | None)
        or not isinstance(retry_at, str | None)
        or not isinstance(retry_in, float | None)
        or not isinstance(priority, int | None)
        or not all(isinstance(fields.get(name), str | None) for name in OPTIONAL_TEXT)
    ):
        raise Garbled("no end of a run")
    text = {name: cast("str | None", fields.get(name)) for name in OPTIONAL_TEXT}
    return RunEnd(
        job_id=job_id,
        run_id=run_id,
        outcome=cast("Outcome", outcome),
        result=None if result is None else json.loads(result),
        message=text["message"],
        error=text["error"],
        retry_at=None if retry_at is None else datetime.fromisoformat(retry_at),
        retry_in=None if retry_in is None else timedelta(seconds=retry_in),
        retry_queue=text["retry_queue"],
        retry_priority=priority,
        retry_lock=text["retry_lock"],
        delete_job=fields.get("delete_job") is True,
        sql_cancelled=fields.get("sql_cancelled") is True,
    )
