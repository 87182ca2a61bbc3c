"""A TCP proxy before the server's socket that can swallow what passes: a network that fails silently."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from urllib.parse import quote

from pljobs.embedded import PORT, SUPERUSER, Server


class Proxy:
    """Forward TCP connections; `swallow_up` and `swallow_down` drop what passes, and keep all open.

    Runs in a thread of its own, so that it works whatever the test's event loop does.
    """

    def __init__(self, server: Server) -> None:
        self._path = str(server.base / f".s.PGSQL.{PORT}")
        self.port = 0
        self.swallow_up = False
        self.swallow_down = False
        # Once: drops the reply to the next request with these bytes, and all that follows on that connection.
        self.swallow_reply_to: bytes | None = None
        self.swallowed = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def url(self, dbname: str) -> str:
        """The connection string of a database, by way of the proxy."""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{quote(dbname, safe='')}"

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def heal(self) -> None:
        """Let everything pass on new connections; what was swallowed stays lost."""
        self.swallow_up = self.swallow_down = False
        self.swallow_reply_to = None

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._clients: set[asyncio.Task[None]] = set()
        listener = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        listener.close()
        for client in list(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self._clients.add(me)
        hole = asyncio.Event()
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(self._path)
        except OSError:
            writer.close()
            self._clients.discard(me)
            return
        pumps = [
            asyncio.create_task(self._pump(reader, up_writer, up=True, hole=hole)),
            asyncio.create_task(self._pump(up_reader, writer, up=False, hole=hole)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for each in (writer, up_writer):
                each.close()
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await each.wait_closed()
            self._clients.discard(me)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool, hole: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if up and self.swallow_reply_to is not None and self.swallow_reply_to in data:
                    hole.set()
                    self.swallow_reply_to = None
                if self.swallow_up if up else self.swallow_down or hole.is_set():
                    self.swallowed += 1
                    continue
                writer.write(data)
                await writer.drain()


@contextlib.contextmanager
def running_proxy(server: Server) -> Iterator[Proxy]:
    """Run a proxy before this server."""
    proxy = Proxy(server)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
