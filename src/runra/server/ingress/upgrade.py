"""WebSockets on the way in: the handshake is HTTP, then bytes go both ways as they come."""

from __future__ import annotations

import asyncio
import http
import logging
import time
from typing import Any, Final

import h11
from starlette.responses import Response

from runra.errors import RunraError
from runra.server.ingress.door import explain
from runra.server.ingress.headers import Headers
from runra.server.ingress.hosts import Place
from runra.server.ingress.ingress import Ingress, framing, new_request_id
from runra.server.ingress.pages import Refusal, page
from runra.server.ingress.upstream import Exchange, read_on
from runra.server.nodeport import Tunnel

_log = logging.getLogger("runra.server")
_READ: Final = 64 << 10
#: Seconds the other side may take to end its half when one has.
_LINGER_S: Final = 30.0


class Upgrade:
    """One connection that asked to become a WebSocket: ours alone from here on."""

    def __init__(self, ingress: Ingress, transport: Any, headers: Headers, client: str) -> None:
        loop = asyncio.get_running_loop()
        self._ingress = ingress
        self._headers = headers
        self._client = client
        self._transport = transport
        self._reader = asyncio.StreamReader(limit=_READ, loop=loop)
        protocol = asyncio.StreamReaderProtocol(self._reader, loop=loop)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        self._writer = asyncio.StreamWriter(transport, protocol, self._reader, loop)
        self._idle_s = ingress.settings.preview_idle_s
        self.status = 0

    async def serve(self, place: Place, method: str, target: bytes) -> None:
        """From the handshake to the end of both sides."""
        request_id, began = new_request_id(), time.perf_counter()
        try:
            await self._run(place, method, target)
        except (RunraError, TimeoutError, ConnectionError) as error:
            if self.status or not isinstance(error, RunraError):
                self._transport.abort()
                return
            await self._put(page(explain(error), self._headers, request_id))
        except asyncio.CancelledError:
            self._transport.abort()
            raise
        except Exception as error:  # noqa: BLE001 - the last resort: logged whole
            _log.error("%s preview: unexpected", request_id, exc_info=error)
            self._transport.abort()
        finally:
            self._writer.close()
            self._ingress.note(request_id, place, self.status, began)

    async def _run(self, place: Place, method: str, target: bytes) -> None:
        if framing(self._headers) not in (None, b"0") or method != "GET":
            raise Refusal("bad_request", "A WebSocket begins with a GET without a body.", 400, "INVALID_REQUEST")
        admitted = self._ingress.admit(place, method, target, self._headers)
        if isinstance(admitted, Response):
            await self._put(admitted)
            return
        head = self._ingress.inward(admitted, self._headers, self._client, None)
        head += [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
        exchange = Exchange(method, admitted.target, head, self._idle_s)
        async with self._ingress.tunnel(admitted, exchange.head) as tunnel:
            exchange.over(tunnel)
            await exchange.end()
            response = await exchange.answer()
            headers = exchange.headers(response)
            if isinstance(response, h11.Response):
                await self._refused(exchange, response.status_code, headers)
                return
            self._head(101, [*headers, (b"connection", b"Upgrade"), (b"upgrade", b"websocket")])
            self._ingress.endless(tunnel)
            await self._both(exchange.beyond(), tunnel)

    async def _refused(self, exchange: Exchange, status: int, headers: Headers) -> None:
        """The server inside wants no WebSocket: its own answer, which ends with the connection."""
        self._head(status, [*headers, (b"connection", b"close")])
        async for piece, _ in exchange.body():
            await self._out(piece)

    async def _both(self, first: bytes, tunnel: Tunnel) -> None:
        if first:
            await self._out(first)
        up = asyncio.get_running_loop().create_task(self._inward(tunnel))
        down = asyncio.get_running_loop().create_task(self._outward(tunnel))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if not down.done():
                await asyncio.wait({down}, timeout=_LINGER_S)
        finally:
            for task in (up, down):
                task.cancel()
            results = await asyncio.gather(up, down, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _inward(self, tunnel: Tunnel) -> None:
        while data := await self._reader.read(_READ):
            await tunnel.write(data, self._idle_s)
        tunnel.end_write()

    async def _outward(self, tunnel: Tunnel) -> None:
        while data := await read_on(tunnel, self._ingress.settings.preview_socket_idle_s):
            await self._out(data)

    async def _out(self, data: bytes) -> None:
        self._writer.write(data)
        async with asyncio.timeout(self._idle_s):
            await self._writer.drain()

    def _head(self, status: int, headers: Headers) -> None:
        self.status = status
        try:
            phrase = http.HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        lines = [b"HTTP/1.1 %d %s" % (status, phrase.encode())]
        lines += [name + b": " + value for name, value in headers]
        self._writer.write(b"\r\n".join([*lines, b"", b""]))

    async def _put(self, response: Response) -> None:
        """A whole answer of ours, and the end."""
        self._head(response.status_code, [*response.raw_headers, (b"connection", b"close")])
        await self._out(bytes(response.body))
