"""The exceptions that pljobs raises: one tree, with the database's error codes listed once."""

from __future__ import annotations

from typing import ClassVar


class PljobsException(Exception):  # noqa: N818 - procrastinate's naming
    """Catch everything that pljobs raises on purpose, but for `JobAborted`.

    ::

        PljobsException                 (ProcrastinateException is another name for it)
          AlreadyEnqueued       PJ001   a waiting job holds the queueing lock
          InvalidJob            PJ002   this can't be deferred: arguments, names, times (also a ValueError)
          InvalidArgument       PJ004   a call with an argument that makes no sense (also a ValueError)
          KeyReused             PJ012   an idempotency key was used for another job
          TreeCancelled         PJ007   a job of a cancelled tree deferred another: stop
          JobNotFound                   no job has this id (NoResult is another name for it)
          TaskNotFound                  no task has this name
          TaskAlreadyRegistered         two tasks of one name, or a periodic task twice
          UnboundTaskError              the task's blueprint was not added to an app
          FunctionPathError             a function without a name of its own needs `name=`
          LoadFromPathError             a dotted path leads nowhere (also an ImportError)
          MissingExtra                  an optional part isn't installed (also an ImportError)
          JobTimeout                    a job ran longer than its timeout: for its retry strategy to see
          ProcessDied                   a job's own process ended without a word: likewise
          EmbeddedServerError           of `pljobs.embedded`: a server could not be made, or reached
          AppNotOpen                    open the app before you use it
          ConnectorException            the database refused; `sqlstate` says why
            DatabaseUnavailable         no connection, or a broken one: trying again later may work
              DatabaseReadOnly          a standby, or a read-only transaction
            SchemaMissing               run `pljobs migrate`
            MigrationEdited     PJ005   the database ran another text of a migration
            SchemaTooNew        PJ006   the database was migrated by a newer pljobs
            IndexMissing        PJ013   fairness keys and throttles need an index: run `sql/indexes.sql`
            WorkerNotRegistered PJ003   this worker has to register again
            VersionMismatch     PJ008   this worker and this schema are too far apart: upgrade one of them
            OldWorkersAlive     PJ009   a migration takes away what live workers call: upgrade these first
            RunLost             PJ011   this run is not its job's any more: roll back, and stop
            NotPermitted        PJ010   the role in force may not do this (also PostgreSQL's 42501)
          WorkerTainted                 this worker gave up a job whose code may still run: end the process
        JobAborted                      raised by a task to end as aborted (a BaseException)

    A code of the database (`PJ...`) means one class, and is never used for another.
    """

    code: ClassVar[str | None] = None


ProcrastinateException = PljobsException


class AlreadyEnqueued(PljobsException):
    """Say that a waiting job already holds the queueing lock; nothing was deferred."""

    code = "PJ001"


class InvalidJob(PljobsException, ValueError):  # noqa: N818
    """Say what is wrong with a job that can't be deferred, and where; never shows a value."""

    code = "PJ002"


class InvalidArgument(PljobsException, ValueError):  # noqa: N818
    """Say which argument of a call makes no sense."""

    code = "PJ004"


class TreeCancelled(PljobsException):
    """Say that a job can't defer others, for its tree was cancelled; nothing was deferred."""

    code = "PJ007"


class KeyReused(PljobsException):
    """Say that an idempotency key was used for another task or other arguments; nothing was deferred."""

    code = "PJ012"


NO_JOB = "it never existed, or was deleted, or belongs to another role, and this login may not see it"


class JobNotFound(PljobsException):
    """Say that no job has this id: it never existed, or was deleted, or is another role's."""


NoResult = JobNotFound


class TaskNotFound(PljobsException):
    """Say that no task is registered under this name."""


class TaskAlreadyRegistered(PljobsException):
    """Say that a task of this name, or this periodic task, exists already."""


class UnboundTaskError(PljobsException):
    """Say that the task's blueprint has not been added to an app."""


class FunctionPathError(PljobsException):
    """Say that no name could be found for a function; give the task a `name=`."""


class LoadFromPathError(PljobsException, ImportError):
    """Say why a dotted path could not be loaded."""


class MissingExtra(PljobsException, ImportError):  # noqa: N818
    """Say which extra of the package to install."""


class JobTimeout(PljobsException, TimeoutError):  # noqa: N818
    """Be what a retry strategy is asked about where a job ran longer than its timeout, and was stopped."""


class ProcessDied(PljobsException):
    """Be what a retry strategy is asked about where a job's own process ended without saying how."""


class AppNotOpen(PljobsException):
    """Say that the app has to be opened first, with `open()` or `open_async()`."""


class ConnectorException(PljobsException):
    """Say what the database, or the connection to it, answered; `sqlstate` is PostgreSQL's code, if any."""

    def __init__(self, message: str = "", *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class DatabaseUnavailable(ConnectorException):
    """Say that no connection could be had, or that the one in use broke: trying again later may work."""


class DatabaseReadOnly(DatabaseUnavailable):
    """Say that nothing can be written here: connect to the primary, or wait until this is one."""


class SchemaMissing(ConnectorException):
    """Say that the schema pljobs, or a part of it, is not in this database: run `pljobs migrate`."""


class MigrationEdited(ConnectorException):
    """Say that the database ran another text of a migration, or that the schema is somebody else's."""

    code = "PJ005"


class SchemaTooNew(ConnectorException):
    """Say that a newer release has migrated this database: install that one."""

    code = "PJ006"


class IndexMissing(ConnectorException):
    """Say that an index is not made yet which fairness keys and throttles need; nothing was changed."""

    code = "PJ013"


class WorkerNotRegistered(ConnectorException):
    """Say that the database doesn't know this worker (any more): it has to register again."""

    code = "PJ003"


class VersionMismatch(ConnectorException):
    """Say that the schema does not serve the contract of this worker, and which of the two is too old."""

    code = "PJ008"


class OldWorkersAlive(ConnectorException):
    """Say which live workers need what a migration takes away; nothing was changed."""

    code = "PJ009"


class RunLost(ConnectorException):
    """Say that a run is not its job's any more, so that what it did must not be committed."""

    code = "PJ011"


class NotPermitted(ConnectorException):
    """Say what the role in force may not do: no group grants it, or it is limited to other queues."""

    code = "PJ010"


class WorkerTainted(PljobsException):
    """Say that a worker has stopped because it gave up a job that could not be stopped.

    Its code may still run, in this process: end the process, and start another.
    """


class JobAborted(BaseException):
    """Raise this in a task that was asked to abort, so that its job ends `aborted`.

    A message given to it reaches the log and the job's row. It is a BaseException on purpose: a task's broad
    `except Exception` must not turn an abort into a failure. Raised where nobody asked for an abort, it ends
    the job as `failed`.
    """


BY_CODE: dict[str | None, type[PljobsException]] = {
    cls.code: cls
    for cls in (
        AlreadyEnqueued,
        InvalidJob,
        WorkerNotRegistered,
        InvalidArgument,
        MigrationEdited,
        SchemaTooNew,
        TreeCancelled,
        VersionMismatch,
        OldWorkersAlive,
        NotPermitted,
        RunLost,
        KeyReused,
        IndexMissing,
    )
}
