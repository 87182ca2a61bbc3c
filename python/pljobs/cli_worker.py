"""The commands that run until stopped: worker, manager."""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Literal, TypeVar

import click

from pljobs import processes
from pljobs.app import App, WorkerOptions, run_unless_tainted
from pljobs.cli_base import (
    OWN_PROCESS,
    Exit,
    Failure,
    app_option,
    connector,
    duration,
    load_app,
    url_option,
)
from pljobs.cli_logging import set_up
from pljobs.exceptions import SchemaMissing, WorkerTainted
from pljobs.maintenance import Manager

T = TypeVar("T")

# Seconds that threads have which tasks have left in the event loop's executor, once the worker has ended.
THREADS_PATIENCE = 5.0
LEVELS = ["debug", "info", "warning", "error", "critical"]


archive_option = click.option(
    "--archive", is_flag=True, help="With --retention: move jobs to the archive rather than delete them."
)


def logging_options(command: Callable[..., T]) -> Callable[..., T]:
    """Add `-v`, `--log-level` and `--log-json`, and set up the logs accordingly."""

    @functools.wraps(command)
    def logged(*args: object, verbose: int, log_level: str | None, log_json: bool, **kwargs: object) -> T:
        set_up(log_level or ("debug" if verbose else "info"), as_json=log_json)
        return command(*args, **kwargs)

    level = click.option(
        "--log-level", type=click.Choice(LEVELS, case_sensitive=False), help="Default: info."
    )
    as_json = click.option("--log-json", is_flag=True, help="One JSON object a line, on stderr.")
    verbose = click.option("-v", "--verbose", count=True, help="The same as --log-level debug.")
    return verbose(level(as_json(logged)))


@click.command()
@app_option
@url_option
@click.option("-q", "--queues", metavar="NAME[,NAME]", help="Only from these queues. Default: all.")
@click.option("-n", "--name", metavar="NAME", help="For logs, `pljobs workers` and the history.")
@click.option("-c", "--concurrency", type=click.IntRange(min=1), help="How many jobs at once. Default: 1.")
@click.option(
    "--wait/--one-shot", default=None, help="Wait for jobs, or end when no job is left. Default: wait."
)
@click.option(
    "-p",
    "--poll-interval",
    "--fetch-job-polling-interval",
    "poll_interval",
    type=duration,
    help="At most so long until a new job is seen. Default: 5s.",
)
@click.option(
    "--abort-poll-interval",
    "--abort-job-polling-interval",
    "abort_poll_interval",
    type=duration,
    help="The same for aborts. Default: that of --poll-interval.",
)
@click.option(
    "--shutdown-timeout",
    "--shutdown-graceful-timeout",
    "shutdown_timeout",
    type=duration,
    help="How long jobs may go on after a stop. Default: for ever.",
)
@click.option(
    "--listen-notify/--no-listen-notify",
    default=None,
    help="Be notified. Default: yes.",
)
@click.option(
    "--delete-jobs",
    type=click.Choice(["never", "successful", "always"]),
    help="When they end. Default: never.",
)
@click.option(
    "--unknown-tasks",
    type=click.Choice(["fail", "leave"]),
    help="Fail jobs of tasks that the App doesn't know, or leave them for others. Default: fail.",
)
@click.option(
    "--retention", type=duration, help="Delete jobs and history that ended longer ago: 30d. Default: never."
)
@archive_option
@click.option(
    "--stop-without-database/--run-without-database",
    default=None,
    help="Out of reach of the database: stop jobs before others start them, or go on. Default: stop.",
)
@click.option(
    "--processes", "process_count", type=click.IntRange(min=1), default=1, help="Use more cores. Default: 1."
)
@logging_options
def worker(
    *,
    app_path: str | None,
    url: str | None,
    queues: str | None,
    name: str | None,
    concurrency: int | None,
    wait: bool | None,
    poll_interval: timedelta | None,
    abort_poll_interval: timedelta | None,
    shutdown_timeout: timedelta | None,
    listen_notify: bool | None,
    delete_jobs: Literal["never", "successful", "always"] | None,
    unknown_tasks: Literal["fail", "leave"] | None,
    retention: timedelta | None,
    archive: bool,
    stop_without_database: bool | None,
    process_count: int,
) -> None:
    """Run jobs, until SIGINT or SIGTERM.

    The first signal lets running jobs end, the second aborts them. Defaults are those of `run_worker`, or the
    App's own worker_defaults.
    """
    processes.follow_lifeline()
    app = load_app(app_path, url)
    if process_count > 1:
        # The App has been loaded once here, so that what is wrong with it is said once.
        forever = app.worker_defaults.get("wait", True) if wait is None else wait
        supervisor = processes.Supervisor(functools.partial(_command, name), process_count, forever=forever)
        raise click.exceptions.Exit(asyncio.run(supervisor.run()))
    options: WorkerOptions = {}
    if queues is not None:
        options["queues"] = [queue.strip() for queue in queues.split(",") if queue.strip()]
        if not options["queues"]:
            raise Failure("--queues names no queue", Exit.USAGE)
    if name is not None:
        options["name"] = name
    if concurrency is not None:
        options["concurrency"] = concurrency
    if wait is not None:
        options["wait"] = wait
    if poll_interval is not None:
        options["fetch_job_polling_interval"] = poll_interval.total_seconds()
    if abort_poll_interval is not None:
        options["abort_job_polling_interval"] = abort_poll_interval.total_seconds()
    if shutdown_timeout is not None:
        options["shutdown_graceful_timeout"] = shutdown_timeout.total_seconds()
    if listen_notify is not None:
        options["listen_notify"] = listen_notify
    if delete_jobs is not None:
        options["delete_jobs"] = delete_jobs
    if unknown_tasks is not None:
        options["unknown_tasks"] = unknown_tasks
    if retention is not None:
        options["retention"] = retention
    if archive:
        options["archive"] = archive
    if stop_without_database is not None:
        options["stop_without_database"] = stop_without_database
    is_ours = click.get_current_context().obj is OWN_PROCESS
    try:
        run_unless_tainted(_work(app, options, is_ours=is_ours))
    except WorkerTainted as error:
        click.echo(f"pljobs: {error}", err=True)
        if not is_ours:
            raise click.exceptions.Exit(Exit.TAINTED) from None
        logging.shutdown()
        # At once: the interpreter's own end waits for threads that a task may have left there.
        os._exit(Exit.TAINTED)


