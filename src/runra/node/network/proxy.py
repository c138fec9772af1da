"""The way out of a sandbox with a policy: every TCP connection lands here, and goes on only to what the policy names.

What decides is the name the client itself puts on the wire, TLS's server name or HTTP's Host. We resolve it, check the
address and dial exactly that address, whatever address the sandbox meant: a forged name leads only to the host it
names. Nothing is decrypted. Without such a name there are two more ways: the address itself is in an allowed range; or
our resolver gave this address, a while ago, for a name that the policy holds exactly (for SSH, PostgreSQL and others
that send no name). Then the first bytes are still looked at, and a TLS or HTTP name in them must be allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import Final

from runra.errors import RunraError
from runra.node.network import hello, sockets
from runra.node.network.dialer import Dialer
from runra.node.network.guest import Guest, Refused
from runra.node.network.http import HttpProxy, looks_like_http
from runra.node.network.policy import Policy, normal
from runra.node.network.resolver import Who

#: Seconds a client may take to show what it wants.
_FIRST_BYTES: Final = 10.0
_PEEK: Final = 4096
_BACKLOG: Final = 1024

#: What serves one accepted connection.
Serve = Callable[[Guest, socket.socket], Awaitable[None]]


class Proxy:
    """Serves what the kernel redirects from sandboxes with a policy."""

    def __init__(self, dialer: Dialer, http: HttpProxy) -> None:
        self._dialer = dialer
        self._http = http

    async def serve(self, guest: Guest, link: socket.socket) -> None:
        """One connection, from its first byte to its end."""
        try:
            address, port = sockets.original_target(link)
        except OSError:
            return
        by_name = self._remembered(guest, address, port)
        if by_name is not None:
            await self._by_address(guest, link, address, port, by_name)
        elif guest.policy.allows_address(address, port):
            await self._by_address(guest, link, address, port, "")
        else:
            await self._by_name(guest, link, address, port)

    @staticmethod
    def _remembered(guest: Guest, address: IPv4Address, port: int) -> str | None:
        """The exactly allowed name this address was given for. The web's own ports always carry a name."""
        if port in (80, 443):
            return None
        names = guest.names_of(address)
        return next((name for name in names if guest.policy.names_exactly(name, port)), None)

    # --- the client's own word ---

    async def _by_name(self, guest: Guest, link: socket.socket, address: IPv4Address, port: int) -> None:
        if not guest.policy.names_some(port):
            guest.refused("", address, port, "neither the address nor any name is allowed at this port")
            sockets.abort(link)
            return
        try:
            async with asyncio.timeout(_FIRST_BYTES):
                first, kind, name = await _first_bytes(link)
        except TimeoutError:
            guest.refused("", address, port, "no name was given within 10 s, and the address is not allowed")
            return
        except hello.Bad as error:
            guest.refused("", address, port, f"TLS: {error}")
            await _say(link, hello.ALERT)
            return
        if kind == "http":
            await self._http.serve(guest, link, first, address, port)
            return
        try:
            if kind == "tls":
                allowed = self._allowed(guest.policy, name, port)
                target = await self._dialer.choose(guest, allowed, address)
                await self._tunnel(guest, link, first, target, port, allowed)
            elif first:
                raise Refused("the address is not allowed, and its protocol carries no name")
        except Refused as error:
            guest.refused(name or "", address, port, str(error))
            await _say(link, hello.ALERT if kind == "tls" else b"")

    @staticmethod
    def _allowed(policy: Policy, name: str | None, port: int) -> str:
        """The name in its one form. Raises Refused."""
        if name is None:
            raise Refused("TLS without a server name, and the address itself is not allowed")
        usual = normal(name)
        if usual is None or not policy.allows_name(usual, port):
            raise Refused("the policy does not allow this name")
        return usual

    # --- an allowed address ---

    async def _by_address(self, guest: Guest, link: socket.socket, address: IPv4Address, port: int, name: str) -> None:
        """Dial at once, since the server may be the one to speak first; look at what the client says when it does."""
        if not self._dialer.may_dial(guest, address):
            guest.refused(name, address, port, "the address is in a range closed to sandboxes")
            return
        try:
            await self._tunnel(guest, link, b"", address, port, name, look=bool(name))
        except Refused as error:
            guest.refused(name, address, port, str(error))

    async def _tunnel(
        self,
        guest: Guest,
        link: socket.socket,
        first: bytes,
        address: IPv4Address,
        port: int,
        name: str,
        *,
        look: bool = False,
    ) -> None:
        request = b""
        with guest.connected(address, port, name) as counts:
            try:
                outer = await sockets.dial(address, port)
            except (OSError, TimeoutError):
                return

            async def judged() -> bytes:
                return await self._judged(guest, link, port)

            try:
                await sockets.relay(link, outer, counts, judged if look else _said(first))
            except _IsHttp as http:
                if counts[1]:  # the server spoke first: this is no HTTP
                    return
                request = http.data
            except OSError:
                pass  # one of the two is gone: so is the connection
            finally:
                sockets.abort(outer)
        if request:
            await self._http.serve(guest, link, request, address, port)

    async def _judged(self, guest: Guest, link: socket.socket, port: int) -> bytes:
        """The client's first bytes, whenever they come. Raises Refused when they carry a name that is not allowed: a
        neighbour of the allowed one on its address; and _IsHttp for what must be judged request by request."""
        try:
            data, kind, name = await _first_bytes(link, hold=True)
        except hello.Bad as error:
            raise Refused(f"TLS: {error}") from None
        if kind == "http":
            raise _IsHttp(data)
        if kind == "tls":
            self._allowed(guest.policy, name, port)
        return data


