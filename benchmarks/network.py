"""What the way out costs: a bare connection beside the kernel's path (no policy), the proxy's and the HTTP proxy's.

Everything happens in network namespaces of its own: a far machine that serves, and a near one on which a node runs.
Needs root. `python benchmarks/network.py` prints what `make bench` puts into its table.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from runra.contract import SandboxConfig
from runra.events import EventLog
from runra.ids import new_id
from runra.node import Node, NodeSettings
from runra.node.agent.types import ExecSpec
from runra.node.network import namespaces
from runra.node.network.netlink import Netlink
from runra.node.network.settings import NetworkSettings

NEAR, FAR, SERVER, ELSEWHERE = "51.15.0.2", "51.15.0.1", "93.184.216.10", "93.184.216.11"
MEGABYTES = 400

#: Port 7000 sends megabytes, 7001 echoes a byte, 80 answers HTTP with keep-alive.
SERVE = """
import socket, threading
block = bytes(1 << 20)
def send(link):
    for _ in range(int(link.recv(16) or 0)): link.sendall(block)
    link.close()
def echo(link):
    while data := link.recv(64): link.sendall(data)
def http(link):
    while data := link.recv(65536):
        path = data.split()[1]
        size = int(path[1:] or 0)
        link.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % (size << 20))
        for _ in range(size): link.sendall(block)
def serve(port, work):
    with socket.create_server(("0.0.0.0", port), backlog=512) as listening:
        while True:
            link, _ = listening.accept()
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=work, args=(link,), daemon=True).start()
for port, work in ((7001, echo), (80, http)):
    threading.Thread(target=serve, args=(port, work), daemon=True).start()
serve(7000, send)
"""

#: The same program asks from the near machine and from inside a sandbox.
ASK = """
import socket, time, json, sys
server, megabytes, web = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def drain(link, left):
    buffer = bytearray(1 << 20)
    while left > 0:
        got = link.recv_into(buffer)
        if not got: raise SystemExit("cut")
        left -= got
def connect(port): return socket.create_connection((web if port == 80 else server, port), timeout=30)
out = {"connect": [], "echo": [], "http": []}
for _ in range(100):
    started = time.perf_counter()
    with connect(7001) as link:
        link.sendall(b"x"); link.recv(1)
    out["connect"].append((time.perf_counter() - started) * 1000)
with connect(7001) as link:
    for _ in range(300):
        started = time.perf_counter()
        link.sendall(b"x"); link.recv(1)
        out["echo"].append((time.perf_counter() - started) * 1000)
with connect(7000) as link:
    started = time.perf_counter()
    link.sendall(b"%d" % megabytes); drain(link, megabytes << 20)
    out["raw"] = megabytes / (time.perf_counter() - started)
request = "GET /%d HTTP/1.1\\r\\nHost: " + server + "\\r\\n\\r\\n"
with connect(80) as link:
    for _ in range(200):
        started = time.perf_counter()
        link.sendall((request % 0).encode()); link.recv(4096)
        out["http"].append((time.perf_counter() - started) * 1000)
    started = time.perf_counter()
    link.sendall((request % megabytes).encode()); drain(link, megabytes << 20)
    out["http raw"] = megabytes / (time.perf_counter() - started)
print(json.dumps(out))
"""


class Figure(NamedTuple):
    what: str
    peer: str
    samples: list[float]
    unit: str = "ms"
    note: str = ""


@contextmanager
def machines() -> Iterator[None]:
    """This thread on the near machine, a server on the far one."""
    home, near, far = namespaces.current(), namespaces.fresh(), namespaces.fresh()
    server = None
    try:
        namespaces.enter(far)
        with Netlink() as link:
            link.up(1)
            link.add_address(1, SERVER)
            link.add_veth("up", "down", near)
            index = socket.if_nametoindex("up")
            link.add_address(index, FAR)
            link.up(index)
            link.add_route(index, NEAR)
        server = subprocess.Popen([sys.executable, "-c", SERVE])
        namespaces.enter(near)
        with Netlink() as link:
            link.up(1)
            index = socket.if_nametoindex("down")
            link.add_address(index, NEAR)
            link.up(index)
            link.add_route(index, FAR)
            link.add_route(index, None, FAR)
        while True:
            try:
                socket.create_connection((SERVER, 7000), 1).close()
                break
            except OSError:
                if server.poll() is not None:
                    raise
        yield
    finally:
        namespaces.enter(home)
        if server is not None:
            server.terminate()
            server.wait(10)
        for descriptor in (home, near, far):
            os.close(descriptor)


async def _inside(node: Node, egress: dict[str, Any] | None, megabytes: int, web: str = SERVER) -> Any:
    config = SandboxConfig.model_validate(
        {"image": "host", **({"network": {"egress": egress}} if egress else {})}, context={"client": True}
    )
    sandbox = await node.create(new_id("sb"), config, "org_bench")
    try:
        async with sandbox.use() as agent:
            spec = ExecSpec(
                argv=("python3", "-c", ASK, SERVER, str(megabytes), web), env=sandbox.env, timeout_ms=60_000
            )
            async with await agent.exec(spec) as process:
                said = b"".join([chunk.data async for chunk in process.output()])
        return json.loads(said)
    finally:
        await sandbox.terminate()


async def _measured(folder: Path, megabytes: int) -> dict[str, Any]:
    network = NetworkSettings(dns=(SERVER,))
    settings = NodeSettings(folder, disk="none", allow_unenforced=frozenset(["disk"]), network=network)
    node = Node(settings, EventLog())
    await node.start()
    try:
        command = [sys.executable, "-c", ASK, SERVER, str(megabytes), SERVER]
        bare = await asyncio.to_thread(subprocess.check_output, command)
        return {
            "bare connection": json.loads(bare),
            "sandbox without a policy (kernel)": await _inside(node, None, megabytes),
            # The raw ports by address, which the proxy only passes on; HTTP, sent elsewhere, by Host, which it parses.
            "sandbox with a policy (proxy)": await _inside(
                node, {"allow": [f"{SERVER}:7000", f"{SERVER}:7001", f"{SERVER}:80", "a.example"]}, megabytes, ELSEWHERE
            ),
        }
    finally:
        await node.close()


def measure(megabytes: int = MEGABYTES) -> list[Figure]:
    """Nothing where this machine gives sandboxes no network."""
    if os.geteuid() != 0:
        return []
    found: dict[str, Any] = {}

    def work() -> None:
        with tempfile.TemporaryDirectory(prefix="runra-bench-") as folder, machines():
            found.update(uvloop.run(_measured(Path(folder), megabytes)))

    # A thread of its own, so that this one never leaves its network.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    figures = []
    for peer, out in found.items():
        figures += [
            Figure("network: connect and a byte back", peer, out["connect"]),
            Figure("network: a byte and back", peer, out["echo"]),
            Figure("network: HTTP request, keep-alive", peer, out["http"]),
            Figure("network: download", peer, [out["raw"]], "MB/s"),
            Figure("network: HTTP download", peer, [out["http raw"]], "MB/s"),
        ]
    return figures


if __name__ == "__main__":
    for one in sorted(measure(), key=lambda one: one.what):
        ordered = sorted(one.samples)
        print(f"{one.what:36} {one.peer:36} {ordered[len(ordered) // 2]:9.3f} {one.unit}")
