"""What an honest visitor gets: every shape of HTTP/1.1, through the real way, from a real server inside."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import websockets

from runra.ids import SANDBOX_ID

from .conftest import Preview, World


def header(seen: Any, name: str) -> list[str]:
    return [value for key, value in seen["headers"] if key.lower() == name]


async def test_a_request_and_what_arrives(preview: Preview) -> None:
    assert preview.exposed["url"] == f"http://3000-{preview.id.removeprefix('sb_')}.localhost:{preview.world.port}"
    assert SANDBOX_ID.fullmatch(preview.id)
    seen = await preview.seen("/a%20b/../c?x=1&&y", method="POST", data=b"body", headers={"X-Mine": "yes"})
    assert (seen["method"], seen["target"], seen["body"]) == ("POST", "/a%20b/../c?x=1&&y", "body")
    assert header(seen, "host") == [preview.host]
    assert header(seen, "x-mine") == ["yes"]
    assert header(seen, "x-forwarded-for") == ["127.0.0.1"]
    assert header(seen, "x-forwarded-proto") == ["http"]
    assert header(seen, "x-forwarded-host") == [preview.host]
    status, headers, body = await preview.get(method="HEAD")
    assert (status, headers["X-From"], body) == (200, "inside", b"")
    for code in (204, 304):
        raw = f"/raw?HTTP/1.1%20{code}%20x%0d%0aETag:%20a%0d%0aContent-Length:%207%0d%0a%0d%0a"
        status, headers, body = await preview.get(raw)
        assert (status, headers["ETag"], body) == (code, "a", b"")


async def test_keep_alive_and_a_pipeline(preview: Preview) -> None:
    one = b"GET /seen?%d HTTP/1.1\r\nHost: HOST\r\n\r\n"
    api = b"GET /v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    answer = await preview.raw(one % 1 + one % 2 + one % 3 + api)
    assert [f'"/seen?{n}"'.encode() in answer for n in (1, 2, 3)] == [True] * 3
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    assert answer.endswith(b"}")  # and the last one is the API's: one connection, each request by its own Host
    assert b'"status":"ok"' in answer


async def test_old_servers_and_odd_answers(preview: Preview) -> None:
    for raw, expected in (
        ("HTTP/1.0%20200%20OK%0d%0a%0d%0auntil%20the%20end", b"until the end"),
        (
            "HTTP/1.1%20200%20OK%0d%0aTransfer-Encoding:%20chunked%0d%0a%0d%0a3%0d%0aabc%0d%0a0%0d%0aTrailer:%20x%0d%0a%0d%0a",
            b"abc",
        ),
        (
            "HTTP/1.1%20103%20Early%0d%0aLink:%20x%0d%0a%0d%0aHTTP/1.1%20200%20OK%0d%0aContent-Length:%202%0d%0a%0d%0aok",
            b"ok",
        ),
        ("HTTP/1.1%20418%20I%0d%0aContent-Length:%203%0d%0a%0d%0atea", b"tea"),
    ):
        _, _, body = await preview.get(f"/raw?{raw}")
        assert body == expected


async def test_large_bodies_both_ways_in_constant_memory(preview: Preview) -> None:
    piece = os.urandom(1 << 20)
    count = 64
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(piece)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield piece

    before = _rss()
    for headers in ({}, {"Content-Length": str(count << 20)}):
        status, _, body = await preview.get("/sha", "POST", data=pieces(), headers=headers)
        assert (status, json.loads(body)) == (200, {"sha": digest.hexdigest(), "size": count << 20})
    async with preview.open("GET", f"/give?{count << 20}") as answer:
        got = 0
        async for part in answer.content.iter_chunked(1 << 16):
            got += len(part)
    assert got == count << 20
    assert _rss() - before < 40 << 20


def _rss() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_streams_both_ways_as_they_come(preview: Preview) -> None:
    ready = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"first"
        await ready.wait()
        yield b"second"

    async with preview.open("POST", "/echo", data=slowly()) as answer:
        assert await answer.content.read(5) == b"first"
        ready.set()
        assert await answer.content.read() == b"second"
    async with preview.open("GET", "/sse") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert await answer.content.readline() == b"data: 0\n"


async def test_expect_continue_and_an_early_answer(preview: Preview) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", preview.world.port)
    writer.write(
        f"POST /sha HTTP/1.1\r\nHost: {preview.host}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n".encode()
    )
    async with asyncio.timeout(5):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert b"200 OK" in await reader.readline()
    writer.close()
    status, _, body = await preview.get("/early", "POST", data=b"x" * (8 << 20))
    assert (status, body) == (413, b"no")


async def test_websocket(preview: Preview) -> None:
    url = f"ws://{preview.host.replace('localhost', 'localhost')}/ws"
    options: Any = {"host": "127.0.0.1", "port": preview.world.port, "max_size": None, "ping_interval": None}
    async with websockets.connect(url, subprotocols=["chat", "other"], compression=None, **options) as socket:
        assert socket.subprotocol == "chat"
        assert socket.response.headers.get("X-Runra-Forged") is None
        assert await socket.recv() == "hello"
        for size in (0, 1, 125, 126, 65535, 65536, 3 << 20):
            data = os.urandom(size)
            await socket.send(data)
            assert await socket.recv() == data
    assert socket.close_code == 1000
    # The server inside wants none: its own answer comes through.
    answer = await preview.raw(
        b"GET /seen HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.rstrip().endswith(b"}")


async def test_200_at_once(preview: Preview) -> None:
    async def one(number: int) -> bool:
        seen = await preview.seen(f"/seen?{number}", method="POST", data=str(number) * 1000)
        return bool(seen["target"] == f"/seen?{number}" and seen["body"] == str(number) * 1000)

    assert all(await asyncio.gather(*(one(number) for number in range(200))))


async def test_ports_that_listen_on_ipv6_only(world: World) -> None:
    sandbox = await world.sandbox()
    await world.serve(sandbox["id"], 3001, "::1")
    preview = Preview(world, sandbox["id"], await world.expose(sandbox["id"], 3001))
    assert (await preview.seen())["method"] == "GET"


async def test_readable_pages(world: World) -> None:
    sandbox = await world.sandbox()
    port = await world.expose(sandbox["id"], 4000)
    preview = Preview(world, sandbox["id"], port)
    status, headers, body = await preview.get(headers={"Accept": "text/html"})
    assert (status, headers["Content-Type"], headers["X-Runra-Reason"]) == (
        502,
        "text/html; charset=utf-8",
        "port_closed",
    )
    assert b"Nothing listens on this port" in body
    status, headers, body = await preview.get()
    assert (status, json.loads(body)["error"]["details"]) == (502, {"reason": "port_closed"})
    closed = Preview(world, sandbox["id"], {"url": port["url"].replace("4000", "4001")})
    status, _, body = await closed.get()
    assert (status, json.loads(body)["error"]["code"]) == (404, "SANDBOX_NOT_FOUND")


async def test_a_client_that_goes_frees_the_sandbox(preview: Preview) -> None:
    sandbox = preview.world.app.state.services.node.sandboxes[preview.id]
    before = sandbox._users
    async with aiohttp.ClientSession() as session:
        answer = await session.get(f"http://127.0.0.1:{preview.world.port}/sse", headers={"Host": preview.host})
        await answer.content.readline()
        assert sandbox._users == before + 1  # a live connection is activity
        answer.close()
    async with asyncio.timeout(5):
        while sandbox._users > before:
            await asyncio.sleep(0.02)
