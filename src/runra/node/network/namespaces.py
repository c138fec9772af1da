"""Network namespaces: one made ready is a pair of veth ends, one address inside, and a route to our gateway.

Everything here blocks for milliseconds and moves its own thread between namespaces: it belongs on one worker thread.
Nothing has to be removed: a namespace ends with its last process or descriptor, and its veth pair with it.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
from pathlib import Path
from typing import Final

from runra.node.network.netlink import Netlink

_CLONE_NEWNET: Final = 0x4000_0000
_LOOPBACK: Final = 1
#: The sandbox's end of its veth pair, by the name containers know.
_INSIDE: Final = "eth0"

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def enter(namespace: int) -> None:
    """Put this thread into a network namespace (setns(2)); needs CAP_SYS_ADMIN."""
    _call("setns", namespace, _CLONE_NEWNET)


def current() -> int:
    """A descriptor of this thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def fresh() -> int:
    """A descriptor of a new, empty network namespace. This thread comes back to where it was."""
    home = current()
    try:
        _call("unshare", _CLONE_NEWNET)
        try:
            return current()
        finally:
            enter(home)
    finally:
        os.close(home)


def make(outside: str, address: str, gateway: str) -> int:
    """A ready namespace; returns its descriptor. `outside` names the veth's end here, which routes to `address`.

    It belongs to the first user namespace: root in a sandbox can change nothing of it. IPv6 exists on its loopback
    only. Any port may be bound inside, since nothing there is privileged.
    """
    home = current()
    namespace = -1
    try:
        _call("unshare", _CLONE_NEWNET)
        try:
            namespace = current()
            _write("net/ipv4/ip_unprivileged_port_start", "0")
            _write("net/ipv4/ping_group_range", "0 2147483647")
            with Netlink() as inside:
                inside.add_veth(_INSIDE, outside, home)
                _write(f"net/ipv6/conf/{_INSIDE}/disable_ipv6", "1")
                inside.up(_LOOPBACK)
                index = socket.if_nametoindex(_INSIDE)
                inside.add_address(index, address)
                inside.up(index)
                inside.add_route(index, gateway)
                inside.add_route(index, None, gateway)
        finally:
            enter(home)
        _write(f"net/ipv6/conf/{outside}/disable_ipv6", "1")
        with Netlink() as here:
            index = socket.if_nametoindex(outside)
            here.up(index)
            here.add_route(index, address)
        made, namespace = namespace, -1
        return made
    finally:
        os.close(home)
        if namespace >= 0:
            os.close(namespace)


def _write(name: str, value: str) -> None:
    """A switch of the namespace this thread is in. A kernel without IPv6 has none of its switches."""
    path = Path("/proc/sys", name)
    if path.exists() or "ipv6" not in name:
        path.write_text(value)


def forwards() -> bool:
    """Whether this namespace passes packets on."""
    return Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"


def let_forward() -> None:
    """Let this namespace pass packets on, and count bytes per connection. Both stay on: others may rely on them."""
    _write("net/ipv4/ip_forward", "1")
    if Path("/proc/sys/net/netfilter/nf_conntrack_acct").exists():
        _write("net/netfilter/nf_conntrack_acct", "1")


def claim(gateway: str, instance: str) -> None:
    """Give the gateway's address to our loopback: what listens there is the same for every sandbox."""
    with Netlink() as here:
        here.add_address(_LOOPBACK, gateway, f"lo:{instance}")


def disclaim(gateway: str) -> None:
    with Netlink() as here:
        here.delete_address(_LOOPBACK, gateway)


def addresses_in_use() -> list[ipaddress.IPv4Network]:
    """Every IPv4 address of this host and every network it has a route to, the default route apart."""
    found = [
        ipaddress.IPv4Network(line.split()[1])
        for line in Path("/proc/thread-self/net/fib_trie").read_text().splitlines()
        if "|--" in line
    ]
    for line in Path("/proc/thread-self/net/route").read_text().splitlines()[1:]:
        fields = line.split()
        target, mask = (int.from_bytes(bytes.fromhex(fields[n]), "little") for n in (1, 7))
        found.append(ipaddress.IPv4Network((target, mask.bit_count())))
    return [network for network in found if int(network.network_address)]
