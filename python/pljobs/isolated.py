"""What runs in an isolated job's own process: its task, and its line to the worker."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import logging
import mmap
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NoReturn

from pljobs import arguments
from pljobs.aborting import AbortFlag, AbortRequest
from pljobs.answers import RunEnd
from pljobs.app import App
from pljobs.endings import Ended, message, run_end
from pljobs.exceptions import JobAborted, LoadFromPathError
from pljobs.frames import OwnLine
from pljobs.job_context import JobContext, Latest, Progress, current
from pljobs.jobs import AbortReason, DeleteJobCondition, Job
from pljobs.signals import Shared
from pljobs.tasks import AnyTask, Task

PROGRESS_EVERY = 0.1
PLAIN = str | int | float | bool | None

_terms = Shared(signal.SIGTERM)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Say what to run; the first message on the line, pickled.

    `function`: module and qualified name; `app`: where to find the app, if it is known; `context`: the
    additional context, each value pickled; `levels`: of the worker's loggers, by name.
    """

    job: Job
    function: tuple[str, str]
    app: tuple[str, str] | None
    worker_name: str | None
    worker_id: int | None
    worker_queues: Sequence[str] | None
    context: Mapping[str, bytes]
    start_timestamp: float
    delete_jobs: DeleteJobCondition
    address: tuple[str, Mapping[str, object]]
    levels: Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Abort:
    """Say why to stop; what every further message on the line is, pickled."""

    reason: AbortReason
    request: AbortRequest | None


def main(sock: socket.socket, terminated: mmap.mmap) -> NoReturn:
    """Run the job that the worker orders, report its end, and end this process.

    `terminated` holds one byte, which is set before a SIGTERM of the worker's.
    """
    pid = os.getpid()
    line = OwnLine(sock)
    body = _Body(terminated)
    try:
        with _terms.heard_by(body.on_term):
            report = body.run(line)
    except BaseException as error:  # noqa: BLE001 - what can't be run is reported, too
        report = {"outcome": "failed", "message": message(error), "error": traceback.format_exc()}
    if os.getpid() == pid:  # else the task has forked, and this is not the job's process
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        line.send("end", report)
        line.flush()
    # With all its threads; the nursery kills the rest of the group.
    os._exit(0)


class _Body:
    """Call the task; be the target of SIGTERM as long as it runs."""

    def __init__(self, terminated: mmap.mmap) -> None:
        self._terminated = terminated
        self._flag = AbortFlag()
        self._runs = False
        self._thrown = False

    def run(self, line: OwnLine) -> dict[str, object]:
        """Return what to report."""
        order = pickle.loads(line.receive_first())  # noqa: S301 - from the worker
        if not isinstance(order, Order):
            raise TypeError("no order")
        _log_to(line, order.levels)
        task, app = find_task(order)
        app.connector.serve_alone(*order.address)
        context = JobContext(
            app=app,
            job=order.job,
            task=task,
            worker_name=order.worker_name,
            worker_id=order.worker_id,
            worker_queues=order.worker_queues,
            additional_context={name: pickle.loads(value) for name, value in order.context.items()},  # noqa: S301
            start_timestamp=order.start_timestamp,
            abort_flag=self._flag,
            reported_progress=_SentProgress(line),
            sql_way=_SentWay(line),
        )
        current.set(context)
        line.follow(self._heard)
        ended = self._call(context)
        if self._thrown and not self._flag.is_set():
            self._flag.wait(1.0)  # a signal overtakes the message that says why
        return to_wire(run_end(context, ended, delete_jobs=order.delete_jobs), dumps=app.connector.json_dumps)

    def _heard(self, payload: bytes) -> None:
        abort = pickle.loads(payload)  # noqa: S301 - from the worker
        self._flag.set(abort.reason, abort.request)

    def _call(self, context: JobContext) -> Ended:
        args = (context,) if context.task.pass_context else ()
        try:
            try:
                self._runs = True
                if self._terminated[0]:
                    self._throw()  # it came before this process could listen
                value = context.task.func(*args, **context.job.task_kwargs)
                self._runs = False
                return Ended(value)
            except BaseException as error:  # noqa: BLE001 - SystemExit, KeyboardInterrupt, JobAborted, too
                self._runs = False
                return Ended(exception=error)
        except JobAborted as error:  # thrown just outside of the body; only one ever is
            self._runs = False
            return Ended(exception=error)

    def on_term(self, _number: signal.Signals) -> None:
        """Stop the task, if that is what the worker wants."""
        # One that isn't the worker's is the service manager's, which signals all processes of a service at
        # once: whether and when the job stops is the worker's to say.
        if self._terminated[0] and self._runs:
            self._throw()

    def _throw(self) -> None:
        if not self._thrown:
            self._thrown = True
            raise JobAborted("terminated: it had not stopped in time")


