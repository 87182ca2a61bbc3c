"""The worker's line to the database that no task can block: lease, abort requests, notifications."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from pljobs import calls, calls_read, calls_sql, db, session
from pljobs.aborting import AbortRequest, reason_of
from pljobs.answers import Call, Verdict
from pljobs.careful import careful_logger
from pljobs.exceptions import DatabaseUnavailable, InvalidArgument, PljobsException, WorkerNotRegistered
from pljobs.jobs import AbortReason
from pljobs.lag import LoopLag
from pljobs.link import KEEPALIVES, cut
from pljobs.listener import Listener
from pljobs.pace import PAUSE
from pljobs.run import KILL, SHUTDOWN_GRACE, SQL, TERM, VOID_GRACE, observing
from pljobs.verdicts import ended_themselves

if TYPE_CHECKING:
    from pljobs.connector import PsycopgConnector
    from pljobs.job_context import JobContext
    from pljobs.outage import Outage
    from pljobs.run import Run

logger = careful_logger(__name__)

PART = "control"
PROBE_PATIENCE, FROZEN_AFTER = 5.0, 10.0
ENDED_EVERY = 0.01
T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
SHORTEST_PAUSE, VOID_EVERY = 0.05, 1.0
BLOCKED_AFTER = 0.2


class Control:
    """Keep a worker's lease, hear of abort requests, and wake the worker for new jobs.

    A thread with a connection of its own: an async task that blocks the event loop must not get its worker's
    jobs rescued and run twice, and sync tasks hear of an abort even then. Notifications and heartbeats share
    the connection, so that a dead one is noticed by the next heartbeat. Whatever arrives only means "look":
    the answer to a heartbeat tells what is so.
    """

    def __init__(
        self,
        connector: PsycopgConnector,
        *,
        worker_id: int,
        register_again: Call[int],
        queues: Sequence[str] | None,
        runs: Mapping[int, Run | None],
        on_todo: Callable[[], None],
        on_given_up: Callable[[Run, bool], None],
        listen: bool,
        heartbeat_interval: float,
        abort_interval: float,
        interrupt: Callable[[JobContext], None],
        outage: Outage,
    ) -> None:
        self._connector = connector
        self._worker_id = worker_id
        self._register_again = register_again
        self._runs = runs
        self._on_todo = on_todo
        self._on_given_up = on_given_up
        self._listener = Listener(worker_id, queues, polls_every=abort_interval) if listen else None
        self._heartbeat_interval = heartbeat_interval
        self._abort_interval = abort_interval
        self._interrupt = interrupt
        self._outage = outage
        self._loop = asyncio.get_running_loop()
        self._conn: psycopg.Connection[Any] | None = None
        self._busy_since: float | None = None
        self._beat_at = 0.0
        # When the last heartbeat that was answered was sent, in seconds of time.monotonic().
        self.renewed_at = time.monotonic()
        self._asked, self._quiet_until = False, 0.0
        self._told: set[tuple[int, str, int]] = set()
        self._early: dict[int, Verdict] = {}
        self._stopping, self._leaving = threading.Event(), False
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._lag = LoopLag(worker_id, self._in_loop)
        self._thread = threading.Thread(target=self._live, name=f"pljobs-control-{worker_id}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def runs_changed(self) -> None:
        """Tell the thread that there is something to poll for now."""
        with contextlib.suppress(BlockingIOError, OSError):  # full: it is awake anyway; closed: it has ended
            self._waker.send(b"\0")

    def look_now(self) -> None:
        """Make the thread call the heartbeat at once, which registers again where that is needed."""
        self._beat_at = -math.inf
        self.runs_changed()

    def early_verdict(self, run_id: int) -> Verdict | None:
        """Return what was heard of a run before the worker knew it: aborts may overtake a fetch's reply."""
        return self._early.pop(run_id, None)

    async def stop(self) -> None:
        """Unregister the worker and end the thread."""
        self._stopping.set()
        self.runs_changed()
        while self._thread.is_alive():
            self.cut_if_frozen()
            # Not in the loop's executor: that may be full of threads that a task has left there.
            await asyncio.sleep(ENDED_EVERY)

    def leave(self) -> None:
        """End the thread, and let the lease run out: jobs may still run here that nobody looks after."""
        self._leaving = True
        self._stopping.set()
        self.runs_changed()

    @property
    def has_died(self) -> bool:
        """Say whether the thread has ended, and nobody has told it to."""
        return not self._thread.is_alive() and not self._stopping.is_set()

    def cut_if_frozen(self) -> bool:
        """Cut the connection if a call on it waits for too long, and say so; call it each second or so."""
        busy_since, conn = self._busy_since, self._conn
        if busy_since is not None and conn is not None and time.monotonic() - busy_since > FROZEN_AFTER:
            logger.warning("Worker %s has no answer for %s s: reconnecting", self._worker_id, FROZEN_AFTER)
            cut(conn)
            return True
        return False

    # In the thread, from here on

    def _live(self) -> None:
        with self._waker, self._woken:
            self._run()

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            try:
                self._serve()
                return
            except DatabaseUnavailable as error:
                self._outage.met(PART, error)
            except PljobsException as error:
                logger.warning(
                    "Worker %s has lost its line to the database, reconnecting: %s", self._worker_id, error
                )
            except Exception:
                logger.exception("The control loop of worker %s failed, and starts again", self._worker_id)
            if self.renewed_at >= began:  # it was a line that worked
                pause = FIRST_PAUSE
            if self._stopping.wait(pause):
                return  # unregistering is a courtesy: the lease runs out
            pause = min(pause * 2, LONGEST_PAUSE)

    def _serve(self) -> None:
        try:
            with db.translated(), self._connector.connect(self._connected, **KEEPALIVES) as conn:
                if (pins := session.pin(conn)) is not None:
                    conn.execute(pins.encode())
                db.run(conn, calls_read.require_writes())
                self._outage.over(PART)
                self._busy_since = time.monotonic()
                if self._listener is not None:
                    # No longer than from heartbeat to heartbeat: the lease runs on meanwhile.
                    patience = min(PROBE_PATIENCE, self._heartbeat_interval)
                    self._listener.start(conn, patience=patience, elsewhere=self._elsewhere)
                if self._leaving:
                    return
                self._beat(conn)
                # Whatever was said while nobody listened: look.
                self._in_loop(self._on_todo)
                with selectors.DefaultSelector() as selector:
                    selector.register(conn, selectors.EVENT_READ)
                    selector.register(self._woken, selectors.EVENT_READ)
                    while not self._stopping.is_set():
                        self._wait_and_look(conn, selector)
                if not self._leaving:
                    self._timed(conn, calls.unregister_worker(self._worker_id))
        finally:
            self._conn = self._busy_since = None

    @contextlib.contextmanager
    def _elsewhere(self) -> Iterator[psycopg.Connection[Any]]:
        """Lend another connection for a moment, which is cut as this thread's own is if it freezes."""
        own = self._conn
        try:
            with self._connector.connect(self._connected, **KEEPALIVES) as conn:
                yield conn
        finally:
            self._conn = own

    def _connected(self, conn: psycopg.Connection[Any]) -> None:
        self._conn, self._busy_since = conn, time.monotonic()

    def _wait_and_look(self, conn: psycopg.Connection[Any], selector: selectors.BaseSelector) -> None:
        interval = self._heartbeat_interval
        if self._runs:
            interval = min(interval, self._abort_interval)
        looks = [run.look_at for run in dict(self._runs).values() if run and run.look_at is not None]
        due = min(self._beat_at + interval, *looks) if looks else self._beat_at + interval
        self._asked = self._heard(conn) or self._asked
        if not self._asked:
            ready = {key.fileobj for key, _ in selector.select(max(0.0, due - time.monotonic()))}
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(65536)
                return  # there are runs now, or it is time to stop
            self._asked = conn in ready and self._heard(conn)
            if not self._asked and time.monotonic() < due:
                return
        if self._asked:
            # Anybody can notify: where nothing was new a moment ago, not again at once.
            self._stopping.wait(max(0.0, min(due, self._quiet_until) - time.monotonic()))
        self._beat(conn)

    def _heard(self, conn: psycopg.Connection[Any]) -> bool:
        """Take the notifications that have arrived; say whether one is about this worker's runs."""
        if self._listener is None:
            return False
        ours, todo = self._listener.heard(conn)
        if todo:
            self._in_loop(self._on_todo)
        return ours

    def _beat(self, conn: psycopg.Connection[Any]) -> None:
        began = self._beat_at = time.monotonic()
        runs = dict(self._runs)
        lag = timedelta(seconds=self._lag.measure(runs.values()))
        beat = partial(calls.heartbeat, self._worker_id, run_ids=list(runs), loop_lag=lag)
        with observing(runs.values()) as observed:
            try:
                verdicts = self._beat_once_more_if_unknown(conn, beat(observed=observed))
            except InvalidArgument as error:
                # A text that this database has no characters for: the lease must not hang on it.
                logger.warning("Worker %s can't tell how far its jobs are: %s", self._worker_id, error)
                rest = [dataclasses.replace(seen, progress=None) for seen in observed]
                verdicts = self._beat_once_more_if_unknown(conn, beat(observed=rest))
        self.renewed_at = began
        self._early = {
            v.run_id: v for v in verdicts if v.run_id not in runs and v.verdict in {"abort", "kill"}
        }
        ended = ended_themselves(self._runs, verdicts, partial(self._timed, conn))
        verdicts = [verdict for verdict in verdicts if verdict.run_id not in ended]
        told = {(v.run_id, str(v.verdict), v.level) for v in verdicts if v.verdict != "ok"}
        in_vain = self._asked and not told - self._told
        self._quiet_until = time.monotonic() + PAUSE if in_vain else 0.0
        self._asked, self._told = False, told
        for verdict in verdicts:
            self._deliver(verdict)
        for verdict in verdicts:
            self._cancel_sql(conn, verdict)
            self._give_up(conn, verdict)

    def _beat_once_more_if_unknown(
        self, conn: psycopg.Connection[Any], beat: Call[list[Verdict]]
    ) -> list[Verdict]:
        try:
            return self._timed(conn, beat)
        except WorkerNotRegistered:
            logger.warning("The lease of worker %s had run out: registering again", self._worker_id)
            self._timed(conn, self._register_again)
            return self._timed(conn, beat)

    def _cancel_sql(self, conn: psycopg.Connection[Any], verdict: Verdict) -> None:
        """Cancel a run's SQL where that is left to its worker: the database may not, or the run is lost."""
        run = self._runs.get(verdict.run_id)
        if run is None or run.ended:
            return
        if verdict.sql_way == "asked" and verdict.level >= SQL:
            way = self._timed(conn, calls_sql.cancel_sql(verdict.run_id))
            run.context.sql_way.set("worker" if way == "server" else way)
            # Soon: told late, it could be taken for what came of a cancel that was asked for later.
            run.look_at = time.monotonic() + SHORTEST_PAUSE if way == "server" else run.look_at
            return
        # Nothing that it does counts any more, or it will be done again. For cleaning up it has some seconds.
        flag = run.context.abort_flag
        if verdict.verdict == "lost":
            patience = VOID_GRACE
        elif flag.reason is AbortReason.SHUTDOWN:
            patience = SHUTDOWN_GRACE
        else:
            return
        if flag.raised_for() > patience:
            self._timed(conn, calls_sql.cancel_sql(verdict.run_id))
        run.look_at = time.monotonic() + VOID_EVERY

    def _deliver(self, verdict: Verdict) -> None:
        run = self._runs.get(verdict.run_id)
        if run is None:
            return
        if verdict.look_in is not None:
            # Not at once, again and again, while somebody holds the job's row.
            run.look_at = time.monotonic() + max(verdict.look_in.total_seconds(), SHORTEST_PAUSE)
        else:
            run.look_at = None
        if verdict.verdict == "ok":
            return
        reason = reason_of(verdict)
        # Here and now, for threads; in the event loop, once it is free, for async tasks.
        run.context.abort_flag.set(reason, AbortRequest.of(verdict) if verdict.request_id else None)
        self._in_loop(run.abort, reason, verdict)
        if verdict.level >= TERM and not run.ended and self._lag.blocked_for() > BLOCKED_AFTER:
            self._interrupt(run.context)

    def _give_up(self, conn: psycopg.Connection[Any], verdict: Verdict) -> None:
        """Report that a run is given up where its event loop can't: it is blocked, for good."""
        run = self._runs.get(verdict.run_id)
        if verdict.level < KILL or run is None or run.ended or not run.begun:
            return
        flag = run.context.abort_flag
        if not flag.is_closed and min(self._lag.blocked_for(), flag.raised_for()) > run.standstill:
            try:
                [answer] = self._timed(conn, calls.finish_jobs([run.abandoned()], wait=False))
            except DatabaseUnavailable:  # only the answer is lost, perhaps
                self._in_loop(self._on_given_up, run, True)
                raise
            self._in_loop(self._on_given_up, run, answer.status in {"aborted", "failed", "deleted"})

    def _timed(self, conn: psycopg.Connection[Any], call: Call[T]) -> T:
        self._busy_since = time.monotonic()
        try:
            return db.run(conn, call)
        finally:
            self._busy_since = None

    def _in_loop(self, function: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed under us: nobody is left to tell
            self._loop.call_soon_threadsafe(function, *args)
