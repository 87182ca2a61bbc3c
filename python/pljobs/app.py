"""The app: what an application makes one of, to declare tasks, defer jobs and run workers."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import traceback
from collections.abc import AsyncIterator, Coroutine, Generator, Iterable, Iterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Literal, Self, TypedDict, Unpack

from pljobs import calls_read, checks
from pljobs.blueprints import Blueprint
from pljobs.careful import careful_logger
from pljobs.connector import AsyncPool, PsycopgConnector, SyncPool
from pljobs.deferring import JobDeferrer
from pljobs.exceptions import LoadFromPathError, TaskNotFound, WorkerTainted
from pljobs.job_context import current
from pljobs.jobs import DeleteJobCondition
from pljobs.manager import JobManager
from pljobs.schema_manager import SchemaManager
from pljobs.tasks import DeferOptions, configure

logger = careful_logger(__name__)


class WorkerOptions(TypedDict, total=False):
    """Say how a worker works: the keywords of `run_worker`. Times are seconds.

    `queues`: which queues, None for all. `name`: for logs and the view of workers. `concurrency`: how many
    jobs at once. `wait`: False to end when there is nothing left to do. `fetch_job_polling_interval`: how
    often to look for jobs where no notification comes; `abort_job_polling_interval`: the same for requests to
    abort, by default the first. `shutdown_graceful_timeout`: how long to let jobs finish on a stop before
    they are interrupted, None for ever. `listen_notify`: listen for notifications, on a connection of its
    own. `delete_jobs`: which jobs to delete when they end. `install_signal_handlers`: stop on SIGINT and
    SIGTERM. `additional_context`: for `JobContext`. `update_heartbeat_interval`: how often to tell the
    database that the worker lives; `stalled_worker_timeout`: after how long without that its jobs are taken
    from it. `unknown_tasks`: fail jobs whose task isn't registered here, or leave them for other workers.
    `stop_without_database`: whether a worker that can't reach the database stops its jobs before others may
    start them. `retention`: delete jobs and history that ended longer ago, None keeps them; `archive`: move
    such jobs to the archive instead.
    """

    queues: Iterable[str] | None
    name: str | None
    concurrency: int
    wait: bool
    fetch_job_polling_interval: float
    abort_job_polling_interval: float | None
    shutdown_graceful_timeout: float | None
    listen_notify: bool
    delete_jobs: Literal["never", "successful", "always"] | DeleteJobCondition
    install_signal_handlers: bool
    additional_context: Mapping[str, object] | None
    update_heartbeat_interval: float
    stalled_worker_timeout: float
    unknown_tasks: Literal["fail", "leave"]
    stop_without_database: bool
    retention: timedelta | None
    archive: bool


class PeriodicDefaults(TypedDict, total=False):
    """Say how periodic tasks are deferred: `max_delay`, how late a tick may be deferred, in seconds (600)."""

    max_delay: float


class App(Blueprint):
    """Declare tasks, defer jobs, look after them, and run workers.

    ::

        app = App(connector=PsycopgConnector("postgresql://..."))  # or App("postgresql://...")


        @app.task
        async def double(number): ...


        async with app.open_async():
            await double.defer_async(number=21)

    `import_paths` are modules to import before tasks are looked up by name. `worker_defaults` are defaults
    for `run_worker`. `tasks` maps every name to its task. Follows procrastinate's class of the same name.
    """

    def __init__(
        self,
        connector: PsycopgConnector | str,
        *,
        import_paths: Iterable[str] | None = None,
        worker_defaults: WorkerOptions | None = None,
        periodic_defaults: PeriodicDefaults | None = None,
    ) -> None:
        super().__init__()
        self.connector = PsycopgConnector(connector) if isinstance(connector, str) else connector
        self._workers = 0  # which have opened it
        self.import_paths = list(import_paths or ())
        self.worker_defaults: WorkerOptions = worker_defaults or {}
        self.periodic_defaults: PeriodicDefaults = periodic_defaults or {}
        checks.seconds("max_delay", self.periodic_defaults.get("max_delay"))

    @classmethod
    def from_path(cls, dotted_path: str) -> App:
        """Load an app by its path, `package.module.app` or `...module:app`; raises `LoadFromPathError`."""
        module, _, name = dotted_path.replace(":", ".").rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as exc:
            raise LoadFromPathError(f"can't load {dotted_path}: {exc}") from exc
        if not isinstance(found, App):
            raise LoadFromPathError(f"{dotted_path} is no App, but a {type(found).__name__}")
        return found

    def bound_to(self) -> App:
        """Return this app."""
        return self

    @property
    def job_manager(self) -> JobManager:
        """Return what looks after jobs: cancel, retry, delete, list, pause."""
        return JobManager(self.connector)

    @property
    def schema_manager(self) -> SchemaManager:
        """Return what installs and upgrades the schema."""
        return SchemaManager(self.connector)

    def configure_task(
        self, name: str, *, allow_unknown: bool = True, **options: Unpack[DeferOptions]
    ) -> JobDeferrer:
        """Return a deferrer for a task by its name, set up as `DeferOptions` says.

        A task known here keeps its own defaults; an unknown one, which is then not imported here, has none.
        Raises `TaskNotFound` for an unknown one with `allow_unknown=False`.
        """
        if name not in self.tasks:
            self.perform_import_paths()
        if name in self.tasks:
            return self.tasks[name].configure(**options)
        if not allow_unknown:
            raise TaskNotFound(f"no task is registered as {name!r}")
        return configure(name, connector=self.connector, **options)

    def perform_import_paths(self) -> None:
        """Import the modules of `import_paths`; raises `LoadFromPathError`."""
        for path in self.import_paths:
            try:
                importlib.import_module(path)
            except ModuleNotFoundError as exc:
                raise LoadFromPathError(f"can't import {path}, of import_paths: {exc}") from exc

    # The connection

    def with_connector(self, connector: PsycopgConnector) -> App:
        """Return another app with the same tasks, that uses this connector.

        The tasks themselves go on deferring through this app: defer through the other with `configure_task`.
        """
        other = App(
            connector,
            import_paths=self.import_paths,
            worker_defaults=self.worker_defaults,
            periodic_defaults=self.periodic_defaults,
        )
        other.tasks, other.periodic_registry = self.tasks, self.periodic_registry
        other._registered = self._registered
        return other

    @contextlib.contextmanager
    def replace_connector(self, connector: PsycopgConnector) -> Iterator[App]:
        """Use this connector inside of the `with`, in tests for example."""
        former, self.connector = self.connector, connector
        try:
            yield self
        finally:
            self.connector = former

    def open(self, pool: SyncPool | None = None) -> App:
        """Open for sync calls: `app.open()`, ended by `app.close()`, or `with app.open(): ...`.

        `pool`: a psycopg pool of yours, already open, to use. Raises `DatabaseUnavailable`.
        """
        self.connector.open(pool)
        return self

    def close(self) -> None:
        """Close what `open()` opened."""
        self.connector.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open_async(self, pool: AsyncPool | None = None) -> Opening:
        """Open for async calls: `await app.open_async()`, ended by `close_async()`, or `async with`.

        `pool`: an async psycopg pool of yours, already open, to use. Raises `DatabaseUnavailable`.
        """
        return Opening(self, pool)

    async def close_async(self) -> None:
        """Close what `open_async()` opened."""
        await self.connector.close_async()

    def check_connection(self) -> bool:
        """Say whether the schema pljobs is there; raises `ConnectorException` if nobody answers."""
        return self.connector.execute(calls_read.has_schema())

    async def check_connection_async(self) -> bool:
        """Say whether the schema pljobs is there; raises `ConnectorException` if nobody answers."""
        return await self.connector.execute_async(calls_read.has_schema())

    # Workers

    def run_worker(self, **options: Unpack[WorkerOptions]) -> None:
        """Run a worker until it is stopped, in an event loop of its own; opens and closes what it needs.

        Raises `WorkerTainted` at the end if it gave up a job that could not be stopped; `RuntimeError` where
        an event loop runs already.
        """
        run_unless_tainted(self.run_worker_async(**options))

    async def run_worker_async(self, **options: Unpack[WorkerOptions]) -> None:
        """Run a worker until it is stopped; opens the app for as long if it isn't open for async calls."""
        from pljobs.worker import Worker

        self.perform_import_paths()
        worker = Worker(self, **(self.worker_defaults | options))
        async with self._opened():
            await worker.run()

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        # By the first worker for all of them, if nobody else has.
        if self.connector.is_open_async and not self._workers:
            yield
            return
        self._workers += 1
        is_dropped = False
        try:
            await self.open_async()
            yield
        except GeneratorExit:  # by an event loop that ended without it: it may await nothing any more
            is_dropped = True
            raise
        finally:
            self._workers -= 1
            if not self._workers and not is_dropped:
                await self.close_async()


