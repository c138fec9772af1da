"""Lies in both directions: an agent that speaks nonsense, and a host that does."""

# What fails may fail at any of several steps, all of them right.
# ruff: noqa: PT012

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runra.node.agent.channel import WINDOW
from runra.node.agent.frames import HEADER, Ask, Field, Tell, pack, pack_credit, pack_fields, pack_output
from runra.node.agent.link import AgentLink
from runra.node.agent.types import AgentLost, ExecSpec

from .harness import Agent, run

HELLO = pack(Tell.HELLO, 0, pack_fields([(Field.VERSION, 1)]))
STARTED = pack_fields([(Field.PID, 5), (Field.STARTED_AT, 1), (Field.REUSED, 0), (Field.OFFSET, 0), (Field.TITLE, "x")])
EXIT = [(Field.CODE, 0), (Field.SIGNAL, 0), (Field.TIMED_OUT, 0), (Field.DURATION_MS, 1), (Field.ENDED_AT, 1)]


def digest(raw: bytes) -> str:
    """A test's name that is short and the same in every worker."""
    return f"{zlib.crc32(raw):08x}"


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Liar:
    """A socket that behaves as a script says."""

    def __init__(self, home: Path) -> None:
        self.path = home / "liar.sock"
        self.script: Script | None = None

    async def __aenter__(self) -> Liar:
        self.server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self.script is not None
        try:
            await self.script(reader, writer)
            await asyncio.sleep(60)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def __aexit__(self, *_: object) -> None:
        self.server.close()


@pytest.fixture
async def liar(home: Path) -> AsyncIterator[Liar]:
    async with Liar(home) as liar:
        yield liar


