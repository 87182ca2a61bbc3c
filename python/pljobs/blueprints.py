"""Blueprints: tasks declared in one place and added to an app in another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Concatenate, Literal, ParamSpec, TypedDict, TypeVar, Unpack, overload

from pljobs import checks
from pljobs.exceptions import TaskAlreadyRegistered, UnboundTaskError
from pljobs.job_context import JobContext
from pljobs.jobs import DEFAULT_PRIORITY, DEFAULT_QUEUE
from pljobs.periodic import PeriodicOptions, PeriodicRegistry
from pljobs.retry import RetryValue
from pljobs.tasks import AnyTask, Isolation, Task

if TYPE_CHECKING:
    from pljobs.app import App

P = ParamSpec("P")
R = TypeVar("R")
SomeTask = TypeVar("SomeTask", bound=AnyTask)


class TaskOptions(TypedDict, total=False):
    """Say how a task is declared: the keywords of `task`.

    `name`: the name that jobs carry, by default the function's dotted path. `aliases`: further names, for
    jobs deferred under an old one. `retry`: False never, True for ever, an int so many times, or a strategy.
    `queue`, `priority`, `lock`, `queueing_lock`, `timeout`, `grace`, `start_by` (a length of time here),
    `on_cancelled`: what jobs of the task have unless `configure` says otherwise; see `DeferOptions`.
    `isolation`: "process" to run each job of a sync task in a process of its own, which can be killed.
    """

    name: str | None
    aliases: Iterable[str] | None
    retry: RetryValue
    queue: str
    priority: int
    lock: str | None
    queueing_lock: str | None
    timeout: checks.Interval | None
    grace: checks.Interval | None
    start_by: checks.Interval | None
    on_cancelled: AnyTask | str | None
    isolation: Isolation | None


class Blueprint:
    """Declare tasks that are added to an app later, under a namespace.

    ::

        cats = Blueprint()


        @cats.task(queue="cats")
        def feed(name): ...


        app.add_tasks_from(cats, namespace="cats")  # as cats:path.to.feed

    A blueprint can be added to a blueprint. Added to several apps, its tasks belong to the last. Follows
    procrastinate's class of the same name.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, AnyTask] = {}
        self.periodic_registry = PeriodicRegistry()
        self._registered: list[tuple[AnyTask, str, tuple[str, ...]]] = []

    @overload
    def task(self, func: Callable[P, R], /) -> Task[P, R, P]: ...

    @overload
    def task(
        self, func: None = None, /, *, pass_context: Literal[False] = False, **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[P, R]], Task[P, R, P]]: ...

    @overload
    def task(
        self, func: None = None, /, *, pass_context: Literal[True], **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[Concatenate[JobContext, P], R]], Task[Concatenate[JobContext, P], R, P]]: ...

    def task(
        self,
        func: Callable[..., object] | None = None,
        /,
        *,
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
    ) -> AnyTask | Callable[[Callable[..., object]], AnyTask]:
        """Declare a function as a task: `@app.task`, or `@app.task(...)` with what `TaskOptions` says.

        With `pass_context=True` the function is called with a `JobContext` before its own arguments. Raises
        `TaskAlreadyRegistered` for a name taken, `InvalidArgument` for names and numbers that can't be.
        """

        def declare(function: Callable[..., object]) -> AnyTask:
            declared: AnyTask = Task(
                function,
                blueprint=self,
                name=name,
                aliases=aliases,
                retry=retry,
                pass_context=pass_context,
                queue=queue,
                priority=priority,
                lock=lock,
                queueing_lock=queueing_lock,
                timeout=timeout,
                grace=grace,
                start_by=start_by,
                on_cancelled=on_cancelled,
                isolation=isolation,
            )
            self._register(declared, declared.name, declared.aliases)
            return declared

        return declare if func is None else declare(func)

    def periodic(
        self, *, cron: str, periodic_id: str = "", **options: Unpack[PeriodicOptions]
    ) -> Callable[[SomeTask], SomeTask]:
        """Declare that a task runs periodically; written above `@app.task`.

        `cron` has five fields (minute, hour, day, month, weekday) or a sixth for the seconds, and means UTC.
        The task is called with `timestamp`, the planned time in seconds since 1970 as an int. One task may be
        declared several times with different `periodic_id`. `options` are `queue`, `priority`, `lock`,
        `queueing_lock` and `task_kwargs`, as `configure` has them; what else its jobs have, the task says.
        Raises `InvalidArgument` for other options and for a cron that can't be, `MissingExtra` without
        pljobs[periodic].
        """

        def declare(task: SomeTask) -> SomeTask:
            self.periodic_registry.register_task(
                task, cron=cron, periodic_id=periodic_id, configure_kwargs=options
            )
            return task

        return declare

    def add_tasks_from(self, blueprint: Blueprint, *, namespace: str) -> None:
        """Add the tasks declared so far in another blueprint, names and aliases prefixed with `namespace:`.

        Raises `TaskAlreadyRegistered`, and adds none, if one of the names is taken, or one of the tasks is
        periodic here already.
        """
        checks.name("namespace", namespace)
        new = [
            (task, f"{namespace}:{name}", tuple(f"{namespace}:{alias}" for alias in aliases))
            for task, name, aliases in blueprint._registered
        ]
        names = [name for _, main, aliases in new for name in (main, *aliases)]
        self._refuse_taken(names)
        for name in names:
            checks.name("the name of the task", name)
        self.periodic_registry.update(blueprint.periodic_registry)
        for task, name, aliases in new:
            self._register(task, name, aliases)
            task.name, task.aliases = name, list(aliases)
        for task, _, _ in new:
            task.blueprint = self

    def add_task_alias(self, task: AnyTask, alias: str) -> None:
        """Add a further name for a task, namespaces included; raises `TaskAlreadyRegistered`."""
        self._refuse_taken([checks.name("alias", alias)])
        self.tasks[alias] = task
        task.aliases.append(alias)
        self._registered = [
            (known, name, (*aliases, alias) if known is task else aliases)
            for known, name, aliases in self._registered
        ]

    def bound_to(self) -> App:
        """Return the app that this blueprint's tasks are deferred by; raises `UnboundTaskError`."""
        raise UnboundTaskError("add the blueprint of this task to an app first: app.add_tasks_from(...)")

    def _register(self, task: AnyTask, name: str, aliases: Iterable[str]) -> None:
        aliases = tuple(aliases)
        self._refuse_taken([name, *aliases])
        self._registered.append((task, name, aliases))
        self.tasks.update(dict.fromkeys([name, *aliases], task))

    def _refuse_taken(self, names: list[str]) -> None:
        for name in names:
            if name in self.tasks or names.count(name) > 1:
                raise TaskAlreadyRegistered(f"a task named {name} is already registered")
