"""The sandboxes' name server. Under a policy it answers for allowed names, with addresses and nothing else.

A DNS tunnel needs two ways: names that carry data out, and answers that carry it back. Under a policy only names that
a rule takes are ever asked upstream, at a bounded rate below a wildcard, and answers are bare IPv4 addresses: no CNAME,
TXT or other type passes. Addresses nobody may reach are left out, and their reverse names.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import Final, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.svcbbase
import dns.rrset

from runra.node.network.guest import Guest
from runra.node.network.policy import DENIED, denied, normal
from runra.node.network.upstream import NoAnswer, Upstream

#: Names of the gateway: `{alias}.` before this.
GATEWAY_DOMAIN: Final = "gateway.runra.internal"
_GATEWAY_TTL: Final = 60
#: Questions of one sandbox under way at once; more are dropped, and asked again by whoever asked.
_ASKING: Final = 64
#: Longest part of a name that a wildcard stands for: enough for names in use, little for data.
_WILDCARD_CHARS: Final = 100
_TCP_TIMEOUT: Final = 10.0
_TCP_QUESTIONS: Final = 100
#: Types an open sandbox may not ask: whole zones, and everything at once.
_NEVER: Final = (dns.rdatatype.ANY, dns.rdatatype.AXFR, dns.rdatatype.IXFR, dns.rdatatype.NULL)

#: Finds a guest by the address a packet came from.
Who = Callable[[str], Guest | None]


class Resolver:
    def __init__(self, upstream: Upstream, gateway: str, who: Who) -> None:
        self._upstream = upstream
        self._gateway = gateway
        self._who = who

    async def answer(self, guest: Guest, question: bytes, *, most: int) -> bytes | None:
        """The answer to one message, at most so many bytes; None for what deserves none."""
        try:
            query = dns.message.from_wire(question)
        except (dns.exception.DNSException, ValueError):
            return None
        if query.flags & dns.flags.QR or guest.asking >= _ASKING:
            return None
        guest.asking += 1
        try:
            response = await self._respond(guest, query)
        finally:
            guest.asking -= 1
        response.flags |= dns.flags.RA
        size = most if query.edns < 0 else max(most, min(query.payload, 1232))
        try:
            return response.to_wire(max_size=size)
        except dns.exception.TooBig:
            short = dns.message.make_response(query)
            short.flags |= dns.flags.TC
            return short.to_wire()

    async def _respond(self, guest: Guest, query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query, our_payload=1232)
        if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
            response.set_rcode(dns.rcode.NOTIMP)
            return response
        question = query.question[0]
        name = normal(question.name.to_text(omit_final_dot=True))
        if question.rdclass != dns.rdataclass.IN or question.rdtype in _NEVER:
            response.set_rcode(dns.rcode.REFUSED)
        elif name is not None and name.endswith(f".{GATEWAY_DOMAIN}"):
            self._respond_gateway(guest, name, question, response)
        elif guest.policy.mode == "open":
            await self._relay(guest, question, response)
        elif name is None or not guest.policy.allows_name(name):
            guest.refused(name or "?", None, 53, "the policy allows no such name", "dns")
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.A:
            await self._respond_address(guest, name, question, response)
        # Any other type of an allowed name: it exists, and has none of these.
        return response

    def _respond_gateway(
        self, guest: Guest, name: str, question: dns.rrset.RRset, response: dns.message.Message
    ) -> None:
        if name.removesuffix(f".{GATEWAY_DOMAIN}") not in guest.secrets:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.A:
            response.answer.append(dns.rrset.from_text(question.name, _GATEWAY_TTL, "IN", "A", self._gateway))

    async def _respond_address(
        self, guest: Guest, name: str, question: dns.rrset.RRset, response: dns.message.Message
    ) -> None:
        if not self.may_ask(guest, name):
            guest.refused(name, None, 53, "too many names below a wildcard", "dns")
            response.set_rcode(dns.rcode.REFUSED)
            return
        try:
            async with guest.looking_up:
                found = await self._upstream.addresses(name)
        except NoAnswer as error:
            response.set_rcode(dns.rcode.Rcode.make(error.rcode))
            return
        usable = [address for address in found.addresses if not denied(address, guest.opened)]
        if found.addresses and not usable:
            guest.refused(name, found.addresses[0], 53, "its addresses are in a range closed to sandboxes", "dns")
        for address in usable:
            guest.remember(name, address)
        if usable:
            ttl = min(found.ttl, 60)
            response.answer.append(dns.rrset.from_text(question.name, ttl, "IN", "A", *map(str, usable)))

    def may_ask(self, guest: Guest, name: str) -> bool:
        """Whether an allowed name may be asked upstream now: below a wildcard, new names have a rate and a length."""
        if self._upstream.known(name) or any(rule.name == name and not rule.below for rule in guest.policy.rules):
            return True
        roots = [rule.name for rule in guest.policy.rules if rule.below and rule.takes_name(name)]
        free = min((len(name) - len(root) for root in roots), default=0)
        return free <= _WILDCARD_CHARS and guest.lookups.take()

    async def _relay(self, guest: Guest, question: dns.rrset.RRset, response: dns.message.Message) -> None:
        """An open sandbox may ask what it likes; what comes back is trimmed to addresses it could reach."""
        if question.rdtype == dns.rdatatype.AAAA:
            return  # it has no IPv6: a program would only try and wait
        if _hidden(guest, question.name):
            response.set_rcode(dns.rcode.NXDOMAIN)
            return
        name = normal(question.name.to_text(omit_final_dot=True)) or ""
        query = dns.message.make_query(question.name, question.rdtype, use_edns=0, payload=1232)
        try:
            async with guest.looking_up:
                answer = await self._upstream.ask(query)
        except NoAnswer as error:
            response.set_rcode(dns.rcode.Rcode.make(error.rcode))
            return
        response.set_rcode(answer.rcode())
        response.answer = [kept for rrset in answer.answer if (kept := _reachable(guest, name, rrset)) is not None]
        response.authority = answer.authority


_REVERSE: Final = (dns.name.from_text("in-addr.arpa."), dns.name.from_text("ip6.arpa."))
_HINTS: Final = (dns.rdtypes.svcbbase.ParamKey.IPV4HINT, dns.rdtypes.svcbbase.ParamKey.IPV6HINT)


def _hidden(guest: Guest, name: dns.name.Name) -> bool:
    """Whether a name stands for an address, or a range, closed to this sandbox (RFC 1035 3.5): its records name the
    machines of the operator's network. There is no IPv6 for it at all."""
    v4, v6 = _REVERSE
    if not name.is_subdomain(v4):
        return name.is_subdomain(v6)
    labels = [label.decode(errors="replace") for label in reversed(name.relativize(v4).labels)]
    # Fewer than four numbers are a range; what follows them is another's word for a part of it (RFC 2317).
    numbers = list(itertools.takewhile(lambda label: label.isascii() and label.isdigit(), labels[:4]))
    try:
        address = IPv4Address(".".join([*numbers, *["0"] * (4 - len(numbers))]))
    except ValueError:
        return True
    if len(numbers) == 4:
        return denied(address, guest.opened)
    return any(IPv4Network((address, 8 * len(numbers))).overlaps(network) for network in DENIED)


