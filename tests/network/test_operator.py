"""What an operator sets: ranges opened, limits, and rules that somebody else removes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from runra.errors import RunraError
from runra.node.network import namespaces
from runra.node.network.netlink import Netlink
from runra.node.network.nft import Nft
from runra.node.network.rules import GUARD_NAME
from tests.hosting import until
from tests.network.conftest import Net
from tests.network.internet import CGNAT, GOOD, METADATA, PRIVATE


@pytest.mark.parametrize(
    "opening", [{"open_ranges": ("10.9.9.0/24",)}, {"organization_ranges": {"org_test": ("10.9.9.0/24",)}}]
)
async def test_an_opened_range(internet: Any, settings: dict[str, Any], tmp_path: Any, opening: dict[str, Any]) -> None:
    internet.clear()
    from runra.node.network.settings import NetworkSettings
    from tests.hosting import start_host, stop_host

    host = await start_host(
        tmp_path / "data",
        disk="none",
        allow_unenforced=frozenset(["disk"]),
        network=NetworkSettings(**settings, **opening),
    )
    net = Net(host, internet)
    try:
        free = await net.sandbox()
        named = await net.sandbox({"allow": ["private.example", CGNAT]})
        get = "GET / HTTP/1.1\\r\\nHost: private.example\\r\\nConnection: close\\r\\n\\r\\n"
        for sandbox in (free, named):
            assert PRIVATE in (await net.out(sandbox, f'http("{PRIVATE}", "{get}")'))["data"]
            await net.out(sandbox, f'http("{METADATA}", "{get}")')
            assert not (await net.out(sandbox, f'tcp("{CGNAT}", 5432, "x")')).get("data")
        assert not internet.at(METADATA)
        assert not internet.at(CGNAT)
    finally:
        await stop_host(host)


class TestLimits:
    @pytest.fixture
    def settings(self, internet: Any) -> dict[str, Any]:
        from tests.network.internet import DNS

        return {"dns": (DNS,), "ca_file": internet.ca, "ready": 1, "connections": 5, "bandwidth_mbit": 8}

    @pytest.mark.parametrize("egress", [None, {"allow": [GOOD]}])
    async def test_connections(self, net: Net, egress: Any) -> None:
        sandbox = await net.sandbox(egress)
        got = await net.probe(
            sandbox,
            f"""
links, out = [], 0
for _ in range(8):
    try:
        link = socket.create_connection(("{GOOD}", 5432), timeout=T)
        link.sendall(b"x")
        if link.recv(5) == b"got x":
            out += 1
        links.append(link)
    except OSError:
        pass
""",
        )
        assert got == 5

    @pytest.mark.parametrize("egress", [None, {"allow": [GOOD]}, {"allow": ["good.example"]}])
    async def test_the_hosts_table_of_connections_is_not_filled(self, net: Net, egress: Any) -> None:
        """Whether they go to us or to the internet, last or end at once: each leaves an entry for a while."""
        sandbox = await net.sandbox(egress)
        assert sandbox.guest is not None
        await net.probe(
            sandbox,
            f"""
gateway = open("/etc/resolv.conf").read().split()[1]
for port in range(3000):
    for kind, target in ((socket.SOCK_STREAM, ("{GOOD}", 5432)), (socket.SOCK_DGRAM, (gateway, 53))):
        link = socket.socket(socket.AF_INET, kind)
        link.setblocking(False)
        link.connect_ex(target)
        if kind == socket.SOCK_DGRAM:
            try:
                link.send(b"x")
            except OSError:
                pass
        link.close()
out = 0
""",
        )
        table = Path("/proc/self/task", str(threading.get_native_id()), "net/nf_conntrack").read_text()
        left = sum(f"src={sandbox.guest.address} " in line for line in table.splitlines())
        # Ten at once, two hundred a second, for the second or two that it takes.
        assert 0 < left < 1500

    async def test_bandwidth(self, net: Net) -> None:
        sandbox = await net.sandbox()
        # 8 Mbit/s are a megabyte a second; a burst of one and a quarter comes on top.
        got = await net.probe(
            sandbox,
            f"""
