"""Jobs that are configured, and how they come into the database: one by one, or many at once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pljobs import calls, checks
from pljobs.answers import Call
from pljobs.arguments import encode_arguments
from pljobs.careful import careful_logger
from pljobs.exceptions import InvalidJob
from pljobs.job_context import current_context
from pljobs.jobs import Job

if TYPE_CHECKING:
    from pljobs.connector import PsycopgConnector

logger = careful_logger(__name__)

BATCH_JOBS = 1_000
BATCH_CHARACTERS = 4 * 1024 * 1024


class JobDeferrer:
    """Defer jobs that are configured already; what `Task.configure` and `App.configure_task` return."""

    def __init__(
        self,
        *,
        job: Job,
        connector: PsycopgConnector,
        parent: int | Literal["current"] | None = "current",
        idempotency_key: str | None = None,
        connection: object = None,
    ) -> None:
        self.job = job
        self._connector = connector
        self._key = idempotency_key
        self._parent = parent if parent == "current" else checks.optional_identifier("parent", parent)
        self._connection = connection
        self._options = calls.encode_options(job, idempotency_key=idempotency_key)

    def defer(self, /, *args: object, **task_kwargs: object) -> int:
        """Defer a job with these arguments; return its id. Raises as `Task.defer` does."""
        return self.batch_defer(_by_name(args, task_kwargs))[0]

    async def defer_async(self, /, *args: object, **task_kwargs: object) -> int:
        """Defer a job with these arguments; return its id. Raises as `Task.defer` does."""
        return (await self.batch_defer_async(_by_name(args, task_kwargs)))[0]

    def batch_defer(self, *task_kwargs: Mapping[str, object]) -> list[int]:
        """Defer one job for each mapping of arguments, all or none; return their ids in that order."""
        batches = self._batches(task_kwargs)
        answers = self._connector.execute_all(batches, connection=self._connection) if batches else []
        return self._deferred(answers)

    async def batch_defer_async(self, *task_kwargs: Mapping[str, object]) -> list[int]:
        """Defer one job for each mapping of arguments, all or none; return their ids in that order."""
        batches = self._batches(task_kwargs)
        answers = (
            await self._connector.execute_all_async(batches, connection=self._connection) if batches else []
        )
        return self._deferred(answers)

    def _batches(self, batch: Iterable[Mapping[str, object]]) -> list[Call[list[int]]]:
        batches: list[Call[list[int]]] = []
        encoded: list[str] = []
        size = 0
        parent, how = self._parent, self._connector.notify
        # In the caller's own transaction only its commit can tell the workers.
        notify = how == "transaction" or (how == "coalesced" and self._connection is not None)
        if parent == "current":
            inside, parent = current_context(), None
            if inside is not None and self._connector.is_near(inside.app.connector):
                parent = inside.job.id
        options = self._options
        if parent is not None:
            options = calls.encode_options(self.job, parent_id=parent, idempotency_key=self._key)
        version = calls.defer_version([self.job], self._key)
        for task_kwargs in batch:
            args = {**self.job.task_kwargs, **task_kwargs}
            dumped = encode_arguments(self.job.task_name, args, self._connector.json_dumps)
            encoded.append(calls.with_arguments(options, dumped))
            size += len(encoded[-1])
            if len(encoded) == BATCH_JOBS or size >= BATCH_CHARACTERS:
                batches.append(calls.defer_encoded(encoded, version=version, notify=notify))
                encoded, size = [], 0
        if self._key is not None and (batches or len(encoded) > 1):
            raise InvalidJob(f"idempotency_key {self._key!a} stands for one job, not for a batch")
        if encoded:
            batches.append(calls.defer_encoded(encoded, version=version, notify=notify))
        return batches

    def _deferred(self, answers: Sequence[Sequence[int]]) -> list[int]:
        if answers and self._connector.notify == "coalesced" and self._connection is None:
            self._connector.pings.ping(self.job)
        ids = [job_id for answer in answers for job_id in answer]
        for job_id in ids if logger.isEnabledFor(logging.DEBUG) else ():
            job = self.job.evolve(id=job_id)
            logger.debug(
                "Deferred job %s", job.call_string, extra={"action": "job_defer", "job": job.log_context()}
            )
        return ids


def _by_name(args: tuple[object, ...], task_kwargs: dict[str, object]) -> dict[str, object]:
    if args:
        raise TypeError(f"arguments of a job are given by name: {len(args)} without one")
    return task_kwargs
