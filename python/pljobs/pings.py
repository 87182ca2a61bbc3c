"""Tells workers of new jobs after their commit: one message for however many defers, from a thread."""

from __future__ import annotations

import atexit
import os
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import psycopg

from pljobs import calls_wake, db
from pljobs.careful import careful_logger
from pljobs.exceptions import InvalidArgument, PljobsException
from pljobs.link import KEEPALIVES

if TYPE_CHECKING:
    from pljobs.connector import PsycopgConnector
    from pljobs.jobs import Job

logger = careful_logger(__name__)

Notify = Literal["transaction", "coalesced", "never"]
CHOICES = ("transaction", "coalesced", "never")

EVERY = 0.005
"""Seconds at least from one ping to the next."""
PATIENCE = 5.0
"""Seconds that closing waits for the last ping."""
SOON = timedelta(minutes=2)
"""What is due later than this needs no ping: workers look before then."""

UNTOLD = "Workers can't be told of new jobs, and find them when they poll: %s"


def choice(notify: str) -> Notify:
    """Return it if it is one of the choices."""
    if notify not in CHOICES:
        raise InvalidArgument(f"notify: {', '.join(CHOICES)} can be chosen, not {notify!a}")
    return notify  # type: ignore[return-value]


class Pings:
    """Call notify_queues_v1 soon for the queues of committed jobs, over a connection of its own.

    The first goes out at once, those that come within `EVERY` seconds go together in the next. Nobody waits
    for it; where the database can't be reached, the queues are named again with the next ping.
    """

    def __init__(self, connector: PsycopgConnector) -> None:
        self._connector = connector
        self._queues: set[str] = set()
        self._lock = threading.Lock()
        self._asked = threading.Event()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._pid = os.getpid()

    @property
    def is_running(self) -> bool:
        """Say whether there is a thread to be ended."""
        return self._thread is not None and self._pid == os.getpid()

    def ping(self, job: Job) -> None:
        """Tell the workers of a job's queue; call it after the commit. Returns at once."""
        scheduled_in, scheduled_at = job.scheduled_in, job.scheduled_at
        if scheduled_in is not None and scheduled_in > SOON:
            return
        if scheduled_at is not None and scheduled_at > datetime.now(UTC) + SOON:
            return
        try:
            with self._lock:
                if self._pid != os.getpid():  # a fork has none of its parent's threads
                    self._pid, self._thread, self._queues = os.getpid(), None, set()
                self._queues.add(job.queue)
                if self._thread is None:
                    self._start()
        except RuntimeError as error:  # no thread can be had, or the interpreter is ending; the job is there
            logger.warning(UNTOLD, error)
        self._asked.set()

    def close(self) -> None:
        """Send what is to be sent, and end the thread; waits for it, but not for long."""
        with self._lock:
            thread = self._thread if self._pid == os.getpid() else None
            self._thread = None
            self._closing.set()
        atexit.unregister(self.close)
        if thread is not None:
            self._asked.set()
            thread.join(PATIENCE)

    def _start(self) -> None:
        closing = threading.Event()
        thread = threading.Thread(target=partial(self._run, closing), name="pljobs-pings", daemon=True)
        thread.start()
        self._thread, self._closing = thread, closing
        atexit.register(self.close)

    def _run(self, closing: threading.Event) -> None:
        conn: psycopg.Connection[Any] | None = None
        try:
            while True:
                self._asked.wait()
                self._asked.clear()
                last = closing.is_set()
                conn = self._send(conn)
                if last:
                    return
                closing.wait(EVERY)
        finally:
            if conn is not None:
                conn.close()

    def _send(self, conn: psycopg.Connection[Any] | None) -> psycopg.Connection[Any] | None:
        with self._lock:
            queues, self._queues = self._queues, set()
        if not queues:
            return conn
        try:
            if conn is None:
                conn = self._connector.connect(**KEEPALIVES)
            db.run(conn, calls_wake.notify_queues(sorted(queues)))
        except PljobsException as error:
            logger.warning(UNTOLD, error)
            if conn is not None:
                conn.close()
            with self._lock:
                self._queues |= queues
            return None
        return conn
