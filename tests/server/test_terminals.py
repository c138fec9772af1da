"""Terminals over WebSocket."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from .conftest import Client, Running


async def _until(socket: Any, text: bytes) -> bytes:
    got = b""
    while text not in got:
        message = await socket.receive(timeout=10)
        assert message.type is aiohttp.WSMsgType.BINARY, message
        got += message.data
    return got


async def test_a_terminal(run: Running) -> None:
    box = (await run.client.sandbox())["id"]
    async with run.client.ws(f"/sandboxes/{box}/pty?cols=120&rows=40") as socket:
        pid = (await socket.receive_json(timeout=10))["start"]["pid"]
        await socket.send_bytes(b"stty size; echo $TERM; tty >/dev/null && echo re''al\n")
        got = await _until(socket, b"real\r\n")
        assert b"40 120" in got
        assert b"xterm-256color" in got
        await socket.send_json({"resize": {"rows": 10, "cols": 20}})
        await socket.send_bytes(b"stty size\n")
        await _until(socket, b"10 20")
        assert run.node.sandboxes[box].users >= 1
    async with run.client.ws(f"/sandboxes/{box}/pty?pid={pid}") as socket:
        assert (await socket.receive_json(timeout=10))["start"]["pid"] == pid
        await _until(socket, b"10 20")  # what it said before
        await socket.send_bytes(b"exit 5\n")
        while (message := await socket.receive(timeout=10)).type is aiohttp.WSMsgType.BINARY:
            continue
        assert json.loads(message.data)["exit"]["exitCode"] == 5
        assert (await socket.receive(timeout=10)).type is aiohttp.WSMsgType.CLOSE


@pytest.mark.parametrize("frame", ["", "{}", '{"resize":{"rows":0,"cols":1}}', '{"resize":{"rows":1}}', "nonsense"])
async def test_a_frame_that_says_nothing_ends_the_connection(client: Client, frame: str) -> None:
    box = (await client.sandbox())["id"]
    async with client.ws(f"/sandboxes/{box}/pty?command=cat") as socket:
        await socket.receive_json(timeout=10)
        await socket.send_str(frame)
        answer = await socket.receive_json(timeout=10)
        assert answer["error"]["code"] == "INVALID_REQUEST"
        closed = await socket.receive(timeout=10)
        assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, 1008)


async def test_the_guard_stands_before_a_terminal(client: Client) -> None:
    box = (await client.sandbox())["id"]
    weak = client.with_key((await client.new_key(profile="read-only"))["key"])
    cases = [
        (client.with_key(""), f"/sandboxes/{box}/pty", 401),
        (weak, f"/sandboxes/{box}/pty", 403),
        (client, "/sandboxes/sb_0000000000000000/pty", 404),
        (client, f"/sandboxes/{box}/pty?rows=0", 400),
        (client, f"/sandboxes/{box}/pty?nope=1", 400),
        (client, f"/sandboxes/{box}/pty?pid=99999", 400),
        (client, f"/sandboxes/{box}/nothing", 404),
    ]
    for who, path, status in cases:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with who.ws(path):
                pass
        assert refused.value.status == status, path
    await client.call("POST", f"/sandboxes/{box}/pause")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with client.ws(f"/sandboxes/{box}/pty"):
            pass
    assert refused.value.status == 409
    plain = await client.call("GET", f"/sandboxes/{box}/pty")
    assert (plain.status, plain.error["details"]["field"]) == (400, "Upgrade")
