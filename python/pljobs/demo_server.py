"""The demo's PostgreSQL and worker, in a folder that is all it leaves behind, until told to remove it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from pljobs import embedded
from pljobs.cli_base import Failure
from pljobs.embedded import EmbeddedServerError, Server
from pljobs.processes import LIFELINE

DATABASE = "demo"
LOGIN = "demo_app"
LOCK = "pljobs-demo.lock"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What the server's folder, its socket and a margin need of the 103 to 107 bytes that a socket's path has.
LONGEST = 80
PATIENCE = 20.0


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

    @property
    def url(self) -> str:
        """The demo's database, as a connection string."""
        return self._server().url(DATABASE)

    def start(self) -> Server:
        """Start a new server; one of an earlier demo, and what it held, is taken away."""
        self.clear()
        return Server.start(base=self.base)

    def clear(self) -> None:
        """Stop the server if it runs, and remove its folder."""
        # Not by its process id alone: after a reboot that may be somebody else's.
        if _answers(self.base / f".s.PGSQL.{embedded.PORT}"):
            self._stop()
        shutil.rmtree(self.base, ignore_errors=True)
        self.worker_log.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove everything."""
        self.clear()
        (self.path / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _server(self) -> Server:
        # To ask it things: nothing of it is run.
        return Server(bin_dir=Path(), base=self.base, kept=True)

    def _stop(self) -> None:
        # By signals, not by pg_ctl: the server's binaries may be gone, or closed to its account.
        server = self._server()
        for number in (signal.SIGINT, signal.SIGQUIT):  # "fast", "immediate"
            if (pid := server.pid) is not None:
                os.kill(pid, number)
            end = time.monotonic() + PATIENCE
            while server.pid is not None and time.monotonic() < end:
                time.sleep(0.02)
        if server.pid is not None:
            raise EmbeddedServerError(
                f"the server (process {server.pid}) does not stop; its folder is {self.base}"
            )

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


@contextlib.contextmanager
def worker(place: Home, url: str, *, concurrency: int) -> Iterator[Callable[[], None]]:
    """Run a worker in a process of its own; yields what raises `Failure` once it is dead."""
    options = ["--concurrency", str(concurrency), "--poll-interval", "1", "--shutdown-timeout", "2"]
    # -P, and a folder of our own: the user's may hold a logging.py.
    command = [
        sys.executable,
        "-P",
        "-m",
        "pljobs",
        "worker",
        "--app",
        "pljobs.demo_tasks:app",
        "--name",
        "demo",
    ]
    lifeline, held = os.pipe()
    try:
        with place.worker_log.open("wb") as log:
            process = subprocess.Popen(  # noqa: S603
                [*command, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for this process; killed, it takes the worker with it all the same.
                process_group=0,
                cwd=place.path,
                pass_fds=[lifeline],
                env={**os.environ, "PLJOBS_URL": url, LIFELINE: str(lifeline)},
            )

        def alive() -> None:
            if process.poll() is not None:
                tail = place.worker_log.read_text("utf-8", "replace")[-500:]
                raise Failure(f"the worker ended with {process.returncode}: {tail}")

        try:
            yield alive
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        os.close(lifeline)
        os.close(held)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
