"""Stdin and terminals."""

# What fails may fail at any of several steps, all of them right.
# ruff: noqa: PT012

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from runra.errors import RunraError
from runra.node.agent.link import AgentLink
from runra.node.agent.types import ExecSpec

from .harness import SANITIZED, Agent, finish, run


async def test_none_by_default(link: AgentLink) -> None:
    out, _, end = await run(link, ["cat"])
    assert (out, end.code) == (b"", 0)
    process = await link.exec(ExecSpec(argv=("cat",)))
    with pytest.raises(RunraError) as caught:
        await process.write_stdin(b"x")
    assert caught.value.code == "INVALID_STATE"


async def test_many_megabytes_there_and_back(link: AgentLink) -> None:
    data = os.urandom(1 << 20) * (8 if SANITIZED else 48)
    process = await link.exec(ExecSpec(argv=("cat",), stdin=True))

    async def write() -> None:
        for at in range(0, len(data), 3_000_001):
            await process.write_stdin(data[at : at + 3_000_001])
        await process.close_stdin()
        await process.close_stdin()

    writer = asyncio.ensure_future(write())
    digest = hashlib.sha256()
    async for piece in process.output():
        digest.update(piece.data)
    await writer
    assert digest.digest() == hashlib.sha256(data).digest()
    assert (await process.wait()).code == 0


async def test_back_pressure(link: AgentLink, agent: Agent) -> None:
    process = await link.exec(ExecSpec(argv=("sleep", "60"), stdin=True))
    writer = asyncio.ensure_future(process.write_stdin(b"x" * (8 << 20)))
    await asyncio.sleep(0.3)
    assert not writer.done()
    if not SANITIZED:
        assert agent.memory() < 1 << 20
    await link.signal(process.pid, 9)
    with pytest.raises(RunraError) as caught:
        await writer
    assert caught.value.code == "INVALID_STATE"


async def test_closed_by_the_command(link: AgentLink) -> None:
    process = await link.exec(ExecSpec(command="exec <&-; sleep 0.5", stdin=True))
    with pytest.raises(RunraError) as caught:
        for _ in range(100):
            await process.write_stdin(b"x" * 10_000)
            await asyncio.sleep(0.01)
    assert caught.value.code == "INVALID_STATE"
    await process.wait()
    with pytest.raises(RunraError):
        await process.write_stdin(b"x")


async def test_stdin_goes_on_after_a_new_connection(agent: Agent) -> None:
    first = await agent.connect()
    process = await first.exec(ExecSpec(argv=("cat",), stdin=True))
    await process.write_stdin(b"one ")
    assert (await anext(process.output())).data == b"one "
    await first.close()
    second = await agent.connect()
    process = await second.attach(process.pid)
    await process.write_stdin(b"two")
    await process.close_stdin()
    assert (await finish(process))[0] == b"one two"
    await second.close()


async def test_terminal(link: AgentLink) -> None:
    process = await link.exec(
        ExecSpec(
            command="test -t 0 && test -t 1 && tty; stty size; echo $TERM; read x; stty size; echo got $x", pty=(24, 80)
        )
    )
    text = b""
    async for piece in process.output():
        assert piece.stream == "stdout"
        text += piece.data
        if text.endswith(b"xterm-256color\r\n"):
            await process.resize(50, 132)
            await process.write_stdin(b"hello\r")
    lines = text.split(b"\r\n")
    assert lines[0].startswith(b"/dev/pts/")
    assert lines[1:3] == [b"24 80", b"xterm-256color"]
    assert b"50 132" in lines
    assert b"got hello" in lines
    assert (await process.wait()).code == 0


async def test_terminal_controls(link: AgentLink) -> None:
    # Not a shell that sleeps: bash takes no note of an interrupt that its child does not die of, such as one that
    # comes between fork and exec.
    program = "import signal as s; s.pthread_sigmask(s.SIG_BLOCK, {2}); print('ready', flush=True); exit(s.sigwait({2}) + 2)"
    process = await link.exec(ExecSpec(argv=("python3", "-c", program), pty=(24, 80)))
    text = b""
    async for piece in process.output():
        text += piece.data
        if text == b"ready\r\n":
            await process.write_stdin(b"\x03")
    assert (await process.wait()).code == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")
async def test_terminal_of_another_user(link: AgentLink) -> None:
    out, _, end = await run(
        link, "id -un; echo through the name > $(tty); : > /dev/stdout", pty=(24, 80), user="nobody"
    )
    assert (out, end.code) == (b"nobody\r\nthrough the name\r\n", 0)


async def test_end_of_file_on_a_terminal(link: AgentLink) -> None:
    process = await link.exec(ExecSpec(argv=("cat",), pty=(24, 80)))
    await process.write_stdin(b"line\n")
    await asyncio.sleep(0.1)
    await process.close_stdin()
    out, _, end = await finish(process)
    assert (out, end.code) == (b"line\r\nline\r\n", 0)


async def test_last_words_on_a_terminal(link: AgentLink) -> None:
    for _ in range(20):
        out, _, end = await run(link, "seq 1 200; exit 2", pty=(24, 80))
        assert out.endswith(b"199\r\n200\r\n")
        assert end.code == 2


async def test_much_input_to_a_terminal(link: AgentLink) -> None:
    process = await link.exec(ExecSpec(command="stty raw -echo; echo ready; head -c 300000 | wc -c", pty=(24, 80)))
    out = b""
    sent = False
    async for piece in process.output():
        out += piece.data
        if b"ready" in out and not sent:
            sent = True
            await process.write_stdin(b"y" * 300_000)
    assert b"300000" in out


@pytest.mark.parametrize("size", [(0, 80), (24, 0), (70_000, 80)])
async def test_sizes_out_of_range(link: AgentLink, size: tuple[int, int]) -> None:
    process = await link.exec(ExecSpec(argv=("sleep", "0.1"), pty=(24, 80)))
    with pytest.raises(RunraError):
        await process.resize(*size)
    await process.wait()