def run_unless_tainted(main: Coroutine[object, object, None]) -> None:
    """Run this in an event loop of its own, as `asyncio.run` does.

    But after `WorkerTainted` leave the loop as it is: to close it would be to wait for the task that can't be
    stopped. And a `sys.exit()` in a task that a job has made, which asyncio lets through to here, does not
    end it: that job fails, its neighbours go on.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        runner = asyncio.Runner()
    else:
        main.close()  # else it is complained of, as never awaited
        raise RuntimeError(
            "an event loop runs here already: await app.run_worker_async(...) rather than app.run_worker(...)"
        )
    task = runner.get_loop().create_task(main, name="pljobs worker")

    async def end() -> None:
        await task

    try:
        while not task.done():
            try:
                runner.run(end())
            except SystemExit as error:
                if not _is_a_jobs(error):
                    raise
                logger.warning("A task called sys.exit(%s): a task can't end its worker", error.code)
        task.result()
    except WorkerTainted:
        raise
    except BaseException:
        runner.close()
        raise
    runner.close()


def _is_a_jobs(error: BaseException) -> bool:
    """Say whether this came through the event loop from what a job does there, not from a signal handler."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is asyncio.Handle._run.__code__:  # noqa: SLF001
            context = getattr(frame.f_locals.get("self"), "_context", None)
            return context is not None and context.get(current) is not None
    return False


class Opening:
    """Open an app for async calls: await it, or enter it with `async with`, which closes it at the end.

    But not where it was open already: then who opened it closes it.
    """

    def __init__(self, app: App, pool: AsyncPool | None) -> None:
        self._app = app
        self._pool = pool
        self._has_opened = False

    async def _open(self) -> App:
        self._has_opened |= await self._app.connector.open_async(self._pool)
        return self._app

    def __await__(self) -> Generator[object, None, App]:
        return self._open().__await__()

    async def __aenter__(self) -> App:
        return await self._open()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._has_opened:  # else it is another's: a worker's, or a block's around this one
            await self._app.close_async()