started = time.monotonic()
done = tcp("{GOOD}", 80, "GET /bytes?n=4000000 HTTP/1.0\\r\\n\\r\\n", 1 << 24)
out = [done["ok"], time.monotonic() - started]
""",
        )
        assert got[0]
        assert got[1] > 1.5


async def test_rules_that_were_flushed_come_back(net: Net, monkeypatch: Any) -> None:
    sandbox = await net.sandbox()
    network: Any = net.host.node._network
    await network._run(lambda: network._nft.run(f"delete table inet {network._table.name}"))
    assert not await network._stands()
    # What comes next notices, and makes them again for everybody.
    await net.sandbox()
    assert await network._stands()
    assert (await net.out(sandbox, 'tls("good.example", "good.example")'))["ok"]
    assert not (await net.out(sandbox, f'tcp("{METADATA}", 80)'))["ok"]


async def test_the_last_words_are_told_at_once(internet: Any, settings: dict[str, Any], tmp_path: Any) -> None:
    """A server that ends with its sandbox waits for nothing, and has told all the same what became of its connections."""
    from runra.node.network.settings import NetworkSettings
    from tests.hosting import hosted

    network = NetworkSettings(**settings)
    async with hosted(tmp_path / "data", disk="none", allow_unenforced=frozenset(["disk"]), network=network) as host:
        net = Net(host, internet)
        sandbox = await net.sandbox()
        assert (await net.out(sandbox, f'udp("{GOOD}", 9999)'))["ok"]
        assert not (await net.out(sandbox, f'tcp("{METADATA}", 80)'))["ok"]
    told = [(e["state"], e["address"], e.get("bytesReceived", 0) > 0) for e in net.events(sandbox)]
    assert {("opened", GOOD, False), ("closed", GOOD, True), ("refused", METADATA, False)} <= set(told), told


async def test_nothing_is_left(net: Net) -> None:
    """After the last sandbox no interface, address, rule or namespace of ours remains; its connections are ended."""
    network: Any = net.host.node._network
    sandbox = await net.sandbox()
    assert (await net.out(sandbox, f'udp("{GOOD}", 9999)'))["ok"]
    assert sandbox.guest is not None
    source = sandbox.guest.address
    await until(lambda: any(e["state"] == "opened" for e in net.events(sandbox)))
    await sandbox.terminate()
    await until(lambda: source not in network._guests)
    # What the kernel counted of its connections is told as they are ended.
    ended = [e for e in net.events(sandbox) if e["state"] == "closed" and e["address"] == GOOD]
    assert ended[0]["bytesSent"] > 0
    assert ended[0]["bytesReceived"] > 0
    await net.host.node.settled()
    await net.host.node.close()
    await until(lambda: not any(network._table.prefix in name for _, name in socket.if_nameindex()))
    assert not any(used.overlaps(network.range) for used in namespaces.addresses_in_use())
    nft = Nft()
    assert network._table.name not in nft.run("list tables")
    nft.close()
    await net.host.node.start()


async def test_this_machine_is_no_router_for_its_neighbours(net: Net) -> None:
    """Forwarding is on for sandboxes; a machine on the same network that sends us its packets gets nowhere."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
    here, there, nft = namespaces.current(), namespaces.fresh(), Nft()
    try:
        namespaces.enter(there)
        with Netlink() as link:
            link.up(1)
            link.add_veth("neighbour", "wifi", here)
            index = socket.if_nametoindex("neighbour")
            link.add_address(index, "51.99.0.2")
            link.up(index)
            link.add_route(index, "51.99.0.1")
            link.add_route(index, None, "51.99.0.1")
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        namespaces.enter(here)
        with Netlink() as link:
            index = socket.if_nametoindex("wifi")
            link.add_address(index, "51.99.0.1")
            link.up(index)
            link.add_route(index, "51.99.0.2")
        sandbox = await net.sandbox()
        assert namespaces.forwards()

        async def arrives(text: str, last: str) -> bool:
            """Whether the neighbour's word is there before one the sandbox says after it."""
            sender.sendto(text.encode(), (GOOD, 9999))
            await net.out(sandbox, f'udp("{GOOD}", 9999, "{last}")')
            await until(lambda: any(seen.what == last for seen in net.internet.at(GOOD, "udp")))
            return any(seen.what == text for seen in net.internet.at(GOOD, "udp"))

        assert not await arrives("from the neighbour", "one")
        # Also when the rules were flushed; without the guard it would have passed.
        nft.run("flush ruleset")
        network: Any = net.host.node._network
        async with asyncio.timeout(20):
            while not await network._stands():
                await asyncio.sleep(0.1)
        assert not await arrives("after a flush", "two")
        nft.run(f"delete table ip {GUARD_NAME}")
        assert await arrives("without the guard", "three")
    finally:
        namespaces.enter(here)
        with contextlib.suppress(RunraError):
            nft.run(f"delete table ip {GUARD_NAME}")
        nft.close()
        sender.close()
        for descriptor in (here, there):
            os.close(descriptor)
