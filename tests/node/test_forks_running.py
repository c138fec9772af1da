"""Forks with processes: what runs in a sandbox goes on in every copy, and in the sandbox as if nothing had been."""

from __future__ import annotations

import asyncio
import errno
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runra.contract import VolumeCreate
from runra.errors import RunraError
from runra.ids import new_id
from runra.node import Sandbox
from runra.node.agent.link import AgentLink
from runra.node.agent.process import AgentProcess
from runra.node.agent.types import ExecSpec, Output
from runra.node.isolation.checkpoint import Checkpoints
from tests.hosting import NOTHING, Host, need_saving_wall, need_wall, start_host, stop_host, until

#: Keeps a secret in memory and numbers in a file it holds open, and serves both on a port; counts on its stdout.
PROGRAM = """
import os, secrets, socket, threading, time
token, numbers, start = secrets.token_hex(8), open("/workspace/numbers", "w+"), time.monotonic()
server = socket.create_server(("127.0.0.1", 8000))
pair = socket.socketpair()
os.mkdir("/run/mine")
def serve():
    while True:
        connection, _ = server.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()
def answer(connection):
    while connection.recv(100):
        pair[0].send(token.encode())
        connection.sendall(f"{pair[1].recv(100).decode()} {os.getpid()} {os.urandom(8).hex()}".encode())
threading.Thread(target=serve, daemon=True).start()
for i in range(100_000):
    print(i, flush=True)
    numbers.write(f"{i}\\n")
    numbers.flush()
    time.sleep(0.02)
"""
HELD = "import os, time; f = open('/workspace/f', 'w'); os.unlink('/workspace/f'); print('held', flush=True); time.sleep(60)"


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = await start_host(tmp_path / "data", isolation=need_saving_wall())
    try:
        yield host
    finally:
        await stop_host(host)
    await until(lambda: host.left() == NOTHING, 20)


async def fork(host: Host, source: Sandbox, count: int = 1) -> list[Sandbox]:
    return await host.node.fork(source.id, [new_id("sb") for _ in range(count)], processes=True)


async def started(agent: AgentLink, program: str, sign: bytes) -> tuple[AgentProcess, AsyncIterator[Output]]:
    process = await agent.exec(ExecSpec(argv=("python3", "-c", program), cwd="/workspace"))
    pieces = process.output()
    await said(pieces, lambda text: sign in text)
    return process, pieces


async def said(pieces: AsyncIterator[Output], enough: Callable[[bytes], bool]) -> bytes:
    text = b""
    async for piece in pieces:
        text += piece.data
        if enough(text):
            return text
    raise AssertionError(text)


def all_of(text: bytes) -> list[int]:
    """Its whole lines, of which none is missing after the first."""
    counted = [int(word) for word in text.split()[:-1]]
    assert counted == list(range(counted[0], counted[0] + len(counted)))
    return counted


async def asked(agent: AgentLink) -> list[str]:
    async with await agent.connect_port(8000) as tunnel:
        await tunnel.write(b"?", 5)
        return (await tunnel.read(5)).decode().split()


async def numbers(host: Host, sandbox: Sandbox) -> list[int]:
    text, _ = await host.run(sandbox, "cat /workspace/numbers")
    return [int(line) for line in text.split("\n")[:-1]]


async def test_what_runs_goes_on_in_every_copy(host: Host) -> None:
    source = await host.create()
    async with source.use() as agent:
        process, pieces = await started(agent, PROGRAM, b"5\n")
        before = await asked(agent)
        async with await agent.connect_port(8000) as tunnel:
            await tunnel.write(b"?", 5)
            await tunnel.read(5)
            copies = await fork(host, source, 2)
            await tunnel.write(b"?", 5)
            assert (await tunnel.read(5)).decode().split()[0] == before[0], "a connection to the source stands"
        reached = len(await numbers(host, source))
        names, answers = set(), []
        for each in (source, *copies):
            identity, _ = await host.run(each, "hostname; cat /etc/hostname /etc/machine-id; ls -d /run/mine")
            names |= set(identity.split()[1:3])
            assert identity.split()[0] == identity.split()[1] == each.id.removeprefix("sb_")
            assert identity.split()[3] == "/run/mine"
            async with each.use() as its:
                answers.append(await asked(its))
                listed = {one.pid: one for one in await its.processes()}
                assert listed[process.pid].exit is None
                again = await its.attach(process.pid, offset=0) if each is not source else None
                if again is not None:
                    counted = all_of(await said(again.output(), lambda text: len(text.split()) > reached))
                    assert counted[0] == 0, "its output is that of before, and goes on"
                    again.detach()
        assert len(names) == 6, "each has a name and a machine id of its own"
        assert {answer[0] for answer in answers} == {before[0]}, "memory is the same"
        assert {answer[1] for answer in answers} == {before[1]}
        assert len({answer[2] for answer in answers}) == 3, "randomness is not"
        for each in (source, *copies):
            now = len(await numbers(host, each))
            assert (found := await numbers(host, each)) == list(range(len(found)))
            await until(lambda each=each, now=now: _beyond(host, each, now))
        all_of(await said(pieces, lambda text: len(text.split()) > reached))  # the source's own has no gap
        # A copy can be copied, and ended, without anybody else noticing.
        (second,) = await fork(host, copies[0])
        await copies[0].terminate()
        async with second.use() as its:
            assert (await asked(its))[0] == before[0]
            await its.signal(process.pid, 9)
        async with source.use() as its:
            assert (await asked(its))[0] == before[0]


