"""HTTP/1.1 on the way out, parsed once and written anew: plain HTTP of sandboxes with a policy, and the gateway that
adds secrets.

Both sides run through h11's strict parser, so what leaves is what was judged: there is one Host, one framing (RFC 9112
6.3), one target, and each request of a connection is judged by itself. Bodies stream both ways; nothing is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, Final

import h11

from runra.node.network import sockets
from runra.node.network.dialer import Dialer
from runra.node.network.guest import Guest, Refused, Secret
from runra.node.network.policy import address_of, normal
from runra.node.network.resolver import GATEWAY_DOMAIN

_HEAD_BYTES: Final = 64 * 1024
#: Seconds: a request's head; between two requests; without a byte from either side; a TLS handshake.
_HEAD_TIMEOUT, _KEEP_ALIVE, _SILENCE, _TLS_TIMEOUT = 30.0, 75.0, 900.0, 15.0
#: A method is any token (RFC 9110 5.6.2). Servers forgive blanks before it, and other blanks than a space after it.
_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*")
_BLANKS: Final = b" \t\r\n\v\f"
#: Said to the next hop only (RFC 9110 7.6.1).
_HOP: Final = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"proxy-authorization"))

#: Judges one request: where it goes, or a Refusal.
Judge = Callable[[h11.Request], Awaitable["Route"]]


def looks_like_http(data: bytes) -> bool | None:
    """Whether these first bytes are an HTTP request, as the most forgiving server would read them; None while they may
    become one. HTTP/2 in the clear begins with a request line too. A line without a version carries no Host."""
    line, ended, _ = data.lstrip(_BLANKS).partition(b"\n")
    found = _METHOD.match(line)
    method = found.group() if found else b""
    rest = line[len(method) :]
    if b"HTTP/" in line.upper() or (method == b"GET" and rest) or len(data) > _HEAD_BYTES:
        return True
    if ended or (rest and (not method or rest[0] not in _BLANKS)):
        return False
    return None


class Refusal(Exception):
    """The answer a client gets in place of what it asked for."""

    def __init__(self, status: int, why: str, host: str = "") -> None:
        super().__init__(why)
        self.status, self.host = status, host


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes. With a secret it leaves over TLS, under the secret's host, with its header."""

    name: str
    address: IPv4Address
    port: int
    secret: Secret | None = None


class _Side(ABC):
    """One end of the proxy: a parser, and the bytes it reads from and writes to."""

    def __init__(self, role: Any, first: bytes = b"") -> None:
        self.parser = h11.Connection(role, max_incomplete_event_size=_HEAD_BYTES)
        if first:
            self.parser.receive_data(first)

    @abstractmethod
    async def read(self) -> bytes: ...

    @abstractmethod
    async def write(self, data: bytes) -> None: ...

    @abstractmethod
    def finish(self) -> None:
        """Nothing more will be written."""

    async def event(self, timeout: float = _SILENCE) -> Any:
        """The next event. Raises RemoteProtocolError, OSError, TimeoutError."""
        async with asyncio.timeout(timeout):
            while (event := self.parser.next_event()) is h11.NEED_DATA:
                self.parser.receive_data(await self.read())
        return event

    async def send(self, event: h11.Event) -> None:
        data = self.parser.send(event)
        if data:
            async with asyncio.timeout(_SILENCE):
                await self.write(data)


class _Inner(_Side):
    """The sandbox's side."""

    def __init__(self, link: socket.socket, first: bytes) -> None:
        super().__init__(h11.SERVER, first)
        self._link = link

    async def read(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._link, sockets.CHUNK)

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._link, data)

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)


class _Outer(_Side):
    """The side of the host it goes to; counts what passes."""

    def __init__(
        self, route: Route, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: list[int]
    ) -> None:
        super().__init__(h11.CLIENT)
        self.route = route
        self._reader, self._writer, self._counts = reader, writer, counts

    async def read(self) -> bytes:
        data = await self._reader.read(sockets.CHUNK)
        self._counts[1] += len(data)
        return data

    async def write(self, data: bytes) -> None:
        self._counts[0] += len(data)
        self._writer.write(data)
        await self._writer.drain()

    def finish(self) -> None:
        if self._writer.can_write_eof():
            self._writer.write_eof()

    @property
    def ended(self) -> bool:
        """The host has closed it in the meantime."""
        return self._reader.at_eof()

    def close(self) -> None:
        self._writer.transport.abort()


