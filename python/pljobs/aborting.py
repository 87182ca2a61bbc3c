"""The flag that carries an abort from the worker to the task: why, who asked, and what to call then."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import threading
import time
from collections.abc import Callable
from datetime import datetime

from pljobs.answers import Verdict
from pljobs.careful import careful_logger
from pljobs.jobs import AbortReason

logger = careful_logger("pljobs.jobs")

STRENGTH = {reason: strength for strength, reason in enumerate(reversed(AbortReason))}


@dataclasses.dataclass(frozen=True, slots=True)
class AbortRequest:
    """Tell who asked a job to stop: the database role, on whose behalf, why and when; None where not known.

    `deadline`: when it will be stopped by force if it has not stopped by then, by the database's clock; None
    where nobody gave it a deadline. `request_id`: its row in the view `pljobs.requests`.
    """

    request_id: int | None
    requested_by: str | None
    actor: str | None
    reason: str | None
    requested_at: datetime | None
    deadline: datetime | None

    @classmethod
    def of(cls, verdict: Verdict) -> AbortRequest:
        """Read it from the answer to a heartbeat."""
        return cls(
            verdict.request_id,
            verdict.requested_by,
            verdict.actor,
            verdict.reason,
            verdict.requested_at,
            verdict.term_at,
        )


class AbortFlag:
    """Carry from the worker to the task why it should stop; raised from any thread, never lowered."""

    # One for all: it is held for a moment only, and most flags are never raised. Reentrant, for the garbage
    # collector may call anything.
    _lock = threading.RLock()

    def __init__(self) -> None:
        self._raised: threading.Event | None = None
        self._reason: AbortReason | None = None
        self._raised_at: float | None = None
        self._request: AbortRequest | None = None
        self._callbacks: list[Callable[[], object]] = []
        self._closed = False

    def close(self) -> None:
        """Call nobody from now on: the body has ended."""
        with self._lock:
            self._closed = True
            self._callbacks.clear()

    @property
    def is_closed(self) -> bool:
        """Say whether the body has ended, be it that its worker does not know it yet."""
        return self._closed

    def set(self, reason: AbortReason, request: AbortRequest | None = None) -> bool:
        """Raise the flag; say whether that changed the reason: only a stronger one replaces another."""
        with self._lock:
            if request is not None:
                self._request = request
            if self._reason is not None and STRENGTH[self._reason] >= STRENGTH[reason]:
                return False
            self._reason = reason
            self._raised_at = self._raised_at or time.monotonic()
            callbacks, self._callbacks = self._callbacks, []
            raised = self._raised
        if raised is not None:
            raised.set()
        for callback in callbacks:
            callback()
        return True

    def is_set(self) -> bool:
        """Say whether the flag is up."""
        return self._reason is not None

    @property
    def reason(self) -> AbortReason | None:
        """Return the strongest reason so far."""
        return self._reason

    @property
    def request(self) -> AbortRequest | None:
        """Return the request, as it was heard of last."""
        return self._request

    def raised_for(self) -> float:
        """Return for how many seconds the flag has been up; 0 while it is down."""
        return 0.0 if self._raised_at is None else time.monotonic() - self._raised_at

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until the flag is up, at most `timeout` seconds; say whether it is."""
        with self._lock:
            if self._reason is not None:
                return True
            if self._raised is None:
                self._raised = threading.Event()
            raised = self._raised
        return raised.wait(timeout)

    def call(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call back once when the flag goes up, at once if it is up; return what takes that back.

        Registered in an event loop, the callback runs in that loop, else in a thread of its own: whoever
        raises the flag never waits for it. What it raises is logged.
        """
        context = contextvars.copy_context()

        def guarded() -> None:
            try:
                context.run(callback)
            except BaseException:  # noqa: BLE001 - whatever it raises, the abort goes on
                context.run(logger.exception, "A callback of on_abort raised")

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:

            def start() -> None:
                try:
                    threading.Thread(target=guarded, name="pljobs-on-abort", daemon=True).start()
                except Exception:  # no thread to be had: the abort goes on, to the others, too
                    logger.exception("A callback of on_abort can't be called")
        else:

            def start() -> None:
                try:
                    loop.call_soon_threadsafe(guarded)
                except RuntimeError:
                    return  # the loop was closed: nobody is left to tell

        def forget() -> None:
            with self._lock, contextlib.suppress(ValueError):  # it is being called, or was
                self._callbacks.remove(start)

        with self._lock:
            if self._reason is None:
                if not self._closed:
                    self._callbacks.append(start)
                return forget
        start()
        return forget


def reason_of(verdict: Verdict) -> AbortReason:
    """Return what a verdict means to a task."""
    if verdict.verdict == "lost":
        return AbortReason.RUN_LOST
    return AbortReason.DEADLINE if verdict.source == "deadline" else AbortReason.USER_REQUEST