class _SentProgress(Latest[Progress]):
    """Hold how far the task is, and send it, a few times a second at most."""

    def __init__(self, line: OwnLine) -> None:
        super().__init__()
        self._line = line
        self._timer: threading.Timer | None = None

    def set(self, value: Progress) -> None:
        super().set(value)
        if self._timer is None:
            self._timer = threading.Timer(PROGRESS_EVERY, self._send)
            self._timer.daemon = True
            self._timer.start()

    def _send(self) -> None:
        self._timer = None
        if (taken := self.take()) is not None:
            self._line.send("progress", *taken)


class _SentWay(Latest[str]):
    """Send at once how the job's SQL can be cancelled."""

    def __init__(self, line: OwnLine) -> None:
        super().__init__()
        self._line = line

    def set(self, value: str) -> None:
        self._line.send("sql_way", value)


class _Forward(logging.Handler):
    """Send log records to the worker."""

    def __init__(self, line: OwnLine) -> None:
        super().__init__()
        self._line = line
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = dict(vars(record)) | {"msg": record.getMessage(), "args": None, "exc_info": None}
            if record.exc_info and not record.exc_text:
                fields["exc_text"] = self._formatter.formatException(record.exc_info)
            self._line.send("log", {name: _plain(value) for name, value in fields.items()})
        except Exception:  # noqa: BLE001 - as every handler of logging
            self.handleError(record)


def _plain(value: object) -> object:
    """Return what JSON holds as it is, anything else as text."""
    if isinstance(value, PLAIN):
        return value
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return str(value)
    return value


def _log_to(line: OwnLine, levels: Mapping[str, int]) -> None:
    """Send what is logged to the worker alone, which has the handlers; log what it would."""
    known = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    for logger in known:
        logger.handlers.clear()
        logger.propagate, logger.disabled = True, False
        logger.setLevel(logging.NOTSET)
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)
    logging.root.handlers[:] = [_Forward(line)]


def find_task(order: Order) -> tuple[AnyTask, App]:
    """Return the task and its app; raises `LoadFromPathError` where they are not found by their names."""
    module, name = order.function
    found = _attribute(module, name)
    if not isinstance(found, Task) and order.app is not None:
        app = _attribute(*order.app)
        found = app.tasks.get(order.job.task_name) if isinstance(app, App) else None
    if not isinstance(found, Task):
        raise LoadFromPathError(
            f"{module}.{name} is not the task in the process of an isolated job: what imports {module} must"
            " find the task under the name of its function"
        )
    return found, found.blueprint.bound_to()


def _attribute(module: str, name: str) -> object:
    try:
        return reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise LoadFromPathError(f"can't import {module}.{name} in a process of its own: {error}") from error


def to_wire(end: RunEnd, *, dumps: arguments.JsonDumps | None) -> dict[str, object]:
    """Return the end of a run as JSON, without what the worker knows; the result as JSON text."""
    result, problem = arguments.encode_result(end.result, dumps)
    fields = {field.name: getattr(end, field.name) for field in dataclasses.fields(end)}
    del fields["job_id"], fields["run_id"]
    return fields | {
        "result": result,
        "message": arguments.clip_text(end.message or problem, arguments.MAX_MESSAGE),
        "error": arguments.clip_text(end.error, arguments.MAX_ERROR),
        "retry_at": None if end.retry_at is None else end.retry_at.isoformat(),
        "retry_in": None if end.retry_in is None else end.retry_in.total_seconds(),
    }
