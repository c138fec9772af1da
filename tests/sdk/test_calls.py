"""What goes over the wire, and what comes of answers that are late, wrong or missing."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from runra import CommandFailed, EventGap, ExecOptions, ListOptions, RunraError, SandboxConfig
from runra.contract import Resources
from tests.sdk.wire import SANDBOX_ID, Wire, answer, cut, events, failing, raw, result, sandbox, silent

# --- requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"config": {"image": "host", "resources": {"memory_mb": 64}, "idleTimeoutMs": 5}},
        {"image": "host", "resources": {"memoryMb": 64}, "idle_timeout_ms": 5},
        {"config": SandboxConfig(image="host", resources={"memory_mb": 64}), "idle_timeout_ms": 5},
        {
            "config": {"image": "other", "idle_timeout_ms": 9},
            "image": "host",
            "idle_timeout_ms": 5,
            "resources": {"memoryMb": 64},
        },
    ],
)
async def test_create_sends_what_was_set_and_no_more(client: Any, wire: Wire, given: dict[str, Any]) -> None:
    """Ranges are the server's: 64 MB may be fine there."""
    wire.script(answer(201, sandbox()))
    made = await client.sandboxes.create(**given)
    request = wire.requests[0]
    assert request.json() == {"image": "host", "resources": {"memoryMb": 64}, "idleTimeoutMs": 5}
    assert request.headers["authorization"] == "Bearer rra_test_0123456789abcdef"
    assert request.headers["user-agent"].startswith("runra-python/")
    assert len(request.headers["idempotency-key"]) >= 32
    assert (made.id, made.state, made.resources.memory_mb, made.workdir) == (SANDBOX_ID, "running", 4096, "/workspace")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "image"),
        ({"image": "host", "memory": 4}, "memory"),
        ({"image": "host", "resources": {"ram": 4}}, "resources.ram"),
        ({"image": 3}, "image"),
        ({"image": "host", "timeout_ms": "300"}, "timeoutMs"),
        ({"image": "host", "env": {"A=B": "x"}}, "env"),
        ({"image": "host", "workdir": "relative"}, "workdir"),
        ({"image": "host", "metadata": {str(n): "" for n in range(21)}}, "metadata"),
    ],
)
async def test_create_refuses_types_and_names_here(client: Any, wire: Wire, given: Any, field: str) -> None:
    with pytest.raises(RunraError) as caught:
        await client.sandboxes.create(given)
    assert (caught.value.code, caught.value.details["field"]) == ("INVALID_REQUEST", field)
    assert wire.requests == []


def test_config_models_are_checked_when_made() -> None:
    with pytest.raises(RunraError, match="imgae"):
        SandboxConfig(imgae="host")
    with pytest.raises(RunraError, match="image: is required"):
        SandboxConfig(timeout_ms=5)
    assert SandboxConfig(image="host", resources=Resources(cpu=4)).to_wire() == {
        "image": "host", "resources": {"cpu": 4},
    }  # fmt: skip


async def test_options_of_exec(client: Any, wire: Wire) -> None:
    wire.script(answer(200, sandbox()), *[answer(200, result()) for _ in range(4)])
    box = await client.sandboxes.get(SANDBOX_ID)
    await box.exec("a")
    await box.exec(["a", "b c"], cwd="x", env={"K": "v"}, timeout_ms=5, stdin=b"in", user="me")
    await box.exec("a", {"timeoutMs": 7, "cwd": "old"}, cwd="new")
    await box.exec("a", ExecOptions(stdin="text", check=True))
    sent = [request.json() for request in wire.requests[1:]]
    assert sent == [
        {"command": "a"},
        {"argv": ["a", "b c"], "cwd": "x", "env": {"K": "v"}, "timeoutMs": 5, "stdin": "in", "user": "me"},
        {"command": "a", "timeoutMs": 7, "cwd": "new"},
        {"command": "a", "stdin": "text"},
    ]
    assert len({request.headers["idempotency-key"] for request in wire.requests[1:]}) == 4


