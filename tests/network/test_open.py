"""A sandbox without a policy: the internet, and nothing that is not the internet."""

from __future__ import annotations

import asyncio
import socket

from tests.hosting import until
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


async def test_a_low_port_can_be_bound_and_nothing_else_changed(net: Net) -> None:
    sandbox = await net.sandbox()
    text, _ = await net.host.run(
        sandbox,
        "python3 -c 'import socket; socket.create_server((\"0.0.0.0\", 80)); print(\"bound\")'; "
        "python3 -c 'import socket, fcntl; fcntl.ioctl(socket.socket(), 0x8914, b\"eth0\".ljust(40, bytes(1)))' 2>&1; "
        "(echo 1 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null || echo refused; cat /proc/net/if_inet6",
    )
    assert "bound" in text
    assert "Operation not permitted" in text
    assert "refused" in text
    assert " eth0" not in text, "no IPv6 there"
    assert not (await net.out(sandbox, "udp('255.255.255.255', 9999)"))["ok"]
