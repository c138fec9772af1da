"""Images on a node that an ordinary user runs: one id for all files, the rest as it is."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.images.oci import BUSYBOX, busybox
from tests.node.test_unprivileged import as_user, own_folder  # noqa: F401 - a fixture

SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from runra.contract import SandboxConfig
from runra.events import EventLog
from runra.ids import new_id
from runra.node import Node, NodeSettings
from runra.node.agent.types import ExecSpec
from runra.node.images.manifest import MOST_LAYERS
from runra.node.images.store import reference_of

async def chunks():
    yield Path(sys.argv[2]).read_bytes()

async def main():
    node = Node(NodeSettings(data_dir=Path(sys.argv[1])), EventLog())
    await node.start()
    await node.images.import_archive(chunks(), "box:1", "org", shared=False)
    sandbox = await node.create(new_id("sb"), SandboxConfig(image="box:1"), "org")
    async with sandbox.use() as agent, await agent.exec(ExecSpec(command="stat -c '%n %u' /owned /bin/busybox; stat -c %a /tmp; cat /owned; rm -r /old; test -e /old || echo gone; mkdir /old; ls /old", env=sandbox.env)) as process:
        told = {"said": b"".join([chunk.data async for chunk in process.output()]).decode()}
    made = await node.commit(sandbox.id, "made:1", shared=False, step=False)
    second = await node.create(new_id("sb"), SandboxConfig(image="made:1"), "org")
    async with second.use() as agent, await agent.exec(ExecSpec(command="ls /old; echo $?", env=sandbox.env)) as process:
        told["second"] = b"".join([chunk.data async for chunk in process.output()]).decode()
    record, layers = node.images.find(reference_of("box:1"), "org"), node.images.layers
    more = [f"{number:032x}" for number in range(MOST_LAYERS - len(record.layers))]
    with layers.pinned(more):
        for name in more:
            async with layers.scratch() as scratch:
                (scratch / "layer/way" / name).mkdir(parents=True)
                layers.keep(scratch / "layer", name, f"sha256:{name}", 0, "org")
        await node.images.keep(record.model_copy(update={"reference": str(reference_of("many:1")), "layers": [*record.layers, *more]}))
    third = await node.create(new_id("sb"), SandboxConfig(image="many:1"), "org")
    async with third.use() as agent, await agent.exec(ExecSpec(command="ls /way", env=sandbox.env)) as process:
        told["third"] = b"".join([chunk.data async for chunk in process.output()]).decode().split() == more
    for one in (sandbox, second, third):
        await one.terminate()
    await node.settled()
    await node.images.prune("org", 0)
    await node.close()
    told["left"] = [path.name for name in ("layers", "tmp") for path in Path(sys.argv[1], "images", name).iterdir()]
    print(json.dumps(told))

asyncio.run(main())
"""


def test_an_ordinary_user_has_images(own_folder: Path) -> None:  # noqa: F811 - the fixture
    if not BUSYBOX.exists():
        pytest.skip("no static busybox: apt-get install busybox-static")
    layer = busybox().add("owned", b"by somebody\n", uid=1234, gid=99).folder("old", 0o555).add("old/file", b"", mode=0)
    layer.add("tmp/without/its/folder", b"")
    archive = own_folder / "box.tar"
    archive.write_bytes(layer.bytes())
    archive.chmod(0o644)
    command, environment = as_user(own_folder)
    done = subprocess.run(
        [*command, "-c", SCRIPT, str(own_folder / "data"), str(archive)],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["said"] == "/owned 0\n/bin/busybox 0\n1777\nby somebody\ngone\n"
    assert told["second"] == "0\n"
    assert told["third"], "as many layers as an image may have: their paths would not fit into a mount's options"
    assert told["left"] == []