async def _beyond(host: Host, sandbox: Sandbox, reached: int) -> bool:
    return len(await numbers(host, sandbox)) > reached


#: Holds a connection to the name server, asks over it when told, and then over another one.
ASKING = """
import os, socket, time
server = [line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver")][0]
question = bytes.fromhex("001d123401000001000000000000076578616d706c6503636f6d0000010001")
def ask(connection):
    try:
        connection.sendall(question)
        return len(connection.recv(10))
    except OSError as error:
        return error.errno
held = socket.create_connection((server, 53), 10)
print(ask(held), flush=True)
while not os.path.exists("/workspace/go"):
    time.sleep(0.02)
print(ask(held), ask(socket.create_connection((server, 53), 10)), "done", flush=True)
"""


async def test_connections_to_the_outside_end_and_new_ones_can_be_made(host: Host) -> None:
    source = await host.create()
    async with source.use() as agent:
        process, _ = await started(agent, ASKING, b"10\n")
    (copy,) = await fork(host, source)
    for each in (source, copy):
        await host.run(each, "touch /workspace/go")
        async with each.use() as agent:
            again = await agent.attach(process.pid, offset=0)
            text = await said(again.output(), lambda text: b"done" in text)
            assert text.split() == [b"10", str(errno.ECONNABORTED).encode(), b"10", b"done"]


async def test_what_cannot_be_saved_is_told_and_the_source_goes_on(host: Host) -> None:
    source = await host.create()
    async with source.use() as agent:
        process, _ = await started(agent, HELD, b"held")
        with pytest.raises(RunraError) as refused:
            await fork(host, source, 2)
        assert refused.value.code == "INVALID_STATE"
        assert refused.value.details["reason"] == "not_saved"
        assert "deleted" in refused.value.message
        assert [one.exit for one in await agent.processes() if one.pid == process.pid] == [None]
        assert (await host.run(source, "echo fine"))[0] == "fine\n"
        await agent.signal(process.pid, 9)
        await process.wait()
    assert len(await fork(host, source, 2)) == 2


async def test_who_takes_the_agents_place_inside_gets_no_fork(host: Host) -> None:
    source = await host.create()
    taker = "import socket, time; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind('\\0runra-agent'); print('taken', flush=True); time.sleep(60)"
    async with source.use() as agent:
        process, _ = await started(agent, taker, b"taken")
        with pytest.raises(RunraError) as refused:
            await fork(host, source)
        assert refused.value.code == "INVALID_STATE"
        assert (await host.run(source, "echo fine"))[0] == "fine\n"
        await agent.signal(process.pid, 9)
        await process.wait()
    assert len(await fork(host, source)) == 1


async def test_states_and_walls_it_cannot_be_made_of(host: Host, tmp_path: Path) -> None:
    source = await host.create()
    await source.pause()
    with pytest.raises(RunraError) as refused:
        await fork(host, source)
    assert refused.value.code == "INVALID_STATE"
    assert refused.value.details["state"] == "paused"
    other = await host.create(isolation="bubblewrap")
    with pytest.raises(RunraError) as refused:
        await fork(host, other)
    assert refused.value.code == "INVALID_CONFIG"
    assert refused.value.details["field"] == "processes"


