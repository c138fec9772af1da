"""The gateway as a small HTTP server of its own, on a TCP address or a Unix socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket as sockets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aiohttp import web

from runra.errors import RunraError
from runra.runtime.gateway.service import MAX_BODY, Gateway, Request
from runra.runtime.llms.failures import failure

#: Seconds that calls under way get to end when the server stops.
_STOP_S: Final = 1.0


class GatewayServer:
    """Serves a gateway. `start` it, then `url` is where clients reach it; `stop` frees the port or socket."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._runner: web.AppRunner | None = None
        self._socket: Path | None = None
        #: Such as http://127.0.0.1:41233; empty on a Unix socket and before the start.
        self.url = ""

    async def start(self, host: str = "127.0.0.1", port: int = 0, socket: Path | None = None) -> str:
        """Listen, on `socket` if given (mode 0600: whoever opens it may try tokens), else on `host`; port 0 is any
        free one. Returns the URL. Raises INVALID_CONFIG when the address cannot be had."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self._handle)
        # `handler_cancellation`: a client that goes away cancels its call, and that the provider's.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_STOP_S)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port) if socket is None else web.SockSite(runner, _bound(socket))
            await site.start()
        except OSError as error:
            await runner.cleanup()
            where = socket or f"{host}:{port}"
            raise RunraError("INVALID_CONFIG", f"gateway: cannot listen on {where}: {error.strerror}") from None
        self._runner, self._socket = runner, socket
        if socket is None:
            bound = runner.addresses[0]
            shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
            self.url = f"http://{shown}:{bound[1]}"
        return self.url

    async def stop(self) -> None:
        """Stop listening; what is still under way after a second is cut off. A second call does nothing."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            self._socket = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        sink = _Sink(request)
        headers = {name.lower(): value for name, value in request.headers.items()}

        async def read(limit: int) -> bytes:
            try:
                return await request.read()
            except web.HTTPRequestEntityTooLarge:
                raise failure("invalid", f"the request is longer than {limit >> 20} MiB") from None

        asked = Request(request.method, request.path, request.query_string, headers, read)
        try:
            await self._gateway.handle(asked, sink)
        except ConnectionResetError:  # the client is gone; the call was booked
            logging.getLogger("runra.gateway").debug("a client hung up on %s", request.path)
        except asyncio.CancelledError:
            if request.transport is not None:
                request.transport.abort()
            raise
        return sink.response


def _bound(path: Path) -> sockets.socket:
    """A Unix socket that is nobody else's from its first moment on. One left behind by another server is replaced."""
    if path.is_socket():
        path.unlink()
    sock = sockets.socket(sockets.AF_UNIX)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


class _Sink:
    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response = web.StreamResponse()

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        self.response = web.StreamResponse(status=status, headers=dict(headers))
        await self.response.prepare(self._request)

    async def write(self, piece: bytes) -> None:
        await self.response.write(piece)
