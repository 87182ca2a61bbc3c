"""The nursery: a process that holds the application ready, and forks, kills and reaps isolated jobs.

It has one thread, so that it may fork, and it alone signals and reaps the jobs' processes: a process is
signalled only before it is reaped, so that its id can't have become another's.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import mmap
import multiprocessing.spawn
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
import types
import warnings
from collections import deque
from pathlib import Path
from typing import NoReturn

from pljobs import isolated
from pljobs.frames import Frames, Garbled, pack

READ_AT_MOST = 64 * 1024
FDS_AT_MOST = 64
LAST_PATIENCE = 10.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class Nursery:
    """Serve one worker, over a socket, until that closes it, by its death for example.

    It hears `["start", run_id]`, which comes with the socket for the job's process, `["term", run_id]` and
    `["kill", run_id]`; it answers `["ready"]`, `["forked", run_id, pid]`, `["unforked", run_id, why]`,
    `["ended", run_id, wait status]`, `["unfit", why]` where the application can't be imported, and `["warn",
    text]`.
    """

    # Whether this process is one: then the script that it imports must not start a worker.
    is_here = False

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._frames = Frames()
        self._sockets: deque[int] = deque()
        self._leaders: dict[int, _Leader] = {}
        self._pids: dict[int, int] = {}
        self._own_children: set[int] = set()
        self._pid, self._parent = os.getpid(), os.getppid()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)

    def serve(self) -> None:
        """Work until the worker is gone; then nothing that was started here is left."""
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _wake)
        # Sent by the kernel when the worker dies, should a process that it forked still hold its socket.
        signal.signal(signal.SIGHUP, _wake)
        _prctl(PR_SET_PDEATHSIG, signal.SIGHUP)
        # What a job's process leaves behind comes to this one, even what made itself a daemon.
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._line, selectors.EVENT_READ)
                selector.register(self._woken, selectors.EVENT_READ)
                while os.getppid() == self._parent:
                    ready = {key.fileobj for key, _ in selector.select()}
                    with contextlib.suppress(BlockingIOError):
                        while self._woken.recv(4096):
                            pass
                    self._reap()
                    if self._line in ready and not self._hear():
                        break
        finally:
            self._kill_all()
            signal.set_wakeup_fd(-1)
            for each in (self._line, self._waker, self._woken):
                each.close()

    def _hear(self) -> bool:
        """Do what the worker says; say whether it is still there."""
        try:
            data, sockets, _, _ = socket.recv_fds(self._line, READ_AT_MOST, FDS_AT_MOST)
        except OSError:
            return False
        for descriptor in sockets:
            os.set_inheritable(descriptor, False)
            self._sockets.append(descriptor)
        for payload in self._frames.feed(data):
            match json.loads(payload):
                case ["load", dict(preparation), list(modules)]:
                    if not self._load(preparation, modules):
                        return False
                case ["start", int(run_id)]:
                    self._start(run_id, self._sockets.popleft())
                case ["term", int(run_id)]:
                    self._signal(run_id, signal.SIGTERM)
                case ["kill", int(run_id)]:
                    self._signal(run_id, signal.SIGKILL)
                case message:
                    raise Garbled(f"not known here: {message!r}")
        return bool(data)

    def _send(self, *message: object) -> None:
        with contextlib.suppress(OSError):  # the worker is gone: the next read tells
            self._line.sendall(pack(json.dumps(message).encode()))

    def _load(self, preparation: dict[str, object], modules: list[str]) -> bool:
        """Import the application, so that it is there in each job's process."""
        try:
            multiprocessing.spawn.prepare(preparation)
            for module in modules:
                importlib.import_module(module)
        except BaseException as error:  # noqa: BLE001 - SystemExit of a script, too
            self._send("unfit", f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
            return False
        if threading.active_count() > 1:
            names = ", ".join(sorted(thread.name for thread in threading.enumerate()[1:]))
            self._send(
                "warn",
                f"importing the application has started threads ({names}): isolated jobs don't have them,"
                " and a lock that one held stays locked",
            )
        self._own_children = _children()
        gc.collect()
        gc.freeze()  # else each job's first collection would copy all these pages
        self._send("ready")
        return True

    def _start(self, run_id: int, descriptor: int) -> None:
        terminated = mmap.mmap(-1, 1)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # threads: said above
                pid = os.fork()
        except (OSError, MemoryError) as error:
            os.close(descriptor)
            self._send("unforked", run_id, f"{type(error).__name__}: {error}")
            return
        if pid == 0:
            self._be_child(descriptor, terminated)
        os.close(descriptor)
        # Here as well as there, whichever is first: from now on the group can be signalled.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        self._leaders[pid] = _Leader(run_id, terminated)
        self._pids[run_id] = pid
        self._send("forked", run_id, pid)

    def _be_child(self, descriptor: int, terminated: mmap.mmap) -> NoReturn:
        try:
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            _prctl(PR_SET_CHILD_SUBREAPER, 1)
            if os.getppid() != self._pid:
                os._exit(1)
            for inherited in (self._line, self._waker, self._woken):
                inherited.close()
            Nursery.is_here = False
            isolated.main(socket.socket(fileno=descriptor), terminated)
        except BaseException:  # noqa: BLE001 - nothing may get back into the nursery's code
            with contextlib.suppress(BaseException):
                traceback.print_exc()
        finally:
            os._exit(1)

    def _signal(self, run_id: int, number: signal.Signals) -> None:
        pid = self._pids.get(run_id)
        if pid is None:
            return  # it has ended: the worker is about to hear it
        if number == signal.SIGTERM:
            self._leaders[pid].terminated[0] = 1
        _signal_group(pid, number)

    def _reap(self) -> None:
        """Reap what has ended, and kill what it leaves behind."""
        while (pid := _ended_child()) is not None:
            leader = self._leaders.pop(pid, None)
            if leader is not None:
                _signal_group(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            self._own_children.discard(pid)
            # A job's process adopts its own orphans while it lives: those that are here have outlived it.
            for stray in _children() - self._leaders.keys() - self._own_children:
                with contextlib.suppress(OSError):
                    os.kill(stray, signal.SIGKILL)
            if leader is not None:
                del self._pids[leader.run_id]
                leader.terminated.close()
                self._send("ended", leader.run_id, status)

    def _kill_all(self) -> None:
        for pid in self._leaders:
            _signal_group(pid, signal.SIGKILL)
        give_up_at = time.monotonic() + LAST_PATIENCE
        while self._leaders or _children() - self._own_children:
            self._reap()
            if time.monotonic() > give_up_at:
                return  # stuck in the kernel: it dies when it gets out
            time.sleep(0.01)


class _Leader:
    """Know the run of a process, and the byte that tells it that a SIGTERM is ours."""

    def __init__(self, run_id: int, terminated: mmap.mmap) -> None:
        self.run_id = run_id
        self.terminated = terminated


def main(descriptor: int) -> None:
    """Be the nursery of the worker at the other end of this socket."""
    Nursery.is_here = True
    # Service managers send these to every process of a service: when to stop is the worker's to say.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    Nursery(socket.socket(fileno=descriptor)).serve()


def _wake(_number: int, _frame: types.FrameType | None) -> None:
    """Do nothing: the wake-up descriptor has done it."""


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a job's process, which is not reaped yet, and its group."""
    with contextlib.suppress(OSError):
        os.killpg(pid, number)
    with contextlib.suppress(OSError):
        if os.getpgid(pid) != pid:  # it has left its group
            os.kill(pid, number)


def _ended_child() -> int | None:
    """Return the id of a child that has ended and is not reaped yet."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if ended is None else ended.si_pid


def _children() -> set[int]:
    """Return the ids of the children, where the system tells them."""
    try:
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return set()
    return {int(pid) for pid in listed.split()}


def _prctl(option: int, value: int) -> None:
    """Set a property of this process, on Linux."""
    if sys.platform == "linux":
        _libc.prctl(option, value, 0, 0, 0)


_libc = ctypes.CDLL(None)
