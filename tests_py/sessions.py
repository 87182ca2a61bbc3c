"""Sessions that may have to wait: a call is sent, and then answered, or seen waiting for another session."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psycopg
from psycopg import pq

from waiting import DEADLINE

_POLL = 0.001


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows as text, or the SQLSTATE of an error."""

    rows: tuple[tuple[str | None, ...], ...] = ()
    error: str = ""

    @property
    def value(self) -> str | None:
        """The only value, or the error."""
        return self.error or (self.rows[0][0] if self.rows else None)

    @property
    def pairs(self) -> dict[str, str]:
        """Rows of two columns, as a dict."""
        return {row[0] or "": row[1] or "" for row in self.rows}


class Session:
    """One connection without a transaction of its own making: BEGIN and COMMIT are statements like others."""

    def __init__(self, conn: psycopg.Connection) -> None:
        self._conn = conn
        self._pgconn = conn.pgconn
        self._cursor = psycopg.ClientCursor(conn)
        self.pid = conn.info.backend_pid
        # A person's call waits a second for a row, and then gives up: here it waits for its turn.
        self.ask(f"SET lock_timeout = '{DEADLINE:.0f}s'")

    @property
    def is_open(self) -> bool:
        """Whether it is in a transaction, perhaps a failed one."""
        return self._pgconn.transaction_status != pq.TransactionStatus.IDLE

    def send(self, query: str, params: Mapping[str, object] | None = None) -> None:
        """Send statements, and don't wait; params are put into the text, so that several may be sent."""
        self._pgconn.send_query(self._cursor.mogrify(query.encode(), params).encode())

    def ask(self, query: str, params: Mapping[str, object] | None = None) -> Answer:
        """Send statements, and return what the last of them answers."""
        self.send(query, params)
        return self.answer()

    def is_answered(self, timeout: float = 0) -> bool:
        """Whether the answer is there, within that time."""
        if self._pgconn.is_busy():
            select.select([self._pgconn.socket], [], [], timeout)
            self._pgconn.consume_input()
        return not self._pgconn.is_busy()

    def answer(self) -> Answer:
        """Wait for what was sent."""
        end = time.monotonic() + DEADLINE
        found = Answer()
        while True:
            while not self.is_answered(0.1):
                if time.monotonic() > end:
                    raise AssertionError(f"no answer within {DEADLINE} s")
            result = self._pgconn.get_result()
            if result is None:
                return found
            if result.status == pq.ExecStatus.TUPLES_OK:
                rows = range(result.ntuples)
                found = Answer(tuple(tuple(_text(result, row)) for row in rows))
            elif result.status == pq.ExecStatus.FATAL_ERROR:
                state = result.error_field(pq.DiagnosticField.SQLSTATE)
                found = Answer(error=(state or b"?").decode())

    def reset(self) -> None:
        """Cancel what was sent, if it is not answered, and end the transaction."""
        if self._pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            self._conn.cancel_safe()
            self.answer()
        if self.is_open:
            self.ask("ROLLBACK")

    def waits_for(self, other: Session, observer: Session) -> bool:
        """Whether what was sent waits for the other session; False once it is answered."""
        end = time.monotonic() + DEADLINE
        while not self.is_answered(_POLL):
            # A lock that it only passes, say one to extend a table, is not the other's.
            if observer.ask(f"SELECT {other.pid} = ANY (pg_blocking_pids({self.pid}))").value == "t":
                return not self.is_answered()
            if time.monotonic() > end:
                raise AssertionError(f"neither answered nor waiting for {other.pid} within {DEADLINE} s")
        return False


def _text(result: pq.abc.PGresult, row: int) -> Iterator[str | None]:
    for column in range(result.nfields):
        value = result.get_value(row, column)
        yield None if value is None else value.decode()


@contextlib.contextmanager
def sessions(url: str, count: int) -> Iterator[list[Session]]:
    """Open some."""
    with contextlib.ExitStack() as stack:
        yield [Session(stack.enter_context(psycopg.connect(url, autocommit=True))) for _ in range(count)]