@pytest.mark.parametrize(
    ("command", "options", "field"),
    [
        ("", {}, "command"),
        ("a\0b", {}, "command"),
        ([], {}, "argv"),
        (["a", 3], {}, "argv.1"),
        (b"a", {}, "command"),
        ("a", {"timeout_ms": "5"}, "timeoutMs"),
        ("a", {"stdin": b"\xff"}, "stdin"),
        ("a", {"options": {"cmd": 3}}, "cmd"),
        ("a", {"options": {"background": True}, "on_stdout": print}, "background"),
    ],
)
async def test_exec_refuses_types_and_names_here(
    client: Any, wire: Wire, command: Any, options: Any, field: str
) -> None:
    wire.script(answer(200, sandbox()))
    box = await client.sandboxes.get(SANDBOX_ID)
    with pytest.raises(RunraError) as caught:
        await box.exec(command, **options)
    assert (caught.value.code, caught.value.details["field"]) == ("INVALID_REQUEST", field)
    assert len(wire.requests) == 1


async def test_list_filters_and_pages(client: Any, wire: Wire) -> None:
    def page(ids: list[int], *, more: bool) -> dict[str, Any]:
        items = [sandbox(id=f"sb_{n}") for n in ids]
        return {"data": items, "pagination": {"total": 5, "limit": 2, "offset": 0, "hasMore": more}}

    wire.script(answer(200, page([1, 2], more=True)))
    found = await client.sandboxes.list(ListOptions(state="paused", limit=2), metadata={"a b": "c&d"})
    assert wire.requests[0].path == "/v1/sandboxes?state=paused&limit=2&metadata%5Ba%20b%5D=c%26d"
    assert [box.id for box in found] == [box.id for box in found.data] == ["sb_1", "sb_2"]
    assert (len(found), found[0].id, found.pagination.total, found.pagination.has_more) == (2, "sb_1", 5, True)
    # Between two pages somebody made a sandbox, which pushed number 2 onto the second.
    wire.script(
        answer(200, page([1, 2], more=True)), answer(200, page([2, 3], more=True)), answer(200, page([4], more=False))
    )
    assert [box.id async for box in client.sandboxes.iter(image="host", page_size=2)] == [
        "sb_1",
        "sb_2",
        "sb_3",
        "sb_4",
    ]
    assert [request.path.partition("?")[2] for request in wire.requests[1:]] == [
        "image=host&limit=2&offset=0", "image=host&limit=2&offset=2", "image=host&limit=2&offset=4",
    ]  # fmt: skip


async def test_what_cannot_be_an_id_is_not_found_without_asking(client: Any, wire: Wire) -> None:
    for strange in ("../api-keys", "", "a/b", "a?b", "é", "x" * 65):
        with pytest.raises(RunraError) as caught:
            await client.sandboxes.get(strange)
        assert caught.value.code == "SANDBOX_NOT_FOUND"
    assert wire.requests == []


# --- retries ---------------------------------------------------------------------------------------------------