class _IsHttp(Exception):
    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data


def _said(first: bytes) -> Callable[[], Awaitable[bytes]]:
    async def read() -> bytes:
        return first

    return read


async def _first_bytes(link: socket.socket, *, hold: bool = False) -> tuple[bytes, str, str | None]:
    """What the client sends first, what it is (`tls`, `http`, `other`), and TLS's server name. Raises hello.Bad.

    `hold`: wait until it is certain that they are no HTTP, since `other` passes. Else `other` is refused, and that at
    once.
    """
    loop = asyncio.get_running_loop()
    data = b""
    while True:
        more = await loop.sock_recv(link, _PEEK)
        data += more
        if not data or (not more and data[0] != hello.HANDSHAKE):
            return data, "other", None
        if data[0] != hello.HANDSHAKE:
            http = looks_like_http(data)
            if http is None and hold and more:
                continue
            if http is None:
                http = not data.strip() or data.lstrip()[:1].isupper()
            return data, "http" if http else "other", None
        try:
            return data, "tls", hello.server_name(data)
        except hello.Incomplete:
            if not more or len(data) > hello.MAX_BYTES:
                raise hello.Bad("a ClientHello that does not end") from None


async def _say(link: socket.socket, words: bytes) -> None:
    if words:
        with contextlib.suppress(OSError):
            async with asyncio.timeout(1):
                await asyncio.get_running_loop().sock_sendall(link, words)
            link.shutdown(socket.SHUT_WR)


class Listener:
    """Accepts connections of sandboxes on one port, a task for each, as many as a sandbox may have."""

    def __init__(self, serve: Serve, who: Who, most: int) -> None:
        self._serve, self._who, self._most = serve, who, most
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, address: str) -> int:
        """Listen; returns the port."""
        self._socket = socket.create_server((address, 0), backlog=_BACKLOG)
        self._socket.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(self._socket), name="egress")
        port: int = self._socket.getsockname()[1]
        return port

    async def close(self) -> None:
        tasks = [*self._tasks, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                link, (address, _) = await loop.sock_accept(listening)
            except OSError:  # out of descriptors: those in use must come back first
                await asyncio.sleep(0.05)
                continue
            guest = self._who(address)
            if guest is None or guest.accepted >= self._most or not guest.arrivals.take():
                if guest is not None:
                    guest.refused("", None, 0, "too many connections")
                sockets.abort(link)
                continue
            guest.accepted += 1
            task = asyncio.create_task(self._one(guest, link), name=f"egress {guest.id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self, guest: Guest, link: socket.socket) -> None:
        try:
            sockets.tune(link)
            await self._serve(guest, link)
        except asyncio.CancelledError:
            sockets.abort(link)  # cut by a policy, or by our end
            raise
        except (OSError, RunraError):
            pass  # the sandbox's own doing, told as an event where it matters
        finally:
            guest.accepted -= 1
            link.close()
