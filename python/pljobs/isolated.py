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
import queue
import signal
import socket
import stat
import sys
import threading
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NoReturn

from pljobs import arguments
from pljobs.aborting import AbortFlag, AbortRequest
from pljobs.answers import RunEnd
from pljobs.app import App
from pljobs.endings import Ended, message, run_end
from pljobs.exceptions import JobAborted, LoadFromPathError
from pljobs.frames import READ_AT_MOST, Frames, pack
from pljobs.job_context import JobContext, Progress, current
from pljobs.jobs import AbortReason, DeleteJobCondition, Job
from pljobs.tasks import AnyTask, Task

LINE_LOST = 71
"""The exit status of a process that can't reach its worker any more: its task closed the line."""
UNSENT_AT_MOST = 1000
PROGRESS_EVERY = 0.1
PLAIN = str | int | float | bool | None


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
    line = _Line(sock)
    body = _Body(terminated)
    try:
        # As text at once: this is the worker's memory, for an error of whatever kind.
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
        signal.signal(signal.SIGTERM, self._on_term)

    def run(self, line: _Line) -> dict[str, object]:
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
        )
        current.set(context)
        line.follow(self._flag)
        ended = self._call(context)
        if self._thrown and not self._flag.is_set():
            self._flag.wait(1.0)  # a signal overtakes the message that says why
        return to_wire(run_end(context, ended, delete_jobs=order.delete_jobs), dumps=app.connector.json_dumps)

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

    def _on_term(self, _number: int, _frame: types.FrameType | None) -> None:
        # One that isn't the worker's is the service manager's, which signals all processes of a service at
        # once: whether and when the job stops is the worker's to say.
        if self._terminated[0] and self._runs:
            self._throw()

    def _throw(self) -> None:
        if not self._thrown:
            self._thrown = True
            raise JobAborted("terminated: it had not stopped in time")


class _Line:
    """Hold this process's end of the line: threads of its own send and receive.

    Nothing but putting into a queue happens in the task's thread: a signal's exception must not tear a
    message apart.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._is = os.fstat(sock.fileno())
        self._frames = Frames()
        self._pid = os.getpid()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_all, name="pljobs-sender", daemon=True)
        self._sender.start()

    def send(self, *message: object) -> None:
        """Send a message, which must be JSON; wait while too many are unsent."""
        if os.getpid() != self._pid:
            return  # forked by the task: nobody would take it out
        while self._outbox.qsize() > UNSENT_AT_MOST:
            time.sleep(0.005)
        self._outbox.put(pack(json.dumps(message).encode()))

    def flush(self) -> None:
        """Send what is unsent; nothing can be sent after it."""
        self._outbox.put(None)
        self._sender.join()

    def receive_first(self) -> bytes:
        """Return the first message."""
        while True:
            for payload in self._frames.feed(self._receive()):
                return payload

    def follow(self, flag: AbortFlag) -> None:
        """Raise the flag when the worker says so."""
        threading.Thread(target=self._follow, args=(flag,), name="pljobs-aborts", daemon=True).start()

    def _follow(self, flag: AbortFlag) -> None:
        data = b""  # what came with the order
        while True:
            for payload in self._frames.feed(data):
                abort = pickle.loads(payload)  # noqa: S301 - from the worker
                flag.set(abort.reason, abort.request)
            data = self._receive()

    def _receive(self) -> bytes:
        self._must_be_ours()
        try:
            data = self._sock.recv(READ_AT_MOST)
        except OSError:
            data = b""
        if not data:
            self._must_be_ours()
            _die()
        return data

    def _send_all(self) -> None:
        while (data := self._outbox.get()) is not None:
            self._must_be_ours()
            try:
                self._sock.sendall(data)
            except OSError:
                self._must_be_ours()
                _die()

    def _must_be_ours(self) -> None:
        """End the process if the task has closed the descriptor: what has its number now is the task's."""
        try:
            now = os.fstat(self._sock.fileno())
        except OSError:
            os._exit(LINE_LOST)
        if not stat.S_ISSOCK(now.st_mode) or now.st_ino != self._is.st_ino:
            os._exit(LINE_LOST)


def _die() -> NoReturn:
    """End the process, and its group, for its worker is gone."""
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


class _SentProgress(Progress):
    """Hold how far the task is, and send it, a few times a second at most."""

    def __init__(self, line: _Line) -> None:
        super().__init__()
        self._line = line
        self._timer: threading.Timer | None = None

    def set(self, fraction: float | None, message: str | None) -> None:
        super().set(fraction, message)
        if self._timer is None:
            self._timer = threading.Timer(PROGRESS_EVERY, self._send)
            self._timer.daemon = True
            self._timer.start()

    def _send(self) -> None:
        self._timer = None
        taken = self.take()
        if taken is not None:
            self._line.send("progress", *taken)


class _Forward(logging.Handler):
    """Send log records to the worker."""

    def __init__(self, line: _Line) -> None:
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


def _log_to(line: _Line, levels: Mapping[str, int]) -> None:
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
