"""What a hostile visitor, a hostile server inside and a hostile neighbour try."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest

from runra.server.settings import ServerSettings

from .conftest import Preview, World, started
from .test_http import _rss, header

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: HOST\r\nX-Smuggled: 1\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length : 5\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b" Transfer-Encoding: chunked\r\n",
        b"X: 1\nContent-Length: 5\r\n",
        b"X: 1\rContent-Length: 5\r\n",
        b"X\0: 1\r\n",
        b"Host: localhost\r\n",
    ],
    ids=repr,
)
async def test_nothing_is_smuggled_in(world: World, head: bytes) -> None:
    preview = await _bare(world)
    answer = await preview.raw(b"POST / HTTP/1.1\r\nHost: HOST\r\n" + head + b"\r\n0\r\n\r\n" + SMUGGLED, 2)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404")), answer
    assert answer.count(b"HTTP/1.1 4") == 1, answer
    assert b"HTTP/1.1 2" not in answer, answer


async def _bare(world: World) -> Preview:
    """A preview of a sandbox that need not be: what is refused is refused before."""
    return Preview(world, "sb_" + "a" * 16, {"url": f"http://3000-{'a' * 16}.localhost:{world.port}"})


async def test_a_body_in_chunks_is_said_anew(preview: Preview) -> None:
    answer = await preview.raw(
        b"POST /seen HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: CHUNKED\r\nTrailer: X-T\r\nConnection: close\r\n\r\n"
        b'3;ext="a"\r\nabc\r\n00\r\nHost: evil\r\nX-T: 1\r\n\r\n'
    )
    seen = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert seen["body"] == "abc"
    assert [name for name, _ in seen["headers"]].count("transfer-encoding") == 1
    assert header(seen, "host") == [preview.host]
    assert not header(seen, "x-t")


async def test_headers_tell_the_server_inside_the_truth_and_no_secret(preview: Preview) -> None:
    key = preview.world.api.key
    lies = {
        "X-Forwarded-For": "6.6.6.6",
        "X_Forwarded_For": "6.6.6.6",
        "Forwarded": "for=6.6.6.6",
        "X-Real-IP": "6.6.6.6",
        "X-Forwarded-Proto": "https",
        "Authorization": f"Bearer {key}",
        "X-API-Key": key,
        "X-Runra-Preview-Token": "t",
        "Cookie": f"runra-preview=x; mine=1; k={key}",
        "Connection": "x-forwarded-for, x-forwarded-host, host",
    }
    seen = await preview.seen(headers=lies)
    text = json.dumps(seen)
    assert key not in text
    assert "6.6.6.6" not in text
    assert not [name for name, _ in seen["headers"] if "runra" in name.lower()]
    assert header(seen, "x-forwarded-for") == ["127.0.0.1"]
    assert header(seen, "x-forwarded-proto") == ["http"]
    assert header(seen, "host") == [preview.host]
    own = await preview.seen(headers={"Authorization": "Bearer of-the-app", "Cookie": "mine=1"})
    assert header(own, "authorization") == ["Bearer of-the-app"]
    assert header(own, "cookie") == ["mine=1"]


async def test_what_a_sandbox_cannot_say_to_a_browser(preview: Preview) -> None:
    async with preview.open("GET", "/cookies") as answer:
        assert answer.headers.getall("Set-Cookie") == ["a=1; Path=/", "b=2; HttpOnly"]
        for name in ("X-Runra-Reason", "Alt-Svc", "X-Secret-Hop", "Keep-Alive"):
            assert name not in answer.headers
        assert len(answer.headers.getall("Date")) == 1


ANSWERS = {
    "two lengths": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\nokHTTP",
    "a negative length": "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx",
    "no HTTP": "hello\r\n\r\n",
    "a bad status": "HTTP/1.1 999999 OK\r\n\r\n",
    "status 0": "HTTP/1.1 000 OK\r\n\r\n",
    "status 600": "HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
    "nothing": "",
    "half a head": "HTTP/1.1 200 OK\r\nContent-Le",
    "a bad header": "HTTP/1.1 200 OK\r\nX Y: 1\r\n\r\n",
    "a NUL": "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
    "a control character": "HTTP/1.1 200 OK\r\nX: a\x01b\r\n\r\n",
    "a bare CR": "HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\n\r\n",
    "interim for ever": "HTTP/1.1 100 Continue\r\n\r\n" * 40,
    "a switch nobody asked for": "HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nraw",
    "a huge header": "HTTP/1.1 200 OK\r\nX: " + "a" * 30_000 + "\r\nY: " + "a" * 40_000 + "\r\n\r\n",
}


async def test_answers_that_are_none(preview: Preview) -> None:
    await preview.world.api.call("PUT", f"/sandboxes/{preview.id}/files", params={"path": "/tmp/huge"}, data=b"x")
    for name, raw in ANSWERS.items():
        if len(raw) > 8000:
            continue  # too long for a target; see the flood
        status, headers, _ = await preview.get(f"/raw?{quote(raw, safe='')}")
        assert (status, headers["X-Runra-Reason"]) == (502, "bad_answer"), name
        assert "Set-Cookie" not in headers


@pytest.mark.parametrize(
    "raw",
    [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFFFFFFFF\r\nx",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    ],
)
async def test_half_an_answer_is_no_answer(preview: Preview, raw: str) -> None:
    answer = await preview.raw(b"GET /raw?" + quote(raw, safe="").encode() + b" HTTP/1.1\r\nHost: HOST\r\n\r\n", 5)
    assert not answer.endswith(b"0\r\n\r\n")  # a client sees that the end is missing
    assert answer.count(b"HTTP/1.1") == 1


async def test_no_second_answer_for_somebody_else(preview: Preview) -> None:
    for raw in (
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\npoison",
    ):
        target = b"GET /raw?" + quote(raw, safe="").encode() + b" HTTP/1.1\r\nHost: HOST\r\n\r\n"
        end = b"GET /seen HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n"
        answer = await preview.raw(target * 3 + end)
        assert b"poison" not in answer
        assert answer.count(b"HTTP/1.1 200") == 4
        assert (await preview.seen())["method"] == "GET"


async def test_endless_heads_and_bodies(preview: Preview) -> None:
    status, headers, _ = await preview.get(f"/flood?{quote('HTTP/1.1 200 OK' + chr(13) + chr(10))}")
    assert (status, headers["X-Runra-Reason"]) == (502, "bad_answer")
    before = _rss()
    body = quote("HTTP/1.1 200 OK\r\n\r\n", safe="")
    held = []
    for _ in range(40):  # clients who ask for an endless answer and read nothing of it
        reader, writer = await asyncio.open_connection("127.0.0.1", preview.world.port, limit=1024)
        writer.write(f"GET /flood?{body} HTTP/1.1\r\nHost: {preview.host}\r\n\r\n".encode())
        held.append((reader, writer))
    for _ in range(40):  # and those who send a body for ever to a server that does not read it
        reader, writer = await asyncio.open_connection("127.0.0.1", preview.world.port, limit=1024)
        writer.write(f"POST /slow?30 HTTP/1.1\r\nHost: {preview.host}\r\nContent-Length: 99999999\r\n\r\n".encode())
        writer.write(b"x" * (4 << 20))
        held.append((reader, writer))
    await asyncio.sleep(1)
    # 40 of our own clients hold 4 MiB each here; the server holds its windows.
    assert _rss() - before < (40 * 4 + 40 * 3 + 40) << 20
    assert (await preview.seen())["method"] == "GET"
    for _, writer in held:
        writer.transport.abort()
    opened = preview.world.app.state.services.ingress._open
    async with asyncio.timeout(10):
        # Who is not read from is not heard leaving either: such a request ends with its time, its answer, or its sandbox.
        while opened.get(preview.id, 0) > 40:
            await asyncio.sleep(0.02)
        await preview.world.api.call("DELETE", f"/sandboxes/{preview.id}")
        while opened:
            await asyncio.sleep(0.02)


async def test_bounds_of_connections_and_time(settings: ServerSettings) -> None:
    async with started(replace(settings, preview_connections=4, preview_idle_s=2.0)) as world:
        preview = await world.app_sandbox()
        slow = [asyncio.ensure_future(preview.get("/slow?30")) for _ in range(4)]
        async with asyncio.timeout(10):
            while world.app.state.services.ingress._open[preview.id] < 4:
                await asyncio.sleep(0.005)
        status, headers, _ = await preview.get("/seen")
        assert (status, headers["X-Runra-Reason"], headers["Retry-After"]) == (503, "too_many", "1")
        for status, headers, _ in await asyncio.gather(*slow):
            assert (status, headers["X-Runra-Reason"]) == (504, "no_answer")
        assert (await preview.get("/seen"))[0] == 200
        # A body that stops in the middle, and an answer nobody reads.
        answer = await preview.raw(b"POST /sha HTTP/1.1\r\nHost: HOST\r\nContent-Length: 9\r\n\r\nhalf", 5)
        assert answer.startswith(b"HTTP/1.1 504")
        _, writer = await asyncio.open_connection("127.0.0.1", world.port, limit=1024)
        writer.write(f"GET /give?{1 << 30} HTTP/1.1\r\nHost: {preview.host}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            while not world.app.state.services.ingress._open:
                await asyncio.sleep(0.01)
            while world.app.state.services.ingress._open:
                await asyncio.sleep(0.05)
        writer.close()


async def test_the_api_and_previews_never_mix(preview: Preview) -> None:
    world = preview.world
    key = world.api.key
    auth = {"Authorization": f"Bearer {key}"}
    # The API's paths under a preview's name are the preview's.
    seen = await preview.seen(f"/v1/sandboxes/{preview.id}", headers=auth)
    assert seen["target"] == f"/v1/sandboxes/{preview.id}"
    for host in (f"user@{preview.host}", f"x.{preview.host}", f"{preview.host}.evil.example"):
        status, _, body = await preview.get("/seen", headers={"Host": host})
        assert (status, json.loads(body)["error"]["code"]) == (404, "INVALID_REQUEST"), host
    for host in (preview.host.upper(), preview.host.replace(".localhost:", ".localhost.:"), preview.host.split(":")[0]):
        assert (await preview.seen(headers={"Host": host}))["method"] == "GET", host
    # A target that names another host than Host does.
    for target, host in (
        (f"http://{preview.host}/seen", f"127.0.0.1:{world.port}"),
        (f"http://127.0.0.1:{world.port}/v1/health", preview.host),
        (f"http://user@{preview.host}/seen", preview.host),
    ):
        answer = await preview.raw(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), 3)
        assert answer.startswith(b"HTTP/1.1 400"), (target, answer)
    answer = await preview.raw(b"GET http://HOST/seen?abs HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n")
    assert b'"target": "/seen?abs"' in answer
    for raw in (b"CONNECT HOST HTTP/1.1\r\nHost: HOST\r\n\r\n", b"GET relative HTTP/1.1\r\nHost: HOST\r\n\r\n"):
        assert (await preview.raw(raw, 3)).startswith(b"HTTP/1.1 400")


async def test_a_page_cannot_use_the_api(preview: Preview) -> None:
    origin = preview.exposed["url"]
    world = preview.world
    for method in ("OPTIONS", "GET", "POST"):
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        async with world.session.request(method, f"{world.settings.url}/v1/sandboxes", headers=headers) as answer:
            assert answer.status in (401, 405)
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    # No cookie opens anything there, and none is ever set.
    async with world.session.get(
        f"{world.settings.url}/v1/sandboxes", headers={"Cookie": f"Authorization={world.api.key}"}
    ) as answer:
        assert answer.status == 401
        assert "Set-Cookie" not in answer.headers


async def test_another_sandbox_is_out_of_reach(world: World) -> None:
    one, other = await asyncio.gather(world.app_sandbox(), world.app_sandbox())
    await world.serve(other.id, 3500)  # listens, is not exposed
    crossed = Preview(world, other.id, {"url": other.exposed["url"].replace("3000", "3500")})
    status, headers, _ = await crossed.get()
    assert (status, headers["X-Runra-Reason"]) == (404, "not_exposed")
    # The host's own ports, the server's among them, are not to be reached by a preview of the same number.
    preview = Preview(world, one.id, await world.expose(one.id, world.port))
    status, headers, _ = await preview.get("/v1/health")
    assert (status, headers["X-Runra-Reason"]) == (502, "port_closed")


async def test_websocket_requests_are_checked_alike(world: World) -> None:
    sandbox = await world.sandbox()
    made = await world.expose(sandbox["id"], 3000, private=True)
    preview = Preview(world, sandbox["id"], made)
    upgrade = b"GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n%s\r\n"
    for host, more, status in (
        (b"HOST", b"", 401),
        (b"HOST", b"X-Runra-Preview-Token: wrong\r\n", 401),
        (b"HOST", b"Cookie: runra-preview=1.2\r\n", 401),
        (b"HOST", b"Content-Length: 5\r\n", 400),
        (b"3001" + preview.host[4:].encode(), b"", 404),
        (b"HOST", b"X-Runra-Preview-Token: " + made["token"].encode() + b"\r\n", 502),
    ):
        answer = await preview.raw(upgrade % (host, more), 3)
        assert answer.startswith(b"HTTP/1.1 %d" % status), (more, answer)
    # The API's own sockets are still the API's.
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    answer = await preview.raw(upgrade.replace(b"/ws", b"/v1/sandboxes/x/pty") % (b"localhost", key), 3)
    assert answer.startswith(b"HTTP/1.1 401")


async def test_a_socket_asked_for_too_early(preview: Preview) -> None:
    answer = await preview.raw(
        b"GET /slow?0.5 HTTP/1.1\r\nHost: HOST\r\n\r\n"
        b"GET /ws HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        3,
    )
    assert answer == b""


async def test_other_upgrades_are_ordinary_requests(preview: Preview) -> None:
    answer = await preview.raw(
        b"GET /seen HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n",
        3,
    )
    assert answer.startswith(b"HTTP/1.1 200")
    seen: Any = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert not header(seen, "upgrade")


def test_this_process_is_not_left_with_descriptors() -> None:
    assert len(os.listdir("/proc/self/fd")) < 200
