"""One run of one job: starts the task, delivers its abort, and tells how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import logging
import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeGuard

from pljobs import logs
from pljobs.answers import Outcome, RunEnd, Verdict
from pljobs.exceptions import JobAborted
from pljobs.jobs import AbortReason, DeleteJobCondition, Job
from pljobs.observed import Observed

if TYPE_CHECKING:
    from pljobs.job_context import JobContext
    from pljobs.tasks import Task
    from pljobs.threads import Threads

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """What the body did: returned a value, or raised."""

    value: object = None
    exception: BaseException | None = None


class Run:
    """Run a task's function for a job, and report its end, once, to `on_end`.

    The end is told by callbacks, not by a coroutine around the body: there is nothing that a stray cancel
    could hit between the end of the body and its report.
    """

    def __init__(
        self,
        job: Job,
        task: Task[..., object, ...],
        context: JobContext,
        *,
        threads: Threads,
        on_end: Callable[[Run, Ended], None],
    ) -> None:
        self.job = job
        self.task = task
        self.context = context
        self.request: Verdict | None = None
        self.swallowed = False
        self.ended = False
        self._threads = threads
        self._on_end = on_end
        self._observed: Observed[Ended] | None = None
        self._body: asyncio.Task[Ended] | None = None
        self._in_body = False
        self._cancelled = False
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()

    def start(self) -> None:
        """Start the task: a coroutine function in the event loop, anything else in a thread."""
        args = (self.context,) if self.task.pass_context else ()
        call = functools.partial(self.task.func, *args, **self.job.task_kwargs)
        if is_async(self.task.func):
            self._await(call)
        else:
            self._threads.submit(functools.partial(_call, call), self._returned)

    def abort(self, reason: AbortReason, request: Verdict | None = None) -> None:
        """Ask the task to stop: `should_abort()` turns true, and an async task is cancelled, once.

        In the event loop's thread. Asking again, for whatever reason, never cancels a second time: that would
        break a task that is shielding its last words.
        """
        if self.ended:
            return
        self.context.abort_flag.set(reason)
        if self.request is None and request is not None:
            self.request = request
            logs.asked_to_stop(self.job, request)
        self._cancel()

    @property
    def handling(self) -> bool:
        """Say whether an async task is handling its abort right now."""
        observed = self._observed  # read once: the control thread asks, too
        return observed is not None and observed.handling

    def _cancel(self) -> None:
        # A task that is cancelled before its first step runs no line, not even a `finally`: wait until it is
        # in its body.
        if self._in_body and not self._cancelled and self._body is not None and self._observed is not None:
            self._cancelled = True
            self._observed.expect_abort()
            self._body.cancel()

    def _await(self, call: Callable[[], object]) -> None:
        self._observed = Observed(self._guarded(call), self._swallowed)
        self._body = self._loop.create_task(self._observed, name=f"pljobs {self.job.call_string}")
        self._body.add_done_callback(self._body_done)

    async def _guarded(self, call: Callable[[], object]) -> Ended:
        # Catches what asyncio would let through to the event loop: SystemExit and KeyboardInterrupt in a
        # task.
        self._in_body = True
        if self.context.should_abort():
            self._loop.call_soon(self._cancel)
        try:
            value = call()
            return Ended(await value if _is_awaitable(value) else value)
        except BaseException as error:  # noqa: BLE001
            return Ended(exception=error)
        finally:
            self._in_body = False

    def _returned(self, ended: Ended) -> None:
        # A partial, a method or a callable object may return an awaitable: what came back tells, not what was
        # called.
        value = ended.value
        if _is_awaitable(value):
            self._await(lambda: value)
        else:
            self.finish(ended)

    def _body_done(self, body: asyncio.Task[Ended]) -> None:
        # Cancelled before its first step, by somebody who cancels every task there is.
        self.finish(Ended(exception=asyncio.CancelledError()) if body.cancelled() else body.result())

    def _swallowed(self) -> None:
        # Called when the abort dies, be it swallowed or because the body ended with it; by the garbage
        # collector perhaps, so that nothing may happen here but a note for the event loop.
        if self._in_body:
            self.swallowed = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                self._loop.call_soon_threadsafe(self._log_swallowed)
            if self._body is not None and threading.get_ident() == self._thread_id:
                # The task goes on as if never cancelled: else its own timeouts and task groups would mistake
                # this for theirs.
                self._body.uncancel()

    def _log_swallowed(self) -> None:
        logs.swallowed(self.job)

    def finish(self, ended: Ended) -> None:
        """Report the end, once, and let go of the body: else a failed job's locals stay in memory."""
        if not self.ended:
            self.ended = True
            self._body = self._observed = None
            self._on_end(self, ended)


