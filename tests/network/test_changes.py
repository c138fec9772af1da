"""A policy that is replaced while the sandbox lives, and one that outlives its server."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from runra.contract import SandboxConfig
from runra.errors import RunraError
from runra.ids import new_id
from runra.node import Sandbox
from runra.node.network.settings import NetworkSettings
from tests.hosting import start_host, stop_host, until
from tests.network.conftest import Net
from tests.network.internet import EVIL, GOOD, METADATA, Internet

#: Holds a connection open and says when it ends; "up" once bytes came back.
HOLD = """python3 -u -c '
import socket
link = socket.create_connection(("{}", 5432), timeout=60)
link.sendall(b"x")
print("up" if link.recv(9) else "never")
try:
    print("closed" if not link.recv(9) else "data")
except OSError as error:
    print("cut", error)
    raise SystemExit
while True:
    link.sendall(b"y")
'"""


class Held:
    """A command inside that holds a connection; `lines` is what it said so far."""

    def __init__(self, net: Net, sandbox: Sandbox, address: str) -> None:
        self.lines = ""
        self.task = asyncio.create_task(self._run(net, sandbox, address))

    async def _run(self, net: Net, sandbox: Sandbox, address: str) -> None:
        from runra.node.agent.types import ExecSpec

        async with sandbox.use() as agent:
            spec = ExecSpec(command=HOLD.format(address), cwd="/", env=sandbox.env, timeout_ms=30_000)
            async with await agent.exec(spec) as process:
                async for chunk in process.output():
                    self.lines += chunk.data.decode()

    async def up(self) -> None:
        await until(lambda: "up" in self.lines)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"allow": [GOOD]}, {"allow": ["good.example:443"]}),
        ({"allow": [GOOD]}, {"default": "deny"}),
        (None, {"allow": [f"{GOOD}:80"]}),
        (None, {"default": "deny"}),
    ],
)
async def test_a_narrower_policy_cuts(net: Net, before: Any, after: Any) -> None:
    sandbox = await net.sandbox(before)
    held = Held(net, sandbox, GOOD)
    await held.up()
    await net.change(sandbox, egress=after)
    assert not (await net.out(sandbox, f'tcp("{GOOD}", 5432, "again", 9)'))["ok"]
    if before is None:
        # The kernel's path: nothing passes any more in either direction; the far end's word would be the next to come.
        seen = next(s for s in net.internet.at(GOOD, "tcp") if s.more.get("data") == b"x")
        assert seen
        held.task.cancel()
    else:
        await until(lambda: "cut" in held.lines or "closed" in held.lines)
    await asyncio.gather(held.task, return_exceptions=True)


async def test_what_stays_allowed_stays_open(net: Net) -> None:
    sandbox = await net.sandbox({"allow": [GOOD]})
    held = Held(net, sandbox, GOOD)
    await held.up()
    await net.change(sandbox, egress={"allow": [GOOD, EVIL]})
    assert (await net.out(sandbox, f'tcp("{EVIL}", 5432, "hello", 9)'))["data"] == "got hello"
    assert held.lines.strip() == "up"
    held.task.cancel()
    await asyncio.gather(held.task, return_exceptions=True)


async def test_wider_and_back(net: Net) -> None:
    sandbox = await net.sandbox({"default": "deny"})
    reach = 'tls("evil.example", "evil.example", verify=False)'
    assert not (await net.out(sandbox, reach))["ok"]
    await net.change(sandbox)
    assert sandbox.info().network["egress"]["default"] == "allow"
    assert (await net.out(sandbox, reach))["ok"]
    await net.change(sandbox, egress={"allow": ["good.example"]})
    assert not (await net.out(sandbox, reach))["ok"]
    assert (await net.out(sandbox, 'tls("good.example", "good.example")'))["ok"]


async def test_a_bad_policy_changes_nothing(net: Net) -> None:
    sandbox = await net.sandbox({"allow": ["good.example"]})
    with pytest.raises(RunraError) as caught:
        await net.change(sandbox, egress={"allow": ["http://x"]})
    assert caught.value.code == "INVALID_CONFIG"
    assert sandbox.info().network["egress"]["allow"] == ["good.example"]
    assert (await net.out(sandbox, 'tls("good.example", "good.example")'))["ok"]
    await sandbox.terminate()
    with pytest.raises(RunraError) as caught:
        await net.change(sandbox)
    assert caught.value.code == "INVALID_STATE"


async def test_pause_and_resume(net: Net) -> None:
    sandbox = await net.sandbox({"allow": ["good.example"]})
    await sandbox.pause()
    await net.change(sandbox, egress={"allow": ["evil.example"]})
    await sandbox.resume()
    out = await net.out(
        sandbox, '[tls("good.example", "good.example"), tls("evil.example", "evil.example", verify=False)]'
    )
    assert [result["ok"] for result in out] == [False, True]


