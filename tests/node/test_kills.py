"""Kill -9 of server, agent and launcher at every step of a sandbox's life: afterwards adopted or cleaned, never orphaned."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from runra.errors import RunraError
from runra.node import Sandbox
from runra.node.agent.types import ExecSpec
from runra.node.network.host import obstacle
from runra.node.network.nft import Nft
from runra.node.process_one import ProcessOne
from runra.node.record import process_start
from tests.hosting import NOTHING, Host, need_wall, start_host, stop_host, until
from tests.node.killing import dead_server

#: A server that works on a sandbox until a named step, and is killed there by its own hand.
SERVER = """
from runra.contract import Egress, Network, SandboxConfig
from runra.events import EventLog
from runra.ids import new_id
from runra.node import Node, NodeSettings, Sandbox, cgroups, cleanup, launcher, process_one
from runra.node.agent import link
from runra.node.agent.types import ExecSpec
from runra.node.isolation import bubblewrap, gvisor
from runra.node.network import host as networks

OWNERS = {"Cgroup": cgroups.Cgroup, "Launcher": launcher.Launcher, "CleanUp": cleanup.CleanUp, "Sandbox": Sandbox,
          "ProcessOne": process_one.ProcessOne, "Bubblewrap": bubblewrap.Bubblewrap, "AgentLink": link.AgentLink,
          "Gvisor": gvisor.Gvisor, "HostNetwork": networks.HostNetwork}
wall = "gvisor" if owner == "Gvisor" else "bubblewrap"

async def main():
    node = Node(NodeSettings(data_dir=Path(sys.argv[1])), EventLog())
    await node.start()
    steady, subject = [await node.create(new_id("sb"), SandboxConfig(image="host"), "org_a") for _ in range(2)]
    if act == "resume":
        await subject.pause()
    print(json.dumps([steady.id, subject.id, node._launcher._pid]), flush=True)
    set_trap()
    if act == "create":
        await node.create("sb_half", SandboxConfig(image="host", isolation=wall), "org_a")
    elif act == "exec":
        async with subject.use() as agent:
            await agent.exec(ExecSpec(command="sleep 100", env=subject.env))
    elif act == "update_network":
        await subject.update_network(Network(egress=Egress(default="deny")))
    else:
        await getattr(subject, act)()
    await the_step_did_not_come()

