"""What a sandbox may reach: its policy, parsed once, and the ranges nobody may.

Names are compared label by label in one form: lower case, ASCII (IDNA 2008), without the root's dot. IPv6 does not
exist for a sandbox, so an address is an IPv4 address here; whatever looks otherwise is not allowed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final, Literal

import idna

from runra.contract import Egress
from runra.errors import RunraError

#: Never reachable unless the operator opens them: this host, private, CGNAT, link-local with the metadata services,
#: protocol and test ranges, multicast, reserved (RFC 6890 and its registry); Azure's and Alibaba's own addresses.
DENIED: Final = tuple(
    IPv4Network(text)
    for text in """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
    192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15
    198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    """.split()
)
#: Closed whatever the policy says: mail from sandboxes is spam.
SMTP: Final = 25
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC: Final = re.compile(r"(0x[0-9a-f]*|[0-9]+)")

Mode = Literal["open", "none", "list"]


def normal(name: str) -> str | None:
    """The one form of a host name, or None when it is none. What a URL library might read as an address
    (`127.1`, `0x7f.1`, WHATWG URL 3.5) is none either."""
    text = name.strip().removesuffix(".")
    if not text.isascii():
        try:
            text = idna.encode(text, uts46=True).decode()
        except (idna.IDNAError, UnicodeError):
            return None
    text = text.lower()
    labels = text.split(".")
    if len(text) > 253 or not all(map(_LABEL.fullmatch, labels)) or _NUMERIC.fullmatch(labels[-1]):
        return None
    return text


def address_of(text: str) -> IPv4Address | None:
    """The address a host literal stands for, or None. Dotted decimal only."""
    try:
        return IPv4Address(text)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `allow`: a name, all names below one, or a range; and one port, or any."""

    name: str = ""
    below: bool = False
    network: IPv4Network | None = None
    port: int | None = None

    def takes_name(self, name: str) -> bool:
        if self.network is not None:
            return False
        return name.endswith(f".{self.name}") if self.below else name == self.name

    def takes_port(self, port: int | None) -> bool:
        return self.port is None or port is None or self.port == port


@dataclass(frozen=True, slots=True)
class Policy:
    """`open`: the internet, less what is denied to all. `none`: nothing. `list`: what a rule takes."""

    mode: Mode
    rules: tuple[Rule, ...] = ()

    def allows_name(self, name: str, port: int | None = None) -> bool:
        """Whether a name (in its one form) may be reached, at this port or at some port."""
        if port == SMTP:
            return False
        return self.mode == "open" or any(rule.takes_name(name) and rule.takes_port(port) for rule in self.rules)

    def allows_address(self, address: IPv4Address, port: int) -> bool:
        if port == SMTP:
            return False
        if self.mode == "open":
            return True
        return any(r.network is not None and address in r.network and r.takes_port(port) for r in self.rules)

    def names_some(self, port: int) -> bool:
        """Whether any name may be reached at this port."""
        return port != SMTP and any(rule.network is None and rule.takes_port(port) for rule in self.rules)

    def names_exactly(self, name: str, port: int) -> bool:
        """Whether a rule gives this very name, not only a wildcard above it."""
        return port != SMTP and any(r.name == name and not r.below and r.takes_port(port) for r in self.rules)


OPEN: Final = Policy("open")
NOTHING: Final = Policy("none")


def policy_of(egress: Egress | None) -> Policy:
    """The policy of a create or change. Raises INVALID_CONFIG that names the entry which is none."""
    if egress is None:
        return OPEN
    rules = tuple(_rule(entry) for entry in egress.allow)
    if effective_default(egress) == "allow":
        return OPEN
    return Policy("list", rules) if rules else NOTHING


def effective_default(egress: Egress | None) -> Literal["allow", "deny"]:
    """`allow` when no policy is given, `deny` when only `allow` is given (spec 1)."""
    if egress is None:
        return "allow"
    return egress.default or ("deny" if egress.allow else "allow")


def _rule(entry: str) -> Rule:
    host, port = _split(entry)
    name = normal(host.removeprefix("*."))
    if name is not None and "/" not in host:
        below = host.startswith("*.")
        if below and "." not in name:
            raise _wrong(entry, f"{host} is wider than any organization; name at least *.example.com")
        return Rule(name=name, below=below, port=port)
    try:
        return Rule(network=IPv4Network(host), port=port)
    except ValueError:
        pass
    if ":" in host or "[" in host:
        raise _wrong(entry, "sandboxes have no IPv6; give the IPv4 address or the name")
    raise _wrong(entry, "give a name (api.example.com), *.example.com, an address or a range, and `:port` if wanted")


def _split(entry: str) -> tuple[str, int | None]:
    host, colon, port = entry.rpartition(":")
    if not colon or ":" in host:
        return entry, None
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536 or "/" in port:
        raise _wrong(entry, f"{port[:20]!r} is no port; leave http:// and paths away")
    if int(port) == SMTP:
        raise _wrong(entry, "port 25 is closed for every sandbox; use a mail provider's API or its port 587")
    return host, int(port)


def _wrong(entry: str, why: str) -> RunraError:
    return RunraError(
        "INVALID_CONFIG", f"network.egress.allow: {entry[:80]!r}: {why}", details={"field": "network.egress.allow"}
    )


def denied(address: IPv4Address, opened: tuple[IPv4Network, ...] = ()) -> bool:
    """Whether nobody may reach this address, but for what the operator opened."""
    return any(address in network for network in DENIED) and not any(address in network for network in opened)
