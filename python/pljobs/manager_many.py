"""The part of the job manager that is about many jobs: cancel and retry by filter, prune."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from pljobs import calls_many, calls_prune, checks, manager_logs
from pljobs.answers import Call, JobAnswer
from pljobs.calls_many import CANCELLABLE, MAX_JOBS, RETRIABLE, Page, Selection
from pljobs.calls_people import StopOptions
from pljobs.exceptions import InvalidArgument
from pljobs.jobs import Status
from pljobs.twins import Question, Talk, talking_twins

if TYPE_CHECKING:
    from pljobs.connector import PsycopgConnector

BATCH = 1_000
PRUNE_BATCH = 10_000


class ManyJobs:
    """Hold what `JobManager` does to many jobs at once."""

    connector: PsycopgConnector

    def _cancel_jobs(
        self,
        *,
        job_ids: Iterable[int] | None = None,
        queue: str | None = None,
        task: str | None = None,
        lock: str | None = None,
        args: Mapping[str, object] | None = None,
        older_than: checks.Interval | None = None,
        status: Status | str | None = None,
        parent: int | None = None,
        abort: bool = False,
        delete_job: bool = False,
        force: bool = False,
        reason: str | None = None,
        actor: str | None = None,
        grace: checks.Interval | None = None,
        term_grace: checks.Interval | None = None,
        sql: bool = False,
        dry_run: bool = True,
        max_jobs: int | None = None,
        connection: object = None,
    ) -> Talk[list[JobAnswer]]:
        """Return what cancelling all jobs that match would do; with `dry_run=False`, do it.

        Matching jobs wait or run (`status`: only these), and have all that is given: `args` are contained in
        their arguments, `older_than` is how long ago they were deferred at least, `parent` the job inside of
        which they were (its whole tree: `cancel_tree`). How they are stopped is that of `cancel_job_by_id`.
        At least one filter must be given, besides `status`. At most `max_jobs`, those of the lowest ids. An
        answer for each, by ascending id, true if it was stopped or asked to stop. Done in batches of 1,000,
        each committed; with `connection`, all in its transaction.
        """
        selection = Selection(
            job_ids=job_ids, queue=queue, task=task, lock=lock, args=args, older_than=older_than,
            status=status, parent=parent,
        )  # fmt: skip
        chosen = selection.params(CANCELLABLE, self.connector.json_dumps)
        how: StopOptions = {
            "abort": abort, "delete_job": delete_job, "force": force, "reason": reason, "actor": actor,
            "grace": grace, "term_grace": term_grace, "sql": sql,
        }  # fmt: skip

        def call(page: Page) -> Call[list[JobAnswer]]:
            return calls_many.cancel_jobs(chosen, page, **how)

        done: list[JobAnswer] = []
        is_complete = False
        try:
            yield from _batches(call, dry_run, max_jobs, connection, done)
            is_complete = True
        finally:
            # Interrupted, what is committed is done.
            if not dry_run and (is_complete or done):
                manager_logs.cancelled_many(done, chosen, how, joined=connection is not None)
        return done

    cancel_jobs, cancel_jobs_async = talking_twins(_cancel_jobs)

    def _retry_jobs(
        self,
        *,
        job_ids: Iterable[int] | None = None,
        queue: str | None = None,
        task: str | None = None,
        lock: str | None = None,
        args: Mapping[str, object] | None = None,
        older_than: checks.Interval | None = None,
        status: Status | str | None = None,
        parent: int | None = None,
        reason: str | None = None,
        actor: str | None = None,
        dry_run: bool = True,
        max_jobs: int | None = None,
        connection: object = None,
    ) -> Talk[list[JobAnswer]]:
        """Return which failed, cancelled and aborted jobs match; with `dry_run=False`, put them back to todo.

        Filters, batches and answers are those of `cancel_jobs`.
        """
        selection = Selection(
            job_ids=job_ids, queue=queue, task=task, lock=lock, args=args, older_than=older_than,
            status=status, parent=parent,
        )  # fmt: skip
        chosen = selection.params(RETRIABLE, self.connector.json_dumps)

        def call(page: Page) -> Call[list[JobAnswer]]:
            return calls_many.retry_jobs(chosen, page, reason=reason, actor=actor)

        done: list[JobAnswer] = []
        yield from _batches(call, dry_run, max_jobs, connection, done)
        return done

    retry_jobs, retry_jobs_async = talking_twins(_retry_jobs)

    def _delete_old_jobs(
        self,
        nb_hours: float,
        queue: str | None = None,
        include_failed: bool = False,  # noqa: FBT001, FBT002, RUF100
        include_cancelled: bool = False,  # noqa: FBT001, FBT002, RUF100
        include_aborted: bool = False,  # noqa: FBT001, FBT002, RUF100
    ) -> Talk[int]:
        """Delete the jobs that succeeded more than `nb_hours` ago, others if included; return how many.

        In batches, each a transaction of its own.
        """
        wanted = {
            Status.FAILED: include_failed,
            Status.CANCELLED: include_cancelled,
            Status.ABORTED: include_aborted,
        }
        statuses = [Status.SUCCEEDED, *(status for status, included in wanted.items() if included)]
        older_than = checks.interval("nb_hours", {"hours": nb_hours})
        total, since = 0, None
        while True:
            call = calls_prune.prune_jobs(
                older_than, statuses=statuses, queue=queue, max_jobs=PRUNE_BATCH, since=since
            )
            done = yield Question(call)
            if not done.pruned:
                return total
            total, since = total + done.pruned, done.reached_at

    delete_old_jobs, delete_old_jobs_async = talking_twins(_delete_old_jobs)


def pages(*, dry_run: bool, max_jobs: int | None = None) -> Iterator[tuple[Page, list[JobAnswer]]]:
    """Yield each batch to ask for, with a list for its answers, until one is not full."""
    if max_jobs is not None and not 1 <= checks.identifier("max_jobs", max_jobs) <= MAX_JOBS:
        raise InvalidArgument(f"max_jobs must be at least 1, not {max_jobs}")
    after_id, left = None, max_jobs
    while left != 0:
        size = BATCH if left is None else min(BATCH, left)
        answers: list[JobAnswer] = []
        yield Page(dry_run=dry_run, max_jobs=size, after_id=after_id), answers
        if len(answers) < size:
            return
        after_id = answers[-1].job_id
        left = None if left is None else left - size


def _batches(
    call: Callable[[Page], Call[list[JobAnswer]]],
    dry_run: bool,
    max_jobs: int | None,
    connection: object,
    done: list[JobAnswer],
) -> Talk[None]:
    for page, answers in pages(dry_run=dry_run, max_jobs=max_jobs):
        answers.extend((yield Question(call(page), connection)))
        done.extend(answers)
