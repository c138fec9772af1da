"""gVisor in a network namespace made before it: its own network stack speaks over the veth, and nothing else does."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runra.node.isolation import gvisor
from tests.hosting import NOTHING, need_wall, start_host, stop_host, until


class Net:
    """Two namespaces with a veth between them: `inside` is for the sandbox, `outside` plays the host."""

    def __init__(self) -> None:
        name = secrets.token_hex(3)
        self.inside, self.outside = f"rt{name}i", f"rt{name}o"

    def ip(self, *words: str) -> str:
        return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout

    def open(self) -> None:
        for name in (self.inside, self.outside):
            self.ip("netns", "add", name)
        self.ip("-n", self.inside, "link", "add", "eth0", "type", "veth", "peer", "name", "out", "netns", self.outside)
        self.ip("-n", self.inside, "addr", "add", "10.91.0.2/32", "dev", "eth0")
        self.ip("-n", self.outside, "addr", "add", "10.91.0.1/32", "dev", "out")
        for name, link, other in ((self.inside, "eth0", "10.91.0.1"), (self.outside, "out", "10.91.0.2")):
            self.ip("-n", name, "link", "set", link, "up")
            self.ip("-n", name, "link", "set", "lo", "up")
            self.ip("-n", name, "route", "add", other, "dev", link)
        self.ip("-n", self.inside, "route", "add", "default", "via", "10.91.0.1")

    def close(self) -> None:
        for name in (self.inside, self.outside):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def net() -> Iterator[Net]:
    need_wall("gvisor")
    net = Net()
    try:
        net.open()
        yield net
    finally:
        net.close()


async def test_it_speaks_over_the_namespace_it_was_given(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await start_host(tmp_path / "data", isolation="gvisor")
    given = os.open(f"/run/netns/{net.inside}", os.O_RDONLY)
    real = gvisor.Box

    def networked(box: Any) -> Any:
        return real(**{name: getattr(box, name) for name in real.__slots__} | {"netns": given})

    wall = host.node._isolations["gvisor"]
    prepare, start = wall.prepare, wall.start
    monkeypatch.setattr(wall, "prepare", lambda box: prepare(networked(box)))
    monkeypatch.setattr(wall, "start", lambda box: start(networked(box)))
    try:
        # On a busy machine a veth's routes are still "linkdown" when it is handed over.
        net.ip("-n", net.outside, "link", "set", "out", "down")
        await until(lambda: "linkdown" in net.ip("-n", net.inside, "route"))
        sandbox = await host.create()
        net.ip("-n", net.outside, "link", "set", "out", "up")
        net.ip("-n", net.outside, "route", "add", "10.91.0.2", "dev", "out")
        server = await asyncio.create_subprocess_exec(
            "ip", "netns", "exec", net.outside, "python3", "-c",
            "import socket\ns = socket.create_server(('10.91.0.1', 8080)); print('up', flush=True)\n"
            "c, a = s.accept(); c.sendall((a[0] + ' ').encode() + c.recv(99)); c.close()",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert server.stdout is not None
        async with asyncio.timeout(20):
            assert await server.stdout.readline() == b"up\n"
        script = (
            "import socket\nc = socket.create_connection(('10.91.0.1', 8080), 5); c.sendall(b'hello'); print(c.recv(99).decode())\n"
            "try: socket.socket(socket.AF_PACKET, socket.SOCK_RAW); print('raw')\nexcept OSError: print('no raw')"
        )
        output, exit = await host.run(sandbox, f'python3 -c "{script}" 2>&1')
        assert (output, exit.code) == ("10.91.0.2 hello\nno raw\n", 0)
        # The namespace that was given is empty now; the sandbox's own holds the interface, without an address.
        assert "eth0" not in net.ip("-n", net.inside, "link")
        await server.wait()
    finally:
        os.close(given)
        await stop_host(host)
    await until(lambda: host.left() == NOTHING)
    await until(lambda: "out" not in net.ip("-n", net.outside, "link"))
