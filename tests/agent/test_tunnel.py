"""Connections to ports inside: bytes both ways, ends, breaks, back-pressure, bounds."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from runra.errors import RunraError
from runra.node.agent.frames import HEADER, VERSION, Ask, Field, Tell, pack, pack_fields, pack_output, unpack_fields
from runra.node.agent.link import AgentLink
from runra.node.agent.tunnel import Tunnel
from runra.node.agent.types import AgentLost

from .harness import SANITIZED, Agent, run, until
from .test_hostile import HELLO, Liar, digest, request

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """A TCP server where the agent is: without walls around it that is here."""
    server = await asyncio.start_server(handler, host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()
    except ConnectionError:
        writer.close()


async def rest(tunnel: Tunnel) -> bytes:
    parts = []
    while data := await tunnel.read(10):
        parts.append(data)
    return b"".join(parts)


class Raw:
    """A host that says what it likes."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def __aenter__(self) -> Raw:
        self._reader, self._writer = await asyncio.open_unix_connection(self._agent.path)
        self.send(pack(Ask.HELLO, 0, pack_fields([(Field.VERSION, VERSION)])))
        assert (await self.frame())[0] == Tell.HELLO
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def frame(self) -> tuple[int, bytes]:
        async with asyncio.timeout(5):
            length, kind, _, _, _ = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            return kind, await self._reader.readexactly(length)

    async def ended(self) -> None:
        async with asyncio.timeout(5):
            try:
                while await self._reader.read(1 << 16):
                    continue
            except ConnectionError:
                return


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_there_and_back(link: AgentLink, agent: Agent, host: str) -> None:
    before = agent.descriptors()
    async with serving(echo, host) as port:
        tunnel = await link.connect_port(port)
        await tunnel.write(b"hello")
        assert await tunnel.read(5) == b"hello"
        tunnel.end_write()
        assert await tunnel.read(5) == b""
        await until(lambda: agent.descriptors() == before)
        tunnel.close()
        await link.ping()


@pytest.mark.parametrize("size", [1, 16384, 300_000])
async def test_first_words_with_the_connection(link: AgentLink, size: int) -> None:
    first = os.urandom(size)
    async with serving(echo) as port, await link.connect_port(port, first) as tunnel:
        tunnel.end_write()
        assert await rest(tunnel) == first
    with pytest.raises(RunraError) as caught:
        await link.connect_port(free_port(), first)
    assert caught.value.details["reason"] == "port_closed"
    await link.ping()


async def test_half_closed_inside_first(link: AgentLink) -> None:
    got = asyncio.get_running_loop().create_future()

    async def says_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"all I have")
        writer.write_eof()
        got.set_result(await reader.read())
        writer.close()

    async with serving(says_first) as port, await link.connect_port(port) as tunnel:
        assert await rest(tunnel) == b"all I have"
        await tunnel.write(b"still ")
        await tunnel.write(b"heard")
        tunnel.end_write()
        assert await asyncio.wait_for(got, 5) == b"still heard"


async def test_many_megabytes_both_ways(link: AgentLink) -> None:
    data = os.urandom(1 << 20) * (8 if SANITIZED else 64)
    async with serving(echo) as port, await link.connect_port(port) as tunnel:

        async def write() -> None:
            for at in range(0, len(data), 1_000_003):
                await tunnel.write(data[at : at + 1_000_003])
            tunnel.end_write()

        writer = asyncio.ensure_future(write())
        digest = hashlib.sha256()
        while piece := await tunnel.read(10):
            digest.update(piece)
        await writer
        assert digest.digest() == hashlib.sha256(data).digest()


async def test_no_listener(link: AgentLink, agent: Agent) -> None:
    before = agent.descriptors()
    for _ in range(50):
        with pytest.raises(RunraError) as caught:
            await link.connect_port(free_port())
        assert (caught.value.code, caught.value.details["reason"]) == ("INVALID_STATE", "port_closed")
    assert agent.descriptors() == before


@pytest.mark.parametrize("port", [0, 22, 1023, 65536, 2**40])
async def test_ports_that_are_none(link: AgentLink, agent: Agent, port: int) -> None:
    with pytest.raises(RunraError) as caught:
        await link.connect_port(port)
    assert caught.value.code == "INVALID_REQUEST"
    await link.close()
    async with Raw(agent) as raw:  # the agent checks it as well
        raw.send(pack(Ask.CONNECT, 7, pack_fields([(Field.PORT, port), (Field.WINDOW, 1 << 16)])))
        kind, payload = await raw.frame()
        assert kind == Tell.ERROR
        assert unpack_fields(payload).number(Field.ERRNO) == 22


