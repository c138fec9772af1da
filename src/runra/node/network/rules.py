"""The kernel's part of the wall around sandboxes' traffic: one nftables table per server, on the host's side.

Rules are fixed; what changes with each sandbox is its membership in a few sets. Every packet is looked up anew, also
of a connection that stands: what leaves a set is cut at once. The table says no wherever it says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Final

from runra.node.network.policy import DENIED, SMTP, Mode

#: Messages per second about new and refused connections, of one sandbox: beyond it they are not told one by one.
TOLD_PER_SECOND: Final = 20
#: New connections and questions of one sandbox, per second, after a burst of twice its connections. Those that ended
#: stay in the host's table for a while and no count sees them, so their number is held by how fast they come.
ARRIVALS_PER_SECOND: Final = 200
#: Prefixes of the kernel's messages.
ALLOWED, REFUSED = "+", "-"


#: A table that stands for as long as forwarding does which we turned on, also when we are gone: this machine was no
#: router, and its neighbours' packets are not passed on now. A bridge belongs to another program (Docker, libvirt) that
#: found forwarding on and counts on it; so does what is let in by a redirected port.
GUARD_NAME: Final = "runra_forwarding"
GUARD: Final = f"""add table ip {GUARD_NAME}
delete table ip {GUARD_NAME}
table ip {GUARD_NAME} {{
    chain through {{
        type filter hook forward priority filter; policy accept;
        ct state established,related accept
        ct status dnat accept
        iifname "rn*" accept
        meta iifkind "bridge" accept
        drop
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where our listeners are, on the gateway's address."""

    dns: int
    proxy: int
    secrets: int


@dataclass(frozen=True, slots=True)
class Member:
    """What the kernel knows of one sandbox."""

    interface: str
    address: str
    mode: Mode
    #: What its connections carry in the kernel's table, so that they can be found and ended.
    mark: int
    #: It has secrets, so it may speak to the gateway for them.
    secrets: bool = False
    opened: tuple[IPv4Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """One server's table: `prefix` begins the names of its interfaces, `range` holds its sandboxes' addresses."""

    name: str
    prefix: str
    range: IPv4Network
    gateway: str
    group: int
    opened: tuple[IPv4Network, ...] = ()
    connections: int = 1024
    bandwidth_mbit: int | None = None

    def delete(self) -> str:
        # `add` first: deleting what is not there would fail.
        return f"add table inet {self.name}\ndelete table inet {self.name}\n"

    def make(self, ports: Ports | None, members: Iterable[Member]) -> str:
        """Everything, replacing what was there in one step. Without `ports` nobody of ours listens: what would go to
        us is refused, whoever takes those ports next."""
        text = self.delete() + self._skeleton(ports)
        return text + "".join(self.admit(member) for member in members)

    # --- one sandbox ---

    def admit(self, member: Member) -> str:
        """Add a sandbox to the sets of its policy; it must be in none."""
        return "".join(f"add element inet {self.name} {what}\n" for what in self._elements(member))

    def dismiss(self, member: Member) -> str:
        return "".join(f"delete element inet {self.name} {what}\n" for what in self._elements(member))

    def _elements(self, member: Member) -> Iterable[str]:
        yield f'guests {{ "{member.interface}" . {member.address} }}'
        yield f"marks {{ {member.address} : {member.mark:#x} }}"
        if member.mode != "none":
            yield f"{'open' if member.mode == 'open' else 'listed'} {{ {member.address} }}"
        if member.secrets or member.mode != "none":
            yield f"resolving {{ {member.address} }}"
        if member.secrets:
            yield f"gateway {{ {member.address} }}"
        for network in member.opened:
            yield f"granted {{ {member.address} . {network} }}"

    # --- the rules ---

    def _skeleton(self, ports: Ports | None) -> str:
        ours = f'iifname "{self.prefix}*"'
        count = f"{TOLD_PER_SECOND}/second burst {2 * TOLD_PER_SECOND} packets"
        tell = f"update @told {{ ip saddr limit rate {count} }} log group {self.group} snaplen 64 prefix"
        return f"""table inet {self.name} {{
    set guests {{ type ifname . ipv4_addr; }}
    map marks {{ type ipv4_addr : mark; }}
    set open {{ type ipv4_addr; }}
    set listed {{ type ipv4_addr; }}
    set resolving {{ type ipv4_addr; }}
    set gateway {{ type ipv4_addr; }}
    set granted {{ type ipv4_addr . ipv4_addr; flags interval; }}
    set denied {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {_joined(DENIED)} }}; }}
    set opened {{ type ipv4_addr; flags interval; auto-merge; {_elements(self.opened)} }}
    set told {{ type ipv4_addr; size 65535; flags dynamic,timeout; timeout 1m; }}
    set connected {{ type ipv4_addr; size 65535; flags dynamic; }}
    set asked {{ type ipv4_addr; size 65535; flags dynamic; }}
    set arriving {{ type ipv4_addr; size 65535; flags dynamic,timeout; timeout 1m; }}
    set sent {{ type ipv4_addr; size 65535; flags dynamic,timeout; timeout 1m; }}
    set received {{ type ipv4_addr; size 65535; flags dynamic,timeout; timeout 1m; }}

    chain refuse {{
        {tell} "{REFUSED}"
        meta l4proto tcp reject with tcp reset
        meta l4proto udp reject with icmpx type port-unreachable
        reject with icmpx type admin-prohibited
    }}
    chain arrive {{
        type filter hook prerouting priority raw; policy accept;
        {ours} goto from_guest
    }}
    chain from_guest {{
        meta nfproto != ipv4 drop
        iifname . ip saddr != @guests drop
        ip daddr 127.0.0.0/8 drop
        {self._police("sent", "ip saddr")}
    }}
    chain nat_in {{
        type nat hook prerouting priority dstnat; policy accept;
        {ours} goto nat_guest
    }}
    chain nat_guest {{
        ct mark set ip saddr map @marks
        {self._redirected(ports) if ports else ""}
    }}
    chain turn_back {{
        type filter hook prerouting priority -90; policy accept;
        {ours} ip daddr != {self.gateway} ip saddr != @open goto refuse
    }}
    chain inward {{
        type filter hook input priority filter; policy accept;
        {ours} goto in_guest
        iifname != "lo" ip daddr {self.gateway} drop
    }}
    chain in_guest {{
        ct state new {self._hurry()} goto refuse
        ct state new meta l4proto udp add @asked {{ ip saddr ct count over {2 * self.connections} }} goto refuse
        ct state new meta l4proto tcp add @connected {{ ip saddr ct count over {self.connections} }} goto refuse
        {self._listening(ports) if ports else ""}
        goto refuse
    }}
    chain through {{
        type filter hook forward priority filter; policy accept;
        {ours} goto out_guest
        oifname "{self.prefix}*" goto back_guest
    }}
    chain out_guest {{
        oifname "{self.prefix}*" goto refuse
        ip daddr {self.range} goto refuse
        ip saddr != @open goto refuse
        ip daddr @denied ip daddr != @opened ip saddr . ip daddr != @granted goto refuse
        meta l4proto {{ tcp, udp }} th dport {SMTP} goto refuse
        meta l4proto != {{ tcp, udp, icmp }} drop
        ct state invalid drop
        ct state new {self._hurry()} goto refuse
        ct state new add @connected {{ ip saddr ct count over {self.connections} }} goto refuse
        ct state new {tell} "{ALLOWED}"
        tcp flags syn tcp option maxseg size set rt mtu
        accept
    }}
    chain back_guest {{
        ip daddr @open ct state established,related accept
        drop
    }}
    chain leave {{
        type filter hook postrouting priority mangle; policy accept;
        oifname "{self.prefix}*" goto to_guest
    }}
    chain to_guest {{
        {self._police("received", "ip daddr")}
    }}
    chain nat_out {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {self.range} oifname != "{self.prefix}*" oifname != "lo" masquerade
    }}
}}
"""

    def _redirected(self, ports: Ports) -> str:
        return f"""
        ip daddr {self.gateway} ip saddr @resolving udp dport 53 dnat ip to {self._at(ports.dns)}
        ip daddr {self.gateway} ip saddr @resolving tcp dport 53 dnat ip to {self._at(ports.dns)}
        ip daddr {self.gateway} ip saddr @gateway tcp dport 80 dnat ip to {self._at(ports.secrets)}
        ip daddr {self.gateway} accept
        ip saddr @listed tcp dport != {SMTP} dnat ip to {self._at(ports.proxy)}"""

    def _listening(self, ports: Ports) -> str:
        return f"""
        ip daddr {self.gateway} ip saddr @resolving meta l4proto {{ tcp, udp }} th dport {ports.dns} accept
        ip daddr {self.gateway} ip saddr @gateway tcp dport {ports.secrets} accept
        ip daddr {self.gateway} ip saddr @listed tcp dport {ports.proxy} accept
        ip daddr {self.gateway} ip saddr @open tcp dport {ports.proxy} ct state established accept"""

    def _hurry(self) -> str:
        rate = f"limit rate over {ARRIVALS_PER_SECOND}/second burst {2 * self.connections} packets"
        return f"update @arriving {{ ip saddr {rate} }}"

    def _at(self, port: int) -> str:
        return f"{self.gateway}:{port}"

    def _police(self, name: str, of: str) -> str:
        if self.bandwidth_mbit is None:
            return ""
        rate = self.bandwidth_mbit * 125
        # The kernel lets one second's worth through at once, and this burst on top: no queue of ours need exist.
        return f"update @{name} {{ {of} limit rate over {rate} kbytes/second burst {max(64, rate // 4)} kbytes }} drop"


def _joined(networks: Iterable[IPv4Network]) -> str:
    return ", ".join(map(str, networks))


def _elements(networks: tuple[IPv4Network, ...]) -> str:
    return f"elements = {{ {_joined(networks)} }};" if networks else ""
