"""Netlink (RFC 3549), the little of it a sandbox's network needs: links, addresses and routes, without a fork or a
library's dispatch on the way. A socket belongs to the namespace of the thread that opened it."""

from __future__ import annotations

import itertools
import os
import socket
import struct
from typing import Final, Self

_REQUEST, _ACK, _CREATE, _EXCLUSIVE = 0x1, 0x4, 0x400, 0x200
_ERROR: Final = 2
_NEWLINK, _DELLINK, _NEWADDR, _DELADDR, _NEWROUTE = 16, 17, 20, 21, 24
_GETROUTE: Final = 26
_UP: Final = 0x1
#: Attributes: of links, of a veth's description, of addresses, of routes (<linux/if_link.h>, if_addr.h, rtnetlink.h).
_IFNAME, _MTU, _LINKINFO, _NET_NS_FD, _KIND, _DATA, _PEER = 3, 4, 18, 28, 1, 2, 1
_ADDRESS, _LOCAL, _LABEL = 1, 2, 3
_DST, _OIF, _GATEWAY = 1, 4, 5
_MAIN_TABLE, _STATIC, _UNICAST = 254, 4, 1
_LINK_SCOPE, _EVERYWHERE = 253, 0
_ROUTE_TO_SELF: Final = 2
_TIMEOUT: Final = 5.0


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute: length, type, value, padded to four bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


class Netlink:
    """A NETLINK_ROUTE socket. Every call is answered by the kernel before it returns; OSError carries its errno."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.settimeout(_TIMEOUT)
        self._numbers = itertools.count(1)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, kind: int, flags: int, body: bytes) -> bytes:
        """The kernel's answer: what was asked for, or the acknowledgement."""
        number = next(self._numbers)
        header = struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _ACK | flags, number, 0)
        self._socket.send(header + body)
        while True:
            answer = self._socket.recv(65536)
            _, answered, _, of, _ = struct.unpack_from("=IHHII", answer)
            if of != number:
                continue
            if answered == _ERROR:
                (code,) = struct.unpack_from("=i", answer, 16)
                if code:
                    raise OSError(-code, os.strerror(-code))
            return answer

    # --- links ---

    def add_veth(self, name: str, peer: str, peer_netns: int) -> None:
        """A pair of virtual Ethernet ends: `name` here, `peer` in the namespace of that descriptor."""
        end = _link() + _text(_IFNAME, peer) + _number(_NET_NS_FD, peer_netns)
        about = _text(_KIND, "veth") + attribute(_DATA, attribute(_PEER, end))
        self._ask(_NEWLINK, _CREATE | _EXCLUSIVE, _link() + _text(_IFNAME, name) + attribute(_LINKINFO, about))

    def up(self, index: int) -> None:
        self._ask(_NEWLINK, 0, _link(index, _UP))

    def delete_link(self, index: int) -> None:
        self._ask(_DELLINK, 0, _link(index))

    # --- addresses and routes (IPv4) ---

    def add_address(self, index: int, address: str, label: str = "") -> None:
        """One address, nothing else on its link. `label` is `interface:word`, 15 characters at most."""
        self._ask(_NEWADDR, _CREATE | _EXCLUSIVE, _address(index, address) + (_text(_LABEL, label) if label else b""))

    def delete_address(self, index: int, address: str) -> None:
        self._ask(_DELADDR, 0, _address(index, address))

    def add_route(self, index: int, target: str | None, gateway: str | None = None) -> None:
        """A route to one address (None: to everything), straight over the link or by a gateway on it."""
        scope = _EVERYWHERE if gateway else _LINK_SCOPE
        length = 0 if target is None else 32
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, length, 0, 0, _MAIN_TABLE, _STATIC, scope, _UNICAST, 0)
        if target is not None:
            body += attribute(_DST, socket.inet_aton(target))
        body += _number(_OIF, index)
        if gateway is not None:
            body += attribute(_GATEWAY, socket.inet_aton(gateway))
        self._ask(_NEWROUTE, _CREATE | _EXCLUSIVE, body)

    def leads_here(self, address: str) -> bool:
        """Whether packets to an address are for this host itself, by whichever of its addresses."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        packed = socket.inet_pton(family, address)
        body = struct.pack("=BBBBBBBBI", family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
        answer = self._ask(_GETROUTE, 0, body + attribute(_DST, packed))
        return answer[16 + 7] == _ROUTE_TO_SELF


def _link(index: int = 0, flags: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _address(index: int, address: str) -> bytes:
    packed = socket.inet_aton(address)
    head = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, index)
    return head + attribute(_LOCAL, packed) + attribute(_ADDRESS, packed)
