"""The channels that a worker listens on: its own, for what its runs are told, and the one for new jobs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import psycopg
from psycopg import sql

from pljobs import session
from pljobs.careful import careful_logger

logger = careful_logger(__name__)

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

    def start(
        self,
        conn: psycopg.Connection[Any],
        *,
        patience: float,
        elsewhere: Callable[[], AbstractContextManager[psycopg.Connection[Any]]],
    ) -> None:
        """Listen on this connection; warn if nothing arrives within `patience` seconds.

        `elsewhere`: lends another connection.
        """
        # Behind a transaction pooler LISTEN is accepted, and nothing ever arrives: but for what this
        # connection says itself, if it happens to say it through the same server process. And that process
        # listens from then on: to a channel that nobody else uses.
        if session.is_pooled(conn):
            channel = f"{self._channel}_probe"
            self._listen(conn, channel)
            with elsewhere() as other:
                self._probe(other, channel)
            if not self._arrives(conn, channel, patience):
                self._warn()
                return
        self._listen(conn, self._channel, TODO_CHANNEL)
        if not session.is_pooled(conn):
            self._probe(conn, self._channel)
            if not self._arrives(conn, self._channel, patience):
                self._warn()

    @staticmethod
    def _listen(conn: psycopg.Connection[Any], *channels: str) -> None:
        # At once: on a slow line each word counts.
        listens = (sql.SQL("LISTEN {}").format(sql.Identifier(channel)) for channel in channels)
        conn.execute(sql.SQL("; ").join(listens))

    @staticmethod
    def _probe(conn: psycopg.Connection[Any], channel: str) -> None:
        conn.execute("SELECT pg_catalog.pg_notify(%s, 'probe')", [channel])

    @staticmethod
    def _arrives(conn: psycopg.Connection[Any], channel: str, patience: float) -> bool:
        # No other: behind a pooler the server process may listen for others, who had it before.
        return any(note.channel == channel for note in conn.notifies(timeout=patience))

    def _warn(self) -> None:
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
