"""The way from a sandbox without a network to a Unix socket of this machine: over the stdio of one process inside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runra.runtime import Sandbox
from runra.runtime.forward import forwarded
from tests.runtime.conftest import Make

DENIED = {"egress": {"default": "deny"}}
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(path: Path, serve: Serve) -> AsyncIterator[Path]:
    """A server of ours at a Unix socket of this machine."""
    server = await asyncio.start_unix_server(serve, path, limit=1 << 16)
    try:
        yield path
    finally:
        server.close()
        server.close_clients() if hasattr(server, "close_clients") else None


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says everything again, then ends as the other did."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.fixture
async def box(make: Make) -> AsyncIterator[Sandbox]:
    async with await make().create_sandbox(network=DENIED) as sandbox:
        yield sandbox


async def python(sandbox: Sandbox, program: str, *arguments: object, timeout_ms: int = 60_000) -> Any:
    """What a program inside prints, as JSON."""
    done = await sandbox.exec(["python3", "-c", program, *map(str, arguments)], timeout_ms=timeout_ms)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


ECHOED = """
import hashlib, json, os, socket, sys, threading
port, size, several = map(int, sys.argv[1:])
def one(found):
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
threads = [threading.Thread(target=one, args=(found,)) for _ in range(several)]
[t.start() for t in threads]; [t.join() for t in threads]
print(json.dumps(found))
"""


async def test_many_connections_at_once_arrive_whole_in_both_directions(box: Sandbox, tmp_path: Path) -> None:
    async with listening(tmp_path / "s", echo) as target, forwarded(box, target) as forward:
        assert await python(box, ECHOED, forward.port, 300_000, 12) == [True] * 12
        assert await python(box, ECHOED, forward.port, 8 << 20, 1) == [True]
        assert await python(box, ECHOED, forward.port, 0, 3) == [True] * 3
        assert not forward.lost.done()
