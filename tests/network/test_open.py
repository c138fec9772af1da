"""A sandbox without a policy: the internet, and nothing that is not the internet."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from ipaddress import IPv4Address

import pytest

from runra.node.network import sockets
from tests.hosting import bubblewrap_only, until
from tests.network.conftest import Net
from tests.network.internet import BENCH, CGNAT, EVIL, GOOD, HOST, METADATA, PRIVATE


async def test_the_internet(net: Net) -> None:
    sandbox = await net.sandbox()
    assert sandbox.info().network == {"egress": {"allow": [], "default": "allow"}}
    out = await net.probe(
        sandbox,
        f"""out = [resolve("good.example"), tls("good.example", "good.example"), tls("{EVIL}", None, host="x", verify=False),
        udp("{GOOD}", 9999), dns("8.8.8.8", "evil.example"), resolve("nowhere.example")]""",
    )
    assert out[0] == [GOOD]
    assert '"at": "93.184.216.10"' in out[1]["data"]
    assert out[2]["ok"]
    assert out[3]["data"] == "got hi"
    assert out[4]["answers"] == 1
    assert "not known" in out[5]
    await until(lambda: any(e["state"] == "opened" and e["host"] == "good.example" for e in net.events(sandbox)))


async def test_what_is_not_the_internet(net: Net) -> None:
    """Metadata, private, CGNAT and test ranges, this host by every address, mail, IPv6: refused at once, and told."""
    sandbox = await net.sandbox()
    with socket.create_server((HOST, 7999)), socket.create_server(("0.0.0.0", 7998)):
        assert sandbox.guest is not None
        gateway = sandbox.guest.address.rsplit(".", 2)[0] + ".0.1"
        out = await net.probe(
            sandbox,
            f"""
gateway = open("/etc/resolv.conf").read().split()[1]
tried = [("{METADATA}", 80), ("{PRIVATE}", 80), ("{CGNAT}", 80), ("{BENCH}", 80), ("{HOST}", 7999), ("{HOST}", 7998),
         ("127.0.0.1", 7998), (gateway, 7998), (gateway, 80), ("{GOOD}", 25), ("168.63.129.16", 80),
         ("::ffff:{METADATA}", 80), ("fd00::2", 80), ("64:ff9b::{GOOD}", 80)]
out = [[a, p, tcp(a, p)] for a, p in tried] + [["udp", 0, udp("{METADATA}", 9999)], ["udp", 0, udp("{PRIVATE}", 53)]]
""",
        )
    for address, port, result in out:
        assert not result["ok"], (address, port, result)
        assert result.get("s", 0) < 1, f"{address} must be refused, not left hanging"
    assert gateway
    assert not net.internet.at(METADATA)
    assert not net.internet.at(PRIVATE)
    assert not net.internet.at(GOOD, "tcp")
    await until(lambda: any(e["address"] == METADATA and not e["allowed"] for e in net.events(sandbox)))


async def test_neighbours(net: Net) -> None:
    first, second = await net.sandbox(), await net.sandbox()
    assert first.guest is not None
    async with second.use() as agent:
        assert agent
    serving = asyncio.create_task(net.host.run(first, "timeout 5 python3 -m http.server 8000 >/dev/null 2>&1"))
    await until(lambda: _listening(net, first))
    for address in (first.guest.address, net.host.node._network._gateway):  # type: ignore[union-attr]
        assert not (await net.out(second, f'tcp("{address}", 8000, "GET / HTTP/1.0\\r\\n\\r\\n")'))["ok"]
    serving.cancel()


async def _listening(net: Net, sandbox: object) -> bool:
    text, _ = await net.host.run(sandbox, "cat /proc/net/tcp")  # type: ignore[arg-type]
    return ":1F40 " in text


async def test_a_low_port_can_be_bound(net: Net) -> None:
    sandbox = await net.sandbox()
    bind = 'python3 -c \'import socket; socket.create_server(("0.0.0.0", 80)); print("bound")\''
    assert (await net.host.run(sandbox, bind))[0] == "bound\n"
    assert not (await net.out(sandbox, "udp('255.255.255.255', 9999)"))["ok"]


@bubblewrap_only("the network inside is gVisor's own and its root may change it; the host's rules do not ask what it is")
async def test_nothing_else_of_the_network_can_be_changed(net: Net) -> None:
    sandbox = await net.sandbox()
    text, _ = await net.host.run(
        sandbox,
        "python3 -c 'import socket, fcntl; fcntl.ioctl(socket.socket(), 0x8914, b\"eth0\".ljust(40, bytes(1)))' 2>&1; "
        "(echo 1 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null || echo refused; cat /proc/net/if_inet6",
    )
    assert "Operation not permitted" in text
    assert "refused" in text
    assert " eth0" not in text, "no IPv6 there"


async def test_every_address_of_this_machine_is_its_own(net: Net) -> None:
    """Also the second one of a subnet: the kernel speaks to it from the first."""
    first, second = "51.15.7.2", "51.15.7.3"
    for address in (first, second):
        subprocess.run(["ip", "address", "add", f"{address}/24", "dev", "down"], check=True)
    service = socket.create_server(("0.0.0.0", 0))
    service.settimeout(0)
    try:
        port = service.getsockname()[1]
        assert sockets.is_ours(IPv4Address(second))
        assert not sockets.is_ours(IPv4Address("51.15.7.4"))
        assert not sockets.is_ours(IPv4Address(GOOD))
        for egress in ({"allow": ["51.15.7.0/24"]}, None):
            sandbox = await net.sandbox(egress)
            await net.out(sandbox, f'[tcp("{address}", {port}, "x") for address in ("{first}", "{second}")]')
        with pytest.raises(BlockingIOError):
            service.accept()
    finally:
        service.close()
        for address in (first, second):
            subprocess.run(["ip", "address", "del", f"{address}/24", "dev", "down"], check=False)


async def test_the_operators_network_does_not_show_in_dns(net: Net) -> None:
    """Neither by names of its addresses, however they are asked for, nor by hints beside a service's name."""
    sandbox = await net.sandbox()
    asked = [
        *[
            ("9.9.9.10.in-addr.arpa", 12),
            ("9.9.10.in-addr.arpa", 2),
            ("10.in-addr.arpa", 6),
            ("1.0.0.0.d.f.ip6.arpa", 12),
        ],
        *[("cname-reverse.example", 12), ("good.example", 65), ("10.216.184.93.in-addr.arpa", 12)],
    ]
    calls = ", ".join(f'dns(gateway, "{name}", {kind})' for name, kind in asked)
    out = await net.probe(sandbox, f'gateway = open("/etc/resolv.conf").read().split()[1]\nout = [{calls}]')
    assert [one["rcode"] for one in out] == [3, 3, 3, 3, 0, 0, 0]
    assert b"payroll".hex() not in "".join(one["raw"] for one in out[:6])
    assert out[5]["answers"] == 1
    assert socket.inet_aton(PRIVATE).hex() not in out[5]["raw"]
    assert b"payroll".hex() in out[6]["raw"], "a public address has its name"
    assert not any(name.endswith("10.in-addr.arpa") for name in net.internet.asked())
