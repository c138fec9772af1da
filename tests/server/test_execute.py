"""Commands: collected, streamed, in the background, retried, abandoned."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from .conftest import Client, Running, sse

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
async def box(client: Client) -> str:
    return str((await client.sandbox(env={"A": "1"}))["id"])


async def _events(run: Running, *types: str) -> list[Any]:
    return [it for it in run.services.events._events if it.type in types]


async def test_a_result(client: Client, box: str) -> None:
    done = await client.run(box, "echo $A$B; pwd; cat; echo err >&2; exit 3", env={"B": "2"}, stdin="in\n")
    assert done["stdout"].startswith("12\n")
    assert done["stdout"].endswith("/workspace\nin\n")
    assert (done["stderr"], done["exitCode"], done["signal"]) == ("err\n", 3, None)
    assert (done["oom"], done["truncated"]) == (False, False)
    killed = await client.run(box, "kill -9 $$")
    assert (killed["exitCode"], killed["signal"]) == (137, "SIGKILL")
    argv = await client.call("POST", f"/sandboxes/{box}/execute", json={"argv": ["printf", "%s|", "a b", "$A"]})
    assert argv.json["stdout"] == "a b|$A|"


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [
        ({}, "INVALID_REQUEST", 400),
        ({"command": "x", "argv": ["x"]}, "INVALID_REQUEST", 400),
        ({"command": "a\0b"}, "INVALID_REQUEST", 400),
        ({"command": "x", "timeoutMs": 300_001}, "INVALID_REQUEST", 400),
        ({"command": "x", "shell": "zsh"}, "INVALID_REQUEST", 400),
        ({"command": "x" * (3 << 20)}, "COMMAND_TOO_LONG", 413),
        ({"command": "é" * ((1 << 19) + 1)}, "COMMAND_TOO_LONG", 413),
        ({"argv": ["x" * 1000] * 2000}, "COMMAND_TOO_LONG", 413),
        ({"command": "x" * (9 << 20)}, "INVALID_REQUEST", 400),
    ],
)
async def test_bad_input(client: Client, box: str, body: object, code: str, status: int) -> None:
    refused = await client.call("POST", f"/sandboxes/{box}/execute", json=body)
    assert (refused.status, refused.error["code"]) == (status, code)
    assert len(refused.raw) < 2000


async def test_a_command_of_exactly_1_mib(client: Client, box: str) -> None:
    # Linux takes at most 128 KiB in one argument, so the fake's shell refuses it: not with COMMAND_TOO_LONG.
    done = await client.call("POST", f"/sandboxes/{box}/execute", json={"command": "#" * (1 << 20)})
    assert done.status != 413


async def test_timeout_carries_what_came(run: Running, box: str) -> None:
    late = await run.client.call(
        "POST", f"/sandboxes/{box}/execute", json={"command": "echo begun; sleep 9", "timeoutMs": 300}
    )
    assert (late.status, late.error["code"]) == (408, "EXECUTION_TIMEOUT")
    assert late.error["details"]["stdout"] == "begun\n"
    assert late.error["retryable"] is False
    assert len(await _events(run, "exec.timed_out")) == 1


async def test_events_tell_of_commands(run: Running, box: str) -> None:
    await run.client.run(box, "echo hi; exit 4")
    begun, done = await _events(run, "exec.started", "exec.completed")
    assert begun.data["command"] == done.data["command"] == "echo hi; exit 4"
    assert begun.data["pid"] == done.data["pid"]
    assert (done.data["exitCode"], done.organization_id) == (4, run.node.sandboxes[box].organization_id)


async def test_a_stream(client: Client, box: str) -> None:
    command = (
        "printf 'a\\n'; sleep 0.1; printf 'é' | head -c1; sleep 0.1; printf 'é' | tail -c1; printf '\\xff\\xfe'; exit 2"
    )
    async with client.open("POST", f"/sandboxes/{box}/execute", json={"command": command}, headers=STREAM) as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        events = await sse(response)
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "exit"
    assert events[-1]["data"]["exitCode"] == 2
    assert events[-1]["data"]["stdout"] == ""
    raw = b"".join(
        base64.b64decode(it["data"]["data"]) if "encoding" in it["data"] else it["data"]["data"].encode()
        for it in events
        if it["event"] == "stdout"
    )
    assert raw == b"a\n\xc3\xa9\xff\xfe"
    assert events[1]["data"] == {"data": "a\n", "offset": 0}
    assert events[-1]["id"] == str(len(raw))


async def test_a_stream_that_times_out(client: Client, box: str) -> None:
    body = {"command": "echo hi; sleep 9", "timeoutMs": 200}
    async with client.open("POST", f"/sandboxes/{box}/execute", json=body, headers=STREAM) as response:
        events = await sse(response)
    assert [it["event"] for it in events] == ["start", "stdout", "error"]
    assert events[-1]["data"]["error"]["code"] == "EXECUTION_TIMEOUT"
    assert events[-1]["data"]["error"]["requestId"] == response.headers["X-Request-Id"]


async def test_a_stream_refused_before_it_starts_is_an_ordinary_error(client: Client, box: str) -> None:
    async with client.open(
        "POST", f"/sandboxes/{box}/execute", json={"command": "x", "cwd": "/none"}, headers=STREAM
    ) as response:
        assert response.status == 400
        assert response.content_type == "application/json"


async def test_a_vanished_client_does_not_end_the_command(run: Running, box: str) -> None:
    body = {"command": "for i in $(seq 20); do echo line $i; sleep 0.05; done; echo done > end"}
    async with run.client.open("POST", f"/sandboxes/{box}/execute", json=body, headers=STREAM) as response:
        await sse(response, 2)
        response.close()
    sandbox = run.node.sandboxes[box]
    await asyncio.sleep(0.2)
    assert sandbox.users == 1  # a running command is activity
    for _ in range(100):
        if await _events(run, "exec.completed"):
            break
        await asyncio.sleep(0.05)
    assert (sandbox.link.root / "workspace/end").read_text() == "done\n"
    await asyncio.sleep(0.01)
    assert sandbox.users == 0
    assert not run.services.executions._followed


async def test_a_slow_reader_stops_the_command_not_the_server(run: Running, box: str) -> None:
    body = {"command": "head -c 50000000 /dev/zero | tr '\\0' x; echo all > end", "timeoutMs": 30000}
    async with run.client.open("POST", f"/sandboxes/{box}/execute", json=body, headers=STREAM) as response:
        await sse(response, 2)
        await asyncio.sleep(0.5)
        (core,) = run.node.sandboxes[box].link.cores.values()
        assert core.end < 20_000_000  # what fits between us, the sockets' buffers included
        total = 0
        async for line in response.content.iter_any():
            total += len(line)
        assert total > 40_000_000


async def test_collecting_stops_at_its_limit(run: Running, box: str) -> None:
    done = await run.client.run(box, "head -c 9000000 /dev/zero | tr '\\0' x; echo e >&2")
    assert len(done["stdout"]) == 8 << 20
    assert done["truncated"] is True
    assert done["stderr"] == "e\n"


async def test_binary_in_json_is_replaced(client: Client, box: str) -> None:
    assert (await client.run(box, "printf 'a\\xffb'"))["stdout"] == "a\N{REPLACEMENT CHARACTER}b"


async def test_retries_run_nothing_twice(run: Running, box: str) -> None:
    client, path, link = run.client, f"/sandboxes/{box}/execute", run.node.sandboxes[box].link
    body, headers = {"command": "echo run >> count; sleep 0.3; cat count"}, {"Idempotency-Key": "k1"}
    answers = await asyncio.gather(*(client.call("POST", path, json=body, headers=headers) for _ in range(4)))
    assert [answer.json["stdout"] for answer in answers] == ["run\n"] * 4
    assert link.execs == 1
    after = await client.call("POST", path, json=body, headers=headers)
    assert after.json["stdout"] == "run\n"
    other = await client.call("POST", path, json={"command": "id"}, headers=headers)
    assert (other.status, other.error["details"]["field"]) == (400, "Idempotency-Key")
    assert link.execs == 1
    async with client.open("POST", path, json=body, headers={**headers, **STREAM}) as response:
        events = await sse(response)
    assert events[1]["data"]["data"] == "run\n"
    assert len(await _events(run, "exec.completed")) == 1


async def test_a_retry_of_a_broken_stream_hears_it_from_the_beginning(run: Running, box: str) -> None:
    path, headers = f"/sandboxes/{box}/execute", {"Idempotency-Key": "k2", **STREAM}
    body = {"command": "echo one; sleep 0.3; echo two"}
    async with run.client.open("POST", path, json=body, headers=headers) as response:
        await sse(response, 2)
        response.close()
    async with run.client.open("POST", path, json=body, headers=headers) as response:
        events = await sse(response)
    text = "".join(it["data"]["data"] for it in events if it["event"] == "stdout")
    assert text == "one\ntwo\n"


async def test_background_processes(run: Running, box: str) -> None:
    client, base = run.client, f"/sandboxes/{box}/processes"
    made = await client.call(
        "POST", f"/sandboxes/{box}/execute", json={"command": "echo up; cat; exit 7", "background": True}
    )
    assert made.status == 202
    pid = made.json["pid"]
    assert (await client.call("GET", f"{base}/{pid}")).json["state"] == "running"
    async with client.open("GET", f"{base}/{pid}/output") as response:
        assert [it["event"] for it in await sse(response, 2)] == ["start", "stdout"]
        # Writing does not take the output away from the one who listens, nor does a second listener.
        assert (await client.call("POST", f"{base}/{pid}/stdin", data=b"typed\n")).status == 204
        assert (await sse(response, 1))[0]["data"]["data"] == "typed\n"
        async with client.open("GET", f"{base}/{pid}/output?offset=3") as second:
            assert (await sse(second, 2))[1]["data"] == {"data": "typed\n", "offset": 3}
            assert (await client.call("POST", f"{base}/{pid}/stdin?close=true", data=b"more\n")).status == 204
            for stream in (response, second):
                events = await sse(stream)
                assert [it["event"] for it in events] == ["stdout", "exit"]
                assert events[-1]["data"]["exitCode"] == 7
    ended = (await client.call("GET", base)).json
    assert ended["data"][0] | {"startedAt": 0, "endedAt": 0} == {
        "pid": pid, "command": "echo up; cat; exit 7", "state": "exited", "exitCode": 7, "signal": None, "oom": False,
        "startedAt": 0, "endedAt": 0,
    }  # fmt: skip
    async with client.open("GET", f"{base}/{pid}/output", headers={"Last-Event-ID": "9"}) as response:
        events = await sse(response)
    assert [it["data"].get("data") for it in events] == [None, "more\n", None]
    late = await client.call("POST", f"{base}/{pid}/stdin", data=b"x")
    assert (late.status, late.error["code"]) == (409, "INVALID_STATE")


async def test_many_listen_to_a_process_that_has_ended(client: Client, box: str) -> None:
    made = await client.call("POST", f"/sandboxes/{box}/execute", json={"command": "seq 90000", "background": True})
    base = f"/sandboxes/{box}/processes/{made.json['pid']}"
    while (await client.call("GET", base)).json["state"] == "running":
        await asyncio.sleep(0.02)

    async def listen() -> str:
        async with client.open("GET", f"{base}/output") as response:
            return "".join(it["data"]["data"] for it in await sse(response) if it["event"] == "stdout")

    assert set(await asyncio.gather(*(listen() for _ in range(8)))) == {"".join(f"{n}\n" for n in range(1, 90001))}


async def test_a_client_that_goes_before_the_start_holds_nothing_up(run: Running, box: str) -> None:
    link = run.node.sandboxes[box].link
    original = link.exec

    async def slow(spec: Any) -> Any:
        await asyncio.sleep(0.3)
        return await original(spec)

    link.exec = slow
    body = {"command": "seq 400000; echo > end"}
    with pytest.raises(asyncio.TimeoutError):
        async with asyncio.timeout(0.1):
            await run.client.call("POST", f"/sandboxes/{box}/execute", json=body, headers=STREAM)
    async with asyncio.timeout(10):
        while not (link.root / "workspace/end").exists():
            await asyncio.sleep(0.02)


async def test_signals(client: Client, box: str) -> None:
    made = await client.call(
        "POST", f"/sandboxes/{box}/execute", json={"command": "sleep 50 & wait", "background": True}
    )
    base = f"/sandboxes/{box}/processes/{made.json['pid']}"
    wrong = await client.call("POST", f"{base}/signal", json={"signal": "SIGNOPE"})
    assert wrong.error["details"]["field"] == "signal"
    assert (await client.call("POST", f"{base}/signal", json={"signal": "SIGTERM"})).status == 204
    async with client.open("GET", f"{base}/output") as response:
        events = await sse(response)
    assert events[-1]["data"]["signal"] == "SIGTERM"


@pytest.mark.parametrize("pid", ["0", "-1", "x", "999999999999", "99999999", "1e3", "%20"])
async def test_no_such_process(client: Client, box: str, pid: str) -> None:
    for method, path in (("GET", ""), ("GET", "/output"), ("POST", "/stdin"), ("POST", "/signal")):
        options: dict[str, Any] = {"json": {"signal": "SIGTERM"}} if path == "/signal" else {}
        answer = await client.call(method, f"/sandboxes/{box}/processes/{pid}{path}", **options)
        assert answer.status in (400, 404)
        assert answer.error["code"] == "INVALID_REQUEST"


async def test_terminating_ends_what_runs(client: Client, box: str) -> None:
    async def end() -> None:
        await asyncio.sleep(0.2)
        await client.call("DELETE", f"/sandboxes/{box}")

    async with client.open(
        "POST", f"/sandboxes/{box}/execute", json={"command": "sleep 50"}, headers=STREAM
    ) as response:
        answer, events, _ = await asyncio.gather(
            client.call("POST", f"/sandboxes/{box}/execute", json={"command": "sleep 50"}), sse(response), end()
        )
    assert (answer.status, answer.error["code"]) == (409, "INVALID_STATE")
    assert answer.error["details"]["terminationReason"] == "user"
    assert events[-1]["event"] == "error"
    assert events[-1]["data"]["error"]["code"] == "INVALID_STATE"


async def test_the_oom_killer_is_named(run: Running, box: str) -> None:
    sandbox = run.node.sandboxes[box]
    call = asyncio.create_task(run.client.run(box, "sleep 0.3; kill -9 $$"))
    await asyncio.sleep(0.15)
    sandbox.ooms += 1
    assert (await call)["oom"] is True
    (process,) = (await run.client.call("GET", f"/sandboxes/{box}/processes")).json["data"]
    assert process["oom"] is True
    assert (await run.client.run(box, "kill -9 $$"))["oom"] is False


async def test_stdin_larger_than_every_pipe(client: Client, box: str) -> None:
    text = "0123456789abcdef" * 200_000
    done = await client.run(box, "cat", stdin=text)
    assert done["stdout"] == text
    assert (await client.run(box, "true", stdin=text))["exitCode"] == 0
