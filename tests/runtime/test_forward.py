"""The way from a sandbox without a network to a Unix socket of this machine: over the stdio of one process inside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runra.errors import RunraError
from runra.runtime import Sandbox
from runra.runtime.forward import forwarded
from tests.hosting import until
from tests.runtime.conftest import Make
from tests.sdk.conftest import RealServer
from tests.sdk.proxy import proxied

DENIED = {"egress": {"default": "deny"}}
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def at() -> Any:
    """Where a server listens: a short path, socket addresses hold 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="rf-") as folder:
        yield Path(folder, "s")


@asynccontextmanager
async def listening(path: Path, serve: Serve) -> AsyncIterator[Path]:
    """A server of ours at a Unix socket of this machine; what it serves is over with it."""
    tasks: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_unix_server(one, path, limit=1 << 16)
    try:
        yield path
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says everything again, then ends as the other did."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
    await writer.drain()


@pytest.fixture
async def box(make: Make) -> AsyncIterator[Sandbox]:
    async with await make().create_sandbox(network=DENIED) as sandbox:
        yield sandbox


async def python(sandbox: Sandbox, program: str, *arguments: object) -> Any:
    """What a program inside prints, as JSON."""
    done = await sandbox.exec(["python3", "-c", program, *map(str, arguments)])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


async def left(sandbox: Sandbox) -> str:
    """Relays and their folders that are in a sandbox."""
    look = (
        "ls -d /tmp/runra-* /var/tmp/runra-* 2>/dev/null; grep -l '^Name:.relay$' /proc/[0-9]*/status 2>/dev/null; true"
    )
    return (await sandbox.exec(look)).stdout


ECHOED = """
import hashlib, json, os, socket, sys, threading
port, size, several = map(int, sys.argv[1:])
def one():
    s = socket.create_connection(("127.0.0.1", port), 30)
    sent, got = hashlib.sha256(), hashlib.sha256()
    def send():
        left = size
        while left:
            piece = os.urandom(min(left, 50_000))
            sent.update(piece); s.sendall(piece); left -= len(piece)
        s.shutdown(socket.SHUT_WR)
    sender = threading.Thread(target=send); sender.start()
    while data := s.recv(1 << 16): got.update(data)
    sender.join()
    found.append(sent.hexdigest() == got.hexdigest())
found = []
threads = [threading.Thread(target=one) for _ in range(several)]
[t.start() for t in threads]; [t.join() for t in threads]
print(json.dumps(found))
"""


async def test_curl_in_a_sandbox_without_a_network(box: Sandbox, at: Path) -> None:
    async with listening(at, http), forwarded(box, at) as forward:
        assert forward.url == f"http://127.0.0.1:{forward.port}"
        done = await box.exec(["curl", "-sS", "--max-time", "30", forward.url])
        assert (done.stdout, done.stderr) == ("hello", "")
        running = await left(box)
        assert "/proc/" in running
        assert "runra-" not in running  # its file and folder are gone already
    assert await left(box) == ""
    assert forward.lost.cancelled()
    refused = await box.exec(["curl", "-sS", "--max-time", "30", forward.url])
    assert refused.exit_code == 7


async def test_connections_at_once_arrive_whole_in_both_directions(box: Sandbox, at: Path) -> None:
    async with listening(at, echo), forwarded(box, at) as forward:
        assert await python(box, ECHOED, forward.port, 300_000, 12) == [True] * 12
        assert await python(box, ECHOED, forward.port, 8 << 20, 1) == [True]
        assert await python(box, ECHOED, forward.port, 0, 3) == [True] * 3


