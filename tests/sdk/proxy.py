"""A proxy before a real server: it counts requests, cuts connections, and may hold bodies back until they are whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Proxy:
    """Passes connections on to `port` of this machine."""

    def __init__(self, port: int, collecting: bool) -> None:
        #: The request lines seen, and the connections that are open.
        self.requests: list[str] = []
        self.open: set[asyncio.Task[None]] = set()
        self.url = ""
        self._port = port
        self._collecting = collecting

    def cut(self) -> None:
        """Break every connection."""
        for task in self.open:
            task.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.open.add(task)
        task.add_done_callback(self.open.discard)
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass(server_reader, writer))
                both.create_task(self._requests(reader, server_writer))
        except* OSError:
            pass
        finally:
            writer.transport.abort()
            server_writer.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests one by one: their heads, then their bodies, of a known length or chunked."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head.split(b" HTTP/")[0].decode())
                held = [head]
                async for piece in _body(reader, head.lower()):
                    held.append(piece)
                    if not self._collecting:
                        writer.writelines(held)
                        await writer.drain()
                        held.clear()
                writer.writelines(held)
                await writer.drain()
        writer.write_eof()


async def _body(reader: asyncio.StreamReader, head: bytes) -> AsyncIterator[bytes]:
    if b"transfer-encoding: chunked" in head:
        size = b"1"
        while int(size, 16):
            size = await reader.readuntil(b"\r\n")
            yield size + await reader.readexactly(int(size, 16) + 2)
    elif b"content-length: " in head:
        yield await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


@asynccontextmanager
async def proxied(port: int, *, collecting: bool = False) -> AsyncIterator[Proxy]:
    """A proxy of its own; `collecting`, it passes a request's body on only when it has all of it, as nginx does."""
    proxy = Proxy(port, collecting)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 18)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        await asyncio.gather(*proxy.open, return_exceptions=True)
