"""Files over the API: whole, in ranges, streamed, archived, watched."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from typing import Any

import pytest
from yarl import URL

from .conftest import Client, Running, sse


@pytest.fixture
async def box(client: Client) -> str:
    return str((await client.sandbox())["id"])


async def test_write_read_stat_list_move_delete(run: Running, box: str) -> None:
    client, base = run.client, f"/sandboxes/{box}/files"
    data = os.urandom(1 << 20)
    made = await client.call("PUT", base, params={"path": "sub/ä b.bin", "mode": "0755"}, data=data)
    assert made.status == 200
    assert made.json["sizeBytes"] == len(data)
    assert made.json["path"] == "/workspace/sub/ä b.bin"
    assert made.json["mode"] == "0755"
    read = await client.call("GET", base, params={"path": "/workspace/sub/ä b.bin"})
    assert read.raw == data
    assert read.headers["Content-Length"] == str(len(data))
    assert read.headers["Content-Type"] == "application/octet-stream"
    listed = (await client.call("GET", f"{base}/list", params={"path": "sub"})).json
    assert [it["name"] for it in listed["data"]] == ["ä b.bin"]
    moved = await client.call("POST", f"{base}/move", json={"from": "sub/ä b.bin", "to": "new"})
    assert moved.json["path"] == "/workspace/new"
    folder = await client.call("POST", f"{base}/mkdir", json={"path": "x/y", "recursive": True})
    assert (folder.status, folder.json["isDirectory"]) == (201, True)
    full = await client.call("DELETE", base, params={"path": "x"})
    assert (full.status, full.error["details"]["reason"]) == (400, "not_empty")
    assert (await client.call("DELETE", base, params={"path": "x", "recursive": "true"})).status == 204
    missing = await client.call("GET", f"{base}/stat", params={"path": "x"})
    assert (missing.status, missing.error["details"]["reason"]) == (400, "not_found")
    types = [it.type for it in run.services.events._events if it.type.startswith("file.")]
    assert types == [
        "file.created", "file.read", "file.deleted", "file.created", "file.created", "file.error", "file.deleted",
    ]  # asking whether something is there tells of no failure  # fmt: skip
    assert all(stream.closed for stream in run.node.sandboxes[box].link.streams)


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=90-", 206, 90, 100),
        ("bytes=-5", 206, 95, 100),
        ("bytes=-500", 206, 0, 100),
        ("bytes=50-500", 206, 50, 100),
        ("bytes=0-1,5-6", 200, 0, 100),
        ("lines=1-2", 200, 0, 100),
        ("bytes=-", 200, 0, 100),
        ("bytes=100-", 416, 0, 0),
        ("bytes=9-3", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
    ],
)
async def test_ranges(client: Client, box: str, asked: str, status: int, start: int, end: int) -> None:
    data = bytes(range(100))
    base = f"/sandboxes/{box}/files?path=r"
    await client.call("PUT", base, data=data)
    answer = await client.call("GET", base, headers={"Range": asked})
    assert answer.status == status
    if status == 416:
        assert answer.error["code"] == "INVALID_REQUEST"
        assert answer.headers["Content-Range"] == "bytes */100"
        return
    assert answer.raw == data[start:end]
    if status == 206:
        assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/100"
    stale = await client.call("GET", base, headers={"Range": "bytes=0-9", "If-Range": '"old"'})
    assert stale.status == 200


async def test_empty_and_large(run: Running, box: str) -> None:
    client, base = run.client, f"/sandboxes/{box}/files"
    await client.call("PUT", base, params={"path": "e"}, data=b"")
    assert (await client.call("GET", base, params={"path": "e"})).raw == b""

    async def body() -> Any:
        for _ in range(800):
            yield b"z" * (64 << 10)

    made = await client.call("PUT", base, params={"path": "big"}, data=body())
    assert made.json["sizeBytes"] == 800 * (64 << 10)
    async with client.open("GET", base, params={"path": "big"}) as response:
        total = 0
        async for chunk in response.content.iter_any():
            total += len(chunk)
    assert total == 800 * (64 << 10)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "path=",
        "path=a%00b",
        "path=x&path=y",
        "path=x&extra=1",
        "path=" + "x" * 4097,
        "path=x&recursive=maybe",
    ],
)
async def test_bad_queries(client: Client, box: str, query: str) -> None:
    answer = await client.call("DELETE", f"/sandboxes/{box}/files?{query}")
    assert (answer.status, answer.error["code"]) == (400, "INVALID_REQUEST"), answer.raw
    assert len(answer.raw) < 1000


async def test_an_upload_cut_short_leaves_nothing(run: Running, box: str) -> None:
    async def body() -> Any:
        yield b"begin"
        await asyncio.sleep(0.1)
        raise ConnectionError

    with pytest.raises(Exception):  # noqa: B017 - whatever the client makes of its own failure
        await run.client.call("PUT", f"/sandboxes/{box}/files?path=half", data=body())
    await asyncio.sleep(0.1)
    assert list((run.node.sandboxes[box].link.root / "workspace").iterdir()) == []
    assert run.node.sandboxes[box].users == 0


async def test_a_file_that_grows_meanwhile(run: Running, box: str) -> None:
    path = run.node.sandboxes[box].link.root / "workspace/log"
    path.write_bytes(b"x" * (20 << 20))
    async with run.client.open("GET", f"/sandboxes/{box}/files?path=log") as response:
        await response.content.readexactly(1000)
        with path.open("ab") as file:
            file.write(b"more" * 1_000_000)
        assert len(await response.read()) + 1000 == 20 << 20


async def test_a_download_cut_short_frees_the_file(run: Running, box: str) -> None:
    path = run.node.sandboxes[box].link.root / "workspace/big"
    with path.open("wb") as file:
        file.truncate(200 << 20)
    async with run.client.open("GET", f"/sandboxes/{box}/files?path=big") as response:
        await response.content.read(1000)
        response.close()
    for _ in range(100):
        if run.node.sandboxes[box].users == 0:
            break
        await asyncio.sleep(0.02)
    (stream,) = run.node.sandboxes[box].link.streams
    assert stream.closed
    assert run.node.sandboxes[box].users == 0


async def test_names_that_are_no_text(run: Running, box: str) -> None:
    client, base = run.client, f"/sandboxes/{box}/files"
    made = await client.call("PUT", URL(f"{base}?path=a%ff", encoded=True), data=b"x")
    assert made.json["name"] == "a\udcff"
    listed = await client.call("GET", f"{base}/list?path=.")
    assert listed.json["data"][0]["path"] == "/workspace/a\udcff"
    assert (run.node.sandboxes[box].link.root / "workspace" / "a\udcff").exists()
    assert (await client.call("GET", URL(f"{base}/stat?path=b%ff", encoded=True))).status == 400
    async with client.open("GET", "/events", headers={"Last-Event-ID": "evt_0"}) as response:
        assert (await sse(response, 3))[2]["data"]["data"]["path"] == "a?"
    assert (await client.call("GET", URL("/sandboxes?image=%ff", encoded=True))).status == 400
    assert (await client.call("GET", URL("/sandboxes?metadata[%ff]=%fe", encoded=True))).status == 400


async def test_archives(client: Client, box: str) -> None:
    base = f"/sandboxes/{box}/files/archive"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("d/f.txt")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"hi"))
    assert (await client.call("PUT", base, params={"path": "in"}, data=buffer.getvalue())).status == 204
    got = await client.call("GET", base, params={"path": "in"})
    assert got.headers["Content-Type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(got.raw)) as tar:
        assert "in/d/f.txt" in tar.getnames()
    assert (await client.call("GET", base, params={"path": "none"})).error["details"]["reason"] == "not_found"
    assert (await client.call("PUT", base, params={"path": "in"}, data=b"no tar")).status == 400


async def test_watching(client: Client, box: str) -> None:
    async with client.open("GET", f"/sandboxes/{box}/files/watch?path=/workspace") as response:
        await asyncio.sleep(0.1)
        await client.call("PUT", f"/sandboxes/{box}/files?path=seen", data=b"x")
        (event,) = await sse(response, 1)
    assert event["event"] == "created"
    missing = await client.call("GET", f"/sandboxes/{box}/files/watch?path=none")
    assert missing.error["details"]["reason"] == "not_found"
