"""Run a call that may have to wait for others: say for whom it waits, and give up when its time is over."""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType
from typing import Any, TypeVar

import click

from pljobs import calls_cli, db, exceptions, session
from pljobs.answers import Call
from pljobs.calls_cli import Holder
from pljobs.cli_base import Connection, Exit, Failure, connected
from pljobs.cli_output import one_line, say, visible
from pljobs.connector import PsycopgConnector

T = TypeVar("T")

# In seconds: how long it waits before it says for whom, and before it looks again; for how long it looks.
FIRST_LOOK, NEXT_LOOK = 1.0, 3.0
TIMEOUT = 5
QUERY_CANCELLED = "57014"


def run(
    conn: Connection,
    call: Call[T],
    what: str,
    *,
    undone: str = "nothing is done yet",
    end: float | None = None,
) -> T:
    """Execute a call on the command's connection; raises `Failure` if it still waits at `end`.

    Where there is no answer within a second, it is said who holds `what`, and again when that changes.
    `end`, in seconds of time.monotonic(): when to give up, though never in the first second.
    """
    watch = _Watch(conn, what, undone, end)
    try:
        with watch:
            if not session.is_pooled(conn):
                return db.run(conn, call)
            # Which server process it is can be told only inside of the transaction.
            calls: list[Call[Any]] = [calls_cli.mind_client(is_local=True).then(watch.learn), call]
            answer: T = db.run_all(conn, calls)[1]
            return answer
    except exceptions.ConnectorException as error:
        if error.sqlstate == QUERY_CANCELLED and watch.has_given_up:
            raise Failure(watch.in_vain(), Exit.TIMED_OUT) from None
        raise


class _Watch:
    """Watch a call from threads beside it, while it is made."""

    def __init__(self, conn: Connection, what: str, undone: str, end: float | None) -> None:
        self._conn = conn
        self._source = click.get_current_context().ensure_object(PsycopgConnector)
        self._what = what
        self._undone = undone
        self._pid = None if session.is_pooled(conn) else conn.info.backend_pid
        info = conn.info
        # Of several hosts, the same.
        self._server = {"host": info.host, "hostaddr": info.hostaddr, "port": info.port}
        self._began = time.monotonic()
        self._end = end
        self._answered, self._looked = threading.Event(), threading.Event()
        self._holders: list[Holder] = []
        self._telling = threading.Thread(target=self._tell, daemon=True)
        self._ending = threading.Thread(target=self._give_up, daemon=True)
        self.has_given_up = False

    def __enter__(self) -> None:
        self._telling.start()
        if self._end is not None:
            self._ending.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._answered.set()
        # The other thread is not waited for: where no connection can be had, it takes its time.
        if self._end is not None:
            # What it cancels must not be the next statement.
            self._ending.join()

    def learn(self, pid: int) -> None:
        """Take notice of the server process that executes the call."""
        self._pid = pid

    def in_vain(self) -> str:
        """Say that the time is over, and who is to blame."""
        waited = f"after {time.monotonic() - self._began:.0f} s"
        if not self._holders:
            return f"{self._what}: NOTHING was asked: the database gave no answer {waited}"
        held, ending = _described(self._holders)
        return (
            f"{self._what}: NOTHING was asked: {waited} it is still held by {held}; {ending}, then ask again"
        )

    def _give_up(self) -> None:
        left = max((self._end or 0) - time.monotonic(), FIRST_LOOK)
        if self._answered.wait(min(left, threading.TIMEOUT_MAX)):
            return
        self._looked.wait(TIMEOUT)
        self.has_given_up = True
        # A cancel that comes between two statements hits none.
        while not self._answered.is_set():
            with contextlib.suppress(exceptions.PljobsException), db.translated():
                self._conn.cancel_safe(timeout=TIMEOUT)
            self._answered.wait(FIRST_LOOK)

    def _tell(self) -> None:
        said = None
        while not self._answered.wait(FIRST_LOOK if said is None else NEXT_LOOK):
            try:
                self._holders = self._look()
                found = self._waiting_line()
                changed = str([(holder.pid, holder.state) for holder in self._holders])
            except exceptions.PljobsException as error:
                found = changed = f"can't see for whom: {one_line(str(error))}"
            self._looked.set()
            if changed != said and not self._answered.is_set():
                say(f"still waiting: {found}; {self._undone}; Ctrl-C gives up")
            said = changed

    def _look(self) -> list[Holder]:
        if self._pid is None:  # nor has the pooler a server process for it
            return []
        with connected(self._source, connect_timeout=TIMEOUT, **self._server) as other:
            return db.run(other, calls_cli.list_holders(self._pid))

    def _waiting_line(self) -> str:
        if not self._holders:
            return f"{self._what}: the database has not answered, and nobody is seen to hold it up"
        held, ending = _described(self._holders)
        return f"{self._what} is held by {held}; {ending}"


def _described(holders: list[Holder]) -> tuple[str, str]:
    """Say who they are, and what ends them."""
    calls = ", ".join(f"pg_terminate_backend({holder.pid})" for holder in holders if holder.pid)
    if not calls:
        return "a prepared transaction", "ROLLBACK PREPARED ends it (pg_prepared_xacts has its name)"
    ended = "it" if len(holders) == 1 else "them"
    return " and ".join(map(_one_described, holders)), f"SELECT {calls} ends {ended}"


def _one_described(holder: Holder) -> str:
    if not holder.pid:
        return "a prepared transaction (see pg_prepared_xacts)"
    since = "" if holder.seconds is None else f" for {holder.seconds:.0f} s"
    state = None if holder.state is None else f"{holder.state}{since}"
    told = ", ".join(visible(part) for part in (holder.role, holder.application, state) if part)
    return f"pid {holder.pid} ({told})" if told else f"pid {holder.pid}"
