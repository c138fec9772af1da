"""Where a tenant's create may make this server connect to: public addresses, checked after the name is resolved."""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from runra.errors import RunraError

#: IPv6 forms that carry an IPv4 address: NAT64 (RFC 6052, 8215), 6to4 (RFC 3056), Teredo (RFC 4380).
_CARRIERS: Final = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))


def is_public(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif any(address in carrier for carrier in _CARRIERS):
            return False
    return address.is_global and not address.is_multicast


def _refused(host: str) -> RunraError:
    return RunraError(
        "INVALID_REQUEST",
        f"registry {host} is at no public address: an image from there must be pulled by an administrator first "
        "(runra image pull), or the operator allows it with private in the registries file",
        details={"host": host},
    )


def refuse_private(url: URL) -> None:
    """For a host that is an address already, which no resolver ever sees."""
    host = url.host or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return
    if not is_public(host):
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