async def request(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    length, kind, _, _, stream = HEADER.unpack(await reader.readexactly(HEADER.size))
    return kind, stream, await reader.readexactly(length)


def after_start(*frames: bytes) -> Script:
    """Greet, start stream 1, then say these."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(HELLO)
        await request(reader)
        writer.write(pack(Tell.STARTED, 1, STARTED) + b"".join(frames))
        await writer.drain()

    return script


@pytest.mark.parametrize(
    "greeting",
    [
        b"",
        b"\0" * 12,
        b"HTTP/1.1 200 OK\r\n\r\n",
        pack(Tell.PONG, 0),
        pack(Tell.HELLO, 0),
        pack(Tell.HELLO, 0, b"\1"),
        pack(Tell.HELLO, 0, pack_fields([(Field.VERSION, 99)])),
        HELLO + HELLO,
        HELLO + b"\xff" * 40,
    ],
    ids=digest,
)
async def test_bad_greetings(liar: Liar, greeting: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)

    liar.script = script
    with pytest.raises(AgentLost):
        link = await AgentLink.connect(liar.path, timeout=0.5)
        await link.ping(0.5)


async def test_nobody_there(home: Path) -> None:
    with pytest.raises(AgentLost):
        await AgentLink.connect(home / "none")


def output(offset: int, data: bytes = b"x") -> bytes:
    return pack_output(1, offset, data)


@pytest.mark.parametrize(
    "frame",
    [
        output(5),
        output(0) + output(0),
        output(0) + output(2),
        output(1 << 63),
        pack(Tell.OUTPUT, 1, b"12345678"),
        pack(Tell.OUTPUT, 1, b""),
        b"".join(output(at, b"y" * 65536) for at in range(0, WINDOW + 65536, 65536)),
        output(0)[:6] + b"\1\0" + output(0)[8:],
        pack_output(2, 0, b"another stream"),
        pack(Tell.STARTED, 1, STARTED),
        pack(Tell.DONE, 1),
        pack(Tell.PONG, 1),
        pack(Tell.STATUS, 1, STARTED),
        pack(Tell.CLOSED, 1),
        pack(Tell.HELLO, 1),
        pack(Tell.EXIT, 1),
        pack(Tell.EXIT, 1, pack_fields([*EXIT[1:], (Field.CODE, 1 << 40)])),
        pack(Tell.EXIT, 1, b"\x10\xff\xff\xff\xff"),
        pack(Tell.EXIT, 1, pack_fields(EXIT)) * 2,
        pack(Tell.ERROR, 1, b"\1"),
        pack(Tell.ERROR, 9),
        pack(Tell.CREDIT, 1, b"12345"),
        pack(Tell.CREDIT, 1, b"\xff\xff\xff\xff"),
        HEADER.pack(0xFFFFFFFF, Tell.OUTPUT, 0, 0, 1),
        HEADER.pack(0, 200, 0, 0, 1),
        bytes(range(100, 200)),
    ],
    ids=digest,
)
async def test_a_lying_agent_loses_the_link(liar: Liar, frame: bytes) -> None:
    liar.script = after_start(frame)
    link = await AgentLink.connect(liar.path)
    async with asyncio.timeout(5):
        with pytest.raises(AgentLost, match="protocol"):
            process = await link.exec(ExecSpec(argv=("x",)))
            await link.wait_closed()
            [piece async for piece in process.output()]
            await link.ping()
    assert link.closed
    with pytest.raises(AgentLost):
        await link.processes()
    with pytest.raises(AgentLost):
        await link.files.stat("/")


@pytest.mark.parametrize(
    "answer",
    [
        pack(Tell.STARTED, 1),
        pack(Tell.STARTED, 1, STARTED[:-1]),
        pack(Tell.STARTED, 1, pack_fields([(Field.PID, 1), (Field.OFFSET, 0)])),
        pack(Tell.EXIT, 1, pack_fields(EXIT)),
        output(0),
    ],
    ids=digest,
)
async def test_a_lie_instead_of_a_start(liar: Liar, answer: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(HELLO)
        await request(reader)
        writer.write(answer)

    liar.script = script
    link = await AgentLink.connect(liar.path)
    async with asyncio.timeout(5):
        with pytest.raises(AgentLost):
            await link.exec(ExecSpec(argv=("x",)))
    assert link.closed


async def test_endless_process_lists(liar: Liar) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(HELLO)
        _, stream, _ = await request(reader)
        while True:
            writer.write(pack(Tell.STATUS, stream, STARTED))
            await writer.drain()

    liar.script = script
    link = await AgentLink.connect(liar.path)
    async with asyncio.timeout(10):
        with pytest.raises(AgentLost):
            await link.processes()


async def test_frames_behind_a_detach_are_no_lie(liar: Liar) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(HELLO)
        await request(reader)
        writer.write(pack(Tell.STARTED, 1, STARTED))
        kind, stream, _ = await request(reader)
        assert (kind, stream) == (Ask.DETACH, 1)
        writer.write(output(0) + pack(Tell.EXIT, 1, pack_fields(EXIT)) + pack(Tell.CLOSED, 1))
        kind, stream, _ = await request(reader)
        writer.write(pack(Tell.PONG, stream))

    liar.script = script
    link = await AgentLink.connect(liar.path)
    process = await link.exec(ExecSpec(argv=("x",)))
    process.detach()
    await link.ping()
    assert not link._leaving
    await link.close()


async def test_a_silent_agent_misses_its_deadline(liar: Liar) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)

    liar.script = script
    link = await AgentLink.connect(liar.path)
    with pytest.raises(AgentLost, match="did not answer"):
        await link.ping(0.2)
    await link.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(min_size=1, max_size=300))
async def test_noise_from_the_agent(liar: Liar, noise: bytes) -> None:
    liar.script = after_start(noise, b"\xff" * 12)
    link = await AgentLink.connect(liar.path)
    async with asyncio.timeout(5):
        with pytest.raises(AgentLost):
            process = await link.exec(ExecSpec(argv=("x",)))
            await process.wait()
            await link.wait_closed()
            await link.ping()
    await link.close()


# --- the other direction ---


def speak(agent: Agent, data: bytes, *, greet: bool = True) -> None:
    """Say something to the agent and hear whether it hangs up; it must live on either way."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(5)
        wire.connect(str(agent.path))
        if greet:
            data = pack(Ask.HELLO, 0, pack_fields([(Field.VERSION, 1)])) + data
        try:
            wire.sendall(data)
            while wire.recv(65536):
                pass
        except (ConnectionError, BrokenPipeError):
            pass


def exec_frame(stream: int, *more: tuple[Field, int | str]) -> bytes:
    return pack(
        Ask.EXEC, stream, pack_fields([(Field.COMMAND, "sleep 5"), (Field.WINDOW, 1000), (Field.STDIN, 1), *more])
    )


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 12,
        pack(Ask.HELLO, 0, pack_fields([(Field.VERSION, 1)])),
        pack(Ask.EXEC, 0, b""),
        pack(Ask.EXEC, 1, b""),
        pack(Ask.EXEC, 1, b"\x20\xff\xff\xff\xff"),
        pack(Ask.EXEC, 1, pack_fields([(Field.COMMAND, "true")] * 2)),
        pack(Ask.EXEC, 1, pack_fields([(Field.COMMAND, "true"), (Field.ARG, "true")])),
        pack(Ask.EXEC, 1, pack_fields([(Field.ARG, "a")] * 20_000)),
        pack(Ask.EXEC, 1, b"\x20\x03\0\0\0a\0b"),
        pack(Ask.EXEC, 1, b"\x1f\x08\0\0\0" + b"\0" * 8),
        pack(Ask.EXEC, 1, b"\xff\x01\0\0\0\0"),
        exec_frame(1, (Field.TIMEOUT_MS, (1 << 64) - 1)),
        exec_frame(1, (Field.ROWS, 1 << 20)),
        exec_frame(1) + exec_frame(1),
        exec_frame(1) + pack(Ask.DATA, 1, b"x" * 65536) * 10,
        pack(Ask.FILE, 1, pack_fields([(Field.OP, 99), (Field.PATH, "/")])),
        pack(Ask.FILE, 1, pack_fields([(Field.OP, 1)])),
        HEADER.pack(5 << 20, Ask.EXEC, 0, 0, 1),
        HEADER.pack(65537, Ask.DATA, 0, 0, 1),
        HEADER.pack(5, Ask.CREDIT, 0, 0, 1),
        HEADER.pack(1, Ask.PING, 0, 0, 1),
        HEADER.pack(0, Ask.PING, 1, 0, 1),
        HEADER.pack(0, Ask.PING, 0, 1, 1),
        HEADER.pack(0, 15, 0, 0, 1),
        HEADER.pack(1, Ask.PART, 0, 0, 1),
        pack(Ask.PART, 0),
        pack(Ask.CONNECT, 0, pack_fields([(Field.PORT, 8000)])),
        pack(Ask.CONNECT, 1, b"\1"),
    ],
    ids=digest,
)
async def test_a_lying_host_is_cut_off(agent: Agent, data: bytes) -> None:
    await asyncio.to_thread(speak, agent, data)
    link = await agent.connect()
    assert (await run(link, ["echo", "fine"]))[0] == b"fine\n"
    for status in await link.processes():
        if status.exit is None:
            await link.signal(status.pid, 9)
    await link.close()


