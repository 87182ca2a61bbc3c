"""A TCP proxy before the server's socket that can do what networks do: swallow, delay, cut, lose messages."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

from pljobs.embedded import PORT, SUPERUSER, Server

# Resets a connection when it is closed, whatever is still under way.
RESET = struct.pack("ii", 1, 0)
NOTIFICATION = b"A"[0]
# The messages in which psycopg prepares a statement, and uses it.
PARSE = re.compile(rb"P.{4}(_pg3_\d+)\x00([^\x00]*)\x00", re.DOTALL)
BIND = re.compile(rb"B.{4}[^\x00]*\x00(_pg3_\d+)\x00", re.DOTALL)


class Proxy:
    """Forward TCP connections; what is set here happens to what passes from then on.

    Runs in a thread of its own, so that it works whatever the test's event loop does.
    """

    def __init__(self, server: Server, seed: int = 0, host: str = "127.0.0.1") -> None:
        self._host = host
        self._path = str(server.base / f".s.PGSQL.{PORT}")
        self._random = random.Random(seed)
        self.port = 0
        # Drop what passes on any connection, and keep all open.
        self.swallow_up = False
        self.swallow_down = False
        # Once: drops the reply to the next request with these bytes, and all that follows on that connection.
        self.swallow_reply_to: bytes | None = None
        # So many of them are let through first.
        self.swallow_after = 0
        # And resets the connection once there was a reply: what was asked for is done.
        self.reset_then = False
        # Once: resets the connection on which the so-maniest byte passes, which is the last that arrives.
        self.cut_up_after: int | None = None
        self.cut_down_after: int | None = None
        # Seconds, from and to, for which each piece is held back; their order stays.
        self.delay: tuple[float, float] | None = None
        # Bytes a second that pass on each connection, each way: a line that is slow.
        self.rate: float | None = None
        # Drops NotificationResponse messages, and nothing else.
        self.drop_notifications = False
        self.swallowed = self.cuts = self.dropped = self.lost = 0
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def url(self, dbname: str, user: str = SUPERUSER) -> str:
        """The connection string of a database, by way of the proxy."""
        # Plain from the first byte, so that messages can be told apart.
        settings = "sslmode=disable&gssencmode=disable"
        return f"postgresql://{user}@{self._host}:{self.port}/{quote(dbname, safe='')}?{settings}"

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def freeze(self) -> int:
        """Have the connections that there are pass nothing any more, either way; return how many."""
        links = list(self._links)
        for link in links:
            link.frozen = True
        return len(links)

    def heal(self) -> None:
        """Let everything pass on new connections; what was swallowed stays lost."""
        self.swallow_up = self.swallow_down = self.drop_notifications = False
        self.swallow_reply_to = self.cut_up_after = self.cut_down_after = self.delay = None
        self.rate = None

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._clients: set[asyncio.Task[None]] = set()
        listener = await asyncio.start_server(self._accept, self._host, 0)
        self.port = listener.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        listener.close()
        for client in list(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await asyncio.sleep(0)  # what was aborted is closed now

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def ended(client: asyncio.Task[None]) -> None:
            # Also of one that was cancelled before its first line.
            writer.transport.abort()
            self._clients.discard(client)

        client = self._loop.create_task(self._client(reader, writer))
        self._clients.add(client)
        client.add_done_callback(ended)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link()
        connecting = asyncio.ensure_future(asyncio.open_unix_connection(self._path))
        try:
            up_reader, up_writer = await asyncio.shield(connecting)
        except OSError:
            return
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                (await connecting)[1].transport.abort()
            return
        self._links.add(link)
        try:
            await self._pass_on(link, reader, writer, up_reader, up_writer)
        finally:
            # Also where it was cancelled while it was ending.
            up_writer.transport.abort()
            self._links.discard(link)

    async def _pass_on(
        self,
        link: _Link,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        pumps = [
            asyncio.create_task(self._pump(reader, up_writer, link, up=True)),
            asyncio.create_task(self._pump(up_reader, writer, link, up=False)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            if link.cut:
                raw: socket.socket = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()
            for each in (writer, up_writer):
                each.close()
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await each.wait_closed()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link, *, up: bool
    ) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        reading = asyncio.create_task(self._read(queue, reader))
        try:
            # It ends with the end of what is read, or by a cut.
            await self._send(queue, writer, link, up=up)
        finally:
            reading.cancel()

    async def _read(self, queue: asyncio.Queue[tuple[float, bytes]], reader: asyncio.StreamReader) -> None:
        due = 0.0
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                wait = self._random.uniform(*self.delay) if self.delay is not None else 0.0
                due = max(due, self._loop.time() + wait)
                queue.put_nowait((due, data))
                if self.rate is not None:
                    await asyncio.sleep(len(data) / self.rate)  # nor is more read meanwhile
        queue.put_nowait((due, b""))

    async def _send(
        self,
        queue: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        link: _Link,
        *,
        up: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not data:
                    return
                if not up:
                    data = self._without_notifications(link, data)
                if up and self._is_asked_for(link, data):
                    link.reply_lost = True
                    self.swallow_reply_to = None
                swallows = self.swallow_up if up else self.swallow_down or link.reply_lost
                if swallows or link.frozen:
                    self.swallowed += 1
                    if link.reply_lost and data and self.reset_then and not up:
                        self.lost += 1
                        link.cut = True
                        return
                    continue
                passing = self._until_cut(data, link, up=up)
                writer.write(passing)
                await writer.drain()
                if link.cut:
                    return

    def _is_asked_for(self, link: _Link, data: bytes) -> bool:
        """Say whether this is the request whose reply is to be lost, prepared or not."""
        for name, statement in PARSE.findall(data):
            link.statements[name] = statement
        wanted = self.swallow_reply_to
        if wanted is None:
            return False
        asked = wanted in data or any(wanted in link.statements.get(name, b"") for name in BIND.findall(data))
        if asked and self.swallow_after:
            self.swallow_after -= 1
            return False
        return asked

    def _until_cut(self, data: bytes, link: _Link, *, up: bool) -> bytes:
        left = self.cut_up_after if up else self.cut_down_after
        if left is None:
            return data
        if len(data) < left:
            left -= len(data)
        else:
            data, left, link.cut = data[:left], None, True
            self.cuts += 1
        if up:
            self.cut_up_after = left
        else:
            self.cut_down_after = left
        return data

    def _without_notifications(self, link: _Link, data: bytes) -> bytes:
        """Return the messages that are complete by now, less those to be dropped."""
        link.begun += data
        passing = bytearray()
        while len(link.begun) >= 5:
            length = 1 + int.from_bytes(link.begun[1:5], "big")
            if len(link.begun) < length:
                break
            if self.drop_notifications and link.begun[0] == NOTIFICATION:
                self.dropped += 1
            else:
                passing += link.begun[:length]
            del link.begun[:length]
        return bytes(passing)


@dataclass(eq=False, slots=True)
class _Link:
    """One connection through the proxy; `begun`: of a message that has not arrived as a whole."""

    frozen: bool = False
    reply_lost: bool = False
    cut: bool = False
    statements: dict[bytes, bytes] = field(default_factory=dict)
    begun: bytearray = field(default_factory=bytearray)


@contextlib.contextmanager
def running_proxy(server: Server, seed: int = 0, host: str = "127.0.0.1") -> Iterator[Proxy]:
    """Run a proxy before this server."""
    proxy = Proxy(server, seed, host)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
