"""The ACP client against an agent of these tests' own, in real sandboxes: what it serves, and what it makes of faults."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from acp import schema

from runra.runtime import AgentResult, Event, Runra, RunraError, Sandbox
from runra.runtime.agents.acp.updates import Updates, read_usage
from tests.hosting import until
from tests.runtime.conftest import Make

FIXTURES = Path(__file__).parent / "fixtures"
AGENT = (Path(__file__).parent / "acp_agent.py").read_text()
#: The official library's types of what a client says.
SAYS: dict[str, Any] = {
    "initialize": schema.InitializeRequest,
    "session/new": schema.NewSessionRequest,
    "session/load": schema.LoadSessionRequest,
    "session/set_mode": schema.SetSessionModeRequest,
    "session/prompt": schema.PromptRequest,
    "session/cancel": schema.CancelNotification,
}
ANSWERS = (schema.RequestPermissionResponse, schema.WriteTextFileResponse, schema.ReadTextFileResponse)
NO_NETWORK = {"network": {"egress": {"default": "deny"}}}


class Stage:
    """One sandbox with the agent in it."""

    def __init__(self, make: Make, sandbox: Sandbox | None, what: str, config: dict[str, Any]) -> None:
        command = ["python3", "/opt/acp_agent.py", what]
        self.runra: Runra = make(agent={"provider": "custom", "config": {"acp": command, **config}})
        self.events: list[Event] = []
        self.runra.on("*", self.events.append)
        self.sandbox = sandbox

    async def ready(self) -> Sandbox:
        if self.sandbox is None:
            self.sandbox = await self.runra.create_sandbox(NO_NETWORK)
            await self.sandbox.files.write("/opt/acp_agent.py", AGENT)
        return self.sandbox

    async def start(self, prompt: str = "go", **more: Any) -> AgentResult:
        sandbox = await self.ready()
        return await self.runra.start(prompt, sandbox_id=sandbox.id, timeout_ms=60_000, **more)

    def of(self, type: str) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.type == type]

    async def heard(self) -> list[dict[str, Any]]:
        """What the agent was told, each message judged by the official library's types."""
        sandbox = await self.ready()
        lines = (await sandbox.files.read("/workspace/heard.jsonl")).splitlines()
        messages = [json.loads(line) for line in lines]
        for message in messages:
            if "method" in message:
                SAYS[message["method"]].model_validate(message["params"])
            else:
                assert isinstance(message.get("result"), dict) or isinstance(message["error"]["code"], int)
        return messages

    async def left(self) -> str:
        sandbox = await self.ready()
        shown = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done | grep -E '[s]leep 4242|acp_agen[t]'; true"
        return (await sandbox.exec(shown)).stdout


async def test_an_edit_through_our_files(make: Make) -> None:
    stage = Stage(make, None, "edit", {})
    result = await stage.start()
    assert (result.success, result.summary, result.session_id) == (True, "two", "s-1"), result
    assert result.files is not None
    assert sorted(result.files.created) == ["a.txt", "heard.jsonl"]
    assert (result.usage.input_tokens, result.usage.output_tokens, result.usage.reasoning_tokens) == (10, 7, 2)
    assert (result.cost_source, result.total_cost) == ("none", 0.0)
    await until(lambda: bool(stage.of("agent.message")))
    (call,), (answer,) = stage.of("agent.tool_call"), stage.of("agent.tool_result")
    assert (call["tool"], call["input"]["path"]) == ("edit", "/workspace/a.txt")
    assert (answer["id"], answer["output"], answer["isError"]) == (call["id"], "changed /workspace/a.txt", False)
    heard = await stage.heard()
    assert [message["method"] for message in heard if "method" in message] == ["initialize", "session/new", "session/prompt"]
    assert heard[0]["params"]["clientCapabilities"] == {"fs": {"readTextFile": True, "writeTextFile": True}, "terminal": False}
    for message, type in zip([one for one in heard if "result" in one], ANSWERS, strict=False):
        type.model_validate(message["result"])
    assert await stage.left() == ""


