"""What an operator may set about the sandboxes' way out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Literal

from runra.errors import RunraError

NetworkMode = Literal["auto", "none"]


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """`auto` gives sandboxes a network where this machine lets us (root, libnftables); `none` gives none."""

    mode: NetworkMode = "auto"
    #: Private addresses to take the sandboxes' own from: the first free /20 in it, 4,092 sandboxes.
    range: str = "10.192.0.0/11"
    #: Upstream name servers, `address` or `address:port`; those of /etc/resolv.conf when empty.
    dns: tuple[str, ...] = ()
    #: Ranges opened although they are private, for every organization and for single ones, by id.
    open_ranges: tuple[str, ...] = ()
    organization_ranges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Connections one sandbox may have open at once.
    connections: int = 1024
    #: Most one sandbox sends, and as much again that it receives, in Mbit/s; None: as fast as the machine.
    bandwidth_mbit: int | None = None
    #: Network namespaces kept ready, so that a create does not wait for one.
    ready: int = 4
    #: Certificates the gateway trusts besides the system's, such as a company's own authority.
    ca_file: Path | None = None

    def opened(self, organization_id: str) -> list[IPv4Network]:
        """What is opened for one organization beyond everybody's. Raises INVALID_CONFIG for a word that is no range."""
        return networks(self.organization_ranges.get(organization_id, ()))


def networks(words: tuple[str, ...]) -> list[IPv4Network]:
    """Raises INVALID_CONFIG that names the word which is no IPv4 range."""
    found = []
    for word in words:
        try:
            found.append(IPv4Network(word))
        except ValueError as error:
            raise RunraError("INVALID_CONFIG", f"{word!r} is no IPv4 range such as 192.168.7.0/24: {error}") from None
    return found
