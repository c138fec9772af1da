"""A machine with its own internet for each module, and a node on it for each test."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from runra.contract import Network
from runra.node import Sandbox
from runra.node.network.host import obstacle
from runra.node.network.settings import NetworkSettings
from tests.hosting import NOTHING, Host, start_host, stop_host, until
from tests.network import internet as world
from tests.network.internet import DNS, Internet, connected, shown

if os.geteuid() != 0:
    pytest.skip("sandboxes have a network only under root", allow_module_level=True)
if shutil.which("openssl") is None:
    pytest.skip("no openssl to make certificates: apt-get install openssl", allow_module_level=True)
if (reason := obstacle()) is not None:
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="module")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    with connected(tmp_path_factory.mktemp("internet")) as found:
        yield found


class Net:
    """The node under test, and what its sandboxes reach."""

    def __init__(self, host: Host, internet: Internet) -> None:
        self.host, self.internet = host, internet

    async def sandbox(
        self, egress: dict[str, Any] | None = None, secrets: list[Any] | None = None, **more: Any
    ) -> Sandbox:
        network = {**({"egress": egress} if egress is not None else {}), **({"secrets": secrets} if secrets else {})}
        sandbox = await self.host.create(**({"network": network} if network else {}), **more)
        async with sandbox.use() as agent:
            await agent.files.write("/workspace/probe.py", (Path(__file__).parent / "probe.py").read_bytes())
            await agent.files.write("/workspace/ca.pem", self.internet.ca.read_bytes())
        return sandbox

    async def probe(self, sandbox: Sandbox, code: str) -> Any:
        """Run lines of Python inside, with probe.py's functions; `out` is the answer."""
        text, end = await self.host.run(sandbox, f"cd /workspace; python3 probe.py <<'END'\n{code}\nEND")
        assert end.code == 0, text
        return shown(text.splitlines()[-1])

    async def out(self, sandbox: Sandbox, expression: str) -> Any:
        return await self.probe(sandbox, f"out = {expression}")

    async def change(self, sandbox: Sandbox, **network: Any) -> None:
        await sandbox.update_network(Network.model_validate(network, context={"client": True}))

    def events(self, sandbox: Sandbox) -> list[dict[str, Any]]:
        return [e.data for e in self.host.events if e.type == "network.egress" and e.sandbox_id == sandbox.id]


@pytest.fixture
def settings(internet: Internet) -> dict[str, Any]:
    return {"dns": (DNS,), "ca_file": internet.ca, "ready": 2}


@pytest.fixture
async def net(internet: Internet, settings: dict[str, Any], tmp_path: Path) -> AsyncIterator[Net]:
    internet.clear()
    internet.rebound.clear()
    host = await start_host(
        tmp_path / "data", disk="none", allow_unenforced=frozenset(["disk"]), network=NetworkSettings(**settings)
    )
    yield Net(host, internet)
    await stop_host(host)
    await until(lambda: host.left() == NOTHING)


__all__ = ["world"]
