"""Kill -9 of the server at every step of a snapshot, a fork, a volume's making and end: afterwards there is a whole one
or none, and nothing is left over."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runra.errors import RunraError
from runra.node.record import process_start
from tests.hosting import NOTHING, Host, start_host, stop_host, until

#: A server that does one thing and is killed by its own hand before or after a named step of it.
SERVER = """
import asyncio, functools, json, os, sys
from pathlib import Path
from runra.contract import SandboxConfig, VolumeCreate
from runra.events import EventLog
from runra.ids import new_id
from runra.node import Node, NodeSettings, node as nodes, sandbox as sandboxes
from runra.node.disk import BtrfsDisk
from runra.node.shelf import Shelf
from runra.node.agent.types import ExecSpec

owner, name, when, act = sys.argv[2].split()
OWNERS = {"Disk": BtrfsDisk, "Shelf": Shelf, "Sandbox": sandboxes.Sandbox, "Node": nodes.Node}

def die():
    os.kill(os.getpid(), 9)

def set_trap():
    original = getattr(OWNERS[owner], name)
    if asyncio.iscoroutinefunction(original):
        @functools.wraps(original)
        async def trapped(*arguments, **options):
            if when == "before": die()
            await original(*arguments, **options)
            die()
    else:
        @functools.wraps(original)
        def trapped(*arguments, **options):
            if when == "before": die()
            original(*arguments, **options)
            die()
    setattr(OWNERS[owner], name, trapped)

async def main():
    node = Node(NodeSettings(data_dir=Path(sys.argv[1])), EventLog())
    await node.start()
    source = await node.create(new_id("sb"), SandboxConfig(image="host"), "org_test")
    async with source.use() as agent, await agent.exec(ExecSpec(command="echo kept > /workspace/f", env=source.env)) as p:
        await p.wait()
    old_snapshot, old_volume = new_id("snap"), new_id("vol")
    await node.snapshot(source.id, old_snapshot, "old")
    await node.volumes.make(old_volume, "org_test", VolumeCreate(name="old"))
    print(json.dumps([source.id, node._launcher._pid]), flush=True)
    set_trap()
    if act == "snapshot":
        await node.snapshot(source.id, new_id("snap"), "new")
    elif act == "fork":
        await node.fork(source.id, [new_id("sb") for _ in range(3)])
    elif act == "volume":
        await node.volumes.make(new_id("vol"), "org_test", VolumeCreate(name="new"))
    elif act == "unsnapshot":
        node.snapshots.delete(old_snapshot)
    elif act == "unvolume":
        node.volumes.delete(old_volume)
    await node.settled()
    await asyncio.sleep(20)
    print("the step did not come", file=sys.stderr)

asyncio.run(main())
"""

STEPS = [
    *("Sandbox _freeze after snapshot", "Disk clone after snapshot", "Shelf put before snapshot"),
    *("Disk clone after fork", "Node _start after fork", "Shelf throw_away before fork"),
    *("Disk make after volume", "Shelf put after volume"),
    *("Shelf drop before unsnapshot", "Shelf drop after unsnapshot"),
    *("Shelf drop after unvolume", "Disk remove after unvolume"),
]


async def dead_server(data: Path, step: str) -> str:
    """Run a server to its death at a step; the id of the sandbox it worked with."""
    arguments = [sys.executable, "-c", SERVER, str(data), step]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        try:
            said, errors = await asyncio.to_thread(server.communicate, timeout=40)
        finally:
            server.kill()
    assert server.returncode == -signal.SIGKILL, errors.decode()
    source, launcher = json.loads(said)
    await until(lambda: process_start(launcher) == 0)
    return str(source)


@pytest.mark.parametrize("step", STEPS)
async def test_the_server_dies(tmp_path: Path, step: str) -> None:
    data, act = tmp_path / "data", step.split()[-1]
    try:
        source = await dead_server(data, step)
    finally:
        host = await start_host(data)
    try:
        await host.node.settled()
        assert set(host.node.sandboxes) == {source}, "of a fork that was not finished there is nothing"
        assert (await host.run(host.node.sandboxes[source], "cat /workspace/f"))[0] == "kept\n"
        for reference in ("old", "new"):
            await whole_or_gone(host, act, reference)
        for shelf, ids in ((".snapshots", host.node.snapshots.ids), (".volumes", host.node.volumes.ids)):
            assert {path.name for path in (data / "sandboxes" / shelf).iterdir()} == ids
    finally:
        await stop_host(host)
    await until(lambda: host.left() == NOTHING)


async def whole_or_gone(host: Host, act: str, name: str) -> None:
    for what, config in (
        ("snapshot", {"image": f"snapshot:{name}"}),
        ("volume", {"volumes": [{"name": name, "path": "/data"}]}),
    ):
        try:
            sandbox = await host.create(**config)
        except RunraError as error:
            assert f"no {what} '{name}'" in error.message, error  # noqa: PT017
            assert name == "new" or act == f"un{what}"
        else:
            assert name == "old" or act == what
            command = "cat /workspace/f" if what == "snapshot" else "echo kept > /data/f && cat /data/f"
            assert (await host.run(sandbox, command))[0] == "kept\n"
            await sandbox.terminate()
