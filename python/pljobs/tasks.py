"""Tasks, and how a call of one becomes a job."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Generic, Literal, ParamSpec, TypedDict, TypeVar

from pljobs import checks
from pljobs.deferring import JobDeferrer
from pljobs.exceptions import FunctionPathError, InvalidArgument, InvalidJob
from pljobs.jobs import DEFAULT_PRIORITY, DEFAULT_QUEUE, Job
from pljobs.retry import BaseRetryStrategy, RetryDecision, RetryValue, get_retry_strategy

if TYPE_CHECKING:
    from pljobs.blueprints import Blueprint
    from pljobs.connector import PsycopgConnector

P = ParamSpec("P")
Args = ParamSpec("Args")
R_co = TypeVar("R_co", covariant=True)
Isolation = Literal["process"]


class DeferOptions(TypedDict, total=False):
    """Say how a job is to be run: the keywords of `configure`, each of which may be left out or None.

    `lock`: no two jobs of one lock run at once. `queueing_lock`: no two jobs of one queueing lock wait at
    once. `task_kwargs`: arguments, to which those given to `defer` are added. `schedule_at`: not before this
    time, which must be timezone-aware. `schedule_in`: not before this long from now: a mapping such as
    {"minutes": 5}, a timedelta, or a number of seconds, by the database's clock; a negative one means at
    once, as a `schedule_at` that is over does. `priority`: higher first. `timeout`: how long a run may take
    before it is stopped, and `grace` how long it then has to stop by itself (10 seconds), as `schedule_in`
    has it. `start_by`: when to cancel the job if it has not started; a timezone-aware time, or how long after
    it could. `on_cancelled`: a task, or the name of one, that runs after the job was cancelled or aborted.
    `parent`: the id of the job that this one belongs to, None for no one; where it is left out, the job
    inside of which it is deferred. `idempotency_key`: the first job that the database role defers under it is
    deferred; for whoever comes again `defer` returns that job's id, so that a call whose answer was lost can
    be repeated. `fairness_key`: within a queue and a priority, the keys take turns. `connection`: defer in
    the transaction of this connection.
    """

    lock: str | None
    queueing_lock: str | None
    task_kwargs: Mapping[str, object] | None
    schedule_at: datetime | None
    schedule_in: checks.Interval | None
    queue: str | None
    priority: int | None
    timeout: checks.Interval | None
    grace: checks.Interval | None
    start_by: datetime | checks.Interval | None
    on_cancelled: AnyTask | str | None
    parent: int | Literal["current"] | None
    idempotency_key: str | None
    fairness_key: str | None
    connection: object


class Task(Generic[P, R_co, Args]):
    """Be a function that can be run later, by a worker; made by `App.task` and `Blueprint.task`.

    Calling it calls the function, here and now. `name` is the name that jobs carry; `aliases` are further
    names under which workers know it. Follows procrastinate's class of the same name.
    """

    def __init__(
        self,
        func: Callable[P, R_co],
        *,
        blueprint: Blueprint,
        name: str | None = None,
        aliases: Iterable[str] | None = None,
        retry: RetryValue = False,
        pass_context: bool = False,
        queue: str = DEFAULT_QUEUE,
        priority: int = DEFAULT_PRIORITY,
        lock: str | None = None,
        queueing_lock: str | None = None,
        timeout: checks.Interval | None = None,
        grace: checks.Interval | None = None,
        start_by: checks.Interval | None = None,
        on_cancelled: AnyTask | str | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        functools.update_wrapper(self, func, updated=())
        if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
            raise InvalidArgument(f"{func!r} is a generator function: nobody would take what it yields")
        self.func = func
        self.blueprint = blueprint
        self.name = checks.name("the name of the task", name if name is not None else full_path(func))
        self.aliases = checks.names("aliases", aliases or ())
        self.retry_strategy: BaseRetryStrategy | None = get_retry_strategy(retry)
        self.pass_context = checks.flag("pass_context", pass_context)
        self.queue = checks.name("queue", queue)
        self.priority = checks.priority(priority)
        self.lock = checks.optional_name("lock", lock)
        self.queueing_lock = checks.optional_name("queueing_lock", queueing_lock)
        self.timeout = checks.positive_interval("timeout", timeout)
        self.grace = checks.optional_interval("grace", grace)
        self.start_by = checks.optional_interval("start_by", start_by)
        self.on_cancelled = on_cancelled
        _task_name(on_cancelled)
        if isolation not in {None, "process"}:
            raise InvalidArgument(f"isolation must be 'process' or None, not {isolation!r}")
        if isolation is not None:
            check_isolable(func)
        self.isolation = isolation

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return self.func(*args, **kwargs)

    def defer(self, /, *args: Args.args, **task_kwargs: Args.kwargs) -> int:
        """Defer a job with these arguments, given by name; return its id.

        Raises `AlreadyEnqueued` if a waiting job holds the queueing lock; `InvalidJob` if the arguments are
        not JSON that PostgreSQL can hold, of at most 1 MiB; `AppNotOpen`, `UnboundTaskError`,
        `ConnectorException`.
        """
        return self.configure().defer(*args, **task_kwargs)

    async def defer_async(self, /, *args: Args.args, **task_kwargs: Args.kwargs) -> int:
        """Defer a job with these arguments, given by name; return its id. Raises as `defer` does."""
        return await self.configure().defer_async(*args, **task_kwargs)

    def batch_defer(self, *task_kwargs: Mapping[str, object]) -> list[int]:
        """Defer one job for each mapping of arguments, all or none; return their ids in that order."""
        return self.configure().batch_defer(*task_kwargs)

    async def batch_defer_async(self, *task_kwargs: Mapping[str, object]) -> list[int]:
        """Defer one job for each mapping of arguments, all or none; return their ids in that order."""
        return await self.configure().batch_defer_async(*task_kwargs)

    def configure(
        self,
        *,
        lock: str | None = None,
        queueing_lock: str | None = None,
        task_kwargs: Mapping[str, object] | None = None,
        schedule_at: datetime | None = None,
        schedule_in: checks.Interval | None = None,
        queue: str | None = None,
        priority: int | None = None,
        timeout: checks.Interval | None = None,
        grace: checks.Interval | None = None,
        start_by: datetime | checks.Interval | None = None,
        on_cancelled: AnyTask | str | None = None,
        parent: int | Literal["current"] | None = "current",
        idempotency_key: str | None = None,
        fairness_key: str | None = None,
        connection: object = None,
    ) -> JobDeferrer:
        """Return something with a `defer` like the task's own, set up as `DeferOptions` says.

        Raises `InvalidJob` for what can't be: both schedules, a naive time, a `timeout` of nothing, a name
        of more than 255 characters.
        """
        return configure(
            self.name,
            connector=self.blueprint.bound_to().connector,
            lock=lock if lock is not None else self.lock,
            queueing_lock=queueing_lock if queueing_lock is not None else self.queueing_lock,
            task_kwargs=task_kwargs,
            schedule_at=schedule_at,
            schedule_in=schedule_in,
            queue=queue if queue is not None else self.queue,
            priority=priority if priority is not None else self.priority,
            timeout=timeout if timeout is not None else self.timeout,
            grace=grace if grace is not None else self.grace,
            start_by=start_by if start_by is not None else self.start_by,
            on_cancelled=on_cancelled if on_cancelled is not None else self.on_cancelled,
            parent=parent,
            idempotency_key=idempotency_key,
            fairness_key=fairness_key,
            connection=connection,
        )

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        """Ask the retry strategy about this failure; None: don't retry. Raises what the strategy raises."""
        if self.retry_strategy is None:
            return None
        return self.retry_strategy.get_retry_decision(exception=exception, job=job)


