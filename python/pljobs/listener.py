"""The channels that a worker listens on: its own, for what its runs are told, and the one for new jobs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

logger = logging.getLogger(__name__)

TODO_CHANNEL = "pljobs_todo"


class Listener:
    """Listen for one worker, on whatever connection it has at the time.

    `queues`: those whose new jobs matter (None: all); `polls_every`: seconds, for the log.
    """

    def __init__(self, worker_id: int, queues: Sequence[str] | None, *, polls_every: float) -> None:
        self._worker_id = worker_id
        self._channel = f"pljobs_worker_{worker_id}"
        self._queues = None if queues is None else _hashes(queues)
        self._polls_every = polls_every

    def start(self, conn: psycopg.Connection[Any], *, patience: float) -> None:
        """Listen on this connection; warn if nothing arrives within `patience` seconds."""
        for channel in (self._channel, TODO_CHANNEL):
            conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        # Behind a transaction pooler LISTEN is accepted, and nothing ever arrives.
        conn.execute("SELECT pg_catalog.pg_notify(%s, 'probe')", [self._channel])
        for _ in conn.notifies(timeout=patience, stop_after=1):
            return  # whichever arrived first
        logger.warning(
            "Notifications don't arrive on this connection (a transaction pooler?): worker %s polls"
            " every %s s instead. Connect directly, or set listen_notify=False.",
            self._worker_id, self._polls_every,
        )  # fmt: skip

    def heard(self, conn: psycopg.Connection[Any]) -> tuple[bool, bool]:
        """Take what has arrived; return whether some is about this worker's runs, and some about new jobs."""
        ours = todo = False
        for note in conn.notifies(timeout=0):
            ours = ours or note.channel == self._channel
            # Empty: any queue, from a server that has no md5 (FIPS).
            todo = todo or (
                note.channel == TODO_CHANNEL
                and (self._queues is None or not note.payload or note.payload in self._queues)
            )
        return ours, todo


def _hashes(queues: Sequence[str]) -> set[str] | None:
    try:
        return {queue_hash(queue) for queue in queues}
    except ValueError:  # no md5 here (FIPS): look at each notification
        return None


def queue_hash(queue: str) -> str:
    """Return what a notification calls this queue: the md5 of its name, as PostgreSQL writes it."""
    return hashlib.md5(queue.encode(), usedforsecurity=False).hexdigest()
