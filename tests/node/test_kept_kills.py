"""Kill -9 of the server at every step of a snapshot, a fork, a volume's making and end: afterwards there is a whole one
or none, and nothing is left over."""

from __future__ import annotations

from pathlib import Path

import pytest

from runra.errors import RunraError
from tests.hosting import NOTHING, Host, start_host, stop_host, until
from tests.node.killing import dead_server

#: A server that does one thing and is killed by its own hand before or after a named step of it.
SERVER = """
from runra.contract import SandboxConfig, VolumeCreate
from runra.events import EventLog
from runra.ids import new_id
from runra.node import Node, NodeSettings, Sandbox, starting
from runra.node.disk import BtrfsDisk
from runra.node.shelf import Shelf
from runra.node.agent.types import ExecSpec

OWNERS = {"Disk": BtrfsDisk, "Shelf": Shelf, "Sandbox": Sandbox, "starting": starting}

async def main():
    node = Node(NodeSettings(data_dir=Path(sys.argv[1])), EventLog())
    await node.start()
    source = await node.create(new_id("sb"), SandboxConfig(image="host"), "org_test")
    async with source.use() as agent, await agent.exec(ExecSpec(command="echo kept > /workspace/f", env=source.env)) as p:
        await p.wait()
    old_snapshot, old_volume = new_id("snap"), new_id("vol")
    await node.snapshot(source.id, old_snapshot, "old")
    child = await node.create(new_id("sb"), SandboxConfig(image="snapshot:old"), "org_test")
    await node.volumes.make(old_volume, "org_test", VolumeCreate(name="old"))
    print(json.dumps([source.id, child.id, node._launcher._pid]), flush=True)
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
    await the_step_did_not_come()

asyncio.run(main())
"""

STEPS = [
    *("Sandbox _freeze after snapshot", "Disk clone after snapshot", "Shelf put before snapshot"),
    *("Disk clone after fork", "starting start after fork", "Shelf throw_away before fork"),
    *("Disk make after volume", "Shelf put after volume"),
    *("Shelf drop before unsnapshot", "Shelf drop after unsnapshot"),
    *("Shelf drop after unvolume", "Disk remove after unvolume"),
]


@pytest.mark.parametrize("step", STEPS)
async def test_the_server_dies(tmp_path: Path, step: str) -> None:
    data, act = tmp_path / "data", step.split()[-1]
    try:
        source, child = await dead_server(SERVER, data, step)
    finally:
        host = await start_host(data)
    try:
        await host.node.settled()
        assert set(host.node.sandboxes) == {source, child}, "of a fork that was not finished there is nothing"
        for sandbox in host.node.sandboxes.values():
            assert (await host.run(sandbox, "cat /workspace/f"))[0] == "kept\n"
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