class HttpProxy:
    """`trust` gives what verifies the certificates of the hosts that secrets are for; asked when one is used."""

    def __init__(self, dialer: Dialer, trust: Callable[[], Awaitable[ssl.SSLContext]]) -> None:
        self._dialer = dialer
        self._trust = trust

    async def serve(self, guest: Guest, link: socket.socket, first: bytes, meant: IPv4Address, port: int) -> None:
        """Plain HTTP under the policy: each request goes to the host it names, if that is allowed at this port."""

        async def judge(request: h11.Request) -> Route:
            host = _host_of(request)
            literal, name = address_of(host), normal(host)
            if literal is not None:
                allowed = guest.policy.allows_address(literal, port)
            else:
                allowed = name is not None and guest.policy.allows_name(name, port)
            if not allowed:
                raise Refusal(403, f"this sandbox's network policy does not allow {host[:253]}:{port}", host)
            target = str(literal) if literal is not None else name or ""
            return Route(target, await self._choose(guest, target, meant), port)

        await self._serve(guest, link, first, judge, meant, port)

    async def serve_gateway(self, guest: Guest, link: socket.socket) -> None:
        """`http://{alias}.gateway.runra.internal/…`: to the secret's host, over TLS, with the secret's header."""

        async def judge(request: h11.Request) -> Route:
            host = normal(_host_of(request)) or ""
            alias = host.removesuffix(f".{GATEWAY_DOMAIN}")
            secret = guest.secrets.get(alias) if host.endswith(f".{GATEWAY_DOMAIN}") else None
            if secret is None:
                known = ", ".join(f"http://{name}.{GATEWAY_DOMAIN}/" for name in guest.secrets)
                raise Refusal(404, f"no secret is here under {host[:253]!r}; there is {known}", host)
            return Route(secret.host, await self._choose(guest, secret.host, None, free=True), secret.port, secret)

        await self._serve(guest, link, b"", judge, None, 80)

    async def _choose(self, guest: Guest, name: str, meant: IPv4Address | None, *, free: bool = False) -> IPv4Address:
        try:
            return await self._dialer.choose(guest, name, meant, free=free)
        except Refused as error:
            raise Refusal(502, str(error), name) from None

    # --- one connection ---

    async def _serve(
        self, guest: Guest, link: socket.socket, first: bytes, judge: Judge, meant: IPv4Address | None, port: int
    ) -> None:
        inner = _Inner(link, first)
        timeout = _HEAD_TIMEOUT
        async with contextlib.AsyncExitStack() as stack:
            outer: _Outer | None = None
            try:
                while True:
                    request = await inner.event(timeout)
                    if not isinstance(request, h11.Request):
                        return
                    _check(request)
                    route = await judge(request)
                    if outer is None or outer.route != route or not _reusable(outer):
                        await stack.aclose()
                        outer = await self._open(guest, route, stack)
                    if not await _exchange(inner, outer, request, route):
                        return
                    inner.parser.start_next_cycle()
                    timeout = _KEEP_ALIVE
            except Refusal as refusal:
                guest.refused(refusal.host, meant, port, str(refusal))
                await _refuse(inner, refusal)
            except h11.RemoteProtocolError as error:
                await _refuse(inner, Refusal(error.error_status_hint, f"bad HTTP: {error}"))
            except h11.LocalProtocolError:
                pass  # what the other side sent cannot be passed on as it came: the connection ends
            except (OSError, TimeoutError):
                pass

    async def _open(self, guest: Guest, route: Route, stack: contextlib.AsyncExitStack) -> _Outer:
        secret = route.secret
        name = "" if address_of(route.name) is not None else route.name
        try:
            counts = stack.enter_context(guest.connected(route.address, route.port, name, secret, route.name))
        except Refused as error:
            raise Refusal(403, str(error), route.name) from None
        try:
            link = await sockets.dial(route.address, route.port)
        except (OSError, TimeoutError) as error:
            raise Refusal(502, f"{route.name}:{route.port} does not answer: {error}", route.name) from None
        try:
            if secret is None:
                reader, writer = await asyncio.open_connection(sock=link, limit=sockets.CHUNK)
            else:
                reader, writer = await asyncio.open_connection(
                    sock=link,
                    limit=sockets.CHUNK,
                    ssl=await self._trust(),
                    server_hostname=route.name,
                    ssl_handshake_timeout=_TLS_TIMEOUT,
                    ssl_shutdown_timeout=1.0,
                )
        except (OSError, TimeoutError) as error:
            link.close()
            why = getattr(error, "verify_message", "") or "no TLS connection"
            raise Refusal(502, f"{route.name}: {why}", route.name) from None
        except BaseException:
            link.close()
            raise
        outer = _Outer(route, reader, writer, counts)
        stack.callback(outer.close)
        return outer


def _reusable(outer: _Outer) -> bool:
    parser = outer.parser
    if parser.our_state is not h11.DONE or parser.their_state is not h11.DONE or outer.ended:
        return False
    parser.start_next_cycle()
    return True


def _check(request: h11.Request) -> None:
    """What h11 lets pass and we do not. Raises Refusal."""
    names = [name for name, _ in request.headers]
    if request.method == b"CONNECT":
        raise Refusal(405, "this is no proxy to be asked: connect to the host itself")
    if not request.target.startswith(b"/") and (request.method, request.target) != (b"OPTIONS", b"*"):
        raise Refusal(400, "give a path as the request's target, not a whole URL")
    if names.count(b"host") != 1:
        raise Refusal(400, "a request needs one Host")
    if b"transfer-encoding" in names and b"content-length" in names:
        raise Refusal(400, "Content-Length and Transfer-Encoding in one request")