async def test_one_that_does_not_read_holds_up_no_other(box: Sandbox, at: Path) -> None:
    """Inside and here: what waits for it is bounded, and the others go on."""
    stuck: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind = await reader.readexactly(1)
        if kind == b"e":
            await echo(reader, writer)
        elif kind == b"w":  # writes to a client that does not read
            writer.transport.set_write_buffer_limits(high=0)
            stuck.append(0)
            while stuck[0] < 64 << 20:
                writer.write(bytes(1 << 16))
                await writer.drain()
                stuck[0] += 1 << 16
        else:  # does not read
            await asyncio.Event().wait()

    program = """
import json, socket, sys
port = int(sys.argv[1])
def connect(kind):
    s = socket.create_connection(("127.0.0.1", port), 20); s.sendall(kind); return s
deaf, silent = connect(b"w"), connect(b"n")
silent.setblocking(False)
sent, quiet = 0, 0
import select
while select.select([], [silent], [], 1)[1]: sent += silent.send(bytes(65536))
good = connect(b"e")
for size in (1, 100_000, 1_000_000):
    import threading
    threading.Thread(target=good.sendall, args=(bytes(size),)).start()
    left = size
    while left: left -= len(good.recv(left))
print(json.dumps(sent))
"""
    async with listening(at, serve), forwarded(box, at) as forward:
        sent = await python(box, program, forward.port)
        assert 256 << 10 <= sent < 16 << 20  # a window, and what kernels keep for loopback and Unix sockets
        assert stuck[0] < 16 << 20


async def test_each_side_may_end_first_and_still_hear_the_other(box: Sandbox, at: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"first")
        writer.write_eof()
        all.append(await reader.read())

    all: list[bytes] = []
    program = """
import json, socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20)
got = b""
while piece := s.recv(100): got += piece
s.sendall(b"after your end"); s.close()
print(json.dumps(got.decode()))
"""
    async with listening(at, serve), forwarded(box, at) as forward:
        assert await python(box, program, forward.port) == "first"
        await until(lambda: all == [b"after your end"])


RESET = """
import json, socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20)
try:
    print(json.dumps(s.recv(10).decode()))
except ConnectionResetError:
    print(json.dumps("reset"))
"""


async def test_where_nobody_listens_connections_are_reset_and_later_ones_are_not(box: Sandbox, at: Path) -> None:
    async with forwarded(box, at) as forward:
        assert await python(box, RESET, forward.port) == "reset"
        async with listening(at, echo):
            assert await python(box, ECHOED, forward.port, 1000, 1) == [True]
        assert not forward.lost.done()


async def test_a_reset_on_either_side_is_one_on_the_other(box: Sandbox, at: Path) -> None:
    heard: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(1) == b"a":
            writer.transport.abort()
            return
        writer.write(b"k")
        try:
            heard.append(repr(await reader.read(10)))
        except ConnectionResetError:
            heard.append("reset")

    program = """
import socket, struct, sys, json
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20)
s.sendall(b"b"); s.recv(1); s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); s.close()
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20)
s.sendall(b"a")
print(json.dumps(len(s.recv(10))))
"""
    async with listening(at, serve), forwarded(box, at) as forward:
        assert await python(box, program, forward.port) == 0  # a Unix socket's abort looks like an end
        await until(lambda: heard in (["b''"], ["reset"]))


async def test_a_block_that_is_cancelled_leaves_nothing(box: Sandbox, at: Path) -> None:
    connected = asyncio.Event()
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        over.set()

    async def work() -> None:
        async with forwarded(box, at) as forward:
            await box.exec(["curl", "-sS", "--max-time", "60", forward.url])

    async with listening(at, serve):
        task = asyncio.create_task(work())
        async with asyncio.timeout(30):
            await connected.wait()
            task.cancel()
            await asyncio.wait({task})
        assert task.cancelled()
        async with asyncio.timeout(10):
            await over.wait()
    assert await left(box) == ""
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("runra-forward")]


