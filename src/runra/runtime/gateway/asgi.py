"""The gateway as an ASGI application, to be mounted in a server that is there already."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from runra.runtime.gateway.service import Gateway, Request
from runra.runtime.llms.failures import failure

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class GatewayApp:
    """`app.mount("/gateway", GatewayApp(gateway))`: the path below the mount is the gateway's."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway speaks HTTP, not {scope['type']}")
        sink = _Sink(send)
        read_to_end = asyncio.Event()

        async def read(limit: int) -> bytes:
            body = bytearray()
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionResetError("the client hung up")
                body += message.get("body", b"")
                if len(body) > limit:
                    raise failure("invalid", f"the request is longer than {limit >> 20} MiB")
                if not message.get("more_body"):
                    read_to_end.set()
                    return bytes(body)

        path = str(scope["path"]).removeprefix(str(scope.get("root_path", "")))
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        asked = Request(scope["method"], path, scope["query_string"].decode("latin-1"), headers, read)
        call = asyncio.create_task(self._gateway.handle(asked, sink))
        watch = asyncio.create_task(_gone(receive, read_to_end))
        try:
            await asyncio.wait({call, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watch.cancel()
            if not call.done():
                call.cancel()
            with contextlib.suppress(ConnectionResetError, asyncio.CancelledError):
                await call
        await sink.end()


async def _gone(receive: Receive, read_to_end: asyncio.Event) -> None:
    """Returns when the client has hung up. Only after the body: one reader of `receive` at a time."""
    await read_to_end.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


class _Sink:
    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = False

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        self._started = True
        listed = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": listed})

    async def write(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        if self._started:
            with contextlib.suppress(OSError):  # the client is gone
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