asyncio.run(main())
"""

STEPS = [
    *("Cgroup create before create", "Cgroup create after create", "Launcher spawn before create"),
    *("Launcher _send after create", "Bubblewrap start after create", "ProcessOne watch after create"),
    *("Sandbox _run_from_now after create", "Sandbox _save after create"),
    *("Gvisor start before create", "Gvisor start after create"),
    *("AgentLink _start before exec", "AgentLink _start after exec"),
    *("Sandbox _freeze before pause", "Sandbox _freeze after pause", "Sandbox _save after pause"),
    *("Sandbox _thaw before resume", "Sandbox _thaw after resume", "Sandbox _save after resume"),
    *("ProcessOne kill before terminate", "ProcessOne kill after terminate"),
    *("HostNetwork take after create", "HostNetwork admit before create", "HostNetwork admit after create"),
    *("HostNetwork _apply before update_network", "HostNetwork _apply after update_network"),
    *("HostNetwork release before terminate", "HostNetwork release after terminate"),
    *("CleanUp discard before terminate", "Cgroup remove after terminate"),
    *("CleanUp delete before terminate", "CleanUp delete after terminate"),
]


@pytest.mark.parametrize("step", STEPS)
async def test_the_server_dies(tmp_path: Path, step: str) -> None:
    data, act = tmp_path / "data", step.split()[-1]
    need_wall("gvisor" if "Gvisor" in step else "bubblewrap")
    if "HostNetwork" in step and (reason := obstacle()):
        pytest.skip(reason)
    try:
        steady, subject = await dead_server(SERVER, data, step)
    finally:  # also when the server did not die as it should: what it left is found and ended below
        host = await start_host(data)
    try:
        output, _ = await host.run(host.node.sandboxes[steady], "echo steady")
        assert output == "steady\n"
        assert "sb_half" not in host.node.sandboxes or act == "create"
        for name, sandbox in host.node.sandboxes.items():
            if sandbox.info().state == "paused":
                assert name == subject
                assert act in ("pause", "resume")
                await sandbox.resume()
            output, _ = await host.run(sandbox, "echo alive")
            assert output == "alive\n"
        if act in ("exec", "pause", "resume", "update_network"):
            assert subject in host.node.sandboxes, "nothing was wrong with it"
        # What was not adopted is gone by now, its processes included; what was is all there is.
        await until(lambda: {folder for folder in host.left()["folders"] if folder.startswith("sb_")} == expected(host))
        groups = {Path(group).name for group in host.left()["cgroups"]}
        assert groups == set(host.node.sandboxes)
        if host.node._network is not None:
            network = host.node._network
            assert len(network._guests) == len(host.node.sandboxes)
            assert await asyncio.to_thread(admitted, host) == set(network._guests)
            # A namespace goes with its last descriptor, and the kernel takes its interface away a moment later.
            await until(lambda: len(interfaces(host)) == len(network._ready) + len(network._guests))
    finally:
        await stop_host(host)
    await until(lambda: host.left() == NOTHING)
    await until(lambda: not interfaces(host))


def admitted(host: Host) -> set[str]:
    """Addresses the kernel's rules let anything out from."""
    nft = Nft()
    try:
        return set(re.findall(r'" \. ([0-9.]+)', nft.run(f"list set inet runra_{host.node.settings.instance} guests")))
    finally:
        nft.close()


def interfaces(host: Host) -> list[str]:
    return [path.name for path in Path("/sys/class/net").glob(f"rn{host.node.settings.instance[:6]}*")]


def expected(host: Host) -> set[str]:
    return {f"{name}{suffix}" for name in host.node.sandboxes for suffix in ("", ".sock", ".json")}


def kill_when(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, pid: Any) -> None:
    """Kill a process when a method of the server is called, just before it does anything."""
    original: Any = getattr(owner, name)

    def trapped(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(owner, name, original)
        os.kill(pid(), signal.SIGKILL)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, trapped)


async def gone(host: Host, sandbox: Sandbox) -> None:
    # Its state tells first; it leaves the node's table when everybody has been told.
    await until(lambda: sandbox.info().state == "terminated" and sandbox.id not in host.node.sandboxes)
    await host.node.settled()