async def test_permissions(make: Make) -> None:
    """Asked of the caller, by a function or a coroutine; what raises, hangs or says no is a no."""
    asked: list[tuple[str, Any]] = []

    async def later(tool: str, given: Any) -> bool:
        asked.append((tool, given))
        return True

    async def never(tool: str, given: Any) -> bool:
        await asyncio.sleep(4242)
        return True

    def breaks(tool: str, given: Any) -> bool:
        raise ValueError("no idea")

    sandbox = await Stage(make, None, "edit", {}).ready()
    for permit, summary, words in (
        (later, "two", ""),
        (lambda tool, given: False, "selected no", ""),
        (breaks, "selected no", "no idea"),
        (never, "selected no", "nobody said within 0.3 s"),
    ):
        config = {"permissionMode": "prompt", "on_permission": permit, "permissionTimeoutMs": 300}
        stage = Stage(make, sandbox, "edit", config)
        result = await stage.start()
        assert (result.success, result.summary) == (True, summary), result
        await until(lambda stage=stage: bool(stage.of("agent.message")))  # type: ignore[misc]
        assert any(words in error["message"] for error in stage.of("agent.error")) == bool(words)
    assert asked == [("edit", {"path": "/workspace/a.txt", "text": "one\ntwo\nthree\n"})]  # once: the file is not asked for again
    # A file the agent writes without having asked is asked for.
    stage = Stage(make, sandbox, "write", {"permissionMode": "prompt", "on_permission": lambda tool, given: tool != "write"})
    assert "not permitted" in (await stage.start()).summary
    assert not await sandbox.files.exists("/workspace/b.txt")


async def test_plan(make: Make) -> None:
    """In the agent's own plan mode, and whatever it asks for is refused; without one it is not begun."""
    stage = Stage(make, None, "edit", {"permissionMode": "plan"})
    result = await stage.start()
    assert (result.success, result.summary) == (True, "selected no")
    assert {"sessionId": "s-1", "modeId": "plan"} in [message.get("params") for message in await stage.heard()]
    none = await Stage(make, stage.sandbox, "write", {"permissionMode": "plan"}).start()
    assert none.failure is not None
    assert (none.failure.kind, "no mode" in none.failure.message) == ("setup", True)


async def test_what_is_not_offered_and_what_is_not_there(make: Make) -> None:
    stage = Stage(make, None, "files", {})
    assert (await stage.start()).success
    await until(lambda: len(stage.of("agent.message")) == 2)
    missing, relative = json.loads(stage.of("agent.message")[0]["text"])
    assert (missing["code"], relative["code"]) == (-32002, -32602)
    assert json.loads(stage.of("agent.message")[1]["text"])["code"] == -32601


async def test_updates_become_whole_events(make: Make) -> None:
    stage = Stage(make, None, "plan", {})
    result = await stage.start()
    assert (result.summary, result.total_cost, result.cost_source) == ("c", 0.25, "agent")
    await until(lambda: len(stage.of("agent.message")) == 2)
    assert [data["text"] for data in stage.of("agent.message")] == ["ab", "c"]
    assert [data["text"] for data in stage.of("agent.thinking")] == ["[x] look\n[ ] write", "hm"]


@pytest.mark.parametrize(
    ("what", "kind", "words", "config"),
    [
        ("garbage", "protocol", "npm warn", {}),
        ("long", "protocol", "longer than 32 MiB", {}),
        ("flood", "protocol", "at once", {"permissionMode": "prompt", "on_permission": lambda tool, given: asyncio.sleep(4242)}),
        ("dies", "no_result", "exit code 3", {}),
        ("silent", "silence", "silence_timeout_ms 700", {"silenceTimeoutMs": 700}),
        ("mute", "setup", "setup_timeout_ms 2500", {"setupTimeoutMs": 2500}),
        ("new", "setup", "version 99", {}),
        ("login", "auth", "Log in (run `agent login`)", {}),
        ("errs", "rate_limit", "429 Too Many Requests", {}),
        ("refuses", "refused", "refused", {}),
        ("silent", "timeout", "timeout_ms 6000", {"timeoutMs": 6000}),
    ],
)
async def test_faults(make: Make, what: str, kind: str, words: str, config: dict[str, Any]) -> None:
    stage = Stage(make, None, what, config)
    result = await stage.start()
    assert not result.success
    assert result.failure is not None
    assert (result.failure.kind, words in result.failure.message) == (kind, True), result.failure
    if what == "dies":
        assert result.failure.stderr == ["Segmentation fault"]
        assert result.summary == "so far"
    assert await stage.left() == ""


async def test_a_few_warnings_among_the_messages(make: Make) -> None:
    result = await Stage(make, None, "warnings", {}).start()
    assert (result.success, result.summary) == (True, "fine"), result


