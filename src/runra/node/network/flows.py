"""What the kernel tells of sandboxes' traffic: connections it let through or refused (nflog), and how many bytes a
finished one carried (conntrack). Both may lose messages under a flood; neither can hold traffic up.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from runra.node.network.netlink import attribute
from runra.node.network.rules import ALLOWED, REFUSED

_NETLINK_NETFILTER: Final = 12
_LOG, _CONNTRACK = 4, 1  # nfnetlink subsystems
_LOG_CONFIG: Final = _LOG << 8 | 1
_LOG_PACKET: Final = _LOG << 8
_CT_DELETE: Final = _CONNTRACK << 8 | 2
_BIND, _UNBIND, _COPY_PACKET = 1, 2, 2
_SNAP_BYTES: Final = 64
#: Hundredths of a second the kernel may keep a message to send several at once.
_FLUSH: Final = 10
_SOL_NETLINK, _ADD_MEMBERSHIP, _DROP_MEMBERSHIP, _NO_ENOBUFS = 270, 1, 2, 5
_DESTROY_GROUP: Final = 3
_RECEIVE_BYTES: Final = 1 << 20
_READS_AT_ONCE: Final = 16
_PROTOCOLS: Final = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp", socket.IPPROTO_ICMP: "icmp"}
#: In nflog: the payload, the prefix. In conntrack: both tuples, the mark, both counters.
_PAYLOAD, _PREFIX = 9, 10
_ORIGINAL, _REPLY, _MARK, _SENT, _RECEIVED, _MARK_MASK = 1, 2, 8, 9, 10, 21


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection as the kernel saw it. `allowed` is None at its end; then the bytes are known, if counted."""

    source: str
    target: str
    port: int
    protocol: str
    allowed: bool | None
    sent: int | None = None
    received: int | None = None


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each netlink message, without the nfgenmsg in front."""
    at = 0
    while at + 20 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if length < 20:
            return
        yield kind, data[at + 20 : at + length]
        at += (length + 3) & ~3


def _request(kind: int, family: int, resource: int, body: bytes) -> bytes:
    head = struct.pack("=IHHII", 20 + len(body), kind, 0x1 | 0x4, 1, 0)
    return head + struct.pack("=BBH", family, 0, socket.htons(resource)) + body


def _ask(link: socket.socket, message: bytes) -> None:
    """Send one request and read the kernel's answer. Raises OSError."""
    link.send(message)
    answer = link.recv(65536)
    (code,) = struct.unpack_from("=i", answer, 16)
    if code:
        raise OSError(-code, os.strerror(-code))


def _open() -> socket.socket:
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    link.settimeout(5.0)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    link.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)
    link.bind((0, 0))  # a socket without a number of its own is passed over where the kernel speaks unasked
    return link