def _is_awaitable(value: object) -> TypeGuard[Awaitable[object]]:
    try:
        return inspect.isawaitable(value)
    except Exception:  # noqa: BLE001 - an object that can't even be looked at
        return False


def is_async(function: Callable[..., object]) -> bool:
    """Say whether calling this only makes a coroutine, so that it may be called in the event loop."""
    while isinstance(function, functools.partial):
        function = function.func
    # An object's __call__ may be a coroutine function, too.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def run_end(run: Run, ended: Ended, *, delete_jobs: DeleteJobCondition) -> RunEnd:
    """Say what to report: facts only, what was delivered and what the body raised; SQL decides the rest."""
    error, job = ended.exception, run.job
    if job.id is None or job.run_id is None:
        raise ValueError(f"{job.call_string} is not a run: it has no id")
    end = RunEnd(job_id=job.id, run_id=job.run_id, outcome=outcome(run, error))
    if error is None:
        delete = delete_jobs != DeleteJobCondition.NEVER
        return dataclasses.replace(end, result=ended.value, delete_job=delete)
    end = dataclasses.replace(
        end,
        message=message(error),
        error=None if end.outcome in {"aborted", "interrupted"} else trace(error),
        delete_job=delete_jobs == DeleteJobCondition.ALWAYS,
    )
    # Neither a Ctrl-C that hit a task nor a sys.exit() is a reason to run it again, at once and for ever.
    final = end.outcome == "interrupted" or isinstance(error, SystemExit | KeyboardInterrupt)
    return end if final else _with_retry(end, run, error)


def outcome(run: Run, error: BaseException | None) -> Outcome:
    """Classify the end of a body."""
    if error is None:
        return "succeeded"
    if isinstance(_stop_in(error), JobAborted | asyncio.CancelledError):
        stopped_by_shutdown = run.context.abort_reason() is AbortReason.SHUTDOWN
        return "interrupted" if stopped_by_shutdown else "aborted"
    return "failed"


def _stop_in(error: BaseException) -> BaseException:
    """Return the first abort of a group of nothing but aborts, as a TaskGroup raises; else the error."""
    if isinstance(error, BaseExceptionGroup) and error.split((JobAborted, asyncio.CancelledError))[1] is None:
        return _stop_in(error.exceptions[0])
    return error


def message(error: BaseException) -> str | None:
    """Return one line on how the body ended: an abort's own message, else the exception's type and text."""
    error = _stop_in(error)
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - an exception class, or an argument of one, with a broken __str__
        text = "(its text can't be had)"
    if isinstance(error, JobAborted | asyncio.CancelledError):
        return text or None
    if not isinstance(error, Exception):
        text = f"{text} (a task can't end its worker)"
    return f"{type(error).__name__}: {text}".split("\n", 1)[0]


def trace(error: BaseException) -> str:
    """Return the traceback as text, without this module's own frames."""
    own = {__file__}
    try:
        tb = error.__traceback__
        while tb is not None and tb.tb_next is not None and tb.tb_frame.f_code.co_filename in own:
            tb = tb.tb_next
        return "".join(traceback.format_exception(type(error), error, tb))
    except BaseException:  # noqa: BLE001 - an exception class with a broken __str__ or __cause__
        return f"{type(error).__name__} (its traceback can't be shown)"


def _with_retry(end: RunEnd, run: Run, error: BaseException) -> RunEnd:
    try:
        decision = run.task.get_retry_decision(exception=error, job=run.job)
        if decision is None:
            return end
        return dataclasses.replace(
            end,
            retry_at=decision.retry_at,
            retry_in=decision.retry_in,
            retry_queue=decision.queue,
            retry_priority=decision.priority,
            retry_lock=decision.lock,
        )
    except BaseException:  # whatever a strategy does, its job ends
        logger.exception(
            "The retry strategy of task %s raised: job %s is not retried",
            run.task.name,
            run.job.id,
            extra=run.job.log_context(),
        )
        return end


def _call(call: Callable[[], object]) -> Ended:
    try:
        return Ended(call())
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt, too
        return Ended(exception=error)
