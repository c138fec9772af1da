"""The ingress: takes a request that is meant for a preview through its tunnel, and the answer back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import h11
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runra.errors import RunraError
from runra.server.faults import unexpected
from runra.server.ingress.door import Admitted, Door, explain
from runra.server.ingress.headers import Headers, check_framing, inward, values
from runra.server.ingress.hosts import Names, Place
from runra.server.ingress.pace import Bandwidth
from runra.server.ingress.pages import Refusal, page
from runra.server.ingress.upstream import Exchange, broke
from runra.server.measure import Measures
from runra.server.nodeport import Tunnel
from runra.server.settings import ServerSettings

_log = logging.getLogger("runra.server")
_access = logging.getLogger("runra.server.access")
#: What cuts a connection because the other end of it, or the server, goes.
_GONE: Final = RunraError("INVALID_STATE", "the client has gone", details={"reason": "closed"})
_STOPPING: Final = RunraError("INVALID_STATE", "the server is stopping", details={"reason": "closed"})


class Ingress:
    """Everything between a client's connection and a port inside. Bounded: connections a sandbox, bytes a connection
    (h11's buffer, the tunnel's windows, the client's socket), and time without a byte."""

    def __init__(self, settings: ServerSettings, names: Names, door: Door, measures: Measures) -> None:
        self.settings = settings
        self._names = names
        self._door = door
        self._measures = measures
        self._open: Counter[str] = Counter()
        self._bandwidth = Bandwidth(settings.preview_mbit) if settings.preview_mbit else None
        #: Answers without an end of their own: they end when the server stops.
        self._streams: set[Tunnel] = set()
        self._stopping = False

    def place(self, headers: Headers) -> Place | None:
        """Which preview a request is for; None is the API."""
        return self._names.place(headers)

    def admit(self, place: Place, method: str, target: bytes, headers: Headers) -> Admitted | Response:
        return self._door.admit(place, method, target, headers)

    def stop(self) -> None:
        """Cut what would never end by itself; other answers are finished."""
        self._stopping = True
        for tunnel in list(self._streams):
            tunnel.abort(_STOPPING)

    @asynccontextmanager
    async def tunnel(self, admitted: Admitted, first: bytes) -> AsyncIterator[Tunnel]:
        """A connection to the port, on which `first` has been said. While it lives the sandbox is active; a paused one
        with autoResume is resumed."""
        sandbox, exposed = admitted.sandbox, admitted.exposed
        if self._open[sandbox.id] >= self.settings.preview_connections:
            raise Refusal(
                "too_many", "The sandbox has its most connections open. Try again.", 503, "RESOURCE_EXHAUSTED"
            )
        self._open[sandbox.id] += 1
        try:
            async with (
                sandbox.use() as link,
                await link.connect_port(exposed.row.port, first) as opened,
                self._bandwidth.paced(opened, sandbox.id, len(first)) if self._bandwidth else opened as tunnel,
            ):
                if exposed.cuts != admitted.cuts:  # closed or revoked while this connected
                    raise RunraError("INVALID_STATE", "the port was closed", details={"reason": "closed"})
                exposed.connections.add(tunnel)
                try:
                    yield tunnel
                finally:
                    exposed.connections.discard(tunnel)
                    self._streams.discard(tunnel)
        finally:
            self._open[sandbox.id] -= 1
            if not self._open[sandbox.id]:
                del self._open[sandbox.id]

    def endless(self, tunnel: Tunnel) -> None:
        """This one has no end of its own."""
        self._streams.add(tunnel)
        if self._stopping:
            tunnel.abort(_STOPPING)

    def inward(self, admitted: Admitted, headers: Headers, client: str, body: bytes | None) -> Headers:
        return inward(headers, authority=admitted.authority, scheme=self._names.scheme, client=client, body=body)

    def note(self, request_id: str, place: Place, status: int, began: float) -> None:
        seconds = time.perf_counter() - began
        self._measures.request("any", "preview", status, seconds)
        if _access.isEnabledFor(logging.INFO):
            # No target: it may carry a link's token, and what is asked of a sandbox is its owner's business.
            _access.info("%s preview %s:%d %d %.1f ms", request_id, *_named(place), status, seconds * 1000)

    # --- requests ---

    async def serve(self, place: Place, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request, from its head to the answer's end."""
        request_id, began = new_request_id(), time.perf_counter()
        relay = _Relay(self, scope, receive, send)
        try:
            await relay.run(place)
        except RunraError as error:
            refused = explain(error)
            if refused.code == "INTERNAL_ERROR":
                _log.error("%s preview: %s", request_id, error, exc_info=error)
            await relay.fail(refused, request_id)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            await relay.fail(_STOPPING, request_id)
        except Exception as error:  # noqa: BLE001 - the last resort: logged whole, answered without its details
            _log.error("%s preview: unexpected", request_id, exc_info=error)
            await relay.fail(unexpected(), request_id)
        finally:
            self.note(request_id, place, relay.status, began)


def new_request_id() -> str:
    return f"req_{secrets.token_hex(10)}"


def _named(place: Place) -> tuple[str, int]:
    return place.sandbox_id or "nowhere", place.port


class _Relay:
    """One request on its way: its body goes in while its answer comes out."""

    def __init__(self, ingress: Ingress, scope: Scope, receive: Receive, send: Send) -> None:
        self._ingress = ingress
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers: Headers = scope["headers"]
        self._idle_s = ingress.settings.preview_idle_s
        self.status = 0

    async def run(self, place: Place) -> None:
        scope = self._scope
        if scope["type"] != "http":  # WebSockets are taken before they become ASGI's
            raise Refusal("bad_request", "This kind of request is not known here.", 400, "INVALID_REQUEST")
        body = framing(self._headers)
        method, target = scope["method"], scope["state"]["target"]
        admitted = self._ingress.admit(place, method, target, self._headers)
        if isinstance(admitted, Response):
            self.status = admitted.status_code
            await admitted(scope, self._receive, self._send)
            return
        client = scope["client"][0] if scope.get("client") else "unknown"
        head = [*self._ingress.inward(admitted, self._headers, client, body), (b"connection", b"close")]
        exchange = Exchange(method, admitted.target, head, self._idle_s)
        async with self._ingress.tunnel(admitted, exchange.head) as tunnel:
            exchange.over(tunnel)
            upload = asyncio.get_running_loop().create_task(self._upload(exchange, tunnel))
            try:
                await self._answer(exchange, tunnel)
            finally:
                upload.cancel()
                await asyncio.gather(upload, return_exceptions=True)

    async def _upload(self, exchange: Exchange, tunnel: Tunnel) -> None:
        """Pass the body on, then watch for the client's end. A server that answers before it has read everything is
        within its rights: what is left is read and dropped."""
        takes, more = True, True
        while more:
            try:
                async with asyncio.timeout(self._idle_s):
                    message = await self._receive()
            except TimeoutError:
                tunnel.abort(Refusal("no_answer", "The request's body did not come.", 504))
                return
            if message["type"] == "http.disconnect":
                tunnel.abort(_GONE)
                return
            data, more = message.get("body", b""), message.get("more_body", False)
            if not takes:
                continue
            try:
                if data:
                    await exchange.send(data)
                if not more:
                    await exchange.end()
            except Exception as error:
                if not broke(error):
                    raise
                takes = False
        while (await self._receive())["type"] != "http.disconnect":
            continue
        tunnel.abort(_GONE)

    async def _answer(self, exchange: Exchange, tunnel: Tunnel) -> None:
        response = await exchange.answer()
        if not isinstance(response, h11.Response):
            raise Refusal("bad_answer", "It changed the protocol, and nobody had asked.", 502)
        headers = exchange.headers(response)
        if any(value.lower().startswith(b"text/event-stream") for value in values(headers, b"content-type")):
            self._ingress.endless(tunnel)
        self.status = response.status_code
        await self._out({"type": "http.response.start", "status": self.status, "headers": headers})
        async with contextlib.aclosing(exchange.body()) as pieces:
            async for piece, last in pieces:
                await self._out({"type": "http.response.body", "body": piece, "more_body": not last})

    async def _out(self, message: Any) -> None:
        """To the client, as fast as it reads. One that reads nothing for too long is cut off."""
        try:
            async with asyncio.timeout(self._idle_s):
                await self._send(message)
        except TimeoutError:
            raise Refusal("closed", "The client read nothing.", 504) from None

    async def fail(self, error: RunraError, request_id: str) -> None:
        refused = explain(error)
        if not self.status:
            self.status = refused.status
            response = page(refused, self._headers, request_id)
            # Whatever is left of the request's body is not waited for.
            response.headers["Connection"] = "close"
            await response(self._scope, self._receive, self._send)
            return
        # Half an answer is out: cutting the connection is the only way to say that the rest is missing.
        abort = self._scope["state"].get("abort")
        if abort is not None:
            abort()
            await asyncio.sleep(0)


def framing(headers: Headers) -> bytes | None:
    """How long the request's body is; Refusal 400 when that can be read in two ways."""
    try:
        return check_framing(headers)
    except RunraError as error:
        raise Refusal("bad_request", error.message, 400, "INVALID_REQUEST") from None