@click.command()
@app_option
@url_option
@click.option("--interval", type=duration, default="10s", show_default=True, help="How often to look.")
@click.option(
    "--retention", type=duration, help="Delete jobs and history that ended longer ago: 30d. Default: never."
)
@archive_option
@click.option(
    "--max-crashes",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Fail a job lost so often.",
)
@logging_options
def manager(
    *,
    app_path: str | None,
    url: str | None,
    interval: timedelta,
    retention: timedelta | None,
    archive: bool,
    max_crashes: int,
) -> None:
    """Rescue jobs, defer periodic tasks, prune; until stopped.

    Until SIGINT or SIGTERM it takes back the jobs of lost workers, defers the App's periodic tasks when they
    are due, and with --retention deletes what finished long ago (with --archive, it moves jobs to the
    archive). Workers do all of it, too. Without --app there are no periodic tasks.
    """
    app = App(connector(url)) if app_path is None else load_app(app_path, url)
    every = interval.total_seconds()
    asyncio.run(
        _manage(
            app, Manager(app, interval=every, retention=retention, archive=archive, max_crashes=max_crashes)
        )
    )


async def _work(app: App, options: WorkerOptions, *, is_ours: bool) -> None:
    try:
        async with app.open_async():
            await _require_schema(app)
            await app.run_worker_async(**options)
    except asyncio.CancelledError:
        if is_ours:
            _leave_late(Exit.INTERRUPTED)
        raise
    if is_ours:
        _leave_late(Exit.DONE)


def _leave_late(code: int) -> None:
    """End the process soon: asyncio and the interpreter wait for threads of `asyncio.to_thread`, for ever."""

    def leave() -> None:
        click.echo(
            "pljobs: the worker has ended; threads that a task has left behind are left alone", err=True
        )
        logging.shutdown()
        os._exit(code)

    timer = threading.Timer(THREADS_PATIENCE, leave)
    timer.name, timer.daemon = "pljobs-leave", True
    timer.start()
    # Called once all threads have been waited for: what an application does at exit may take its time.
    atexit.register(timer.cancel)


async def _manage(app: App, manager: Manager) -> None:
    async with app.open_async():
        await _require_schema(app)
        await manager.run()


async def _require_schema(app: App) -> None:
    if not await app.check_connection_async():
        raise SchemaMissing("there is no view pljobs.jobs")


def _command(name: str | None, number: int) -> list[str]:
    """Return the command line of one of the processes: this one's, with what makes it one of many."""
    # The last of a repeated option counts.
    own = ["--processes", "1", "--name", f"{name or 'worker'}-{number}"]
    return [sys.executable, "-P", "-m", "pljobs", *sys.argv[1:], *own]
