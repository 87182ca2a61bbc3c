"""The worker: fetches jobs, runs them, passes their aborts on, reports their ends, and loses none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Literal

from pljobs import checks, logs
from pljobs.aborting import reason_of
from pljobs.answers import RunEnd
from pljobs.careful import careful_logger
from pljobs.control import Control
from pljobs.endings import Ended
from pljobs.fetching import Fetcher
from pljobs.finisher import Finisher
from pljobs.jobs import AbortReason, DeleteJobCondition, Job
from pljobs.lease import LeaseWatch, registration
from pljobs.link import Link
from pljobs.maintenance import Maintenance, Retention
from pljobs.outage import Outage, until_writable
from pljobs.run import Run
from pljobs.signals import Interrupter, stop_on_signals
from pljobs.starting import Starter, Unfit
from pljobs.stopping import GivenUp, Stopping

if TYPE_CHECKING:
    from pljobs.app import App

logger = careful_logger(__name__)

REMIND_EVERY = 10.0


class Worker:
    """Run an app's jobs until stopped.

    `queues`: which (None: all); `concurrency`: how many jobs at once, each async task a task of this event
    loop, each sync task a thread; `wait`: False to stop when no job is left. `fetch_job_polling_interval`:
    seconds at most until a new job is seen; `abort_job_polling_interval`: seconds at most until an abort
    request is, while jobs run (default: the former); with `listen_notify` both take milliseconds.
    `shutdown_graceful_timeout`: seconds that running jobs have to end after a stop, before they are asked to
    abort (None: as long as they take). `update_heartbeat_interval` and `stalled_worker_timeout`: seconds
    between signs of life, and without one until other workers take its jobs; before that they are stopped
    here, unless `stop_without_database` is False. `delete_jobs`: which ended jobs to delete. `unknown_tasks`:
    whether a job whose task is not registered here fails, or is left to others. `retention`: how long what is
    over is kept (None: for ever), before jobs are deleted, or archived. Names follow procrastinate's worker.
    """

    def __init__(
        self,
        app: App,
        *,
        queues: Iterable[str] | None = None,
        name: str | None = None,
        concurrency: int = 1,
        wait: bool = True,
        fetch_job_polling_interval: float = 5.0,
        abort_job_polling_interval: float | None = None,
        shutdown_graceful_timeout: float | None = None,
        listen_notify: bool = True,
        delete_jobs: str | DeleteJobCondition = DeleteJobCondition.NEVER,
        install_signal_handlers: bool = True,
        additional_context: Mapping[str, object] | None = None,
        update_heartbeat_interval: float = 10.0,
        stalled_worker_timeout: float = 30.0,
        stop_without_database: bool = True,
        unknown_tasks: Literal["fail", "leave"] = "fail",
        retention: timedelta | None = None,
        archive: bool = False,
    ) -> None:
        if abort_job_polling_interval is None:
            abort_job_polling_interval = fetch_job_polling_interval
        checks.positive(
            fetch_job_polling_interval=fetch_job_polling_interval,
            abort_job_polling_interval=abort_job_polling_interval,
        )
        checks.lease(stalled_worker_timeout, heartbeat=update_heartbeat_interval)
        self.app = app
        self.queues = None if queues is None else checks.names("queues", queues)
        self.name = checks.name("name", name or "worker")
        self.concurrency = checks.count("concurrency", concurrency)
        self.wait = wait
        self.polling_interval = fetch_job_polling_interval
        self.abort_interval = abort_job_polling_interval
        self.graceful_timeout = checks.seconds("shutdown_graceful_timeout", shutdown_graceful_timeout)
        self.listen_notify = listen_notify
        known = tuple(each.value for each in DeleteJobCondition)
        self.delete_jobs = DeleteJobCondition(checks.one_of("delete_jobs", delete_jobs, known))
        self.install_signal_handlers = install_signal_handlers
        self.additional_context = dict(additional_context or {})
        self.heartbeat_interval = update_heartbeat_interval
        self.stalled_timeout = stalled_worker_timeout
        self.stop_without_database = stop_without_database
        self.unknown_tasks = checks.one_of("unknown_tasks", unknown_tasks, ("fail", "leave"))
        self.retention = Retention.of(retention, archive=archive)
        self.worker_id: int | None = None
        # What this worker holds, by run_id; None: a job that can't be started. Read by the control thread.
        self._runs: dict[int, Run | None] = {}
        self._lease = LeaseWatch(stalled_worker_timeout, runs=self._runs, give_up=self._forget)
        self._aborting = False
        self._stop = Stopping(
            self.graceful_timeout, on_begin=self._stops, busy=self._running, abort=self.abort
        )
        self._stopping = self._stop.begun
        self._given_up = GivenUp(self._stop)
        self._over = asyncio.Event()  # no task: a body may cancel every task there is
        self._look, self._drained = asyncio.Event(), asyncio.Event()
        self._outage = Outage(f"Worker {self.name}")
        self._link = Link(app.connector, self._outage)
        self._finisher = Finisher(self._link, dumps=app.connector.json_dumps)
        # On a line of its own: an end is never held up by a fetch, however long that takes.
        self._fetch_link = Link(app.connector, self._outage, part="fetch")
        self._fetcher = Fetcher(self, self._fetch_link, held=self._finisher.held)

    async def run(self) -> None:
        """Run until `stop()`, a signal, or (with wait=False) until no job is left.

        Cancelled, it stops at once: running jobs are asked to abort and will run again; it ends when they
        have. Raises what the connector does if the database can't be reached, or has no schema, at the start;
        `WorkerTainted` at the end if it gave up a job that could not be stopped. Waits for a database that is
        read-only, unless wait=False.
        """
        main = asyncio.create_task(self._main(), name="pljobs worker")
        main.add_done_callback(lambda _: self._over.set())
        cancelled: asyncio.CancelledError | None = None
        while not self._over.is_set():
            try:
                # Nothing cancels what is inside: a fetch or a report that is cut off would lose its answer.
                await self._over.wait()
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling() > 0:
                    cancelled = cancelled or error  # the first: by what it says anyio knows its own
                if not main.done():
                    self.abort()
        if not main.done():
            # Every second counts: somebody else may start its jobs.
            logger.critical("Worker %s leaves at once", self.worker_id, extra=self.ids())
        else:
            await main
        self._given_up.refuse(self.worker_id)
        if cancelled is not None:
            raise cancelled

    def stop(self) -> None:
        """Fetch no more and stop once the running jobs have ended; called again: `abort()`."""
        self._stop.tell()

    def _stops(self) -> None:
        logger.info("Worker %s stops, with %s jobs", self.worker_id or "?", len(self._runs), extra=self.ids())
        self._wake()

    def abort(self) -> None:
        """Stop, and ask the running jobs to abort; they will run again."""
        self._stopping.set()
        self._stop.close()
        self._wake()
        if not self._aborting:
            self._aborting = True
            for run in list(self._runs.values()):
                if run is not None:
                    run.abort(AbortReason.SHUTDOWN)

    def _wake(self) -> None:
        self._look.set()
        self._fetcher.wake()

    async def _main(self) -> None:
        self._starter = Starter(self, on_end=self._ended)
        try:
            self._starter.open()
            interrupter = Interrupter()
            with (
                stop_on_signals(self.stop, install=self.install_signal_handlers),
                interrupter.installed(install=self.install_signal_handlers),
            ):
                register = partial(self._link.execute, registration(self, None))
                self.worker_id = await until_writable(register, self._sleep, self._stopping, wait=self.wait)
                if self.worker_id is not None:
                    await self._work(self.worker_id, interrupter)
        finally:
            self._stop.close()
            await self._starter.close()
            await self._link.close()
            await self._fetch_link.close()

    async def _work(self, worker_id: int, interrupter: Interrupter) -> None:
        logger.info("Worker %s (%s) started", worker_id, self.name, extra=self.ids())
        self._control = Control(
            self.app.connector,
            worker_id=worker_id,
            register_again=registration(self, worker_id),
            queues=self.queues,
            runs=self._runs,
            on_todo=self._fetcher.ask,
            on_given_up=self._given_up.abandon,
            listen=self.listen_notify,
            heartbeat_interval=self.heartbeat_interval,
            abort_interval=self.abort_interval,
            interrupt=interrupter.interrupt,
            outage=self._outage,
        )
        duties = Maintenance(
            self.app, self._link.execute, interval=self.stalled_timeout / 3, retention=self.retention
        )
        self._control.start()
        try:
            async with asyncio.TaskGroup() as group:
                links, stops = (self._link, self._fetch_link), self.stop_without_database
                watch = self._lease.run(self._control, links, self._drained, stops=stops)
                group.create_task(watch, name="pljobs watch")
                group.create_task(duties.run(self._stopping, until=self._drained), name="pljobs maintenance")
                group.create_task(self._finisher.run(), name="pljobs finisher")
                group.create_task(self._fetch_then_drain(worker_id), name="pljobs fetch")
        finally:
            # Whatever happened, the lease must not be kept for jobs that nobody looks after.
            self.abort()
            try:
                if not self._drained.is_set():
                    # A loop died, or somebody cancelled every task: what ends is reported all the same.
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._finisher.run(), name="pljobs finisher")
                        group.create_task(self._drain(), name="pljobs drain")
            except BaseException:
                self._control.leave()
                raise
            await self._control.stop()
        logger.info("Worker %s stopped", self.worker_id, extra=self.ids())

    async def _fetch_then_drain(self, worker_id: int) -> None:
        await self._fetcher.run(worker_id, register_again=self._control.look_now)
        await self._drain()
        self._drained.set()

    async def _sleep(self, seconds: float) -> None:
        """Wait for something to look at (an end, the stop), at most `seconds`."""
        self._look.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._look.wait()

    # For the fetcher

    @property
    def stopping(self) -> bool:
        """Say whether nothing should be fetched any more."""
        return self._stopping.is_set()

    @property
    def may_start(self) -> bool:
        """Say whether jobs may be started now."""
        return not self.stopping and not self._lease.running_out

    @property
    def is_busy(self) -> bool:
        """Say whether there are runs whose end is not known to be recorded."""
        return bool(self._runs)

    def accept(self, jobs: Sequence[Job]) -> list[Run]:
        """Return the runs of jobs that were fetched, from now on listed in the heartbeats."""
        was_idle = not self._runs
        runs = [run for job in jobs if (run := self._accept(job)) is not None]
        if was_idle or any(run.look_at is not None for run in runs):
            self._control.runs_changed()  # it has to look more often now, or at that time
        return runs

    def _accept(self, job: Job) -> Run | None:
        if job.run_id is None:
            raise ValueError(f"{job.call_string} is not a run")
        try:
            run = self._runs[job.run_id] = self._starter.make(job, worker_id=self.worker_id)
        except Unfit as unfit:
            self._refuse(job, job.run_id, str(unfit))
            return None
        run.on_news = self._control.look_now
        return run

    def accepted(self, runs: Sequence[Run]) -> None:
        """Pass on to what was fetched whatever was said before."""
        for run in runs:
            if run.job.run_id is not None and (request := self._control.early_verdict(run.job.run_id)):
                run.abort(reason_of(request), request)
            if self._aborting:
                run.abort(AbortReason.SHUTDOWN)

    # Ends

    def _refuse(self, job: Job, run_id: int, message: str) -> None:
        self._runs[run_id] = None
        end = RunEnd(job_id=job.id or 0, run_id=run_id, outcome="failed", message=message)
        self._finisher.report(end, partial(self._reported, job, end))
        logs.refused(job, message)

    def _ended(self, run: Run, ended: Ended | RunEnd) -> None:
        # First the report, then the log: an application's log may raise, and the job must end all the same.
        end, error = self._starter.end_of(run, ended)
        self._finisher.report(end, partial(self._reported, run.job, end))
        if end.outcome == "abandoned":
            self._given_up.add(run)
        try:
            logs.ended(run.job, end, error, run.context.abort_reason())
        finally:
            self._fetcher.ended(run)
            self._look.set()

    def _reported(self, job: Job, end: RunEnd, status: str | None) -> None:
        self._runs.pop(end.run_id, None)
        self._look.set()
        # It may have made room for another: the next of its lane.
        self._fetcher.look()
        logs.recorded(job, end, status)

    async def _drain(self) -> None:
        """Wait for the running jobs and their reports; lease, notifications, aborts go on meanwhile."""
        loop = asyncio.get_running_loop()
        remind_at = loop.time() + REMIND_EVERY
        while running := self._running():
            if loop.time() >= remind_at:
                names = ", ".join(sorted(run.job.call_string for run in running))
                logger.warning("Worker %s still waits for: %s", self.worker_id, names, extra=self.ids())
                remind_at = loop.time() + REMIND_EVERY
            await self._sleep(max(0.0, remind_at - loop.time()))
        self._finisher.close(patience=0.0 if self._over.is_set() else self.stalled_timeout)
        while self._runs:
            await self._sleep(REMIND_EVERY)

    def _running(self) -> list[Run]:
        return [run for run in self._runs.values() if run is not None and not run.ended]

    def _forget(self, run: Run) -> None:
        # Not reported: its lease is over, whoever rescues it will run it again, and nobody must renew it.
        run.ended = True
        self._given_up.add(run)
        self._runs.pop(run.job.run_id or 0, None)
        self._control.leave()
        self.abort()
        self._over.set()

    def ids(self) -> dict[str, object]:
        """Return what a log record may say of this worker."""
        return {"worker_id": self.worker_id, "worker_name": self.name}