def _host_of(request: h11.Request) -> str:
    """The name in Host, without its port."""
    text = next(value for name, value in request.headers if name == b"host").decode("ascii", "replace").strip()
    host, colon, port = text.rpartition(":")
    return host if colon and port.isdigit() else text


def _wants_upgrade(headers: Any) -> bool:
    """To a WebSocket. Any other protocol, HTTP/2 above all, would carry requests that nobody judges."""
    if [value.lower() for name, value in headers if name == b"upgrade"] != [b"websocket"]:
        return False
    tokens = b",".join(value for name, value in headers if name == b"connection").lower().split(b",")
    return b"upgrade" in (token.strip() for token in tokens)


def _passed(headers: Any, *, upgrade: bool) -> list[tuple[bytes, bytes]]:
    """The headers that go on: not what concerns this hop alone, but an upgrade that both sides speak of."""
    named = b",".join(value for name, value in headers if name == b"connection").lower().split(b",")
    dropped = _HOP | {token.strip() for token in named}
    kept = [(name, value) for name, value in headers.raw_items() if name.lower() not in dropped]
    if upgrade:
        kept += [(name, value) for name, value in headers if name == b"upgrade"]
        kept.append((b"Connection", b"Upgrade"))
    return kept


def _outgoing(request: h11.Request, route: Route, *, upgrade: bool) -> h11.Request:
    headers = _passed(request.headers, upgrade=upgrade)
    secret = route.secret
    if secret is not None:
        replaced = {b"host", secret.header.lower().encode()}
        host = secret.host if secret.port == 443 else f"{secret.host}:{secret.port}"
        headers = [(name, value) for name, value in headers if name.lower() not in replaced]
        headers = [(b"Host", host.encode()), (secret.header.encode(), secret.value.encode()), *headers]
    return h11.Request(method=request.method, target=request.target, headers=headers)


async def _exchange(inner: _Side, outer: _Side, request: h11.Request, route: Route) -> bool:
    """One request and its response, both streaming. Returns whether the sandbox's side may ask again."""
    upgrade = _wants_upgrade(request.headers)
    await outer.send(_outgoing(request, route, upgrade=upgrade))
    up = asyncio.create_task(_upload(inner, outer))
    down = asyncio.create_task(_download(inner, outer))
    try:
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        if up.done() and not up.cancelled() and (error := up.exception()) and not down.done():
            raise error
        switched = await down
        if switched:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)
            await _switch(inner, outer)
            return False
        # An answer before the end of the question ends the connection (RFC 9112 9.3).
        return up.done() and not up.exception() and inner.parser.our_state is h11.DONE
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)


async def _upload(inner: _Side, outer: _Side) -> None:
    while True:
        event = await inner.event()
        if isinstance(event, (h11.Data, h11.EndOfMessage)):
            await outer.send(_framed(event))
        if not isinstance(event, h11.Data):
            return


async def _download(inner: _Side, outer: _Side) -> bool:
    """Pass the response on; True when the two sides speak another protocol from here on."""
    while True:
        event = await outer.event()
        if isinstance(event, (h11.Response, h11.InformationalResponse)):
            switching = event.status_code == 101
            headers = _passed(event.headers, upgrade=switching)
            if any(name.lower() == b"transfer-encoding" for name, _ in headers):
                headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
            await inner.send(type(event)(status_code=event.status_code, headers=headers, reason=event.reason))
            if switching:
                return True
        elif isinstance(event, h11.Data):
            await inner.send(_framed(event))
        elif isinstance(event, h11.EndOfMessage):
            await inner.send(_framed(event))
            return False
        else:
            raise OSError("the host closed the connection without an answer")


def _framed(event: Any) -> h11.Event:
    """The same data or end; the chunks' borders of one side are not the other's business."""
    if isinstance(event, h11.Data):
        return h11.Data(data=bytes(event.data))
    return h11.EndOfMessage()


async def _switch(inner: _Side, outer: _Side) -> None:
    """From here on it is another protocol (a WebSocket): bytes, both ways."""

    async def pump(source: _Side, target: _Side) -> None:
        data, _ = source.parser.trailing_data
        if data:
            await target.write(data)
        while data := await source.read():
            await target.write(data)
        target.finish()

    pumps = [asyncio.create_task(pump(inner, outer)), asyncio.create_task(pump(outer, inner))]
    try:
        await asyncio.gather(*pumps)
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _refuse(inner: _Side, refusal: Refusal) -> None:
    """Answer in our own words, if nothing was answered yet, and end the connection."""
    if inner.parser.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    body = f"Runra: {refusal}\n".encode(errors="replace")
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    with contextlib.suppress(OSError, TimeoutError, h11.LocalProtocolError):
        await inner.send(h11.Response(status_code=refusal.status, headers=headers))
        await inner.send(h11.Data(data=body))
        await inner.send(h11.EndOfMessage())
        inner.finish()
