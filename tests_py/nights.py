"""What the tests of health share: a server that is as it should be, and sessions that aren't."""

from __future__ import annotations

import contextlib
import shutil
import struct
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.pq import ExecStatus, PGconn

from conftest import INSTALL, in_memory
from pljobs import embedded
from pljobs.embedded import Server
from waiting import wait_until

Conn = psycopg.Connection[Any]

# So that what has just begun is found: times and ages are a millionth of what they are by default.
HURRIED = "-c pljobs.health_patience=0.000001"

CAREFUL = {
    "idle_in_transaction_session_timeout": "1h",
    "max_prepared_transactions": "5",
    "max_connections": "40",
    # No test waits for it, and none is to be surprised by it.
    "autovacuum_naptime": "1h",
}


@contextlib.contextmanager
def night_server(like: Server, **settings: str) -> Iterator[Server]:
    """Start a server of the same release, as it should be, with the schema in the database `night`."""
    with in_memory():
        started = Server.start(like.bin_dir, settings=CAREFUL | settings)
    with started:
        started.create_database("night")
        started.run_sql(f"BEGIN;\n\\i '{INSTALL}'\nCOMMIT;", "night")
        started.run_sql("GRANT pg_signal_backend, pg_read_all_stats TO pljobs_owner", "night")
        yield started


def found(conn: Conn, item: str) -> dict[str, tuple[str, str, str]]:
    """The findings of an item: severity, detail and action of each subject."""
    rows = conn.execute(
        "SELECT subject, severity, detail, action FROM pljobs.health WHERE item = %s AND severity <> 'ok'",
        [item],
    )
    return {subject: (severity, detail, action) for subject, severity, detail, action in rows}


def seen(conn: Conn, item: str, subject: str) -> tuple[str, str, str]:
    """Wait until health shows this, for sessions are shown as they were a moment ago."""
    return wait_until(lambda: found(conn, item).get(subject), what=f"{item} shows {subject}")


def gone(conn: Conn, item: str) -> None:
    """Wait until health shows nothing of this item."""
    wait_until(lambda: not found(conn, item), what=f"{item} is fine again")


def pid_of(conn: Conn) -> str:
    """A session as health names it."""
    return f"pid {conn.info.backend_pid}"


def burn(conn: Conn, transactions: int) -> None:
    """Use up transaction ids: each subtransaction that writes takes one."""
    conn.execute("CREATE TEMP TABLE IF NOT EXISTS burnt (n integer)")
    conn.execute(
        f"DO $$ BEGIN FOR n IN 1..{transactions} LOOP BEGIN INSERT INTO burnt VALUES (n);"
        " EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$".encode()
    )


@contextlib.contextmanager
def standby_of(primary: Server, **settings: str) -> Iterator[Server]:
    """Start a streaming standby that answers queries."""
    account = embedded._account()
    folder = embedded._temporary_folder(account, "pljobs-standby-")
    command = [
        str(primary.bin_dir / "pg_basebackup"),
        "-D",
        str(folder / "data"),
        "-c",
        "fast",
        "-R",
        "--no-sync",
    ]
    try:
        embedded._as(account, [*command, "-d", primary.url()], cwd=folder)
        started = Server.start(primary.bin_dir, folder, {"primary_conninfo": primary.url(), **settings})
        try:
            yield started
        finally:
            started.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Feedback:
    """A standby, as far as its primary can tell: it streams, and says which transactions its queries need."""

    def __init__(self, server: Server, slot: str | None = None) -> None:
        self._connection = PGconn.connect(f"{server.url()}&replication=true".encode())
        position = self._connection.exec_(b"IDENTIFY_SYSTEM").get_value(0, 2)
        assert position is not None
        using = f"SLOT {slot} " if slot else ""
        streaming = self._connection.exec_(f"START_REPLICATION {using}PHYSICAL {position.decode()}".encode())
        assert streaming.status == ExecStatus.COPY_BOTH, self._connection.error_message

    def need(self, xid: int) -> None:
        """Say that a query here needs what was at this transaction: PostgreSQL's hot standby feedback."""
        epoch, xmin = divmod(xid, 2**32)
        self._connection.put_copy_data(b"h" + struct.pack("!qIIII", 0, xmin, epoch, 0, 0))
        self._connection.flush()

    def close(self) -> None:
        self._connection.finish()
