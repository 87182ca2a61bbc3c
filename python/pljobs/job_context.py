"""What a task may know of the job that it runs, and whether it should stop."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from pljobs import arguments, calls_sql, connections, db
from pljobs.aborting import AbortFlag, AbortRequest
from pljobs.answers import Call
from pljobs.exceptions import InvalidArgument, JobAborted
from pljobs.job_sql import JobConnection
from pljobs.jobs import AbortReason, Job

if TYPE_CHECKING:
    from pljobs.app import App
    from pljobs.tasks import Task

T = TypeVar("T")
Callback = TypeVar("Callback", bound=Callable[[], object])

Progress = tuple[float | None, str | None]

MAX_PROGRESS_MESSAGE = 200


class Latest(Generic[T]):
    """Hold what was noted last, for the next heartbeat to take along, once; for any thread."""

    __slots__ = ("_is_taken", "_value")
    # One for all: it is held for a moment only, and a job has two of these. Reentrant, for the garbage
    # collector may call what reports progress.
    _lock = threading.RLock()

    def __init__(self) -> None:
        self._value: T | None = None
        self._is_taken = False

    def set(self, value: T) -> None:
        """Note it."""
        with self._lock:
            self._value, self._is_taken = value, False

    def take(self) -> T | None:
        """Return what was noted last if it has not been taken before."""
        if self._value is None:
            return None
        with self._lock:
            taken, self._is_taken = None if self._is_taken else self._value, True
            return taken

    def last(self) -> T | None:
        """Return what was noted last, taken or not: what a heartbeat took may come too late to be stored."""
        return self._value

    def put_back(self, taken: T) -> None:
        """Undo `take`, where what was taken could not be stored and nothing newer came."""
        with self._lock:
            if self._value is taken:
                self._is_taken = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """Know the job, its task, app and worker; the first argument of tasks with `pass_context=True`.

    `start_timestamp` is the time of the start, in seconds as `time.time()` gives. `additional_context` holds
    what `run_worker(additional_context=...)` was given, in a dict of this job's own. Follows procrastinate's
    class of the same name, with more for stopping: `on_abort`, `abort_request`, `aborted`, `iter`.
    """

    app: App
    job: Job
    task: Task[..., object, ...]
    worker_name: str | None = None
    worker_id: int | None = None
    worker_queues: Sequence[str] | None = None
    additional_context: dict[str, object] = dataclasses.field(default_factory=dict, repr=False)
    start_timestamp: float = dataclasses.field(default_factory=time.time)
    abort_flag: AbortFlag = dataclasses.field(default_factory=AbortFlag, repr=False)
    reported_progress: Latest[Progress] = dataclasses.field(default_factory=Latest, repr=False)
    sql_way: Latest[str] = dataclasses.field(default_factory=Latest, repr=False)

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

    def abort_request(self) -> AbortRequest | None:
        """Return who asked the job to stop, why, and by when it must; None where no request is known."""
        return self.abort_flag.request

    def on_abort(self, callback: Callback) -> Callback:
        """Call back, without arguments, once when the task should stop; at once if it should already.

        Registered in async code it runs in that event loop, before the task is cancelled; else in a thread of
        its own, beside the task. What it raises is logged, and stops nothing. Returns the callback: usable as
        a decorator.
        """
        self.abort_flag.call(callback)
        return callback

    async def aborted(self) -> AbortReason:
        """Wait until the task should stop; return why.

        For what runs beside an async task's body: in the body itself the await is where its CancelledError
        comes.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def resolve() -> None:
            if not future.done():
                future.set_result(None)

        forget = self.abort_flag.call(resolve)
        try:
            await future
        finally:
            forget()
        reason = self.abort_flag.reason
        if reason is None:
            raise RuntimeError("an abort without a reason")
        return reason

    def iter(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; raise `JobAborted` in place of the next one once the task should stop.

        It asks before it takes the next one: an item that was taken, from a queue for example, is not lost.
        """
        number, iterator = 0, iter(items)
        while True:
            if self.should_abort():
                raise JobAborted(f"stopped after {number} items")
            try:
                item = next(iterator)
            except StopIteration:
                return
            yield item
            number += 1

    def progress(self, fraction: float | None, message: str | None = None) -> None:
        """Say how far the task is, for people: a number from 0 to 1 or None, and a line of text.

        Stored with the next heartbeat, or with the job's end (`progress` in the view `pljobs.jobs`); costs
        nothing here. A message of more than 200 characters is cut. Raises `InvalidArgument` for what is no
        such number.
        """
        if fraction is not None and not 0 <= fraction <= 1:
            raise InvalidArgument(f"progress is a number from 0 to 1 or None, not {fraction!r}")
        text = None if message is None else arguments.clip_text(str(message), MAX_PROGRESS_MESSAGE)
        self.reported_progress.set((None if fraction is None else float(fraction), text))

    def connection(self, source: object = None) -> JobConnection:
        """Return a connection for this job's own SQL, which whoever stops the job can cancel; to be entered.

        ::

            with context.connection() as conn:
                conn.execute("SELECT ...")

        and `async with` in async tasks. While the block runs, the statement that runs is cancelled where the
        abort asks for that (`sql => true`, or half of its grace is over), by the database, and none that this
        connection runs later, for whomever. It then raises psycopg's `QueryCanceled`: let it through, and the
        job ends as aborted.

        `source`: None for the app's own pool, in autocommit; or a psycopg pool or connection of yours, not in
        a transaction, that leads to the database of pljobs. A transaction that is open at the end of the
        block is committed, after an exception rolled back. Behind a transaction pooler the block works, but
        its statements can't be cancelled: the request says `pooled`. Raises `InvalidArgument`, and what
        connecting raises.
        """
        return JobConnection(self, source)

    def finish(self, connection: object, *, result: object = None) -> None:
        """End this job as succeeded in the transaction of a connection of yours, with all that it wrote.

        ::

            with psycopg.connect(...) as conn:
                conn.execute("UPDATE accounts ...")
                context.finish(conn)

        The last thing to do in that transaction: committed, the job has succeeded, whatever the task does
        afterwards, and never runs again; rolled back, nothing has happened. `connection` leads to the
        database of pljobs: psycopg's, SQLAlchemy's or Django's, as `defer` takes it, in a transaction. Commit
        at once: until then, whoever cancels this job waits. The row stays, whatever `delete_jobs` says.

        Raises `RunLost` if this run is not the job's any more (its worker was taken for dead, somebody forced
        the job): let it through, so that the transaction is rolled back. `InvalidArgument` outside of a
        transaction, or for a result that is not JSON.
        """
        conn = connections.unwrap(connection)
        db.run(conn, self._finish_call(result, conn))

    async def finish_async(self, connection: object, *, result: object = None) -> None:
        """Do what `finish` does, on an async connection."""
        conn = await connections.unwrap_async(connection)
        await db.run_async(conn, self._finish_call(result, conn))

    def _finish_call(
        self, result: object, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]
    ) -> Call[str]:
        if self.job.id is None or self.job.run_id is None:
            raise InvalidArgument(f"{self.job.call_string} is not running: there is nothing to finish")
        if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
            raise InvalidArgument(
                "the connection is in no transaction: there is nothing for the job to end with"
            )
        encoded, unfit = arguments.encode_result(result, self.app.connector.json_dumps)
        if unfit is not None:
            raise InvalidArgument(unfit)
        return calls_sql.finish_job(self.job.id, self.job.run_id, result=encoded)

    def evolve(self, **changes: object) -> JobContext:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


current: contextvars.ContextVar[JobContext | None] = contextvars.ContextVar("pljobs_job", default=None)


def current_context() -> JobContext | None:
    """Return the context of the job that this code runs for; None outside of a job.

    It follows contextvars: into asyncio tasks and `asyncio.to_thread`, not into threads that a task starts
    itself.
    """
    return current.get()
