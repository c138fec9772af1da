"""Plain non-blocking sockets for the proxy: dialling what was checked and nothing else, and passing bytes on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from runra.node.network.netlink import Netlink

#: Most that waits in this process for a slow reader, each way of each connection.
CHUNK: Final = 128 * 1024
CONNECT_TIMEOUT: Final = 15.0
_ORIGINAL_DST: Final = 80
#: A peer that vanished without a word is noticed after about two minutes (tcp(7)), also in the middle of sending.
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
_UNANSWERED_MS: Final = 300_000
_NO_ROUTE: Final = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)


def original_target(link: socket.socket) -> tuple[IPv4Address, int]:
    """Where a redirected connection meant to go, as the kernel remembers it."""
    raw = link.getsockopt(socket.SOL_IP, _ORIGINAL_DST, 16)
    port, address = struct.unpack_from("!2xH4s", raw)
    return IPv4Address(address), port


def is_ours(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address belongs to this host: its services are not for sandboxes, whatever the address looks like."""
    if address.is_loopback:
        return True
    with Netlink() as here:
        try:
            return here.leads_here(str(address))
        except OSError as error:
            if error.errno not in _NO_ROUTE:
                raise
            return False  # no route leads there: neither will a connection


def tune(link: socket.socket) -> None:
    link.setblocking(False)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        link.setsockopt(socket.IPPROTO_TCP, option, value)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNANSWERED_MS)


async def dial(address: IPv4Address, port: int) -> socket.socket:
    """A connection to exactly this address. Raises OSError, TimeoutError."""
    link = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        tune(link)
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await asyncio.get_running_loop().sock_connect(link, (str(address), port))
    except BaseException:
        link.close()
        raise
    return link


def abort(link: socket.socket) -> None:
    """Close with a reset: whoever waits at the other end learns of it at once."""
    with contextlib.suppress(OSError):
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


async def _pump(
    source: socket.socket, target: socket.socket, counts: list[int], which: int, first: bytes = b""
) -> None:
    loop = asyncio.get_running_loop()
    data = first or await loop.sock_recv(source, CHUNK)
    while data:
        counts[which] += len(data)
        await loop.sock_sendall(target, data)
        data = await loop.sock_recv(source, CHUNK)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


async def relay(
    inner: socket.socket, outer: socket.socket, counts: list[int], first: Callable[[], Awaitable[bytes]]
) -> None:
    """Pass bytes both ways until both sides have ended; counts what went out and what came back. `first` gives what
    the inner side said already, or waits for it; what it raises ends the connection.

    Raises OSError when one side broke, and CancelledError when the connection is cut.
    """

    async def outwards() -> None:
        await _pump(inner, outer, counts, 0, await first())

    pumps = [asyncio.create_task(outwards()), asyncio.create_task(_pump(outer, inner, counts, 1))]
    try:
        await asyncio.gather(*pumps)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