async def test_stopped_with_a_result(make: Make) -> None:
    stage = Stage(make, None, "works", {})
    sandbox = await stage.ready()
    async with stage.runra.stream("go", sandbox_id=sandbox.id, timeout_ms=60_000) as run:
        while not await sandbox.files.exists("/workspace/heard.jsonl"):
            await asyncio.sleep(0.05)
        while not any(message.get("method") == "session/prompt" for message in await stage.heard()):
            await asyncio.sleep(0.05)
        await run.stop()
        async for _ in run:
            pass
    assert run.result.failure is not None
    assert (run.result.failure.kind, run.result.summary) == ("stopped", "working and stopped")
    assert await stage.left() == ""


async def test_cancelled_while_it_waits_for_a_permission(make: Make) -> None:
    asked = asyncio.Event()

    async def never(tool: str, given: Any) -> bool:
        asked.set()
        await asyncio.sleep(4242)
        return True

    stage = Stage(make, None, "edit", {"permissionMode": "prompt", "on_permission": never})
    await stage.ready()
    run = asyncio.create_task(stage.start())
    async with asyncio.timeout(30):
        await asked.wait()
    began = time.monotonic()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert time.monotonic() - began < 1.0
    assert any(message.get("result") == {"outcome": {"outcome": "cancelled"}} for message in await stage.heard())
    assert await stage.left() == ""


async def test_taken_up_again(make: Make) -> None:
    """What was told before is not told again; an agent that cannot says so."""
    stage = Stage(make, None, "echo", {})
    result = await stage.start("new question", session_id="s-1")
    assert (result.success, result.summary, result.session_id) == (True, "new question", "s-1"), result
    await until(lambda: bool(stage.of("agent.message")))
    assert [data["text"] for data in stage.of("agent.message")] == ["new question"]
    cannot = await Stage(make, stage.sandbox, "plan", {}).start(session_id="s-1")
    assert cannot.failure is not None
    assert "earlier conversation" in cannot.failure.message


async def test_not_there(make: Make) -> None:
    runra = make(agent={"provider": "custom", "config": {"acp": ["no-such-agent"]}})
    result = await runra.start("go", sandbox_options=NO_NETWORK)
    assert result.failure is not None
    assert (result.failure.kind, "no-such-agent" in result.failure.message) == ("setup", True), result.failure


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"acp": []}, "acp"),
        ({"acp": ["a"], "permissionMode": "prompt"}, "on_permission"),
        ({"acp": ["a"], "allowedTools": ["read"]}, "some tools only"),
        ({"acp": ["a"], "placement": "host"}, "placement host"),
    ],
)
async def test_refused_before_anything_starts(make: Make, config: dict[str, Any], words: str) -> None:
    with pytest.raises(RunraError, match=words) as caught:
        await make(agent={"provider": "custom", "config": config}).start("go")
    assert caught.value.code == "INVALID_CONFIG"


@pytest.mark.parametrize("name", ["claude", "codex", "opencode"])
def test_recorded_streams(name: str) -> None:
    """What the real agents said, as events and tokens."""
    updates, events, usage = Updates(), [], read_usage(None)
    for line in (FIXTURES / f"acp-{name}.jsonl").read_text().splitlines():
        way, message = line[0], json.loads(line[2:])
        if way == ">":
            continue
        if message.get("method") == "session/update":
            events += updates.feed(message["params"]["update"])
        elif message.get("method") == "session/request_permission":
            told, tool, given = updates.asked(message["params"]["toolCall"])
            events += told
            assert (tool, "hello.txt" in given["command"]) == ("bash", True)
        elif "stopReason" in message.get("result", {}):
            usage = read_usage(message["result"]["usage"])
    events += updates.turn_ended()
    assert updates.summary.startswith("Done: wrote")
    kinds = [event.type for event in events]
    calls = [event.data for event in events if event.type == "agent.tool_call"]
    results = [event.data for event in events if event.type == "agent.tool_result"]
    assert "agent.thinking" in kinds
    if name != "codex":  # whose own wall kept it from running anything on that day
        ((call,), (result,)) = (calls, results)
        assert (call["tool"], "hello-from-agent" in call["input"]["command"]) == ("bash", True)
        assert (result["id"], result["output"].strip(), result["isError"]) == (call["id"], "hello-from-agent", False)
    assert usage.output_tokens == {"claude": 84, "codex": 84, "opencode": 42}[name]