async def test_reset_inside_is_no_end(link: AgentLink) -> None:
    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"part")
        await writer.drain()
        await reader.read(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with serving(breaks) as port, await link.connect_port(port) as tunnel:
        assert await tunnel.read(5) == b"part"
        await tunnel.write(b"x")
        with pytest.raises(RunraError) as caught:
            await rest(tunnel)
        assert caught.value.details["reason"] == "connection_broke"


async def test_an_answer_before_the_end_of_the_question(link: AgentLink) -> None:
    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"too large")
        writer.write_eof()
        await asyncio.sleep(0.2)
        writer.close()

    async with serving(refuses) as port, await link.connect_port(port) as tunnel:
        with pytest.raises(RunraError):
            await tunnel.write(b"x" * (64 << 20), 5)
        assert await tunnel.read(5) == b"too large"


async def test_a_slow_reader_holds_nothing_back_but_itself(link: AgentLink, agent: Agent) -> None:
    sent = 0

    async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536
        except ConnectionError:
            writer.close()

    async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async with serving(floods) as flooding, serving(idle) as deaf, serving(echo) as port:
        slow = [await link.connect_port(flooding) for _ in range(20)]
        writers = [asyncio.ensure_future((await link.connect_port(deaf)).write(b"y" * (16 << 20))) for _ in range(10)]
        last = -1
        while sent != last:
            last = sent
            await asyncio.sleep(0.2)
        assert not any(writer.done() for writer in writers)
        if not SANITIZED:
            assert agent.memory() < 16 << 20
        async with await link.connect_port(port) as tunnel:  # others go on
            await tunnel.write(b"hello")
            assert await tunnel.read(5) == b"hello"
        assert (await run(link, "echo fine"))[0] == b"fine\n"
        for tunnel in slow:
            tunnel.close()
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        await link.ping()


async def test_a_lost_host_leaves_no_connection(agent: Agent) -> None:
    link = await agent.connect()
    before = agent.descriptors()
    async with serving(echo) as port:
        tunnels = [await link.connect_port(port) for _ in range(100)]
        assert agent.descriptors() == before + 100
        await link.close()
        with pytest.raises(AgentLost):
            await tunnels[0].read(5)
        again = await agent.connect()
        await until(lambda: agent.descriptors() == before)
        await again.close()


async def test_at_most_1024(link: AgentLink, agent: Agent) -> None:
    async def opened(port: int) -> Tunnel | None:
        try:
            return await link.connect_port(port)
        except RunraError as error:
            if error.code != "RESOURCE_EXHAUSTED":
                raise
            return None

    async with serving(echo) as port:
        found = [await opened(port) for _ in range(1030)]
        assert [tunnel is not None for tunnel in found] == [True] * 1024 + [False] * 6
        first = found[0]
        assert first is not None
        first.close()
        again = await opened(port)
        assert again is not None
        for tunnel in [*found, again]:
            if tunnel is not None:
                tunnel.close()
        await link.ping()


async def test_more_than_the_window_ends_the_link(link: AgentLink, agent: Agent) -> None:
    async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    await link.close()
    async with serving(idle) as port, Raw(agent) as raw:
        raw.send(pack(Ask.CONNECT, 7, pack_fields([(Field.PORT, port), (Field.WINDOW, 1 << 16)])))
        kind, payload = await raw.frame()
        assert kind == Tell.STARTED
        window = unpack_fields(payload).number(Field.WINDOW)
        for _ in range(0, window + (16 << 20), 65536):
            raw.send(pack(Ask.DATA, 7, b"x" * 65536))
        await raw.ended()


async def test_bytes_go_quickly(link: AgentLink) -> None:
    size = (16 if SANITIZED else 256) << 20

    async def gives(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        piece = b"x" * (256 << 10)
        for _ in range(size // len(piece)):
            writer.write(piece)
            await writer.drain()
        writer.close()

    async with serving(gives) as port, await link.connect_port(port) as tunnel:
        got = 0
        while data := await tunnel.read(10):
            got += len(data)
        assert got == size


START = pack(Tell.STARTED, 1, pack_fields([(Field.OFFSET, 0), (Field.WINDOW, 1000)]))
END = pack(Tell.EOF, 1)


@pytest.mark.parametrize(
    "frames",
    [
        END,
        pack(Tell.DONE, 1),
        pack_output(1, 0, b"x"),
        pack(Tell.STARTED, 1),
        START + START,
        START + pack(Tell.DONE, 1),
        START + END + END,
        START + END + pack_output(1, 0, b"x"),
        START + pack_output(1, 1, b"x"),
        START + pack(Tell.EXIT, 1),
        START + pack(Tell.CREDIT, 1, b"\xff\xff\xff\xff"),
        START + END + pack(Tell.DONE, 1) + END,
        START + b"".join(pack_output(1, at, b"y" * 65536) for at in range(0, 1 << 20, 65536)),
    ],
    ids=digest,
)
async def test_a_lying_agent_loses_the_link(home: Path, frames: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(HELLO)
        await request(reader)
        writer.write(frames)

    async with Liar(home) as liar:
        liar.script = script
        link = await AgentLink.connect(liar.path)
        async with asyncio.timeout(5):
            with pytest.raises(AgentLost, match="protocol"):  # noqa: PT012 - at the one step or the other
                await link.connect_port(8000)
                await link.wait_closed()
                await link.ping()
