"""Output under credit: volume, back-pressure, memory, re-attach."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time

import pytest

from runra.errors import RunraError
from runra.node.agent.channel import WINDOW
from runra.node.agent.link import AgentLink
from runra.node.agent.types import AgentLost, ExecSpec

from .harness import SANITIZED, Agent, finish, run, until

BIG = 64 << 20 if SANITIZED else 256 << 20


async def test_order_and_offsets(link: AgentLink) -> None:
    process = await link.exec(ExecSpec(command="for i in $(seq 300); do echo out; echo err >&2; done"))
    expected = 0
    texts = {"stdout": b"", "stderr": b""}
    async for piece in process.output():
        assert piece.offset == expected
        expected += len(piece.data)
        texts[piece.stream] += piece.data
    assert texts == {"stdout": b"out\n" * 300, "stderr": b"err\n" * 300}


async def test_binary_output(link: AgentLink) -> None:
    out, _, _ = await run(link, ["head", "-c", "3000000", "/dev/urandom"])
    assert len(out) == 3_000_000
    everything = bytes(range(256))
    out, _, _ = await run(link, ["python3", "-c", "import sys; sys.stdout.buffer.write(bytes(range(256)))"])
    assert out == everything


async def test_a_slow_reader_in_constant_memory(link: AgentLink, agent: Agent) -> None:
    """256 MB in one line to a reader that dawdles: the command waits, the agent and this side hold a window."""
    process = await link.exec(ExecSpec(command=f"head -c {BIG} /dev/zero"))
    seen = pieces = held = 0
    async for piece in process.output():
        seen += len(piece.data)
        pieces += 1
        held = max(held, process._channel.held)
        if pieces % 200 == 0:
            await asyncio.sleep(0.005)
            if not SANITIZED:
                assert agent.memory() < 3 << 20
    assert seen == BIG
    assert held <= WINDOW


async def test_one_stream_does_not_block_another(link: AgentLink) -> None:
    stuck = await link.exec(ExecSpec(command="yes"))
    await asyncio.sleep(0.2)
    begin = time.monotonic()
    assert (await run(link, ["echo", "quick"]))[0] == b"quick\n"
    assert time.monotonic() - begin < 1
    await link.signal(stuck.pid, signal.SIGKILL)
    assert (await stuck.wait()).signal == "SIGKILL"


async def test_wait_without_reading_cannot_deadlock(link: AgentLink) -> None:
    process = await link.exec(ExecSpec(command=f"head -c {16 << 20} /dev/zero; exit 9"))
    async with asyncio.timeout(20):
        assert (await process.wait()).code == 9


async def test_wait_keeps_short_output(link: AgentLink) -> None:
    process = await link.exec(ExecSpec(command="echo kept"))
    await process.wait()
    assert [piece.data async for piece in process.output()] == [b"kept\n"]
    with pytest.raises(RunraError, match="has a reader"):
        process.output()


async def test_without_a_reader_the_latest_is_kept(link: AgentLink) -> None:
    process = await link.exec(ExecSpec(command="seq 1 1000000; sleep 30"))
    process.detach()
    process.detach()
    await asyncio.sleep(0.1)
    whole = b"".join(b"%d\n" % n for n in range(1, 1_000_001))
    deadline = time.monotonic() + 20
    while True:  # until all of it went through the buffer
        again = await link.attach(process.pid, offset=len(whole))
        first = again._channel._expected
        again.detach()
        if first == len(whole):
            break
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    late = await link.attach(process.pid, offset=0)
    got = b""
    start = None
    async for piece in late.output():
        start = piece.offset if start is None else start
        got += piece.data
        if start + len(got) == len(whole):
            break
    assert start is not None
    assert start > 0
    assert len(got) >= 900_000
    assert got == whole[start:]
    await link.signal(process.pid, signal.SIGKILL)


async def test_reattach_after_a_lost_connection_misses_nothing(agent: Agent) -> None:
    first = await agent.connect()
    process = await first.exec(
        ExecSpec(command="for i in $(seq 40); do head -c 100000 /dev/zero | tr '\\0' $((i % 10)); done")
    )
    whole = b"".join(b"%d" % (i % 10) * 100_000 for i in range(1, 41))
    digest, at = hashlib.sha256(), 0
    async for piece in process.output():
        digest.update(piece.data)
        at = piece.offset + len(piece.data)
        if at > 1_000_000:
            break
    first._transport.abort()
    await first.wait_closed()
    for _ in range(3):  # and lost again, with the window in flight
        link = await agent.connect()
        process = await link.attach(process.pid, offset=at)
        async for piece in process.output():
            assert piece.offset == at
            digest.update(piece.data)
            at += len(piece.data)
            if at % 7 == 0:
                break
        await link.close()
    link = await agent.connect()
    process = await link.attach(process.pid, offset=at)
    async for piece in process.output():
        assert piece.offset == at
        digest.update(piece.data)
        at += len(piece.data)
    assert (await process.wait()).code == 0
    assert at == len(whole)
    assert digest.hexdigest() == hashlib.sha256(whole).hexdigest()
    await link.close()


async def test_attach_to_an_ended_process(link: AgentLink) -> None:
    process = await link.exec(ExecSpec(command="echo a; echo b >&2; exit 6"))
    await finish(process)
    again = await link.attach(process.pid)
    out, err, end = await finish(again)
    assert (out, err, end.code) == (b"a\n", b"b\n", 6)
    again = await link.attach(process.pid, offset=2)
    assert sum(len(piece.data) for piece in [p async for p in again.output()]) == 2
    again = await link.attach(process.pid, offset=10**9)
    assert (await finish(again))[2].code == 6


@pytest.mark.parametrize("pid", [0, -5, 1, 999_999, 1 << 40])
async def test_attach_to_a_stranger(link: AgentLink, pid: int) -> None:
    with pytest.raises(RunraError) as caught:
        await link.attach(pid)
    assert (caught.value.code, caught.value.details["reason"]) == ("INVALID_REQUEST", "no_such_process")


async def test_newest_connection_wins(agent: Agent) -> None:
    old = await agent.connect()
    process = await old.exec(ExecSpec(command="sleep 0.3; echo still here"))
    reader = asyncio.ensure_future(finish(process))
    new = await agent.connect()
    async with asyncio.timeout(5):
        await old.wait_closed()
        with pytest.raises(AgentLost):
            await reader
    with pytest.raises(AgentLost):
        await old.ping()
    again = await new.attach(process.pid)
    assert (await finish(again))[0] == b"still here\n"
    await new.close()


async def test_buffers_of_ended_processes_are_bounded(link: AgentLink, agent: Agent) -> None:
    for _ in range(12):
        process = await link.exec(ExecSpec(command="head -c 1500000 /dev/zero"))
        await process.wait()
    statuses = await link.processes()
    assert len(statuses) == 12
    if not SANITIZED:
        await until(lambda: agent.memory() < 7 << 20)
    oldest = await link.attach(statuses[0].pid)
    assert (await finish(oldest))[2].code == 0


async def test_an_idle_agent_is_small_and_sleeps(link: AgentLink, agent: Agent) -> None:
    await run(link, ["true"])
    if not SANITIZED:
        assert agent.memory() < 200 << 10
    await asyncio.sleep(0.2)
    stat = f"/proc/{agent.pid}/status"

    def switches() -> str:
        return next(line for line in open(stat) if line.startswith("voluntary"))

    before = switches()
    await asyncio.sleep(1.5)
    assert switches() == before
