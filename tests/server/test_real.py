"""The same API on real sandboxes: what a fake cannot show."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from runra.server.settings import ServerSettings
from tests.hosting import WALL, need_wall

from .conftest import Running, sse, started

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
async def real(settings: ServerSettings) -> AsyncIterator[Running]:
    async with started(settings, real=True) as run:
        yield run
        await _end(run)


async def _end(run: Running) -> None:
    await asyncio.gather(*(sandbox.terminate() for sandbox in list(run.node.sandboxes.values())))
    await run.node.settled()


async def test_the_main_job(real: Running) -> None:
    client = real.client
    made = await client.sandbox(env={"WHO": "me"}, metadata={"job": "main"})
    assert (made["state"], made["isolation"]) == ("running", WALL)
    box = f"/sandboxes/{made['id']}"
    done = await client.run(made["id"], "echo $WHO; pwd; python3 -c 'print(6*7)'; echo oops >&2; exit 3")
    assert (done["stdout"], done["stderr"], done["exitCode"]) == ("me\n/workspace\n42\n", "oops\n", 3)
    assert (await client.run(made["id"], "cat", stdin="x" * 300_000))["stdout"] == "x" * 300_000
    data = os.urandom(3 << 20)
    assert (await client.call("PUT", f"{box}/files?path=a/b.bin", data=data)).json["sizeBytes"] == len(data)
    assert (await client.call("GET", f"{box}/files?path=a/b.bin")).raw == data
    part = await client.call("GET", f"{box}/files?path=/workspace/a/b.bin", headers={"Range": "bytes=1000000-1000009"})
    assert (part.status, part.raw) == (206, data[1_000_000:1_000_010])
    assert (await client.call("GET", f"{box}/files?path=/proc/self/status")).raw.startswith(b"Name:")
    await client.run(made["id"], "ln -s b.bin a/link")
    linked = await client.call("GET", f"{box}/files?path=a/link", headers={"Range": "bytes=-7"})
    assert linked.raw == data[-7:]
    listed = (await client.call("GET", f"{box}/files/list?path=a")).json["data"]
    assert [(it["name"], it["type"]) for it in listed] == [("b.bin", "file"), ("link", "symlink")]
    tar = await client.call("GET", f"{box}/files/archive?path=a")
    with tarfile.open(fileobj=io.BytesIO(tar.raw)) as archive:
        assert {name.rpartition("/")[2] for name in archive.getnames()} >= {"b.bin", "link"}
    assert (await client.call("PUT", f"{box}/files/archive?path=c", data=tar.raw)).status == 204
    assert (await client.call("GET", f"{box}/files/stat?path=c/b.bin")).json["sizeBytes"] == len(data)
    async with client.open("GET", f"{box}/files/watch?path=/workspace") as response:
        await client.run(made["id"], "touch seen")
        assert (await sse(response, 1))[0]["data"]["path"].endswith("seen")
    metrics = await client.call("GET", f"{box}/metrics")
    assert metrics.status == 200
    told = (await client.call("GET", "/metrics")).raw.decode()
    for name in ("cpu_seconds", "memory_bytes", "disk_bytes", "processes"):
        line = next(line for line in told.splitlines() if line.startswith(f"runra_sandboxes_{name} "))
        assert float(line.split()[1]) > 0
    ended = await client.call("DELETE", box)
    assert ended.json["terminationReason"] == "user"


async def test_pause_keeps_a_process_counting(real: Running) -> None:
    client = real.client
    box = (await client.sandbox())["id"]
    command = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.05; done"
    started_ = await client.call("POST", f"/sandboxes/{box}/execute", json={"command": command, "background": True})
    pid = started_.json["pid"]
    async with client.open("GET", f"/sandboxes/{box}/processes/{pid}/output") as response:
        await sse(response, 3)
        assert (await client.call("POST", f"/sandboxes/{box}/pause")).json["state"] == "paused"
        refused = await client.call("POST", f"/sandboxes/{box}/execute", json={"command": "true"})
        assert refused.error["code"] == "INVALID_STATE"
        assert (await client.call("POST", f"/sandboxes/{box}/resume")).json["state"] == "running"
        last = (await sse(response, 5))[-1]
        assert last["event"] == "stdout"
    await client.call("POST", f"/sandboxes/{box}/processes/{pid}/signal", json={"signal": "SIGTERM"})
    async with client.open("GET", f"/sandboxes/{box}/processes/{pid}/output") as response:
        events = await sse(response)
    assert events[-1]["data"]["signal"] == "SIGTERM"


async def test_a_terminal(real: Running) -> None:
    box = (await real.client.sandbox())["id"]
    async with real.client.ws(f"/sandboxes/{box}/pty?cols=90&rows=33") as socket:
        pid = (await socket.receive_json(timeout=10))["start"]["pid"]
        await socket.send_bytes(b"stty size; echo d''one\n")
        got = b""
        while b"done" not in got:
            got += await socket.receive_bytes(timeout=10)
        assert b"33 90" in got
    async with real.client.ws(f"/sandboxes/{box}/pty?pid={pid}") as socket:
        assert (await socket.receive_json(timeout=10))["start"]["pid"] == pid
        await socket.send_bytes(b"exit 4\n")
        message: Any = await socket.receive(timeout=10)
        while isinstance(message.data, bytes):
            message = await socket.receive(timeout=10)
        assert '"exitCode": 4' in message.data


async def test_listeners_come_and_go(real: Running) -> None:
    client = real.client
    box = (await client.sandbox())["id"]
    made = await client.call(
        "POST", f"/sandboxes/{box}/execute", json={"command": "echo up; cat; exit 7", "background": True}
    )
    base = f"/sandboxes/{box}/processes/{made.json['pid']}"
    async with client.open("GET", f"{base}/output") as first:
        await sse(first, 2)
        async with client.open("GET", f"{base}/output") as second:
            assert (await sse(second, 2))[1]["data"]["data"] == "up\n"
            assert (await client.call("POST", f"{base}/stdin?close=true", data=b"typed\n")).status == 204
            for response in (first, second):
                events = await sse(response)
                assert [it["event"] for it in events] == ["stdout", "exit"]
                assert events[1]["data"]["exitCode"] == 7


async def test_retries_run_nothing_twice(real: Running) -> None:
    client = real.client
    box = (await client.sandbox())["id"]
    body = {"command": "echo run >> count; sleep 0.3; cat count"}
    headers = {"Idempotency-Key": "a key of any length " + "x" * 200}
    answers = await asyncio.gather(
        *(client.call("POST", f"/sandboxes/{box}/execute", json=body, headers=headers) for _ in range(3))
    )
    answers.append(await client.call("POST", f"/sandboxes/{box}/execute", json=body, headers=headers))
    assert [answer.json["stdout"] for answer in answers] == ["run\n"] * 4


async def test_a_slow_reader_and_a_big_output(real: Running) -> None:
    box = (await real.client.sandbox())["id"]
    body = {"command": "head -c 200000000 /dev/zero | tr '\\0' x", "timeoutMs": 60_000}
    async with real.client.open("POST", f"/sandboxes/{box}/execute", json=body, headers=STREAM) as response:
        await sse(response, 2)
        await asyncio.sleep(0.5)
        total = 0
        async for chunk in response.content.iter_any():
            total += len(chunk)
    assert total > 199_000_000


async def test_a_late_listener_hears_a_fast_background_command_from_its_beginning(real: Running) -> None:
    client = real.client
    box = (await client.sandbox())["id"]
    body = {"command": "seq 400000", "background": True}
    made = await client.call("POST", f"/sandboxes/{box}/execute", json=body)
    await asyncio.sleep(0.3)
    async with client.open("GET", f"/sandboxes/{box}/processes/{made.json['pid']}/output") as response:
        events = await sse(response)
    text = "".join(it["data"]["data"] for it in events if it["event"] == "stdout")
    assert text == "".join(f"{n}\n" for n in range(1, 400_001))
    assert events[-1]["data"]["truncated"] is False
    # One that nobody listens to ends all the same, and a short one is not held up.
    for command, limit in (("seq 400000 > /dev/stderr", 4.0), ("echo hi", 0.5)):
        made = await client.call("POST", f"/sandboxes/{box}/execute", json={"command": command, "background": True})
        async with asyncio.timeout(limit):
            while not any(it.data.get("pid") == made.json["pid"] for it in _completed(real)):
                await asyncio.sleep(0.02)


def _completed(run: Running) -> list[Any]:
    return [it for it in run.services.events._events if it.type == "exec.completed"]


async def test_every_call_hears_that_its_sandbox_has_ended(real: Running) -> None:
    client = real.client
    box = (await client.sandbox())["id"]
    body = {"command": "echo up; sleep 50"}

    async def end() -> None:
        await asyncio.sleep(0.3)
        await client.call("DELETE", f"/sandboxes/{box}")

    async with (
        client.open("POST", f"/sandboxes/{box}/execute", json=body, headers=STREAM) as response,
        client.ws(f"/sandboxes/{box}/pty") as socket,
    ):
        answer, events, _ = await asyncio.gather(
            client.call("POST", f"/sandboxes/{box}/execute", json=body), sse(response), end()
        )
        message: Any = await socket.receive(timeout=10)
        while isinstance(message.data, bytes) or '"start"' in message.data:
            message = await socket.receive(timeout=10)
        assert "INVALID_STATE" in message.data
    assert (answer.status, answer.error["code"]) == (409, "INVALID_STATE")
    assert events[-1]["data"]["error"]["code"] == "INVALID_STATE"
    assert events[-1]["data"]["error"]["details"]["terminationReason"] == "user"


async def test_memory_that_ran_out_behind_gvisor_is_told_as_that(settings: ServerSettings) -> None:
    """All of it ends with what the kernel killed: no call hears an end that the program never had."""
    need_wall("gvisor")
    body = {"command": "python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))'; echo went on: $?"}
    async with started(replace(settings, ranges={"memoryMb": (64, 256)}), real=True) as run:
        client = run.client
        box = (await client.sandbox(isolation="gvisor", resources={"memoryMb": 128}))["id"]
        async with client.open("POST", f"/sandboxes/{box}/execute", json=body, headers=STREAM) as response:
            events = await sse(response)
        assert events[-1]["data"]["error"]["code"] == "INVALID_STATE", events
        assert events[-1]["data"]["error"]["details"]["terminationReason"] == "oom"
        assert (await client.call("GET", f"/sandboxes/{box}")).json["terminationReason"] == "oom"
        await _end(run)


async def test_a_restart_adopts_sandboxes_commands_and_retries(settings: ServerSettings) -> None:
    headers = {"Idempotency-Key": "kept"}
    command = "echo one; until test -e go; do sleep 0.05; done; echo two; echo x >> count"
    body = {"command": command, "timeoutMs": 20_000}
    async with started(settings, real=True) as first:
        running, paused = await first.client.sandbox(), await first.client.sandbox()
        execute = f"/sandboxes/{running['id']}/execute"
        async with first.client.open("POST", execute, json=body, headers={**headers, **STREAM}) as response:
            await sse(response, 2)
        await first.client.call("POST", f"/sandboxes/{paused['id']}/pause")
    async with started(replace(settings), real=True) as second:
        client = second.client
        states = {it["id"]: it["state"] for it in (await client.call("GET", "/sandboxes")).json["data"]}
        assert states == {running["id"]: "running", paused["id"]: "paused"}
        await client.call("PUT", f"/sandboxes/{running['id']}/files?path=go", data=b"")
        again = await client.call("POST", execute, json=body, headers=headers)
        assert again.json["stdout"] == "one\ntwo\n"
        assert (await client.run(running["id"], "wc -l < count"))["stdout"].strip() == "1"
        told = [it for it in second.services.events._events if it.type == "exec.completed"]
        assert len(told) == 2
        await client.call("POST", f"/sandboxes/{paused['id']}/resume")
        assert (await client.run(paused["id"], "echo back"))["stdout"] == "back\n"
        await _end(second)


async def test_a_retry_long_after_never_runs_it_again(real: Running) -> None:
    """The agent remembers its latest 64 commands; a retry of one before them is told so."""
    box = (await real.client.sandbox())["id"]
    path, headers = f"/sandboxes/{box}/execute", {"Idempotency-Key": "first of many"}
    body = {"command": "echo run >> count"}
    assert (await real.client.call("POST", path, json=body, headers=headers)).status == 200
    await asyncio.gather(*(real.client.run(box, "true") for _ in range(70)))
    again = await real.client.call("POST", path, json=body, headers=headers)
    assert (again.status, again.error["details"]["reason"]) == (409, "result_forgotten")
    assert (await real.client.run(box, "cat count"))["stdout"] == "run\n"