async def test_no_room_to_save_is_told_before_anything_stands_still(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await host.create()
    with monkeypatch.context() as patched:
        patched.setattr("runra.node.isolation.checkpoint._MIN_FREE_MB", 1 << 40)
        with pytest.raises(RunraError) as refused:
            await fork(host, source)
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert len(await fork(host, source)) == 1


async def test_a_sandbox_without_memory_left_is_not_touched(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    source = await host.create(resources={"memoryMb": 256})
    eater = "x = __import__('os').urandom(120 << 20); print('full', flush=True); __import__('time').sleep(60)"
    async with source.use() as agent:
        process, _ = await started(agent, eater, b"full")
        monkeypatch.setattr("runra.node.isolation.checkpoint._MIN_MEMORY_MB", 128)
        with pytest.raises(RunraError) as refused:
            await fork(host, source)
        assert refused.value.code == "RESOURCE_EXHAUSTED"
        assert refused.value.details["reason"] == "out_of_memory"
        await agent.signal(process.pid, 9)
        await process.wait()
    await until(lambda: (source.cgroup.free_memory() or 0) >> 20 > 128)
    assert len(await fork(host, source)) == 1


@pytest.mark.parametrize("times", [1, 2], ids=["once", "for good"])
async def test_a_source_that_does_not_go_on_is_helped_or_ended(
    host: Host, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    source = await host.create()
    original, failures = Checkpoints.go_on, iter(range(times))

    async def failing(self: Checkpoints, box: Any) -> None:
        if next(failures, None) is None:
            await original(self, box)
        else:
            raise RunraError("INTERNAL_ERROR", "runsc was not done within 20 s")

    monkeypatch.setattr(Checkpoints, "go_on", failing)
    with pytest.raises(RunraError, match="not done within 20 s"):
        await fork(host, source)
    if times == 1:
        assert (await host.run(source, "echo fine"))[0] == "fine\n"
        assert not source.record.apart
    else:
        await until(lambda: source.record.state == "terminated", 60)
        assert source.record.termination_reason == "error"
    await host.node.settled()
    assert not list((host.node.settings.sandboxes_dir / ".snapshots").glob("*"))


async def test_a_server_that_stops_finishes_the_saving_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    host = await start_host(data, isolation=need_saving_wall())
    source = await host.create()
    saving, original = asyncio.Event(), Checkpoints._save

    async def slow(self: Checkpoints, box: Any, into: Path) -> None:
        saving.set()
        await asyncio.sleep(1)
        await original(self, box, into)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "_save", slow)
        forking = asyncio.create_task(fork(host, source))
        await asyncio.wait_for(saving.wait(), 20)
        forking.cancel()
        await asyncio.gather(host.node.close(), forking, return_exceptions=True)
    again = await start_host(data, isolation="gvisor")
    try:
        assert set(again.node.sandboxes) == {source.id}
        assert (await again.run(again.node.sandboxes[source.id], "echo fine"))[0] == "fine\n"
    finally:
        await stop_host(again)
    await until(lambda: again.left() == NOTHING, 20)


async def test_a_copy_is_behind_the_wall_of_its_source(tmp_path: Path) -> None:
    data = tmp_path / "data"
    host = await start_host(data, isolation=need_saving_wall())
    source = await host.create()
    await host.node.close()
    again = await start_host(data, isolation="bubblewrap")  # the default of another day
    try:
        (copy,) = await fork(again, again.node.sandboxes[source.id])
        assert copy.info().isolation == "gvisor"
    finally:
        await stop_host(again)


async def test_a_paused_source_is_resumed_where_it_may_be(host: Host) -> None:
    source = await host.create(autoResume=True)
    await source.pause()
    await host.node.snapshot(source.id, new_id("snap"), None)
    assert source.info().state == "running"
    await source.pause()
    assert len(await fork(host, source)) == 1
    assert source.info().state == "running"


async def test_what_cannot_come_to_anything_is_told_before_it_stands_still(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.node.volumes.make(new_id("vol"), "org_test", VolumeCreate(name="data", size_mb=32))
    source = await host.create(volumes=[{"name": "data", "path": "/data"}])
    monkeypatch.setattr(AgentLink, "part", None)  # nothing may be asked of it
    with pytest.raises(RunraError, match="one writer"):
        await fork(host, source)
    other = await host.create()
    monkeypatch.setattr(host.node, "settings", replace(host.node.settings, max_sandboxes=2))
    with pytest.raises(RunraError, match="may hold 2"):
        await fork(host, other)


async def test_going_on_waits_for_a_save_that_a_dead_server_left(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    source = await host.create(resources={"memoryMb": 2048})
    given: list[float] = []

    async def noted(self: Checkpoints, box: Any, at: Any, timeout: float, *words: str) -> None:
        given.append(timeout)

    monkeypatch.setattr(Checkpoints, "_run", noted)
    checkpoints = host.node._isolations["gvisor"].checkpoints
    assert checkpoints is not None
    async with checkpoints.saved(source._standing(0), host.node._disk, host.node.settings.sandboxes_dir / "seed_0"):
        pass
    pausing, saving, resuming = given
    assert pausing < saving <= resuming


async def test_a_server_that_offers_the_wall_no_more_keeps_its_sandboxes(tmp_path: Path) -> None:
    data = tmp_path / "data"
    host = await start_host(data, isolation=need_wall("gvisor"))
    source = await host.create()
    await host.node.close()
    again = await start_host(data, allowed_isolation=frozenset({"bubblewrap"}))
    try:
        assert (await again.run(again.node.sandboxes[source.id], "echo fine"))[0] == "fine\n"
        with pytest.raises(RunraError) as refused:
            await fork(again, again.node.sandboxes[source.id])
        assert refused.value.code == "INVALID_CONFIG"
    finally:
        await stop_host(again)
    await until(lambda: again.left() == NOTHING, 20)


@pytest.mark.parametrize("step", ["before", "saving", "starting"])
async def test_a_cancelled_fork_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    source = await host.create()
    there = asyncio.Event()

    def marked(original: Callable[..., Any]) -> Callable[..., Any]:
        async def mark(*args: Any, **kwargs: Any) -> Any:
            there.set()
            return await original(*args, **kwargs)

        return mark

    where: tuple[Any, str] = {
        "before": (AgentLink, "part"),
        "saving": (Checkpoints, "_save"),
        "starting": (host.node._isolations["gvisor"], "start"),
    }[step]
    with monkeypatch.context() as patched:
        patched.setattr(*where, marked(getattr(*where)))
        task = asyncio.create_task(fork(host, source, 2))
        await asyncio.wait_for(there.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: set(host.node.sandboxes) == {source.id}, 20)
    await host.node.settled()
    assert not list((host.node.settings.sandboxes_dir / ".snapshots").glob("*"))
    assert (await host.run(source, "echo fine"))[0] == "fine\n"


#: A server that dies in the middle of saving a sandbox, which stands still then and cannot be reached.
SERVER = """
import asyncio, json, os, signal, sys
from pathlib import Path
from runra.contract import SandboxConfig
from runra.events import EventLog
from runra.ids import new_id
from runra.node import Node, NodeSettings
from runra.node.agent.process import AgentProcess
from runra.node.agent.types import ExecSpec, Output
from runra.node.isolation.checkpoint import Checkpoints

async def main():
    node = Node(NodeSettings(data_dir=Path(sys.argv[1]), isolation="gvisor"), EventLog())
    await node.start()
    sandbox = await node.create(new_id("sb"), SandboxConfig(image="host"), "org_a")
    async with sandbox.use() as agent:
        fill = "import time; full = bytearray(b'x' * (200 << 20)); print(1, flush=True); time.sleep(60)"
        filling = await agent.exec(ExecSpec(argv=("python3", "-c", fill)))
        await anext(filling.output())
        process = await agent.exec(ExecSpec(command="for i in $(seq 1000); do echo $i; sleep 0.02; done"))
        await anext(process.output())
    print(json.dumps([sandbox.id, process.pid]), flush=True)
    original = Checkpoints._save
    async def last(self, box, into):
        if sys.argv[2] == "saving":
            task = asyncio.create_task(original(self, box, into))
            while sum(file.stat().st_size for file in into.iterdir()) < 10 << 20:
                await asyncio.sleep(0.001)
            assert not task.done()
        elif sys.argv[2] == "saved":
            await original(self, box, into)
        os.kill(os.getpid(), signal.SIGKILL)
    Checkpoints._save = last
    await node.fork(sandbox.id, [new_id("sb")], processes=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["paused", "saving", "saved"])
async def test_a_server_that_dies_while_it_saves_leaves_a_sandbox_that_goes_on(tmp_path: Path, moment: str) -> None:
    data = tmp_path / "data"
    need_saving_wall()
    command = [sys.executable, "-c", SERVER, str(data), moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        sandbox_id, pid = json.loads(await asyncio.to_thread(server.stdout.readline))
        await asyncio.to_thread(server.wait, 60)
    host = await start_host(data, isolation="gvisor")
    try:
        assert set(host.node.sandboxes) == {sandbox_id}
        sandbox = host.node.sandboxes[sandbox_id]
        async with sandbox.use() as agent:
            process = await agent.attach(pid, offset=0)
            assert all_of(await said(process.output(), lambda text: len(text.split()) > 80))[0] == 1
            process.detach()
        assert not list((host.node.settings.sandboxes_dir / ".snapshots").glob("*"))
        assert len(await fork(host, sandbox)) == 1
    finally:
        await stop_host(host)
    await until(lambda: host.left() == NOTHING, 20)


async def test_a_runsc_that_cannot_save_is_told(tmp_path: Path) -> None:
    host = await start_host(tmp_path / "data", isolation=need_wall("gvisor"))
    try:
        host.node._isolations["gvisor"].checkpoints = None  # as behind Debian 12's
        source = await host.create()
        with pytest.raises(RunraError) as refused:
            await fork(host, source)
        assert refused.value.code == "INVALID_CONFIG"
        assert "runsc" in refused.value.message
        assert len(await host.node.fork(source.id, [new_id("sb")])) == 1
    finally:
        await stop_host(host)
    await until(lambda: host.left() == NOTHING, 20)