async def test_no_server_says_how_to_start_one(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    client = connect(api_key="k" * 20, api_url=url)
    began = time.monotonic()
    with pytest.raises(RunraError, match="runra serve") as caught:
        await client.sandboxes.list()
    error = caught.value
    assert (error.code, error.status, error.retryable, error.details["reason"]) == ("NETWORK_ERROR", 0, True, "connect")
    assert time.monotonic() - began > 0.25, "two more attempts, with waits"


async def test_busy_servers_are_asked_again_when_they_say(client: Any, wire: Wire) -> None:
    wire.script(failing(503, "RESOURCE_EXHAUSTED", retryable=True, retry_after="1"), answer(200, sandbox()))
    began = time.monotonic()
    await client.sandboxes.get(SANDBOX_ID)
    assert 1.0 <= time.monotonic() - began < 2.0
    wire.script(failing(429, "RATE_LIMITED"), failing(500, "INTERNAL_ERROR", retryable=True), answer(201, sandbox()))
    await client.sandboxes.create(image="host")
    assert len({request.headers["idempotency-key"] for request in wire.requests[2:]}) == 1


@pytest.mark.parametrize(
    ("step", "code"),
    [
        (failing(500, "INTERNAL_ERROR"), "INTERNAL_ERROR"),
        (failing(503, "RESOURCE_EXHAUSTED", retryable=True, retry_after="3600"), "RESOURCE_EXHAUSTED"),
        (failing(401, "UNAUTHORIZED"), "UNAUTHORIZED"),
        (failing(409, "INVALID_STATE", retryable=True), "INVALID_STATE"),
    ],
)
async def test_other_errors_are_final(client: Any, wire: Wire, step: Any, code: str) -> None:
    wire.script(step)
    with pytest.raises(RunraError, match="said so") as caught:
        await client.sandboxes.get(SANDBOX_ID)
    assert (caught.value.code, caught.value.request_id) == (code, "req_e")
    assert len(wire.requests) == 1


async def test_attempts_are_bounded(connect: Any, wire: Wire) -> None:
    wire.script(*[failing(503, "RESOURCE_EXHAUSTED", retryable=True, retry_after="0")] * 3)
    with pytest.raises(RunraError):
        await connect(api_key="k", api_url=wire.url).sandboxes.list()
    assert len(wire.requests) == 3
    wire.script(failing(503, "RESOURCE_EXHAUSTED", retryable=True))
    with pytest.raises(RunraError):
        await connect(api_key="k", api_url=wire.url, max_retries=0).sandboxes.list()
    assert len(wire.requests) == 4


async def test_a_broken_connection_never_runs_a_command_twice(client: Any, wire: Wire) -> None:
    """The retry carries the same key, so that the server answers for the first one."""
    wire.script(answer(200, sandbox()), cut, answer(200, result(stdout="once")))
    box = await client.sandboxes.get(SANDBOX_ID)
    assert (await box.exec("date")).stdout == "once"
    first, second = wire.requests[1:]
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == second.body


async def test_what_may_have_happened_is_not_done_again(client: Any, wire: Wire) -> None:
    wire.script(answer(200, sandbox()), cut)
    box = await client.sandboxes.get(SANDBOX_ID)
    with pytest.raises(RunraError) as caught:
        await box.files.move("a", "b")
    error = caught.value
    assert (error.code, error.status, error.retryable, error.details["reason"]) == ("NETWORK_ERROR", 0, False, "closed")
    assert len(wire.requests) == 2


@pytest.mark.parametrize("verb", ["pause", "resume", "terminate", "refresh"])
async def test_idempotent_calls_are_repeated(client: Any, wire: Wire, verb: str) -> None:
    wire.script(answer(200, sandbox()), cut, answer(200, sandbox(state="paused", pausedAt="2026-01-01T00:00:01.000Z")))
    box = await client.sandboxes.get(SANDBOX_ID)
    await getattr(box, verb)()
    assert (box.state, box.paused_at, len(wire.requests)) == ("paused", "2026-01-01T00:00:01.000Z", 3)


async def test_silence_ends_with_the_timeout(connect: Any, wire: Wire) -> None:
    stop = threading.Event()
    wire.script(silent(stop))
    client = connect(api_key="k", api_url=wire.url, timeout_ms=300)
    began = time.monotonic()
    with pytest.raises(RunraError, match=r"no answer within 0\.3 s") as caught:
        await client.sandboxes.create(image="host")
    stop.set()
    assert 0.25 < time.monotonic() - began < 1.5
    error = caught.value
    assert (error.code, error.details["reason"], error.retryable) == ("NETWORK_ERROR", "timeout", False)
    assert error.details["idempotencyKey"] == wire.requests[0].headers["idempotency-key"]


async def test_an_answer_that_drips_ends_with_the_timeout(connect: Any, wire: Wire) -> None:
    def drip(connection: socket.socket, _: Any) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(100):
            connection.sendall(b" ")
            time.sleep(0.05)
        return False

    wire.script(drip)
    began = time.monotonic()
    with pytest.raises(RunraError) as caught:
        await connect(api_key="k", api_url=wire.url, timeout_ms=400, max_retries=0).sandboxes.list()
    assert caught.value.details["reason"] == "timeout"
    assert time.monotonic() - began < 1.5


async def test_execs_wait_for_their_own_timeout(connect: Any, wire: Wire) -> None:
    def slow(connection: socket.socket, request: Any) -> bool:
        time.sleep(0.8)
        return answer(200, result())(connection, request)

    wire.script(answer(200, sandbox()), slow)
    box = await connect(api_key="k", api_url=wire.url, timeout_ms=400).sandboxes.get(SANDBOX_ID)
    assert (await box.exec("sleep 0.8", timeout_ms=5000)).exit_code == 0


async def test_a_connection_the_server_closed_meanwhile_is_replaced(client: Any, wire: Wire) -> None:
    def last(connection: socket.socket, request: Any) -> bool:
        answer(200, sandbox())(connection, request)
        return False

    wire.script(last, answer(200, {}), answer(200, sandbox()))
    box = await client.sandboxes.get(SANDBOX_ID)
    time.sleep(0.1)
    with pytest.raises(RunraError, match="shape"):
        await box.files.mkdir("a")
    assert wire.connections == 2
    await box.refresh()
    assert wire.connections == 2, "and kept"


# --- answers nobody expects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"id": 3}', b'{"state": "running"}', b'"x"'])
async def test_answers_of_another_shape(client: Any, wire: Wire, body: bytes) -> None:
    wire.script(answer(200, body))
    with pytest.raises(RunraError, match="shape") as caught:
        await client.sandboxes.get(SANDBOX_ID)
    assert (caught.value.code, caught.value.request_id) == ("INTERNAL_ERROR", "req_t")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"error": 3}', b'{"error": {"code": "NEW"}}', b'{"error": "x"}']
)
@pytest.mark.parametrize("status", [404, 500])
async def test_errors_of_another_shape(client: Any, wire: Wire, body: bytes, status: int) -> None:
    wire.script(answer(status, body))
    with pytest.raises(RunraError, match="is this a Runra server") as caught:
        await client.sandboxes.get(SANDBOX_ID)
    assert (caught.value.status, caught.value.request_id) == (status, "req_t")


