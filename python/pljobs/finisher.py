"""Reports how runs ended: in batches that nobody waits for, and until the database has answered."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable, Sequence

from pljobs import calls
from pljobs.answers import RunEnd
from pljobs.arguments import JsonDumps
from pljobs.careful import careful_logger
from pljobs.exceptions import ConnectorException, DatabaseUnavailable
from pljobs.link import Link

logger = careful_logger(__name__)

BATCH = 100
# More are waiting only where the database is slow: then no more jobs should be started.
BACKLOG = 500
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 5.0

# Called with the status that was written, or None where it could not be told before the worker had to give
# up.
OnAnswer = Callable[[str | None], None]


@dataclasses.dataclass(slots=True)
class _Pending:
    end: RunEnd
    on_answer: OnAnswer
    pause: float = FIRST_PAUSE
    is_late: bool = False
    is_alone: bool = False
    is_bare: bool = False


class Finisher:
    """Send each end of a run to the database, again until it is answered.

    The first goes out at once; those that end while it is under way go together in the next call. A replayed
    end is answered what it had written, so trying again is safe. One that waits behind somebody's open
    transaction steps aside for the others.
    """

    def __init__(self, link: Link, *, dumps: JsonDumps | None = None) -> None:
        self._link = link
        self._dumps = dumps
        self._queue: deque[_Pending] = deque()
        self._unanswered = 0
        self._late = 0
        self._most = BATCH
        self._wake = asyncio.Event()
        self._closing = False
        self._give_up_at: float | None = None

    def report(self, end: RunEnd, on_answer: OnAnswer) -> None:
        """Queue the end of a run; `on_answer` is called with the status written."""
        self._unanswered += 1
        self._put(_Pending(end, on_answer))

    def held(self) -> int:
        """Return how many runs have ended and should keep their slots: their end could not be written yet."""
        return self._late + max(0, len(self._queue) - BACKLOG)

    def close(self, *, patience: float) -> None:
        """Let `run` end once all is answered, or after `patience` seconds."""
        self._closing = True
        self._give_up_at = asyncio.get_running_loop().time() + patience
        self._wake.set()

    async def run(self) -> None:
        """Work until `close`."""
        while not (self._closing and self._unanswered == 0):
            if self._queue:
                await self._send(self._next())
                continue
            self._wake.clear()
            await self._wake.wait()

    def _next(self) -> list[_Pending]:
        batch = [self._queue.popleft()]
        while len(batch) < self._most and self._queue and not (batch[0].is_alone or self._queue[0].is_alone):
            batch.append(self._queue.popleft())
        return batch

    def _put(self, pending: _Pending) -> None:
        self._queue.append(pending)
        self._wake.set()

    async def _send(self, batch: Sequence[_Pending]) -> None:
        try:
            call = calls.finish_jobs([p.end for p in batch], wait=False, dumps=self._dumps)
            answers = await self._link.execute(call)
        except DatabaseUnavailable:
            # On a slow line perhaps, which so many can't pass in the time that they have.
            self._most = max(1, len(batch) // 2)
            self._again(batch)
        except Exception as error:  # noqa: BLE001 - an own json_dumps may raise anything
            if len(batch) > 1:  # find the one that it is about; the others must not suffer
                for pending in reversed(batch):
                    pending.is_alone = True
                    self._queue.appendleft(pending)
            else:
                self._refused(batch[0], error)
        except BaseException:  # of whoever ends this loop: what is in hand goes to the one after it
            self._queue.extendleft(reversed(batch))
            raise
        else:
            self._most = min(BATCH, 2 * self._most)
            status = {(answer.job_id, answer.run_id): answer.status for answer in answers}
            for pending in batch:
                written = status.get((pending.end.job_id, pending.end.run_id))
                if written == "locked":
                    self._held(pending)
                else:
                    self._answer(pending, written)

    def _refused(self, pending: _Pending, error: Exception) -> None:
        end = pending.end
        ids = {"job_id": end.job_id, "run_id": end.run_id}
        if not isinstance(error, ConnectorException) and not pending.is_bare:
            # What the task produced must never keep its job from ending: texts, perhaps, that this database
            # has no characters for.
            logger.error("What job %s produced can't be stored: %s", end.job_id, error, extra=ids)
            message = ascii(end.message)[1:-1] if end.message else "result or error could not be stored"
            pending.end = dataclasses.replace(end, result=None, error=None, progress=None, message=message)
            pending.is_bare = True
        else:
            logger.error("Can't report the end of job %s, trying again: %s", end.job_id, error, extra=ids)
        self._again([pending])

    def _held(self, pending: _Pending) -> None:
        if pending.pause > FIRST_PAUSE:  # a cancel_job that is about to commit is not worth a line
            end = pending.end
            logger.info(
                "Job %s has ended, but somebody's open transaction holds it; trying again",
                end.job_id,
                extra={"job_id": end.job_id, "run_id": end.run_id},
            )
        self._again([pending])

    def _again(self, batch: Sequence[_Pending]) -> None:
        loop = asyncio.get_running_loop()
        for pending in batch:
            if self._give_up_at is not None and loop.time() >= self._give_up_at:
                end = pending.end
                logger.error(
                    "Gave up reporting that job %s %s: it will be rescued when this worker's lease runs out",
                    end.job_id, end.outcome, extra={"job_id": end.job_id, "run_id": end.run_id},
                )  # fmt: skip
                self._answer(pending, None)
                continue
            self._late += not pending.is_late
            pending.is_late = True
            loop.call_later(pending.pause, self._put, pending)
            pending.pause = min(pending.pause * 2, LONGEST_PAUSE)

    def _answer(self, pending: _Pending, status: str | None) -> None:
        self._unanswered -= 1
        self._late -= pending.is_late
        self._wake.set()
        # Not from here: what it raises is not this loop's.
        asyncio.get_running_loop().call_soon(pending.on_answer, status)
