"""Where a pull may make this server connect to, checked after the name is resolved: a tenant's create to public
addresses, and whoever is at one sends nobody to others."""

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


def _refused(host: str, named: str) -> RunraError:
    if host == named:
        message = (
            f"registry {host} is at no public address: an image from there must be pulled by an administrator first "
            "(runra image pull), or the operator allows it with private in the registries file"
        )
    else:
        message = (
            f"registry {named} sends to {host}, which is at no public address; the operator allows that with private "
            f"for {named} in the registries file"
        )
    return RunraError("INVALID_REQUEST", message, details={"host": host})


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_host(text: str) -> bool:
    """Whether it is a name or an address. What some libraries take for one (`127.1`, `2130706433`) is neither."""
    return _is_address(text) or normal(text) is not None


def refuse_private(host: str, named: str) -> None:
    """For a host that is an address already, which no resolver ever sees. `named` is the registry that sends there."""
    if _is_address(host) and not is_public(host):
        raise _refused(host, named)


class Anywhere(AbstractResolver):
    """Resolves names, and notes which of them were at a public address. What it gives is what is dialled."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()
        self._public: dict[str, bool] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        self._public[host] = self._public.get(host, False) or any(is_public(one["host"]) for one in found)
        return found

    def private(self, host: str) -> bool:
        """Whether it is at no public address: it is an address itself, or was never resolved to another."""
        return not is_public(host) if _is_address(host) else not self._public.get(host, True)

    async def close(self) -> None:
        await self._inner.close()


class PublicOnly(AbstractResolver):
    """Resolves names, and fails for those at any address that is not public. `named` is the registry that is asked."""

    def __init__(self, named: str) -> None:
        self._inner = aiohttp.ThreadedResolver()
        self._named = named

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if not all(is_public(one["host"]) for one in found):
            raise _refused(host, self._named)
        return found

    async def close(self) -> None:
        await self._inner.close()