async def test_a_relay_killed_inside_is_said_to_be_lost(box: Sandbox, at: Path) -> None:
    async with listening(at, echo), forwarded(box, at) as forward:
        await box.exec("kill -9 $(grep -l '^Name:.relay$' /proc/[0-9]*/status | cut -d/ -f3)")
        async with asyncio.timeout(20):
            error = await forward.lost
        assert (error.code, error.details["reason"], error.retryable) == ("INTERNAL_ERROR", "relay_ended", False)
        assert "killed" in error.message
    assert await left(box) == ""


async def test_what_cannot_be_started_is_an_error_that_says_so(box: Sandbox, at: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runra.runtime.forward._program", lambda: b"\x7fELF of another machine")
        with pytest.raises(RunraError, match="architecture"):
            async with forwarded(box, at):
                pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runra.runtime.forward.RELAY", at)
        with pytest.raises(RunraError, match=r"reinstall runra\[runtime\]"):
            async with forwarded(box, at):
                pass


async def test_a_sandbox_that_ends_takes_it_with_it(make: Make, at: Path) -> None:
    sandbox = await make().create_sandbox(network=DENIED)
    async with listening(at, echo), forwarded(sandbox, at) as forward:
        await sandbox.terminate()
        async with asyncio.timeout(20):
            error = await forward.lost
        assert isinstance(error, RunraError)


AGAIN_AND_AGAIN = """
import os, socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60)
good = 0
while not os.path.exists("/tmp/enough"):
    piece = os.urandom(20_000); s.sendall(piece); got = b""
    while len(got) < len(piece): got += s.recv(len(piece))
    good += got == piece
    if good == 3: open("/tmp/going", "w").close()
print(good)
"""


async def test_it_takes_one_request_and_outlives_broken_connections(
    real: RealServer, make: Make, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxied(real.port) as proxy, listening(at, echo):
        monkeypatch.setenv("RUNRA_API_URL", proxy.url)
        monkeypatch.setenv("RUNRA_API_KEY", json.loads(real.config.read_text())["apiKey"])
        async with await make().create_sandbox(network=DENIED) as box, forwarded(box, at) as forward:
            for _ in range(5):
                assert await python(box, ECHOED, forward.port, 1000, 1) == [True]
            assert len([line for line in proxy.requests if line.endswith("/stdin")]) == 1
            busy = await box.exec(["python3", "-c", AGAIN_AND_AGAIN, str(forward.port)], background=True)
            await until(lambda: box.files.exists("/tmp/going"))
            for n in range(5):
                proxy.cut()
                assert await python(box, ECHOED, forward.port, 100_000, 1) == [True], n
            await box.files.write("/tmp/enough", "")
            assert (await busy.wait()).exit_code == 0
            assert not forward.lost.done()


async def test_it_works_where_a_proxy_collects_requests(
    real: RealServer, make: Make, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runra.runtime.relay_channel.FLOW_S", 0.5)
    async with proxied(real.port, collecting=True) as proxy, listening(at, echo):
        monkeypatch.setenv("RUNRA_API_URL", proxy.url)
        monkeypatch.setenv("RUNRA_API_KEY", json.loads(real.config.read_text())["apiKey"])
        async with await make().create_sandbox(network=DENIED) as box, forwarded(box, at) as forward:
            assert await python(box, ECHOED, forward.port, 100_000, 3) == [True] * 3


async def test_it_outlives_a_server_that_is_killed_and_started_again(box: Sandbox, at: Path, real: RealServer) -> None:
    async with listening(at, echo), forwarded(box, at) as forward:
        busy = await box.exec(["python3", "-c", AGAIN_AND_AGAIN, str(forward.port)], background=True)
        await until(lambda: box.files.exists("/tmp/going"))
        await asyncio.to_thread(real.stop, signal.SIGKILL)
        await asyncio.to_thread(real.start)
        assert await python(box, ECHOED, forward.port, 100_000, 1) == [True]
        await box.files.write("/tmp/enough", "")
        ended = await busy.wait()
        assert (ended.exit_code, int(ended.stdout) > 3) == (0, True), ended
        assert not forward.lost.done()
