"""The outer layer: ids, shapes, bounds, streams that end, and clients that misbehave."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import replace
from typing import Any

import pytest

from runra.events import Event, EventLog
from runra.server import protocol
from runra.server.routes.events import _lines
from runra.server.settings import RANGES, ServerSettings
from tests.hosting import until

from .conftest import Client, Running, sse, started


async def _raw(client: Client, data: bytes, wait: float = 5) -> bytes:
    port = int(client.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        await writer.drain()
        async with asyncio.timeout(wait):
            return await reader.read(-1)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_health_and_document_need_no_key(client: Client) -> None:
    open_ = client.with_key("")
    health = await open_.call("GET", "/health")
    assert health.json | {"timestamp": 0} == {"status": "ok", "version": "v1", "timestamp": 0}
    assert (await open_.call("GET", "/openapi.json")).json["openapi"].startswith("3.")


async def test_unknown_routes_and_methods(client: Client) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/sandboxes/", 404),
        ("GET", "/../etc/passwd", 404),
        ("PUT", "/sandboxes", 405),
        ("HEAD", "/sandboxes", 405),
        ("OPTIONS", "/sandboxes", 405),
    ):
        answer = await client.call(method, path)
        assert answer.status == status, path
        assert answer.headers["X-Request-Id"].startswith("req_")
        if method != "HEAD":
            assert answer.error["code"] == "INVALID_REQUEST"
        if status == 405:
            assert answer.headers["Allow"] == "GET, POST"
    preflight = await client.call("OPTIONS", "/sandboxes", headers={"Origin": "https://evil.example"})
    assert not [name for name in preflight.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    "sandbox_id",
    ["x", "sb_", "sb_" + "a" * 16, "sb_" + "A" * 16, "%2e%2e", "a%0d%0aX-Evil:1", "%00", "%ff", "a" * 4000, "'"],
)
async def test_hostile_ids(client: Client, sandbox_id: str) -> None:
    head = f"GET /v1/sandboxes/{sandbox_id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.key}\r\nConnection: close\r\n\r\n"
    answer = await _raw(client, head.encode())
    status, _, rest = answer.partition(b"\r\n")
    assert b"404" in status
    headers, _, body = rest.partition(b"\r\n\r\n")
    assert b"evil" not in headers.lower()
    assert json.loads(body)["error"]["code"] == "SANDBOX_NOT_FOUND"
    assert len(body) < 600


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b"", "application/json", "missing"),
        (b"{", "application/json", "JSON"),
        (b"[]", "application/json", "object"),
        (b'"x"', "application/json", "object"),
        (b"\xff\xfe", "application/json", "JSON"),
        (b'{"image":"host","image2":NaN}', "application/json", "image2"),
        (b'{"image":"\\ud800"}', "application/json", "JSON"),
        (b"[" * 100_000, "application/json", "JSON"),
        (b'{"image":"host"}', "text/plain", "Content-Type"),
    ],
)
async def test_bodies_that_are_no_request(client: Client, body: bytes, kind: str, says: str) -> None:
    answer = await client.call("POST", "/sandboxes", data=body, headers={"Content-Type": kind})
    assert (answer.status, answer.error["code"]) == (400, "INVALID_REQUEST")
    assert says in answer.error["message"]
    assert len(answer.raw) < 1000


async def test_a_body_where_none_belongs(client: Client) -> None:
    box = (await client.sandbox())["id"]
    answer = await client.call("POST", f"/sandboxes/{box}/pause", json={"force": True})
    assert (answer.status, "no fields" in answer.error["message"]) == (400, True)


async def test_a_huge_body_is_refused_before_it_is_read(client: Client) -> None:
    for key, status in ((b"Bearer rra_live_wrong", b"401"), (f"Bearer {client.key}".encode(), b"400")):
        head = b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\nAuthorization: " + key
        port = int(client.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"\r\n\r\n")
        async with asyncio.timeout(5):
            assert status in await reader.readline()
        writer.close()


async def test_chunked_bodies_have_the_same_bound(client: Client) -> None:
    async def body() -> Any:
        for _ in range(200):
            yield b" " * (64 << 10)

    answer = await client.call("POST", "/sandboxes", data=body(), headers={"Content-Type": "application/json"})
    assert (answer.status, "8388608" in answer.error["message"]) == (400, True)


async def test_unknown_and_double_query_parameters(client: Client) -> None:
    for query, field in (("limt=1", "limt"), ("limit=1&limit=2", "limit"), ("limit=0", "limit"), ("limit=101", "limit"),
                         ("state=gone", "state"), ("limit=x", "limit"), ("offset=-1", "offset")):  # fmt: skip
        answer = await client.call("GET", f"/sandboxes?{query}")
        assert (answer.status, answer.error["details"]["field"]) == (400, field)
    many = await client.call("GET", "/sandboxes?" + "&".join(f"metadata[k{n}]=v" for n in range(150)))
    assert many.status == 400


async def test_heads_are_bounded(client: Client) -> None:
    answer = await _raw(client, b"GET /v1/health HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * (70 << 10))
    assert b"400" in answer.partition(b"\r\n")[0]
    assert b"INVALID_REQUEST" in answer
    many = b"".join(b"X-%d: y\r\n" % n for n in range(20_000))
    # It is cut off while it still sends, so the kernel may throw our answer away.
    answer = await _raw(client, b"GET /v1/health HTTP/1.1\r\nHost: x\r\n" + many)
    assert answer == b"" or b" 400 " in answer
    assert b"INVALID_REQUEST" in await _raw(client, b"nonsense\r\n\r\n")
    large_but_fine = await client.call("GET", "/health", headers={"X-Big": "a" * 30_000})
    assert large_but_fine.status == 200


async def test_a_head_that_never_ends_is_cut_off(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_DEADLINE", 0.2)
    assert await _raw(client, b"GET /v1/health HTTP/1.1\r\n", wait=3) == b""
    assert await _raw(client, b"", wait=3) == b""


async def test_two_requests_on_one_connection(client: Client) -> None:
    one = b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert (await _raw(client, one + one + last)).count(b"HTTP/1.1 200") == 3


async def test_the_client_cannot_choose_the_request_id(client: Client) -> None:
    answer = await client.call("GET", "/health", headers={"X-Request-Id": "mine"})
    assert answer.headers["X-Request-Id"].startswith("req_")


async def test_events_of_one_and_of_all(run: Running) -> None:
    client = run.client
    organization = (await client.call("POST", "/organizations", json={"name": "b"})).json
    other = client.with_key((await client.new_key(profile="full", organizationId=organization["id"]))["key"])
    box, second = (await client.sandbox())["id"], (await client.sandbox())["id"]
    async with (
        client.open("GET", f"/sandboxes/{box}/events") as mine,
        client.open("GET", "/events") as every,
        other.open("GET", "/events") as foreign,
    ):
        await client.call("POST", f"/sandboxes/{box}/pause")
        await client.call("POST", f"/sandboxes/{second}/pause")
        await client.call("POST", f"/sandboxes/{box}/resume")
        theirs = await other.sandbox()
        assert [it["event"] for it in await sse(mine, 2)] == ["sandbox.paused", "sandbox.resumed"]
        everything = await sse(every, 3)
        assert [it["data"]["sandboxId"] for it in everything] == [box, second, box]
        assert {it["data"]["sandboxId"] for it in await sse(foreign, 2)} == {theirs["id"]}
        assert "organizationId" not in everything[0]["data"]
        assert everything[0]["id"] == everything[0]["data"]["id"]
    async with client.open("GET", "/events", headers={"Last-Event-ID": everything[0]["id"]}) as again:
        assert [it["id"] for it in await sse(again, 2)] == [it["id"] for it in everything[1:]]
    await asyncio.sleep(0.1)
    assert not run.services.events._subscriptions


async def test_events_by_type(run: Running) -> None:
    box = (await run.client.sandbox())["id"]
    async with run.client.open("GET", "/events?types=sandbox.paused,exec.*") as response:
        await run.client.call("POST", f"/sandboxes/{box}/pause")
        await run.client.call("POST", f"/sandboxes/{box}/resume")
        await run.client.run(box, "true")
        told = [it["event"] for it in await sse(response, 3)]
    assert told == ["sandbox.paused", "exec.started", "exec.completed"]
    refused = await run.client.call("GET", "/events?types=sandbox.pausd")
    assert (refused.status, refused.error["details"]["field"]) == (400, "types")
    assert "sandbox.pausd" in refused.error["message"]


async def test_output_costs_nothing_and_is_not_kept_unless_somebody_asks(run: Running) -> None:
    box = (await run.client.sandbox())["id"]
    async with run.client.open("GET", "/events") as every:
        async with run.client.open("GET", "/events?types=exec.streamed") as output:
            await run.client.run(box, "echo heard; echo here >&2")
            pieces = {(it["data"]["data"]["stream"], it["data"]["data"]["data"]) for it in await sse(output, 2)}
        assert pieces == {("stdout", "heard\n"), ("stderr", "here\n")}
        assert [it["event"] for it in await sse(every, 2)] == ["exec.started", "exec.completed"]
    assert not any(event.type == "exec.streamed" for event in run.services.events._events)
    await until(lambda: not run.services.events.asked("exec.streamed"))


async def test_a_reader_is_told_what_it_missed(run: Running) -> None:
    log = run.services.events
    box = (await run.client.sandbox())["id"]
    seen = log._events[-1]
    log._events = deque(log._events, maxlen=4)
    await run.client.run(box, "true")

    async def first(after: str) -> tuple[str, dict[str, Any], str | None]:
        async with run.client.open("GET", "/events", headers={"Last-Event-ID": after}) as response:
            (event,) = await sse(response, 1)
            return event["event"], event["data"], event.get("id")

    assert (await first(seen.id))[0] == "exec.started"  # all of it is there
    for _ in range(4):
        await run.client.run(box, "true")
    assert await first(seen.id) == ("gap", {"reason": "forgotten", "after": seen.id}, None)
    before = f"evt_{0:022x}"
    assert await first(before) == ("gap", {"reason": "restart", "after": before}, None)
    assert (await first("evt_0"))[0].startswith("exec.")  # asks for what there is


async def test_a_slow_reader_is_told_how_much(run: Running) -> None:
    box = (await run.client.sandbox())["id"]
    subscription = EventLog().subscribe(lambda _: True, bound=2)
    for number in range(5):
        subscription.offer(Event(id=f"evt_{number}", timestamp="", type="file.read", sandbox_id=box))
    subscription.close()
    told = b"".join([line async for line in _lines(subscription, None)]).decode().split("\n")
    assert told[0] == "event: gap"
    assert json.loads(told[1].removeprefix("data: ")) == {"reason": "slow", "after": "", "count": 3}
    assert [line for line in told if line.startswith("id: ")] == ["id: evt_3", "id: evt_4"]


async def test_heartbeats_and_the_end_of_the_server(settings: ServerSettings) -> None:
    async with started(replace(settings, heartbeat_s=0.1)) as run, run.client.open("GET", "/events") as response:
        assert (await response.content.readline()).startswith(b":")
        run.server.should_exit = True
        async with asyncio.timeout(3):
            rest = await response.content.read()  # ends in good order, not by a broken connection
        assert set(rest.split(b"\n")) <= {b"", b": keep-alive"}


async def test_a_call_in_flight_hears_that_the_server_stops(settings: ServerSettings) -> None:
    world: dict[str, Any] = {}
    async with started(settings, world) as run:
        box = (await run.client.sandbox())["id"]
        call = asyncio.create_task(run.client.call("POST", f"/sandboxes/{box}/execute", json={"command": "sleep 20"}))
        await asyncio.sleep(0.3)
        run.server.should_exit = True
        answer = await call
        assert (answer.status, answer.error["retryable"]) == (500, True)
        assert "stopping" in answer.error["message"]
    await world[box].link.close()


async def test_a_client_that_reads_nothing_is_dropped(settings: ServerSettings) -> None:
    async with started(replace(settings, heartbeat_s=0.2, stall_s=0.5)) as run:
        box = (await run.client.sandbox())["id"]
        body = json.dumps({"command": "head -c 60000000 /dev/zero | tr '\\0' x; echo > end", "timeoutMs": 20000})
        head = (
            f"POST /v1/sandboxes/{box}/execute HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
            f"Authorization: Bearer {run.client.key}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        )
        port = int(run.client.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(head.encode())
        for _ in range(100):
            if run.services.measures.dropped_clients:
                break
            await asyncio.sleep(0.05)
        assert run.services.measures.dropped_clients == 1
        for _ in range(100):  # nobody listens any more: the command goes on
            if (run.node.sandboxes[box].link.root / "workspace/end").exists():
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("the command was held up")
        writer.close()
        del reader


async def test_metrics(client: Client) -> None:
    box = (await client.sandbox())["id"]
    await client.run(box, "true")
    assert set((await client.call("GET", f"/sandboxes/{box}/metrics")).json) >= {"cpuMs", "memoryBytes"}
    text = (await client.call("GET", "/metrics")).raw.decode()
    assert 'runra_sandboxes{state="running"} 1' in text
    assert 'route="/v1/sandboxes/{id}/execute",status="200"} 1' in text
    assert box not in text


async def test_widened_ranges(settings: ServerSettings) -> None:
    async with started(replace(settings, ranges={"memoryMb": (64, 65536), "cpu": (1, 64)})) as run:
        made = await run.client.sandbox(resources={"memoryMb": 64, "cpu": 1})
        assert made["resources"]["memoryMb"] == 64
        text = (await run.client.call("GET", "/openapi.json")).json["components"]["schemas"]["Resources"]
        assert text["properties"]["memoryMb"]["minimum"] == 64
    assert RANGES["memoryMb"].low == 2048
    assert RANGES["cpu"].allowed == (2, 4, 8)


def test_the_log_is_the_given_one() -> None:
    assert EventLog().subscribe(lambda _: True).dropped == 0