@pytest.mark.parametrize(
    "noise", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01\x00\x02\x02\x50", b"HTTP/1.1 abc\r\n\r\n"]
)
async def test_no_http_at_all(connect: Any, wire: Wire, noise: bytes) -> None:
    wire.script(raw(noise))
    client = connect(api_key="k", api_url=wire.url, max_retries=0)
    with pytest.raises(RunraError) as caught:
        await client.health()
    assert caught.value.code == "NETWORK_ERROR"
    assert caught.value.details["reason"] in ("protocol", "closed")


async def test_half_an_answer_is_none(connect: Any, wire: Wire) -> None:
    wire.script(raw(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"id"'))
    with pytest.raises(RunraError) as caught:
        await connect(api_key="k", api_url=wire.url, max_retries=0).sandboxes.get(SANDBOX_ID)
    assert (caught.value.code, caught.value.details["reason"]) == ("NETWORK_ERROR", "closed")


async def test_the_key_does_not_follow_a_redirect(client: Any, wire: Wire) -> None:
    wire.script(answer(307, b"", location="http://elsewhere.example/v1/sandboxes"))
    with pytest.raises(RunraError, match="redirects"):
        await client.sandboxes.list()
    assert len(wire.requests) == 1


async def test_new_fields_do_no_harm(client: Any, wire: Wire) -> None:
    wire.script(
        answer(200, sandbox(brandNew={"a": 1}, network={"egress": {"allow": ["x"], "default": "deny", "new": 1}}))
    )
    box = await client.sandboxes.get(SANDBOX_ID)
    assert box.network.egress.default == "deny"
    assert box.network.ingress is None


async def test_a_closed_client_says_so(client: Any, wire: Wire) -> None:
    await client.close()
    await client.close()
    with pytest.raises(RunraError, match="closed"):
        await client.sandboxes.list()
    assert wire.requests == []


# --- leaving a block -------------------------------------------------------------------------------------------


async def test_a_block_terminates_and_keeps_its_own_error(client: Any, wire: Wire) -> None:
    wire.script(answer(200, sandbox()), failing(500, "INTERNAL_ERROR"))
    with pytest.raises(ZeroDivisionError):
        async with await client.sandboxes.get(SANDBOX_ID):
            raise ZeroDivisionError
    assert wire.requests[1].method == "DELETE"
    wire.script(answer(200, sandbox()), failing(500, "INTERNAL_ERROR"))
    with pytest.raises(RunraError):
        async with await client.sandboxes.get(SANDBOX_ID):
            pass
    wire.script(answer(200, sandbox()), failing(404, "SANDBOX_NOT_FOUND"))
    async with await client.sandboxes.get(SANDBOX_ID):
        pass


async def test_check_raises_with_the_result(client: Any, wire: Wire) -> None:
    wire.script(answer(200, sandbox()), answer(200, result(exitCode=3, stdout="out", stderr="a\nlast words\n")))
    box = await client.sandboxes.get(SANDBOX_ID)
    with pytest.raises(CommandFailed, match="exit code 3: last words") as caught:
        await box.exec(["false", "x y"], check=True)
    assert caught.value.result.stdout == "out"
    assert isinstance(caught.value, RunraError)
    assert (caught.value.code, caught.value.details["command"]) == ("COMMAND_FAILED", "false 'x y'")


# --- output streams --------------------------------------------------------------------------------------------


def out(data: str, offset: int, stream: str = "stdout") -> tuple[str, Any, int]:
    return stream, {"data": data, "offset": offset}, offset + len(data.encode())


@pytest.mark.parametrize("end", ["cut", "whole"])
async def test_a_broken_stream_is_taken_up_where_it_broke(client: Any, wire: Wire, end: str) -> None:
    wire.script(
        answer(200, sandbox()),
        events([("start", {"pid": 7}), out("one\ntw", 0), out("E1\n", 6, "stderr")], end=end),
        failing(503, "RESOURCE_EXHAUSTED", retryable=True, retry_after="0"),
        # The server begins a little earlier than asked.
        events([("start", {"pid": 7}), out("E1\n", 6, "stderr"), out("o\nth", 9), ("error", {"error": {
            "code": "INTERNAL_ERROR", "message": "stopping", "retryable": True}})]),
        events([("start", {"pid": 7}), out("ree", 13), ("exit", result(exitCode=4, durationMs=9), 16)]),
    )  # fmt: skip
    box = await client.sandboxes.get(SANDBOX_ID)
    lines: list[str] = []
    errors: list[str] = []
    ended = await box.exec("x", on_stdout=lines.append, on_stderr=errors.append)
    assert (lines, errors) == (["one", "two", "three"], ["E1"])
    assert (ended.stdout, ended.stderr, ended.exit_code, ended.truncated) == ("one\ntwo\nthree", "E1\n", 4, False)
    assert [request.path for request in wire.requests[2:]] == [f"/v1/sandboxes/{SANDBOX_ID}/processes/7/output"] * 3
    assert [request.headers["last-event-id"] for request in wire.requests[2:]] == ["9", "9", "13"]


async def test_a_stream_that_breaks_before_its_start_is_asked_for_again(client: Any, wire: Wire) -> None:
    wire.script(
        answer(200, sandbox()), events([], end="cut"), events([("start", {"pid": 7}), out("a", 0), ("exit", result())])
    )
    box = await client.sandboxes.get(SANDBOX_ID)
    lines: list[str] = []
    await box.exec("x", on_stdout=lines.append)
    assert lines == ["a"]
    assert wire.requests[1].headers["idempotency-key"] == wire.requests[2].headers["idempotency-key"]


async def test_output_that_was_lost_is_told(client: Any, wire: Wire) -> None:
    wire.script(answer(200, sandbox()), events([("start", {"pid": 7}), out("tail", 9000), ("exit", result())]))
    box = await client.sandboxes.get(SANDBOX_ID)
    ended = await box.exec("x", on_stdout=lambda _: None)
    assert (ended.stdout, ended.truncated) == ("tail", True)


async def test_an_error_in_the_stream_is_raised_with_what_came(client: Any, wire: Wire) -> None:
    error = {"code": "EXECUTION_TIMEOUT", "message": "too long", "details": {"stdout": ""}, "retryable": False}
    wire.script(answer(200, sandbox()), events([("start", {"pid": 7}), out("part", 0), ("error", {"error": error})]))
    box = await client.sandboxes.get(SANDBOX_ID)
    lines: list[str] = []
    with pytest.raises(RunraError, match="too long") as caught:
        await box.exec("x", on_stdout=lines.append)
    assert (caught.value.code, caught.value.status, caught.value.details["stdout"]) == (
        "EXECUTION_TIMEOUT",
        408,
        "part",
    )
    assert lines == ["part"]


async def test_a_callback_that_raises_ends_the_call(client: Any, wire: Wire) -> None:
    wire.script(
        answer(200, sandbox()), events([("start", {"pid": 7}), out("a\n", 0)], end="open"), answer(200, sandbox())
    )
    box = await client.sandboxes.get(SANDBOX_ID)

    def callback(_: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await box.exec("x", on_stdout=callback)
    await box.refresh()


async def test_strange_events_do_no_harm(client: Any, wire: Wire) -> None:
    wire.script(
        answer(200, sandbox()),
        events([
            ("start", {"pid": "seven"}), ("start", {"pid": 7}), ("novelty", {}), ("stdout", {}), ("stdout", {"data": 3}),
            ("stdout", {"data": "*", "encoding": "base64", "offset": 0}), ("stdout", {"data": "ok", "offset": "x"}),
            ("exit", {"exitCode": 0, "durationMs": 1}),
        ]),
    )  # fmt: skip
    box = await client.sandboxes.get(SANDBOX_ID)
    assert (await box.exec("x", on_stdout=lambda _: None)).stdout == "ok"


# --- events ----------------------------------------------------------------------------------------------------


def told(n: int, kind: str, **data: Any) -> tuple[str, Any, str]:
    event = {"id": f"evt_{n}", "timestamp": "t", "type": kind, "sandboxId": SANDBOX_ID, "runId": "", "data": data}
    return kind, event, f"evt_{n}"


async def test_events_go_on_after_a_break(client: Any, wire: Wire) -> None:
    wire.script(
        events([told(1, "sandbox.created"), ("odd", {"no": "event"}), told(2, "quite.new")], end="cut"),
        events([told(3, "exec.started", pid=4)], end="open"),
    )
    found = []
    async with client.events(after="evt_0") as stream:
        async for event in stream:
            found.append((event.id, event.type, event.data))
            if len(found) == 3:
                break
    assert found == [
        ("evt_1", "sandbox.created", {}),
        ("evt_2", "quite.new", {}),
        ("evt_3", "exec.started", {"pid": 4}),
    ]
    assert [request.headers["last-event-id"] for request in wire.requests] == ["evt_0", "evt_2"]


async def test_a_refused_event_stream_is_an_error(client: Any, wire: Wire) -> None:
    wire.script(failing(403, "FORBIDDEN"))
    with pytest.raises(RunraError) as caught:
        async for _ in client.events():
            pass
    assert caught.value.code == "FORBIDDEN"


async def test_handlers_hear_of_their_own_end(client: Any, wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    wire.script(answer(200, sandbox()), failing(404, "SANDBOX_NOT_FOUND"))
    box = await client.sandboxes.get(SANDBOX_ID)
    heard: list[Any] = []
    box.on("error", heard.append)
    deadline = time.monotonic() + 5
    while not heard and time.monotonic() < deadline:
        await _breathe()
    assert heard[0].error.code == "SANDBOX_NOT_FOUND"
    assert "can no longer be followed" in caplog.text


async def test_a_handler_that_fails_is_logged_and_the_next_one_called(
    client: Any, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    wire.script(
        answer(200, sandbox()),
        events([
            told(1, "sandbox.paused", runtimeDurationMs=5, reason="idle"),
            told(2, "sandbox.resumed", pausedDurationMs=6),
            told(3, "sandbox.error", message="oh"),
            told(4, "sandbox.terminated", reason="timeout", totalRuntimeMs=7),
        ], end="open"),
    )  # fmt: skip
    box = await client.sandboxes.get(SANDBOX_ID)
    heard: list[Any] = []
    gate = threading.Event()

    def broken(_: Any) -> None:
        gate.wait(5)
        raise ZeroDivisionError

    box.on("paused", broken)
    for name in ("paused", "resumed", "error", "terminated"):
        box.on(name, heard.append)
    box.on("terminated", lambda: heard.append("without payload"))
    never = box.on("terminated", lambda: heard.append("taken off"))
    never()
    gate.set()
    deadline = time.monotonic() + 5
    while len(heard) < 5 and time.monotonic() < deadline:
        await _breathe()
    assert (heard[0].runtime_duration_ms, heard[0].reason, heard[1].paused_duration_ms) == (5, "idle", 6)
    assert str(heard[2].error) == "INTERNAL_ERROR: oh"
    assert (heard[3].reason, heard[3].total_runtime_ms, heard[4:]) == ("timeout", 7, ["without payload"])
    assert "ZeroDivisionError" in caplog.text


async def test_unknown_event_names_are_refused(client: Any, wire: Wire) -> None:
    wire.script(answer(200, sandbox()))
    box = await client.sandboxes.get(SANDBOX_ID)
    with pytest.raises(RunraError, match="started, paused"):
        box.on("exploded", print)
    with pytest.raises(RunraError, match="callable"):
        box.on("paused", "print")


async def test_closing_stops_a_stream_that_says_nothing(client: Any, wire: Wire) -> None:
    wire.script(answer(200, sandbox()), events([], end="open"))
    box = await client.sandboxes.get(SANDBOX_ID)
    box.on("paused", print)
    while len(wire.requests) < 2:
        await _breathe()
    began = time.monotonic()
    await client.close()
    assert time.monotonic() - began < 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("runra-events")]


async def _breathe() -> None:
    import asyncio

    await asyncio.sleep(0.01)


async def test_a_gap_in_the_events_is_told(client: Any, wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    it = {"id": "evt_2", "timestamp": "", "type": "file.read", "sandboxId": SANDBOX_ID, "data": {}}
    gap = ("gap", {"reason": "forgotten", "after": "evt_1"})
    gaps: list[EventGap] = []
    for on_gap in (gaps.append, None):
        wire.script(events([gap, ("file.read", it, "evt_2")], end="open"))
        async with client.events(after="evt_1", types=["file.*", "exec.streamed"], on_gap=on_gap) as stream:
            async for event in stream:
                assert event.id == "evt_2"
                break
    assert gaps == [EventGap("forgotten", "evt_1")]
    assert [record.message for record in caplog.records if "evt_1" in record.message] == [
        "/events: events after evt_1 may be missing: there were more since than the server keeps"
    ]
    assert wire.requests[0].path.partition("?")[2] in ("types=file.*,exec.streamed", "types=file.%2A%2Cexec.streamed")
    assert wire.requests[0].headers["last-event-id"] == "evt_1"
