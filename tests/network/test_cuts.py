"""Connections that stand when a policy is replaced: cut, or left alone, by every way out; and those being made then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from runra.node import Sandbox
from runra.node.agent.types import ExecSpec
from tests.hosting import until
from tests.network.conftest import Net
from tests.network.internet import EVIL, GOOD, OTHER

SECRET = {"alias": "model", "host": "model.example", "header": "x-api-key", "value": "sk-very-secret"}
GATEWAY = "model.gateway.runra.internal"

#: Inside: makes a connection, says "up", and then what becomes of it; it speaks again once /workspace/go is there.
HELD = """
import os, select, socket, ssl
def tcp(address):
    link = socket.create_connection((address, 5432), timeout=20)
    link.sendall(b"early")
    link.recv(99)
    return link, b"late"
def tls(name):
    context = ssl.create_default_context(cafile="/workspace/ca.pem")
    link = context.wrap_socket(socket.create_connection((name, 443), timeout=20), server_hostname=name)
    get = b"GET / HTTP/1.1\\r\\nHost: " + name.encode() + b"\\r\\n\\r\\n"
    link.sendall(get)
    data = b""
    while b"}" not in data:
        data += link.recv(4096)
    return link, get
def ws(address, host=None):
    link = socket.create_connection((address, 80), timeout=20)
    link.sendall(("GET /ws HTTP/1.1\\r\\nHost: " + (host or address) + "\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n"
        "Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\\r\\n\\r\\n").encode())
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        head += link.recv(1)
    assert b" 101 " in head, head
    return link, b"\\x81\\x84abcd" + bytes(a ^ b for a, b in zip(b"late", b"abcd"))
link, late = CALL
print("up", flush=True)
try:
    while True:
        if select.select([link], [], [], 0.05)[0]:
            print("answered" if link.recv(4096) else "closed")
            break
        if late and os.path.exists("/workspace/go"):
            link.sendall(late)
            late = b""
except OSError as error:
    print("cut", error)
"""


class Held:
    def __init__(self) -> None:
        self.text = ""

    def ended(self) -> bool:
        return any(word in self.text for word in ("closed", "cut", "answered"))


@contextlib.asynccontextmanager
async def held(net: Net, sandbox: Sandbox, call: str) -> AsyncIterator[Held]:
    found = Held()

    async def run() -> None:
        command = f"python3 - <<'END'\n{HELD.replace('CALL', call)}\nEND"
        async with sandbox.use() as agent:
            spec = ExecSpec(command=command, cwd="/workspace", env=sandbox.env, timeout_ms=30_000)
            async with await agent.exec(spec) as process:
                async for chunk in process.output():
                    found.text += chunk.data.decode()

    task = asyncio.create_task(run())
    try:
        await until(lambda: "up" in found.text or task.done())
        assert "up" in found.text, found.text
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _speak(sandbox: Sandbox) -> None:
    async with sandbox.use() as agent:
        await agent.files.write("/workspace/go", b"")


ONLY_GOOD = {"egress": {"allow": ["good.example"]}}
DENY = {"egress": {"default": "deny"}}
HOLDING = {**DENY, "secrets": [SECRET]}


@pytest.mark.parametrize(
    ("before", "call", "after"),
    [
        (ONLY_GOOD, 'tls("good.example")', {"egress": {"allow": ["good.example:80"]}}),
        (ONLY_GOOD, 'ws("good.example")', {"egress": {"allow": ["good.example:443"]}}),
        (HOLDING, f'ws("{GATEWAY}")', DENY),
        (HOLDING, f'ws("{GATEWAY}")', {**DENY, "secrets": [{**SECRET, "host": "good.example"}]}),
        (HOLDING, f'ws("{GATEWAY}")', {**DENY, "secrets": [{**SECRET, "value": "another"}]}),
    ],
    ids=["TLS by name", "WebSocket", "secret taken away", "secret for another host", "another value"],
)
async def test_the_proxy_cuts(net: Net, before: dict[str, Any], call: str, after: dict[str, Any]) -> None:
    sandbox = await net.sandbox(**before)
    async with held(net, sandbox, call) as connection:
        await net.change(sandbox, **after)
        await until(connection.ended)
        assert "answered" not in connection.text


async def test_the_kernel_cuts(net: Net) -> None:
    """From open to narrow: what is said later on a connection that stood does not arrive."""
    sandbox = await net.sandbox()
    async with held(net, sandbox, f'tcp("{GOOD}")') as connection:
        await net.change(sandbox, egress={"allow": [f"{GOOD}:80"]})
        await _speak(sandbox)
        await until(connection.ended)
        assert "cut" in connection.text
    assert all(b"late" not in seen.more.get("data", b"") for seen in net.internet.seen)


@pytest.mark.parametrize(
    ("before", "call", "after"),
    [
        ({"egress": {"allow": [GOOD]}}, f'tcp("{GOOD}")', {}),
        (ONLY_GOOD, 'ws("good.example")', {}),
        # HTTP to an allowed address, by Host, wherever the packet was going.
        (
            {"egress": {"allow": [f"{GOOD}:80", "x.example"]}},
            f'ws("{EVIL}", "{GOOD}")',
            {"egress": {"allow": [GOOD, OTHER]}},
        ),
        (HOLDING, f'ws("{GATEWAY}")', {"egress": {"allow": ["good.example"]}, "secrets": [SECRET]}),
    ],
    ids=["address, then open", "name, then open", "HTTP by address", "the same secret"],
)
async def test_what_stays_allowed_goes_on(net: Net, before: dict[str, Any], call: str, after: dict[str, Any]) -> None:
    sandbox = await net.sandbox(**before)
    async with held(net, sandbox, call) as connection:
        await net.change(sandbox, **after)
        await _speak(sandbox)
        await until(connection.ended)
        assert "answered" in connection.text, connection.text


GET = "GET / HTTP/1.1\\r\\nHost: {}\\r\\nConnection: close\\r\\n\\r\\n"


@pytest.mark.parametrize(
    ("before", "call", "after"),
    [
        (ONLY_GOOD, f'tls("{GOOD}", "good.example")', {"egress": {"allow": ["evil.example"]}}),
        (ONLY_GOOD, f'http("{GOOD}", "{GET.format("good.example")}")', {"egress": {"allow": ["evil.example"]}}),
        (HOLDING, f'http(gateway, "{GET.format(GATEWAY)}")', {**DENY, "secrets": [{**SECRET, "value": "another"}]}),
    ],
    ids=["TLS", "HTTP", "secret"],
)
async def test_a_policy_replaced_while_a_name_is_looked_up(
    net: Net, monkeypatch: pytest.MonkeyPatch, before: dict[str, Any], call: str, after: dict[str, Any]
) -> None:
    upstream = net.host.node._network._upstream  # type: ignore[union-attr]
    really, asked, replaced = upstream.addresses, asyncio.Event(), asyncio.Event()

    async def slowly(name: str) -> Any:
        found = await really(name)
        asked.set()
        await replaced.wait()
        return found

    monkeypatch.setattr(upstream, "addresses", slowly)
    sandbox = await net.sandbox(**before)
    code = f'gateway = open("/etc/resolv.conf").read().split()[1]\nout = {call}'
    probe = asyncio.create_task(net.probe(sandbox, code))
    async with asyncio.timeout(10):
        await asked.wait()
    await net.change(sandbox, **after)
    replaced.set()
    out = await probe
    assert "HTTP/1.1 200" not in out.get("data", "")
    assert not [seen for seen in net.internet.seen if seen.kind != "dns"]
