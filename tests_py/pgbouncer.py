"""PgBouncer in transaction mode before the server's socket, as Debian has it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg

from pljobs import embedded
from pljobs.embedded import PORT, Server
from waiting import DEADLINE, wait_until

MISSING = "no pgbouncer here: run tools/bootstrap"


def binary() -> str | None:
    """Return where it is, if it is installed."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


class Pooler:
    """A running PgBouncer; `url` is a database by way of it."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder = folder
        self.log = log

    def url(self, dbname: str, user: str) -> str:
        """Return the connection string of a database, by way of the pooler."""
        return f"host={self.folder} port={PORT} dbname={dbname} user={user}"


@contextlib.contextmanager
def folder_for() -> Iterator[Path]:
    """Make a folder that the account can read as which servers run."""
    folder = embedded._temporary_folder(embedded._account(), "pljobs-bouncer-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def pgbouncer(server: Server, folder: Path, *users: str, mode: str = "transaction") -> Iterator[Pooler]:
    """Run one before this server, for these logins."""
    found = binary()
    assert found is not None, MISSING
    account = embedded._account()
    names = folder / "userlist.txt"
    names.write_text("".join(f'"{user}" ""\n' for user in users))
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host={server.base} port={PORT}\n"
        # A socket in its own folder: a port that was free might be another's by now.
        f"[pgbouncer]\nlisten_port = {PORT}\nunix_socket_dir = {folder}\n"
        f"auth_type = trust\nauth_file = {names}\npool_mode = {mode}\n"
        "default_pool_size = 5\nmax_client_conn = 200\n"
    )
    log = folder / "pgbouncer.log"
    # It refuses to run as root.
    with log.open("ab") as output:
        process = subprocess.Popen(
            [found, str(config)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )  # fmt: skip
    try:
        pooler = Pooler(folder, log)
        url = pooler.url("postgres", users[0])
        wait_until(lambda: _answers(url, process), what=f"pgbouncer listens: {log.read_text()}")
        yield pooler
    finally:
        process.terminate()
        process.wait(DEADLINE)


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "pgbouncer has ended"
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url):
        return True
    return False
