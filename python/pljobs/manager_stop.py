"""The part of the job manager that stops jobs: cancel one, a tree; take a request back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from pljobs import calls_many, calls_people, checks, manager_logs
from pljobs.answers import CancelResult, RescindResult, TreeAnswer
from pljobs.calls_people import StopOptions
from pljobs.exceptions import InvalidArgument
from pljobs.twins import Question, Talk, Wait, talking_twins, twins
from pljobs.watching import Seen

if TYPE_CHECKING:
    from pljobs.connector import PsycopgConnector

# How a request is resolved by which its job has been stopped: its row says cancelled or aborted, or is gone.
# Of `forced` and `abandoned` ones, and where the worker was lost, the code may still run. Not `timeout`: that
# fails the job, or retries it, and is nobody's wish; a person's wish takes a deadline's request over.
STOPPED = frozenset({"cancelled", "deleted", "aborted", "killed", "abandoned", "forced", "worker_lost"})


class StopJobs:
    """Hold what `JobManager` does to stop a job, or a tree of them."""

    connector: PsycopgConnector

    def _cancel_job_by_id(
        self,
        job_id: int,
        abort: bool = False,  # noqa: FBT001, FBT002, RUF100 - as procrastinate has them
        delete_job: bool = False,  # noqa: FBT001, FBT002, RUF100
        *,
        force: bool = False,
        reason: str | None = None,
        actor: str | None = None,
        grace: checks.Interval | None = None,
        term_grace: checks.Interval | None = None,
        sql: bool = False,
        wait: checks.Interval | None = None,
        connection: object = None,
    ) -> Talk[bool]:
        """Cancel a waiting job; say whether it was, or was asked to be, stopped.

        `abort`: ask a running one to stop. `force`: end a running one now, whatever it does. `delete_job`:
        delete it once it is cancelled or aborted; also deletes one that is so already. False: unknown id,
        running (without abort), or finished.

        `grace` gives a running one so long to stop by itself, in seconds or as a timedelta: after half of it
        its own SQL is cancelled, after it the task is terminated, and after `term_grace` more (5 seconds)
        killed, or given up where nothing can kill it. 0: terminated at once. None: never by force. `sql`:
        cancel the job's SQL now, whether or not the transaction commits. Asked again, it only becomes
        stronger. Raises `InvalidArgument` for a negative one, and a `term_grace` without a `grace`.

        `wait`, in seconds: wait until the run that was asked to stop has ended; then True means that the job
        is cancelled, aborted or deleted, now or before, and False also that it succeeded or failed before it
        stopped, or that the request was taken back. (Forced, given up, or with its worker lost it is aborted,
        True, though code of it may still run.) Raises `TimeoutError` if it still runs after that time; the
        request stays. Not with `connection`, for nobody hears of the request before that commits.
        """
        length = checks.optional_interval("wait", wait)
        if length is not None and connection is not None:
            raise InvalidArgument("wait: not with connection: what is not committed is never over")
        result = yield from self._ask(
            job_id, connection, abort=abort, delete_job=delete_job, force=force, reason=reason, actor=actor,
            grace=grace, term_grace=term_grace, sql=sql,
        )  # fmt: skip
        if length is None:
            return bool(result)
        if not result.outcome.startswith("abort_") or result.request_id is None:
            return bool(result) or result.outcome == "already_cancelled"
        seconds = length.total_seconds()
        seen: Seen = yield Wait(("request", result.request_id), seconds)
        if not seen.is_over:
            raise TimeoutError(f"job {job_id} still runs after {seconds:g} s; the request to abort it stays")
        return seen.word in STOPPED

    cancel_job_by_id, cancel_job_by_id_async = talking_twins(_cancel_job_by_id)

    def _cancel_job(
        self,
        job_id: int,
        abort: bool = False,  # noqa: FBT001, FBT002, RUF100
        delete_job: bool = False,  # noqa: FBT001, FBT002, RUF100
        *,
        force: bool = False,
        reason: str | None = None,
        actor: str | None = None,
        grace: checks.Interval | None = None,
        term_grace: checks.Interval | None = None,
        sql: bool = False,
        connection: object = None,
    ) -> Talk[CancelResult]:
        """Do what `cancel_job_by_id` does; return all that is to be told about it."""
        return (
            yield from self._ask(
                job_id, connection, abort=abort, delete_job=delete_job, force=force, reason=reason,
                actor=actor, grace=grace, term_grace=term_grace, sql=sql,
            )
        )  # fmt: skip

    cancel_job, cancel_job_async = talking_twins(_cancel_job)

    def _cancel_tree(
        self,
        root: int,
        *,
        abort: bool = False,
        delete_job: bool = False,
        force: bool = False,
        reason: str | None = None,
        actor: str | None = None,
        grace: checks.Interval | None = None,
        term_grace: checks.Interval | None = None,
        sql: bool = False,
        dry_run: bool = False,
        connection: object = None,
    ) -> Talk[list[TreeAnswer]]:
        """Do what `cancel_job` does to a job and to all that was deferred inside of it, and of those.

        An answer for the root, and for each that waits or runs, by ascending id; true if it was stopped or
        asked to stop. Empty for an unknown id without children. No job of the tree, but those left alone
        (running, without `abort`), can defer another after that: `TreeCancelled`. In one transaction; with
        `connection`, in that one. `dry_run`: change nothing, and answer what it would do.
        """
        how: StopOptions = {
            "abort": abort, "delete_job": delete_job, "force": force, "reason": reason, "actor": actor,
            "grace": grace, "term_grace": term_grace, "sql": sql,
        }  # fmt: skip
        call = calls_people.cancel_tree(root, dry_run=dry_run, **how)
        answers: list[TreeAnswer] = yield Question(call, connection)
        if not dry_run:
            manager_logs.cancelled_tree(root, answers, how, joined=connection is not None)
        return answers

    cancel_tree, cancel_tree_async = talking_twins(_cancel_tree)

    def _rescind_request_by_id(
        self, job_id: int, *, reason: str | None = None, actor: str | None = None, connection: object = None
    ) -> Question[bool]:
        """Take back a request to abort, if the worker has not heard of it; say whether that was done."""
        call = calls_many.rescind_request(job_id, reason=reason, actor=actor)
        return Question(call.then(bool), connection)

    rescind_request_by_id, rescind_request_by_id_async = twins(_rescind_request_by_id)

    def _rescind_request(
        self, job_id: int, *, reason: str | None = None, actor: str | None = None, connection: object = None
    ) -> Question[RescindResult]:
        """Do what `rescind_request_by_id` does; return all that is to be told about it."""
        return Question(calls_many.rescind_request(job_id, reason=reason, actor=actor), connection)

    rescind_request, rescind_request_async = twins(_rescind_request)

    @staticmethod
    def _ask(job_id: int, connection: object, **how: Unpack[StopOptions]) -> Talk[CancelResult]:
        """Ask for one job, and say so in the log."""
        result: CancelResult = yield Question(calls_people.cancel_job(job_id, **how), connection)
        manager_logs.cancelled_one(job_id, result, how, joined=connection is not None)
        return result
