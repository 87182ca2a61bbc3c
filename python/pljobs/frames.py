"""Messages over a socket between a worker and the processes of its isolated jobs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import socket
import stat
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NoReturn

HEADER = struct.Struct(">I")
MAX_FRAME = 64 * 1024 * 1024
READ_AT_MOST = 256 * 1024
UNSENT_AT_MOST = 1000
LINE_LOST = 71
"""The exit status of a process that can't reach its worker any more: its task closed the line."""


class Garbled(Exception):  # noqa: N818
    """Say that what arrived is no message."""


def pack(payload: bytes) -> bytes:
    """Return a frame: the payload behind its length."""
    if len(payload) > MAX_FRAME:
        raise ValueError(f"a message of {len(payload)} bytes is too long for a process")
    return HEADER.pack(len(payload)) + payload


class Frames:
    """Cut what arrives into payloads."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the payloads that are complete now; raises `Garbled` at a length that can't be."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            (size,) = HEADER.unpack_from(self._buffer)
            if size > MAX_FRAME:
                raise Garbled(f"a message of {size} bytes")
            if len(self._buffer) < HEADER.size + size:
                return
            payload = bytes(self._buffer[HEADER.size : HEADER.size + size])
            del self._buffer[: HEADER.size + size]
            yield payload


class Line:
    """Hold the event loop's end of a socket: nothing here blocks.

    `on_payload` is called with each message; `on_end`, once, with None at the end of file, or with what was
    wrong. It closes with `close`, never by itself.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_payload: Callable[[bytes], None],
        on_end: Callable[[Garbled | None], None],
    ) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._on_payload = on_payload
        self._on_end = on_end
        self._frames = Frames()
        self._outbox: deque[tuple[memoryview, socket.socket | None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._reading = True
        self._loop.add_reader(sock, self._read)

    def send(self, payload: bytes, passing: socket.socket | None = None) -> None:
        """Send a message, and with it a socket, which is closed here; lost where nobody listens any more."""
        waiting = bool(self._outbox)
        self._outbox.append((memoryview(pack(payload)), passing))
        if not waiting:
            self._write()

    def drain(self) -> None:
        """Take all that has arrived: for an end that is known to be dead."""
        while self._read():
            pass

    def close(self) -> None:
        """Close this end; harmless when closed already."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._give_up_sending()
        self._sock.close()
        self._reading = False

    def _read(self) -> bool:
        """Read once; say whether there may be more."""
        if not self._reading:
            return False
        try:
            data = self._sock.recv(READ_AT_MOST)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""  # reset: it ended before it had read all
        if not data:
            self._stop_reading(None)
            return False
        try:
            for payload in self._frames.feed(data):
                self._on_payload(payload)
        except Garbled as garbled:
            self._stop_reading(garbled)
        return self._reading

    def _stop_reading(self, garbled: Garbled | None) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)
            self._on_end(garbled)

    def _write(self) -> None:
        while self._outbox:
            data, passing = self._outbox[0]
            try:
                if passing is None:
                    sent = self._sock.send(data)
                else:
                    sent = socket.send_fds(self._sock, [data], [passing.fileno()])
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock, self._write)
                return
            except OSError:
                self._give_up_sending()  # that it is dead, reading tells
                break
            if passing is not None:
                passing.close()
            if sent == len(data):
                self._outbox.popleft()
            else:
                self._outbox[0] = (data[sent:], None)
        with contextlib.suppress(ValueError):  # closed by its owner meanwhile
            self._loop.remove_writer(self._sock)

    def _give_up_sending(self) -> None:
        while self._outbox:
            _, passing = self._outbox.popleft()
            if passing is not None:
                passing.close()


class OwnLine:
    """Hold this process's end of the line: threads of its own send and receive.

    Nothing but putting into a queue happens in the task's thread: a signal's exception must not tear a
    message apart.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._is = os.fstat(sock.fileno())
        self._frames = Frames()
        self._pid = os.getpid()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_all, name="pljobs-sends", daemon=True)
        self._sender.start()

    def send(self, *message: object) -> None:
        """Send a message, which must be JSON; wait while too many are unsent."""
        if os.getpid() != self._pid:
            return  # forked by the task: nobody would take it out
        while self._outbox.qsize() > UNSENT_AT_MOST:
            time.sleep(0.005)
        self._outbox.put(pack(json.dumps(message).encode()))

    def flush(self) -> None:
        """Send what is unsent; nothing can be sent after it."""
        self._outbox.put(None)
        self._sender.join()

    def receive_first(self) -> bytes:
        """Return the first message."""
        while True:
            for payload in self._frames.feed(self._receive()):
                return payload

    def follow(self, on_payload: Callable[[bytes], None]) -> None:
        """Call back, in a thread, with each further message."""
        threading.Thread(target=self._follow, args=(on_payload,), name="pljobs-hears", daemon=True).start()

    def _follow(self, on_payload: Callable[[bytes], None]) -> None:
        data = b""  # what came with the first
        while True:
            for payload in self._frames.feed(data):
                on_payload(payload)
            data = self._receive()

    def _receive(self) -> bytes:
        self._must_be_ours()
        try:
            data = self._sock.recv(READ_AT_MOST)
        except OSError:
            data = b""
        if not data:
            self._must_be_ours()
            _die()
        return data

    def _send_all(self) -> None:
        while (data := self._outbox.get()) is not None:
            self._must_be_ours()
            try:
                self._sock.sendall(data)
            except OSError:
                self._must_be_ours()
                _die()

    def _must_be_ours(self) -> None:
        """End the process if the task has closed the descriptor: what has its number now is the task's."""
        try:
            now = os.fstat(self._sock.fileno())
        except OSError:
            os._exit(LINE_LOST)
        if not stat.S_ISSOCK(now.st_mode) or now.st_ino != self._is.st_ino:
            os._exit(LINE_LOST)


def _die() -> NoReturn:
    """End the process, and its group, for its worker is gone."""
    if os.getpgrp() == os.getpid():  # else the task has gone into somebody else's
        with contextlib.suppress(OSError):
            os.killpg(0, signal.SIGKILL)
    os._exit(1)
