"""A real node on a folder of its own, and what the host shows of its sandboxes."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from runra.contract import SandboxConfig
from runra.events import Event, EventLog
from runra.ids import new_id
from runra.node import Node, NodeSettings, Sandbox
from runra.node.agent.types import ExecSpec, Exit
from runra.node.images import RootFilesystem
from runra.node.images import host as host_image
from runra.node.isolation.gvisor import SAVES_SINCE

#: The wall of every sandbox a test does not ask another one for: `make gvisor` runs all tests of sandboxes with gVisor.
WALL = os.environ.get("RUNRA_TEST_ISOLATION", "bubblewrap")
#: For a test of the `host` fixture's: once behind each wall.
both_walls = pytest.mark.parametrize("host", ["bubblewrap", "gvisor"], indirect=True)


def bubblewrap_only(reason: str) -> pytest.MarkDecorator:
    """Mark a test of what only bubblewrap promises, or of how it is made. `make gvisor` tells the reasons."""
    return pytest.mark.skipif(WALL != "bubblewrap", reason=f"of bubblewrap alone: {reason}")


def need_wall(name: str) -> str:
    """Skip, saying what to install, where this wall cannot work."""
    if name == "gvisor" and os.geteuid() != 0:
        pytest.skip("gVisor needs root")
    if name == "gvisor" and shutil.which("runsc") is None:
        pytest.skip("apt-get install runsc")
    return name


def need_saving_wall() -> str:
    """Skip, saying what to install, where no wall can save what runs in a sandbox."""
    need_wall("gvisor")
    said = subprocess.run(["runsc", "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    date = re.search(r"20\d{6}", said)
    if date is None or int(date[0]) < SAVES_SINCE:
        pytest.skip(f"runsc of July 2024 or later, such as Debian 13's; this is {said.split()[2]}")
    return "gvisor"


class Host:
    """One node under test: makes sandboxes, runs commands, and counts what is left on the machine."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.events: list[Event] = []

    async def create(self, **config: Any) -> Sandbox:
        full = SandboxConfig.model_validate({"image": "host", **config}, context={"client": True})
        return await self.node.create(new_id("sb"), full, "org_test")

    async def run(self, sandbox: Sandbox, command: str, **options: Any) -> tuple[str, Exit]:
        async with sandbox.use() as agent:
            spec = ExecSpec(command=command, cwd="/", env=sandbox.env, timeout_ms=60_000, **options)
            async with await agent.exec(spec) as process:
                parts = [chunk.data async for chunk in process.output()]
                return b"".join(parts).decode(), await process.wait()

    def kinds(self, sandbox: Sandbox) -> list[str]:
        return [event.type for event in self.events if event.sandbox_id == sandbox.id]

    def left(self) -> dict[str, list[str]]:
        """Processes, mounts, cgroups and folders that carry this node's data folder or its sandboxes' names."""
        data = str(self.node.settings.data_dir)
        groups = [
            str(path)
            for root in Path("/sys/fs/cgroup").iterdir()
            for path in root.glob(f"runra-{self.node.settings.instance}/*")
            if path.is_dir()
        ]
        processes = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    group = (entry / "cgroup").read_text()
                    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                except OSError:
                    continue
                if (state, parent) == ("Z", "1"):
                    continue  # dead, and the machine's init takes its time
                if f"runra-{self.node.settings.instance}/" in group:
                    processes.append(f"{entry.name} {line}")
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if data in line]
        mounts = [line for line in mounts if f" {data}/sandboxes " not in line]  # the disk they all lie on
        home = Path(data, "sandboxes")
        # Volumes and snapshots are meant to stay; they lie in folders of their own there.
        kept = (".trash", ".volumes", ".snapshots")
        folders = [path.name for folder in (home, home / ".trash") if folder.exists() for path in folder.iterdir()]
        folders = [name for name in folders if name not in kept]
        folders += [path.name for path in Path(data, "records").iterdir()]
        return {"processes": processes, "mounts": mounts, "cgroups": groups, "folders": folders}


NOTHING: dict[str, list[str]] = {"processes": [], "mounts": [], "cgroups": [], "folders": []}


async def until(condition: Callable[[], bool | Awaitable[bool]], timeout: float = 10.0) -> None:
    """Wait for a condition that must come true; fails loudly when it does not."""
    async with asyncio.timeout(timeout):
        while True:
            held = condition()
            if await held if isinstance(held, Awaitable) else held:
                return
            await asyncio.sleep(0.02)


#: Where the image `host` is made, once for all nodes of this process: nearly a thousand files, as a layer that nobody
#: writes to. Set by tests/conftest.py.
host_image_folder = Path()


@cache
def _host_image() -> RootFilesystem:
    return host_image.prepare(host_image_folder)


async def start_host(data_dir: Path, **settings: Any) -> Host:
    log = EventLog()
    node = Node(NodeSettings(data_dir=data_dir, **settings), log)

    async def lend(folder: Path) -> None:
        node._roots._host_image = await asyncio.to_thread(_host_image)

    node._roots.start = lend  # type: ignore[method-assign]
    host = Host(node)
    await node.start()
    original = log.publish

    def publish(*args: Any, **kwargs: Any) -> Event:
        event = original(*args, **kwargs)
        host.events.append(event)
        return event

    log.publish = publish  # type: ignore[method-assign]
    return host


async def stop_host(host: Host) -> None:
    for sandbox in list(host.node.sandboxes.values()):
        await sandbox.terminate()
    await host.node.settled()
    await host.node.close()


@asynccontextmanager
async def hosted(data_dir: Path, **settings: Any) -> AsyncIterator[Host]:
    """A host with these settings that leaves nothing behind, however the test ends."""
    host = await start_host(data_dir, **settings)
    try:
        yield host
    finally:
        await stop_host(host)
    await until(lambda: host.left() == NOTHING)
