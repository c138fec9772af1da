"""The relay alone, as a program: what it does with a runtime that is late, wrong, hostile or gone."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.agent.harness import SANITIZED, compile_agent

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

WINDOW = 256 << 10


@pytest.fixture(scope="session")
def relay_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_agent(tmp_path_factory.getbasetemp(), "runra-relay", "guest/relay")


class Relay:
    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process, self.port, self.seq = process, port, 0

    def connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), 10)
        made.setblocking(False)
        return made

    def say(self, *lines: str) -> None:
        assert self.process.stdin is not None
        for line in lines:
            self.seq += 1
            self.process.stdin.write(f"{self.seq} {line};\n".encode())

    def raw(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    async def line(self, seconds: float = 10) -> str | None:
        """What it says next; None when that is nothing."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                return (await self.process.stdout.readuntil(b"\n")).decode().removesuffix("\n")
        except TimeoutError:
            return None

    async def end(self) -> tuple[int, str]:
        """Exit code and what it said of it."""
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        async with asyncio.timeout(10):
            said, _ = await asyncio.gather(self.process.stderr.read(), self.process.stdout.read())
            return await self.process.wait(), said.decode()


@pytest.fixture
async def relay(relay_binary: Path, tmp_path: Path) -> AsyncIterator[Relay]:
    async with started(relay_binary, tmp_path / "own") as relay:
        yield relay


@asynccontextmanager
async def started(relay_binary: Path, own: Path) -> AsyncIterator[Relay]:
    own.mkdir()
    program = shutil.copy2(relay_binary, own / "relay")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(program, "0", stdin=pipe, stdout=pipe, stderr=pipe, limit=1 << 20)
    assert process.stdout is not None
    greeting = (await process.stdout.readuntil(b"\n")).split()
    assert greeting[:2] == [b"runra-relay", b"1"]
    yield Relay(process, int(greeting[2]))
    if process.returncode is None:
        process.kill()
    assert process.stderr is not None
    said = (await process.stderr.read()).decode()
    await process.wait()
    assert "Sanitizer" not in said, said
    assert "runtime error" not in said, said


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_nothing_is_left_of_its_file_and_it_listens_on_the_loopback_alone(relay: Relay, tmp_path: Path) -> None:
    assert not (tmp_path / "own").exists()
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert [row[1] for row in listening if row[1].endswith(f":{relay.port:04X}") and row[3] == "0A"] == [
        f"0100007F:{relay.port:04X}"
    ]
    assert f":{relay.port:04X} " not in Path("/proc/net/tcp6").read_text()


async def test_it_ends_when_nothing_comes_any_more(tmp_path: Path) -> None:
    """As where a provider does not end the stdin of a process whose client has died."""
    impatient = compile_agent(tmp_path, "runra-relay", "guest/relay", "-DSILENCE_S=1")
    async with started(impatient, tmp_path / "own") as relay:
        relay.say("p 0 ")
        assert await relay.line() == "p 0 1"
        code, said = await relay.end()
        assert (code, "for 1 s" in said) == (2, True), said


@pytest.mark.parametrize("how", ["quit", "end"])
async def test_it_ends_in_good_order(relay: Relay, how: str) -> None:
    assert relay.process.stdin is not None
    if how == "quit":
        relay.say("q 0 ")
    else:
        relay.process.stdin.close()
    assert await relay.end() == (0, "")


async def test_lines_that_come_twice_or_torn_do_no_harm(relay: Relay) -> None:
    client = relay.connect()
    assert await relay.line() == "o 1 "
    relay.say(f"d 1 {text(b'one')}")
    relay.raw(b"2 d 1 dHd")  # torn, and the line before it comes again
    relay.raw(f"\n1 d 1 {text(b'one')};\n2 d 1 {text(b'two')};\n3 p 0 ;\n4 e 1 ;\n".encode())
    loop = asyncio.get_running_loop()
    got = b""
    async with asyncio.timeout(10):
        while piece := await loop.sock_recv(client, 100):
            got += piece
    assert got == b"onetwo"
    assert await relay.line() == "p 0 4"  # how far it has got
    client.close()


@pytest.mark.parametrize(
    "said",
    [
        b"3 p 0 ;\n",
        b"p\n1;\n",
        b"1 d 7 aGk=;\n",
        b"1 d 1 aG;\n",
        b"1 d 1 ;\n",
        b"1 c 1 1;\n",
        b"1 a 0 99999;\n",
        b"1 z 0 ;\n",
        b"01 p 0 ;\n",
        b"1 p 1 ;\n",
        b"1 d 0 aGk=;\n",
        b"9999999999999999 p 0 ;\n",
        b"x" * 100_000,
        f"1 d 1 {text(bytes(24 * 1024 + 1))};\n".encode(),
        b"".join(b"%d d 1 %s;\n" % (n, base64.b64encode(bytes(24_000))) for n in range(1, 400)),
    ],
)
async def test_what_a_runtime_must_not_say_ends_it_with_a_reason(relay: Relay, said: bytes) -> None:
    client = relay.connect()  # reads nothing
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    assert await relay.line() == "o 1 "
    relay.raw(said)
    code, why = await relay.end()
    assert code == 2, why
    assert "runtime" in why
    client.close()


async def test_it_sends_no_more_than_its_credit_and_what_was_heard(relay: Relay) -> None:
    """A runtime that reads nothing on gets a window of one connection, and of many no more than a provider keeps."""
    clients = [relay.connect() for _ in range(8)]
    loop = asyncio.get_running_loop()
    sending = [asyncio.create_task(loop.sock_sendall(one, bytes(1 << 20))) for one in clients]
    got = dict.fromkeys(range(1, 9), 0)
    total = 0
    while (line := await relay.line(2)) is not None:
        total += len(line) + 1
        op, id, data = line.split(" ")
        if op == "d":
            got[int(id)] += len(base64.b64decode(data))
    assert max(got.values()) <= WINDOW
    assert 400_000 < total < 660_000
    relay.say("a 0 600000")
    assert str(await relay.line()).startswith("d ")
    for task in sending:
        task.cancel()
    await asyncio.gather(*sending, return_exceptions=True)
    for one in clients:
        one.close()


async def test_at_most_256_connections_are_open_and_the_next_waits(relay: Relay) -> None:
    clients = [relay.connect() for _ in range(258)]
    assert [await relay.line() for _ in range(256)] == [f"o {n} " for n in range(1, 257)]
    relay.say("p 0 ")
    assert await relay.line() == "p 0 1"
    relay.say("r 1 ")
    assert await relay.line() == "o 257 "
    for one in clients:
        one.close()


async def test_any_bytes_on_its_stdin_end_it_in_order(relay_binary: Path, tmp_path: Path) -> None:
    random_bytes = random.Random(7)
    for round in range(20):
        own = tmp_path / str(round)
        own.mkdir()
        program = shutil.copy2(relay_binary, own / "relay")
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(program, "0", stdin=pipe, stdout=pipe, stderr=pipe)
        junk = bytes(random_bytes.choices(b"0123456789 dercpaq;\n=AB", k=3000))
        async with asyncio.timeout(20):
            _, said = await process.communicate(junk)
        assert process.returncode in (0, 2), (os.fsdecode(said), SANITIZED)