def _reachable(guest: Guest, name: str, rrset: dns.rrset.RRset) -> dns.rrset.RRset | None:
    """The records of an answer less addresses this sandbox may not reach; None when nothing is left."""
    if _hidden(guest, rrset.name):
        return None  # led to by a CNAME
    if rrset.rdtype in (dns.rdatatype.HTTPS, dns.rdatatype.SVCB):
        return _without_hints(rrset)
    if rrset.rdtype != dns.rdatatype.A:
        return rrset
    usable = [address for record in rrset if not denied(address := IPv4Address(record.address), guest.opened)]
    for address in usable:
        guest.remember(name, address)
    return dns.rrset.from_text(rrset.name, rrset.ttl, "IN", "A", *map(str, usable)) if usable else None


def _without_hints(rrset: dns.rrset.RRset) -> dns.rrset.RRset | None:
    """The same without addresses (RFC 9460 7.3): its A records, which are checked, say them too."""
    bare = []
    for record in rrset:
        params = {key: value for key, value in record.params.items() if key not in _HINTS}
        must = params.get(dns.rdtypes.svcbbase.ParamKey.MANDATORY)
        if must is None or not set(must.keys) & set(_HINTS):
            bare.append(record.replace(params=params))
    return dns.rrset.from_rdata_list(rrset.name, rrset.ttl, bare) if bare else None


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, resolver: Resolver, who: Who, tasks: set[asyncio.Task[None]]) -> None:
        self._resolver, self._who, self._tasks = resolver, who, tasks
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        guest = self._who(source[0])
        if guest is not None and len(data) <= 1232 and guest.asking < _ASKING and guest.questions.take():
            task = asyncio.create_task(self._answer(guest, data, source), name=f"dns {guest.id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, guest: Guest, data: bytes, source: tuple[str, int]) -> None:
        answer = await self._resolver.answer(guest, data, most=512)
        if answer is not None and self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(answer, source)


class NameServer:
    """The resolver on a port of the gateway's address, by UDP and TCP."""

    def __init__(self, resolver: Resolver, who: Who) -> None:
        self._resolver, self._who = resolver, who
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.BaseTransport | None = None
        self._server: asyncio.Server | None = None

    async def start(self, address: str) -> int:
        """Listen; returns the port, the same for both protocols."""
        loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._serve, address, 0, limit=4096)
        port: int = self._server.sockets[0].getsockname()[1]
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: _Udp(self._resolver, self._who, self._tasks), local_addr=(address, port)
        )
        return port

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        guest = self._who(writer.get_extra_info("peername")[0])
        task = asyncio.current_task()
        assert task is not None
        if guest is None or guest.resolving >= _ASKING or not guest.arrivals.take():
            writer.transport.abort()
            return
        guest.resolving += 1
        self._tasks.add(task)
        try:
            for _ in range(_TCP_QUESTIONS):
                async with asyncio.timeout(_TCP_TIMEOUT):
                    (length,) = struct.unpack(">H", await reader.readexactly(2))
                    question = await reader.readexactly(length)
                    if not guest.questions.take():
                        return
                    answer = await self._resolver.answer(guest, question, most=65535)
                    if answer is None:
                        return
                    writer.write(struct.pack(">H", len(answer)) + answer)
                    await writer.drain()
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            return
        finally:
            guest.resolving -= 1
            self._tasks.discard(task)
            writer.transport.abort()
