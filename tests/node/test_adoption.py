"""A server that ends, gracefully or not, and the next one that finds its sandboxes alive."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runra.node.agent.types import ExecSpec
from runra.node.record import process_start
from tests.hosting import NOTHING, need_wall, start_host, stop_host, until

#: A server in a process of its own: makes sandboxes, one of them paused, one with a running command, then waits.
SERVER = """
import asyncio, json, sys
from pathlib import Path
from runra.contract import SandboxConfig
from runra.events import EventLog
from runra.ids import new_id
from runra.node import Node, NodeSettings
from runra.node.agent.types import ExecSpec

async def main():
    node = Node(NodeSettings(data_dir=Path(sys.argv[1]), isolation=sys.argv[2]), EventLog())
    await node.start()
    config = SandboxConfig(image="host", metadata={"k": "v"})
    counting, paused, dying = [await node.create(new_id("sb"), config, "org_a") for _ in range(3)]
    async with counting.use() as agent:
        process = await agent.exec(ExecSpec(command="for i in $(seq 1000); do echo $i; sleep 0.02; done"))
        await anext(process.output())
    await paused.pause()
    print(json.dumps([counting.id, paused.id, dying.id, dying.record.pid, process.pid]), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("how", "wall"), [(signal.SIGKILL, "bubblewrap"), (signal.SIGTERM, "bubblewrap"), (signal.SIGKILL, "gvisor")]
)
async def test_the_next_server_adopts(tmp_path: Path, how: signal.Signals, wall: str) -> None:
    data = tmp_path / "data"
    with subprocess.Popen([sys.executable, "-c", SERVER, str(data), need_wall(wall)], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        line = await asyncio.to_thread(server.stdout.readline)
        counting, paused, dying, dying_pid, pid = json.loads(line)
        server.send_signal(how)
    os.kill(dying_pid, signal.SIGKILL)  # its last minute has no witness
    await until(lambda: process_start(dying_pid) == 0)
    host = await start_host(data)
    try:
        assert set(host.node.sandboxes) == {counting, paused}
        assert host.node.gone == {dying: "node_lost"}
        sandbox = host.node.sandboxes[counting]
        assert sandbox.config.metadata == {"k": "v"}
        assert sandbox.organization_id == "org_a"
        async with sandbox.use() as agent:
            process = await agent.attach(pid, offset=0)
            text = b""
            async for chunk in process.output():
                assert chunk.offset == len(text)
                text += chunk.data
                if len(text.split()) > 80:
                    break
            process.detach()
        numbers = [int(word) for word in text.split()[:-1]]
        assert numbers == list(range(1, len(numbers) + 1)), "output of before and after, nothing missing"
        assert host.node.sandboxes[paused].info().state == "paused"
        await host.node.sandboxes[paused].resume()
        output, _ = await host.run(host.node.sandboxes[paused], "echo awake")
        assert output == "awake\n"
    finally:
        await stop_host(host)
    await until(lambda: host.left() == NOTHING)


async def test_closing_a_node_keeps_its_sandboxes(tmp_path: Path) -> None:
    first = await start_host(tmp_path / "data")
    sandbox = await first.create()
    await first.run(sandbox, "echo kept > /workspace/note")
    await first.node.close()
    second = await start_host(tmp_path / "data")
    output, _ = await second.run(second.node.sandboxes[sandbox.id], "cat /workspace/note")
    assert output == "kept\n"
    await stop_host(second)
    await until(lambda: second.left() == NOTHING)


async def test_memory_that_ran_out_while_nobody_was_there(tmp_path: Path) -> None:
    """Behind gVisor something may be left of such a sandbox; it is ended, and for what it was."""
    first = await start_host(tmp_path / "data", isolation=need_wall("gvisor"))
    sandbox = await first.create(resources={"memoryMb": 128})
    async with sandbox.use() as agent:
        bomb = "sleep 0.5; exec python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))'"
        (await agent.exec(ExecSpec(command=bomb))).detach()
    await first.node.close()
    await until(lambda: sandbox.oom_kills() > 0)
    second = await start_host(tmp_path / "data")
    assert second.node.gone == {sandbox.id: "oom"}
    await until(lambda: second.left() == NOTHING)
    await stop_host(second)


async def test_rubbish_in_the_data_folder_is_cleaned_away(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "sandboxes/sb_half/upper0").mkdir(parents=True)
    (data / "records").mkdir()
    (data / "records/sb_broken.json").write_text("{")
    (data / "sandboxes/.trash/old").mkdir(parents=True)
    host = await start_host(data)
    assert host.node.gone == {"sb_half": "error", "sb_broken": "error"}
    await until(lambda: host.left() == NOTHING)
    await stop_host(host)
