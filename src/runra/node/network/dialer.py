"""From an allowed name to the one address that is dialled for it."""

from __future__ import annotations

from ipaddress import IPv4Address

from runra.node.network import sockets
from runra.node.network.guest import Guest, Refused
from runra.node.network.policy import address_of, denied
from runra.node.network.resolver import Resolver
from runra.node.network.upstream import NoAnswer, Upstream


class Dialer:
    """Turns an allowed name into a connection."""

    def __init__(self, upstream: Upstream, resolver: Resolver) -> None:
        self._upstream = upstream
        self._resolver = resolver

    async def choose(self, guest: Guest, name: str, meant: IPv4Address | None, *, free: bool = False) -> IPv4Address:
        """The address to dial for a name: the one the sandbox meant if the name has it. Raises Refused.

        `free`: the name is the operator's or the creator's word (a secret's host), so no rate holds it.
        """
        literal = address_of(name)
        if literal is not None:
            candidates: tuple[IPv4Address, ...] = (literal,)
        else:
            if not free and not self._resolver.may_ask(guest, name):
                raise Refused("too many names below a wildcard")
            try:
                async with guest.looking_up:
                    candidates = (await self._upstream.addresses(name)).addresses
            except NoAnswer as error:
                raise Refused(f"{name} cannot be resolved: {error}") from None
        usable = [address for address in candidates if self.may_dial(guest, address)]
        if not usable:
            raise Refused(f"{name} has no address sandboxes may reach" if candidates else f"{name} has no IPv4 address")
        return meant if meant in usable else usable[0]

    @staticmethod
    def may_dial(guest: Guest, address: IPv4Address) -> bool:
        return not denied(address, guest.opened) and not sockets.is_ours(address)
