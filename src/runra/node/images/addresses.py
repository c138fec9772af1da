"""Where a tenant's create may make this server connect to: public addresses, checked after the name is resolved."""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from runra.errors import RunraError
from runra.node.network.policy import denied, normal
from runra.node.network.sockets import is_ours

#: Global unicast (RFC 4291), and what of it is none: protocols' own with Teredo (RFC 2928, 4380), documentation
#: (RFC 3849, 9637), and 6to4 (RFC 3056), which carries an IPv4 address. NAT64 and the like lie outside of it.
_GLOBAL: Final = ipaddress.IPv6Network("2000::/3")
_DENIED: Final = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))


def is_public(text: str) -> bool:
    """Whether anybody could go there: what sandboxes may not reach (their table is used here) is not, nor is any
    address of this host's own."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if isinstance(address, ipaddress.IPv4Address):
        return not denied(address) and not is_ours(address)
    return address in _GLOBAL and not any(address in network for network in _DENIED) and not is_ours(address)


def _refused(host: str) -> RunraError:
    return RunraError(
        "INVALID_REQUEST",
        f"registry {host} is at no public address: an image from there must be pulled by an administrator first "
        "(runra image pull), or the operator allows it with private in the registries file",
        details={"host": host},
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_host(text: str) -> bool:
    """Whether it is a name or an address. What some libraries take for one (`127.1`, `2130706433`) is neither."""
    return _is_address(text) or normal(text) is not None


def refuse_private(host: str) -> None:
    """For a host that is an address already, which no resolver ever sees."""
    if _is_address(host) and not is_public(host):
        raise _refused(host)


class PublicOnly(AbstractResolver):
    """Resolves names, and fails for those at any address that is not public. What it gives is what is dialled."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if not all(is_public(one["host"]) for one in found):
            raise _refused(host)
        return found

    async def close(self) -> None:
        await self._inner.close()