async def test_the_agent_dies_while_it_is_created(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ProcessOne.watch

    def watch(self: ProcessOne, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        original(self, pid)

    monkeypatch.setattr(ProcessOne, "watch", watch)
    with pytest.raises(RunraError):
        async with asyncio.timeout(15):
            await host.create()
    await until(lambda: not host.node.sandboxes)
    assert [event.type for event in host.events].count("sandbox.terminated") == 1


@pytest.mark.parametrize("step", ["_freeze pause", "_thaw resume", "kill terminate", "_save pause", "_save resume"])
async def test_the_agent_dies_during(host: Host, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    name, act = step.split()
    sandbox = await host.create()
    if act == "resume":
        await sandbox.pause()
    kill_when(monkeypatch, sandbox._process_one if name == "kill" else sandbox, name, lambda: sandbox.record.pid)
    try:
        async with asyncio.timeout(15):
            await getattr(sandbox, act)()
    except RunraError as error:
        assert error.code in ("INVALID_STATE", "INTERNAL_ERROR"), error  # noqa: PT017
    if sandbox.info().state == "paused":  # a v1 freezer holds even SIGKILL back until then
        try:
            await sandbox.resume()
        except RunraError as error:
            assert error.code == "INVALID_STATE", error  # noqa: PT017
    await gone(host, sandbox)
    assert host.kinds(sandbox).count("sandbox.terminated") == 1


async def test_the_agent_dies_during_an_exec(host: Host) -> None:
    sandbox, other = await host.create(), await host.create()
    running = [asyncio.create_task(host.run(sandbox, "sleep 30")) for _ in range(5)]
    await asyncio.sleep(0.2)
    os.kill(sandbox.record.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*running, return_exceptions=True)
    assert all(isinstance(outcome, RunraError) for outcome in outcomes), outcomes
    await gone(host, sandbox)
    assert (await host.run(other, "echo fine"))[0] == "fine\n"


@pytest.mark.parametrize("step", ["Launcher spawn", "Cgroup create", "Sandbox started"])
async def test_the_launcher_dies_during_a_create(host: Host, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    from runra.node import cgroups, launcher

    owner, name = step.split()
    steady = await host.create()
    owners = {"Launcher": launcher.Launcher, "Cgroup": cgroups.Cgroup, "Sandbox": Sandbox}
    kill_when(monkeypatch, owners[owner], name, lambda: host.node._launcher._pid)
    try:
        async with asyncio.timeout(35):
            await host.create()
    except RunraError as error:
        assert error.code == "INTERNAL_ERROR", error  # noqa: PT017
    async with asyncio.timeout(35):
        after = await host.create()
    for sandbox in (steady, after):
        assert (await host.run(sandbox, "echo alive"))[0] == "alive\n"
    assert process_start(host.node._launcher._pid)


@pytest.mark.parametrize("act", ["exec", "pause", "resume", "terminate"])
async def test_the_launcher_dies_during(host: Host, act: str) -> None:
    """It only starts things: nothing that runs is in its hands."""
    sandbox = await host.create()
    if act == "resume":
        await sandbox.pause()
    os.kill(host.node._launcher._pid, signal.SIGKILL)
    if act == "exec":
        assert (await host.run(sandbox, "echo fine"))[0] == "fine\n"
    else:
        async with asyncio.timeout(15):
            await getattr(sandbox, act)()
    await until(lambda: host.node._launcher._socket is None)
    await host.create()


async def test_two_hundred_pauses_lose_nothing(host: Host) -> None:
    """A process that counts, in output and in a file, through 200 cycles: no number missing, none twice."""
    sandbox = await host.create()
    program = (
        "import itertools, time\n"
        "kept = open('/workspace/kept', 'w', buffering=1)\n"
        "for i in itertools.count():\n"
        "    print(i, flush=True); kept.write(f'{i}\\n'); time.sleep(0.001)\n"
    )
    seen = bytearray()
    async with sandbox.use() as agent:
        process = await agent.exec(ExecSpec(argv=("python3", "-c", program), env=sandbox.env))

        async def read() -> None:
            async for piece in process.output():
                assert piece.offset == len(seen)
                seen.extend(piece.data)

        reading = asyncio.create_task(read())
        await until(lambda: len(seen) > 10)
        async with asyncio.timeout(60):
            for cycle in range(200):
                await sandbox.pause()
                if cycle % 20 == 0:
                    await asyncio.sleep(0.03)
                    still = bytes(seen)
                    await asyncio.sleep(0.03)
                    assert bytes(seen) == still, "it runs on while paused"
                await sandbox.resume()
                count = len(seen)
                await until(lambda count=count: len(seen) > count)  # type: ignore[misc]
        await agent.signal(process.pid, signal.SIGTERM)
        async with asyncio.timeout(10):
            await reading
        async with await agent.files.read("/workspace/kept") as stream:
            kept = b"".join([part async for part in stream])
    numbers = [int(line) for line in seen.decode().splitlines()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 200
    lines = [int(line) for line in kept.decode().splitlines()]
    assert lines == list(range(len(lines)))
    assert abs(len(lines) - len(numbers)) <= 1
    assert host.kinds(sandbox).count("sandbox.paused") == host.kinds(sandbox).count("sandbox.resumed") == 200
