"""Look again and again who waits for whose row, and for how long."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator

import psycopg

# A row that is locked is waited for as its holder's transaction, or as the row itself behind other waiters.
_WAITS = """
    SELECT l.pid, pg_blocking_pids(l.pid), extract(epoch FROM clock_timestamp() - l.waitstart)::float
      FROM pg_locks AS l
     WHERE NOT l.granted AND l.locktype IN ('transactionid', 'tuple') AND l.waitstart IS NOT NULL
       AND l.pid IN (SELECT a.pid FROM pg_stat_activity AS a WHERE a.datname = current_database())
"""


class LockWaits:
    """The longest waits seen, by who was waited for."""

    def __init__(self) -> None:
        self.samples = 0
        self._longest: dict[int, float] = defaultdict(float)

    def longest(self, holder: int | None = None) -> float:
        """Seconds that somebody waited for this backend, or for any."""
        return self._longest[holder] if holder is not None else max(self._longest.values(), default=0.0)

    def look(self, conn: psycopg.Connection) -> None:
        """Take a sample."""
        self.samples += 1
        for _, holders, seconds in conn.execute(_WAITS).fetchall():
            for holder in holders:
                self._longest[holder] = max(self._longest[holder], seconds)


@contextlib.contextmanager
def lock_waits(url: str) -> Iterator[LockWaits]:
    """Sample while the block runs, some hundred times a second."""
    waits, over = LockWaits(), threading.Event()

    def sample() -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            while not over.wait(0.005):
                waits.look(conn)

    thread = threading.Thread(target=sample, name="sampler")
    thread.start()
    try:
        yield waits
    finally:
        over.set()
        thread.join()