@pytest.mark.parametrize(
    "data",
    [b"\0" * 12, pack(Ask.PING, 1), pack(Ask.HELLO, 0, pack_fields([(Field.VERSION, 2)])), pack(Ask.HELLO, 0, b"x")],
    ids=digest,
)
async def test_a_host_that_does_not_greet(agent: Agent, data: bytes) -> None:
    await asyncio.to_thread(speak, agent, data, greet=False)
    link = await agent.connect()
    await link.ping()
    await link.close()


async def test_frames_for_streams_that_are_not_there(agent: Agent, link: AgentLink) -> None:
    for kind, payload in ((Ask.DATA, b"x"), (Ask.EOF, b""), (Ask.CREDIT, b"\1\0\0\0"), (Ask.RESIZE, b"\1\0\1\0")):
        link.send(pack(kind, 4242, payload))
    link.send(pack_credit(1, 1 << 31))
    await link.ping()


async def test_credit_beyond_what_was_sent(link: AgentLink) -> None:
    process = await link.exec(ExecSpec(command="head -c 3000000 /dev/zero"))
    for _ in range(20):
        link.send(pack_credit(process._channel.stream, 0xFFFFFFFF))
    with pytest.raises(AgentLost):  # it then sends more than this side allowed, which is a lie too
        [piece async for piece in process.output()]
        raise AgentLost("all came within the window")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=200), kind=st.integers(1, 12), good=st.booleans())
async def test_noise_from_the_host(agent: Agent, noise: bytes, kind: int, good: bool) -> None:
    data = HEADER.pack(len(noise), kind, 0, 0, 1) + noise if good else noise

    def say() -> None:
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(str(agent.path))
            with contextlib.suppress(OSError):
                wire.sendall(pack(Ask.HELLO, 0, pack_fields([(Field.VERSION, 1)])) + data)

    await asyncio.to_thread(say)
    link = await agent.connect()
    await link.ping()
    await link.close()


async def test_a_host_that_does_not_read(agent: Agent) -> None:
    """Questions without end and no ear for the answers: the agent stops listening, in bounded memory."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(str(agent.path))
        wire.sendall(pack(Ask.HELLO, 0, pack_fields([(Field.VERSION, 1)])))
        wire.setblocking(False)
        sent = 0
        stuck = 0
        while stuck < 20 and sent < 64 << 20:
            try:
                sent += wire.send(pack(Ask.PING, 7) * 1000)
                stuck = 0
            except BlockingIOError:
                stuck += 1
                await asyncio.sleep(0.01)
        assert sent < 16 << 20
    link = await agent.connect()
    await link.ping()
    await link.close()


async def test_long_socket_paths(binary: Path, home: Path) -> None:
    link_path = home / ("long" * 50)
    link_path.mkdir()
    agent = Agent(binary, home)
    try:
        os.link(agent.path, link_path / "agent.sock")
        link = await AgentLink.connect(link_path / "agent.sock")
        await link.ping()
        await link.close()
    finally:
        agent.stop()