def forget_connections(mark: int) -> None:
    """Take every connection with this mark out of the kernel's table: it ends, and nobody's table fills up."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as link:
        link.settimeout(5.0)
        body = attribute(_MARK, struct.pack(">I", mark)) + attribute(_MARK_MASK, struct.pack(">I", 0xFFFF_FFFF))
        try:
            _ask(link, _request(_CT_DELETE, socket.AF_INET, 0, body))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise


class FlowLog:
    """Listens to the kernel about one range of sandboxes' addresses. Made in the namespace whose traffic it is."""

    def __init__(self, group: int, range_: IPv4Network, gateway: str, tell: Callable[[Flow], None]) -> None:
        """Bind to an nflog group, the next free one from `group` on."""
        self._range = int(range_.network_address), int(range_.netmask)
        self._gateway = socket.inet_aton(gateway)
        self._tell = tell
        self._log = _open()
        try:
            self.group = self._bind(group)
            self._ends = _open()
        except BaseException:
            self._log.close()
            raise
        self._ends.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _DESTROY_GROUP)
        for link in (self._log, self._ends):
            link.setblocking(False)

    def _bind(self, first: int) -> int:
        for group in range(first, first + 64):
            try:
                _ask(self._log, _request(_LOG_CONFIG, 0, group, attribute(1, struct.pack("=B", _BIND))))
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.EPERM):
                    raise
                continue
            mode = attribute(2, struct.pack(">IBB", _SNAP_BYTES, _COPY_PACKET, 0))
            _ask(self._log, _request(_LOG_CONFIG, 0, group, mode + attribute(4, struct.pack(">I", _FLUSH))))
            return group
        raise OSError(errno.EBUSY, "no free nflog group")

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._log.fileno(), self._read, self._log)
        loop.add_reader(self._ends.fileno(), self._read, self._ends)

    def close(self) -> None:
        """Stop listening. What the kernel has told until now, and what it kept back to send several at once, is told
        first."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # only words would be lost
            self._log.send(_request(_LOG_CONFIG, 0, self.group, attribute(1, struct.pack("=B", _UNBIND))))
            self._ends.setsockopt(_SOL_NETLINK, _DROP_MEMBERSHIP, _DESTROY_GROUP)
        for link in (self._log, self._ends):
            while self._read_one(link):  # nothing is added any more
                pass
            loop.remove_reader(link.fileno())
            link.close()

    def _read(self, link: socket.socket) -> None:
        for _ in range(_READS_AT_ONCE):  # then others have their turn
            if not self._read_one(link):
                return

    def _read_one(self, link: socket.socket) -> bool:
        try:
            data = link.recv(65536)
        except (BlockingIOError, OSError):
            return False
        for kind, content in _messages(data):
            if kind == _LOG_PACKET:
                flow = self._logged(content)
            elif kind == _CT_DELETE:
                flow = self._ended(content)
            else:
                continue
            if flow is not None:
                self._tell(flow)
        return True

    def _ours(self, address: bytes) -> bool:
        return int.from_bytes(address, "big") & self._range[1] == self._range[0]

    def _logged(self, content: bytes) -> Flow | None:
        found = dict(_attributes(content))
        packet, prefix = found.get(_PAYLOAD, b""), found.get(_PREFIX, b"").rstrip(b"\0").decode(errors="replace")
        if len(packet) < 20 or prefix not in (ALLOWED, REFUSED) or not self._ours(packet[12:16]):
            return None
        after = 4 * (packet[0] & 0xF)
        protocol = packet[9]
        ported = protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) and len(packet) >= after + 4
        return Flow(
            source=str(IPv4Address(packet[12:16])),
            target=str(IPv4Address(packet[16:20])),
            port=int.from_bytes(packet[after + 2 : after + 4], "big") if ported else 0,
            protocol=_PROTOCOLS.get(protocol, str(protocol)),
            allowed=prefix == ALLOWED,
        )

    def _ended(self, content: bytes) -> Flow | None:
        found = dict(_attributes(content))
        addresses, ports = _tuple(found.get(_ORIGINAL, b""))
        # What is not of a sandbox is not ours to look at; what went to our own listeners they tell themselves.
        if len(addresses) < 2 or not self._ours(addresses[1]):
            return None
        if self._gateway in (addresses[2], _tuple(found.get(_REPLY, b""))[0].get(1)):
            return None
        protocol = ports.get(1, b"\0")[0]
        return Flow(
            source=str(IPv4Address(addresses[1])),
            target=str(IPv4Address(addresses[2])),
            port=int.from_bytes(ports.get(3, b""), "big"),
            protocol=_PROTOCOLS.get(protocol, str(protocol)),
            allowed=None,
            sent=_bytes(found.get(_SENT)),
            received=_bytes(found.get(_RECEIVED)),
        )


def _tuple(data: bytes) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """The addresses (1 source, 2 target) and the protocol part (1 number, 2 and 3 ports) of a conntrack tuple."""
    parts = dict(_attributes(data))
    addresses = {kind: value for kind, value in _attributes(parts.get(1, b"")) if len(value) == 4}
    return addresses, dict(_attributes(parts.get(2, b"")))


def _bytes(data: bytes | None) -> int | None:
    value = dict(_attributes(data)).get(2) if data else None
    return int.from_bytes(value, "big") if value else None