AnyTask = Task[..., object, ...]


def configure(
    task: str,
    *,
    connector: PsycopgConnector,
    lock: str | None = None,
    queueing_lock: str | None = None,
    task_kwargs: Mapping[str, object] | None = None,
    schedule_at: datetime | None = None,
    schedule_in: checks.Interval | None = None,
    queue: str | None = None,
    priority: int | None = None,
    timeout: checks.Interval | None = None,
    grace: checks.Interval | None = None,
    start_by: datetime | checks.Interval | None = None,
    on_cancelled: AnyTask | str | None = None,
    parent: int | Literal["current"] | None = "current",
    idempotency_key: str | None = None,
    fairness_key: str | None = None,
    connection: object = None,
) -> JobDeferrer:
    """Return a deferrer for a task by its name, set up as `DeferOptions` says."""
    if schedule_at is not None and schedule_in is not None:
        raise InvalidJob("give schedule_at or schedule_in, not both")
    if schedule_at is not None:
        schedule_at = checks.aware("schedule_at", schedule_at, error=InvalidJob)
    start_at, start_within = (start_by, None) if isinstance(start_by, datetime) else (None, start_by)
    job = Job(
        task_name=task,
        queue=queue if queue is not None else DEFAULT_QUEUE,
        priority=priority if priority is not None else DEFAULT_PRIORITY,
        lock=lock,
        queueing_lock=queueing_lock,
        task_kwargs=dict(task_kwargs or {}),
        scheduled_at=schedule_at,
        scheduled_in=None if schedule_in is None else _from_now("schedule_in", schedule_in),
        timeout=checks.positive_interval("timeout", timeout, error=InvalidJob),
        grace=checks.optional_interval("grace", grace, error=InvalidJob),
        start_by=None if start_at is None else checks.aware("start_by", start_at, error=InvalidJob),
        start_within=checks.optional_interval("start_by", start_within, error=InvalidJob),
        on_cancelled=_task_name(on_cancelled),
        fairness_key=checks.optional_name("fairness_key", fairness_key, error=InvalidJob),
    )
    return JobDeferrer(
        job=job, connector=connector, parent=parent, idempotency_key=idempotency_key, connection=connection
    )


def _from_now(what: str, value: checks.Interval) -> timedelta:
    """Return a length of time; none where it is negative: like a `schedule_at` that is over, it means now."""
    return max(checks.interval(what, value, error=InvalidJob), timedelta(0))


def _task_name(task: AnyTask | str | None) -> str | None:
    return task.name if isinstance(task, Task) else checks.optional_name("on_cancelled", task)


def check_isolable(func: Callable[..., object]) -> None:
    """Raise `InvalidArgument` for what a process of its own can't find by its name, or can't run."""
    if inspect.iscoroutinefunction(func):
        raise InvalidArgument(
            "isolation='process' is for sync functions: an async task is stopped without it"
        )
    path = full_path(func)
    if "<" in path or not inspect.isfunction(func):
        raise InvalidArgument(
            f"isolation='process' needs a function at the top level of a module, or in a class, not {path}:"
            " the job's own process imports it by its name"
        )


def full_path(func: Callable[..., object]) -> str:
    """Return the dotted path to a function; raises `FunctionPathError` for what has no name (a partial)."""
    module, name = getattr(func, "__module__", None), getattr(func, "__qualname__", None)
    if not module or not name:
        raise FunctionPathError(f"can't name a task after {type(func).__name__!r}: give it a name=")
    return f"{module}.{name}"
