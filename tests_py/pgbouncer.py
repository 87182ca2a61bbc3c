"""PgBouncer in transaction mode before the server's socket, as Debian has it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pljobs import embedded
from pljobs.embedded import PORT, Server
from waiting import wait_until

MISSING = "no pgbouncer here: run tools/bootstrap"


def binary() -> str | None:
    """Return where it is, if it is installed."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


class Pooler:
    """A running PgBouncer; `url` is a database by way of it."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self.log = log

    def url(self, dbname: str, user: str) -> str:
        """Return the connection string of a database, by way of the pooler."""
        return f"host=127.0.0.1 port={self.port} dbname={dbname} user={user}"


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
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    account = embedded._account()
    names = folder / "userlist.txt"
    names.write_text("".join(f'"{user}" ""\n' for user in users))
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host={server.base} port={PORT}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
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
        wait_until(lambda: _answers(port, process), what=f"pgbouncer listens: {log.read_text()}")
        yield Pooler(port, log)
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "pgbouncer has ended"
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