async def test_the_next_server_enforces_what_the_last_did(internet: Internet, settings: Any, tmp_path: Path) -> None:
    """While none runs, a policy's traffic is refused and the open path's goes on; then both are as they were."""

    async def again() -> Net:
        return Net(
            await start_host(
                tmp_path / "data",
                disk="none",
                allow_unenforced=frozenset(["disk"]),
                network=NetworkSettings(**settings),
            ),
            internet,
        )

    net = await again()
    internet.clear()
    try:
        named = await net.sandbox({"allow": ["good.example"]}, [SECRET])
        free = await net.sandbox()
        closed = await net.sandbox({"default": "deny"})
        sandboxes = [named, free, closed]
        sources = [box.guest.address for box in sandboxes if box.guest]
        ports = _listeners(net)
        await net.host.node.close()
        # Whoever takes the ports we had gets nothing meant for us.
        others = [socket.create_server(("0.0.0.0", port)) for port in ports]
        # Without a server: by the kernel's rules alone, seen through the agent of each sandbox.
        alone = {box.id: await _try(box, f'tcp("{GOOD}", 5432, "hello", 9)') for box in sandboxes}
        assert '"data": "got hello"' in alone[free.id]
        assert "got hello" not in alone[named.id]
        assert "got hello" not in alone[closed.id]
        assert '"ok": true' not in alone[named.id]
        assert '"rcode"' not in await _try(named, 'dns(open("/etc/resolv.conf").read().split()[1], "good.example")')
        assert '"ok": true' not in await _try(named, 'tcp(open("/etc/resolv.conf").read().split()[1], 80, "x")')
        assert '"ok": true' not in await _try(free, f'tcp("{METADATA}", 80, "GET / HTTP/1.0\\\\r\\\\n\\\\r\\\\n")')
        for other in others:
            other.settimeout(0)
            with other, pytest.raises(BlockingIOError):
                other.accept()
        net = await again()
        adopted = [net.host.node.sandboxes[box.id] for box in sandboxes]
        assert [box.guest.address for box in adopted if box.guest] == sources
        out = [
            await net.out(
                box, '[tls("good.example", "good.example"), tls("evil.example", "evil.example", verify=False)]'
            )
            for box in adopted
        ]
        assert [[one["ok"] for one in each] for each in out] == [[True, False], [True, True], [False, False]]
        assert adopted[0].guest is not None
        assert adopted[0].guest.secrets["model"].value == SECRET["value"]
        assert not internet.at(METADATA)
    finally:
        await stop_host(net.host)


def _listeners(net: Net) -> list[int]:
    ports = net.host.node._network._ports  # type: ignore[union-attr]
    return [ports.proxy, ports.dns, ports.secrets]


SECRET = {"alias": "model", "host": "model.example", "header": "x-api-key", "value": "sk-very-secret"}


async def _try(sandbox: Sandbox, expression: str) -> str:
    """Run a probe in a sandbox whose server has let go of it."""
    from runra.node.agent.link import AgentLink
    from runra.node.agent.types import ExecSpec

    link = await AgentLink.connect(sandbox.socket_path)
    try:
        spec = ExecSpec(
            command=f"cd /workspace; python3 probe.py <<'END'\nout = {expression}\nEND", cwd="/", env=sandbox.env,
            timeout_ms=30_000,
        )  # fmt: skip
        async with await link.exec(spec) as process:
            return b"".join([chunk.data async for chunk in process.output()]).decode()
    finally:
        await link.close()


async def test_it_does_not_run_without_its_policy(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = net.host.node._network
    before = dict(network._guests)

    def refuse(commands: str) -> str:
        if "add element" in commands:
            raise RunraError("INTERNAL_ERROR", "nftables refused a change: for the test")
        return ""

    monkeypatch.setattr(network._nft, "run", refuse)
    with pytest.raises(RunraError, match="nftables refused"):
        await net.host.create()
    monkeypatch.undo()
    await until(lambda: network._guests == before)
    assert not net.host.node.sandboxes


def test_a_config_without_a_network_is_untouched() -> None:
    config = SandboxConfig.model_validate({"image": "host"}, context={"client": True})
    assert "network" not in config.to_wire()


async def test_a_fork_has_the_policy_and_an_address_of_its_own(net: Net) -> None:
    sandbox = await net.sandbox({"allow": ["good.example"]}, [SECRET])
    (child,) = await net.host.node.fork(sandbox.id, [new_id("sb")])
    assert child.guest is not None
    assert sandbox.guest is not None
    assert child.guest.address != sandbox.guest.address
    out = await net.out(
        child, '[tls("good.example", "good.example"), tls("evil.example", "evil.example", verify=False)]'
    )
    assert [one["ok"] for one in out] == [True, False]
    assert child.guest.secrets["model"].value == SECRET["value"]
