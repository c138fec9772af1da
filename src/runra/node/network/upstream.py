"""Names to addresses, asked of the operator's name servers: the one lookup everything here uses."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from runra.errors import RunraError

#: Seconds one server may take; the next is asked then.
_TIMEOUT: Final = 3.0
#: Seconds an answer is kept: never less, so that a name with TTL 0 is not asked for every connection; never more.
_LEAST, _MOST, _FAILED = 1, 300, 5
_KEPT: Final = 4096
#: Questions under way at once, of all sandboxes together.
_AT_ONCE: Final = 256
#: Seconds a question waits for one of them to end.
_PATIENCE: Final = 3.0


class NoAnswer(Exception):
    """The name has no usable answer; the text says why."""

    def __init__(self, why: str, rcode: int = dns.rcode.SERVFAIL) -> None:
        super().__init__(why)
        self.rcode = rcode


@dataclass(frozen=True, slots=True)
class Found:
    """Addresses of a name, none if it has none, and until when they are good (monotonic)."""

    addresses: tuple[IPv4Address, ...]
    until: float

    @property
    def ttl(self) -> int:
        return max(1, int(self.until - time.monotonic()))


def servers(words: tuple[str, ...], resolv_conf: Path = Path("/etc/resolv.conf")) -> list[tuple[str, int]]:
    """Name servers, `address` or `address:port`; the system's own when none is given.

    Raises INVALID_CONFIG for a word that is no address.
    """
    found = list(words)
    if not found and resolv_conf.exists():
        lines = (line.split() for line in resolv_conf.read_text(errors="replace").splitlines())
        found = [line[1] for line in lines if len(line) > 1 and line[0] == "nameserver" and ":" not in line[1]]
    parsed = []
    for word in found:
        address, _, port = word.partition(":")
        try:
            parsed.append((str(IPv4Address(address)), int(port or 53)))
        except ValueError:
            raise RunraError("INVALID_CONFIG", f"name server {word!r}: give ADDRESS or ADDRESS:PORT (IPv4)") from None
    return parsed


class Upstream:
    """Asks each server in turn; answers are kept for as long as they are good."""

    def __init__(self, servers: list[tuple[str, int]]) -> None:
        self._servers = servers
        self._kept: OrderedDict[str, Found | NoAnswer] = OrderedDict()
        self._failed: dict[str, float] = {}
        self._flying: dict[str, asyncio.Task[Found]] = {}
        self._room = asyncio.Semaphore(_AT_ONCE)

    def known(self, name: str) -> bool:
        """Whether asking for this name would send nothing."""
        kept = self._kept.get(name)
        return isinstance(kept, Found) and kept.until > time.monotonic()

    async def addresses(self, name: str) -> Found:
        """A name's IPv4 addresses, CNAMEs followed. Raises NoAnswer."""
        kept = self._kept.get(name)
        now = time.monotonic()
        if isinstance(kept, Found) and kept.until > now:
            return kept
        if isinstance(kept, NoAnswer) and self._failed.get(name, 0) > now:
            raise kept
        flying = self._flying.get(name)
        if flying is None:
            flying = asyncio.create_task(self._look_up(name), name=f"lookup {name}")
            # One that nobody waits for any more still has its outcome taken.
            flying.add_done_callback(lambda done: done.cancelled() or done.exception())
            flying.add_done_callback(lambda _: self._flying.pop(name, None))
            self._flying[name] = flying
        return await asyncio.shield(flying)

    async def _look_up(self, name: str) -> Found:
        try:
            response = await self.ask(dns.message.make_query(name, dns.rdatatype.A, use_edns=0))
            found = _found(response)
        except NoAnswer as error:
            self._keep(name, error)
            self._failed[name] = time.monotonic() + _FAILED
            raise
        self._keep(name, found)
        return found

    def _keep(self, name: str, value: Found | NoAnswer) -> None:
        self._kept[name] = value
        self._kept.move_to_end(name)
        self._failed.pop(name, None)
        while len(self._kept) > _KEPT:
            gone, _ = self._kept.popitem(last=False)
            self._failed.pop(gone, None)

    async def ask(self, query: dns.message.Message) -> dns.message.Message:
        """One question to the servers; the first answer that is one. Raises NoAnswer."""
        if not self._servers:
            raise NoAnswer("this server has no name server to ask; give one with --dns")
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._room.acquire()
        except TimeoutError:
            raise NoAnswer("too many questions are under way") from None
        try:
            for address, port in self._servers:
                try:
                    response, _ = await dns.asyncquery.udp_with_fallback(query, address, timeout=_TIMEOUT, port=port)
                except (dns.exception.DNSException, OSError, EOFError):
                    continue
                if response.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                    return response
        finally:
            self._room.release()
        raise NoAnswer("no name server answered")


def _found(response: dns.message.Message) -> Found:
    if response.rcode() == dns.rcode.NXDOMAIN:
        raise NoAnswer("there is no such name", dns.rcode.NXDOMAIN)
    assert isinstance(response, dns.message.QueryMessage)
    try:
        chain = response.resolve_chaining()
    except dns.exception.DNSException as error:
        raise NoAnswer(f"a malformed answer: {error}") from None
    records = chain.answer or ()
    ttl = min(max(_LEAST, chain.minimum_ttl), _MOST)
    addresses = tuple(IPv4Address(record.address) for record in records if record.rdtype == dns.rdatatype.A)
    return Found(addresses, time.monotonic() + ttl)
