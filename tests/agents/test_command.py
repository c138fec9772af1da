"""Any command as an agent, in real sandboxes."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from runra.runtime import AgentResult, Event, Runra, RunraError
from runra.runtime.agents.command import words
from runra.runtime.agents.printed import Printed, Shape
from tests.gateway.conftest import PRICE
from tests.hosting import until
from tests.runtime.conftest import Make
from tests.scripted import Say, ScriptedModel

NO_NETWORK = {"network": {"egress": {"default": "deny"}}}
LEFT = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done | grep '[s]leep 4242'; ls -d /var/tmp/.runra-* 2>/dev/null; true"


class Stage:
    def __init__(self, make: Make, command: list[str] | str, llm: dict[str, Any] | None = None, **config: Any) -> None:
        self.runra: Runra = make(agent={"provider": "custom", "config": {"command": command, **config}}, llm=llm)
        self.events: list[Event] = []
        self.runra.on("*", self.events.append)

    async def start(self, prompt: str = "say hello", **more: Any) -> AgentResult:
        if "sandbox_id" not in more:
            more["sandbox_options"] = NO_NETWORK
        return await self.runra.start(prompt, timeout_ms=60_000, **more)

    def of(self, type: str) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.type == type]


async def test_text_in_text_out(make: Make) -> None:
    """The prompt on stdin, lines as messages, the summary; files changed, and nothing left."""
    stage = Stage(make, ["sh", "-c", "read -r line; echo one; echo; echo \"you said: $line\"; touch made; echo note >&2"])
    sandbox = await stage.runra.create_sandbox(NO_NETWORK)
    result = await stage.start("write 'x' $(y)", sandbox_id=sandbox.id)
    assert (result.success, result.summary, result.cost_source) == (True, "one\n\nyou said: write 'x' $(y)", "none"), result
    assert result.files is not None
    assert result.files.created == ["made"]
    await until(lambda: "you said" in "".join(data["text"] for data in stage.of("agent.message")))
    assert len(stage.of("agent.message")) <= 3
    assert (await sandbox.exec(LEFT)).stdout == ""


@pytest.mark.parametrize("command", [["printf", "%s", "<{prompt}>"], "printf %s {prompt}; printf ' '; cat"])
async def test_the_prompt_as_an_argument(make: Make, command: list[str] | str) -> None:
    """One argument, whatever is in it; stdin is empty then."""
    result = await Stage(make, command).start("a'b\"; touch /workspace/x; echo $HOME `id`")
    assert result.success, result
    assert result.summary.strip("<>") == "a'b\"; touch /workspace/x; echo $HOME `id`"
    assert result.files is not None
    assert result.files.created == []


async def test_json_lines(make: Make) -> None:
    lines: list[dict[str, Any]] = [
        {"type": "thinking", "text": "hm"},
        {"type": "tool_call", "id": "1", "name": "shell", "input": {"command": "ls"}},
        {"type": "tool_result", "id": "1", "output": "a.txt", "exitCode": 0},
        {"type": "message", "text": "working"},
        {"type": "error", "message": "a hitch"},
        {"type": "usage", "anything": 1},
        {"type": "result", "text": "all done", "sessionId": "c-7"},
    ]
    program = "import sys; sys.stdin.read()\n" + "".join(f"print({json.dumps(line)!r}, flush=True)\n" for line in lines)
    stage = Stage(make, ["python3", "-c", program], format="jsonl")
    result = await stage.start()
    assert (result.success, result.summary, result.session_id) == (True, "all done", "c-7"), result
    await until(lambda: bool(stage.of("agent.error")))
    assert stage.of("agent.thinking") == [{"text": "hm"}]
    assert stage.of("agent.tool_call") == [{"id": "1", "tool": "bash", "name": "shell", "input": {"command": "ls"}}]
    answer = {"id": "1", "tool": "bash", "name": "shell", "output": "a.txt", "isError": False, "exitCode": 0}
    assert stage.of("agent.tool_result") == [answer]
    assert stage.of("agent.message") == [{"text": "working"}]
    assert stage.of("agent.error") == [{"message": "a hitch", "fatal": False}]


@pytest.mark.parametrize(
    ("command", "config", "kind", "words"),
    [
        ("echo some; echo broken >&2; exit 3", {}, "failed", "exit code 3"),
        ("""echo '{"type": "error", "message": "429 too many", "fatal": true}'""", {}, "rate_limit", "429"),
        ("""echo '{"type": "result", "success": false, "error": "no idea"}'""", {}, "failed", "no idea"),
        ("kill -9 $$", {}, "failed", "137"),
        (["no-such-program"], {}, "setup", "no-such-program"),
        ("sleep 4242 & sleep 4242", {"silenceTimeoutMs": 500}, "silence", "500"),
        ("sleep 4242 & while true; do echo x; sleep 0.1; done", {"timeoutMs": 4000}, "timeout", "4000"),
    ],
)
async def test_failures(make: Make, command: list[str] | str, config: dict[str, Any], kind: str, words: str) -> None:
    stage = Stage(make, command, **config)
    sandbox = await stage.runra.create_sandbox(NO_NETWORK)
    result = await stage.start(sandbox_id=sandbox.id)
    assert not result.success
    assert result.failure is not None
    assert (result.failure.kind, words in result.failure.message) == (kind, True), result.failure
    if "broken" in command:
        assert (result.failure.stderr, result.summary) == (["broken"], "some")
    assert (await sandbox.exec(LEFT)).stdout == ""


async def test_stopped_and_cancelled(make: Make) -> None:
    """Either ends the whole tree; a stop has a result."""
    stage = Stage(make, "setsid sleep 4242 & echo begun; sleep 4242")
    sandbox = await stage.runra.create_sandbox(NO_NETWORK)
    async with stage.runra.stream("go", sandbox_id=sandbox.id, timeout_ms=60_000) as run:
        async for event in run:
            if event.type == "agent.message":
                await run.stop()
    assert run.result.failure is not None
    assert (run.result.failure.kind, run.result.summary) == ("stopped", "begun")
    assert (await sandbox.exec(LEFT)).stdout == ""
    stage.events.clear()
    task = asyncio.create_task(stage.start(sandbox_id=sandbox.id))
    await until(lambda: bool(stage.of("agent.message")))
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 1.0
    assert (await sandbox.exec(LEFT)).stdout == ""


@pytest.mark.parametrize(
    "program",
    [
        "for n in range(200_000): print('line', n)",
        "import sys; [sys.stdout.write('x' * (1 << 20)) for n in range(100)]",
        "import os, sys; [sys.stdout.buffer.write(os.urandom(1 << 16)) for n in range(100)]",
        "print('{\"type\": \"message\", \"text\": \"' + 'y' * (1 << 20) + '\"}')",
        "print('[' * 100_000); print('{\"a\":' * 100_000)",
    ],
    ids=["lines", "one-line", "binary", "long-message", "deep"],
)
async def test_hostile_output_is_bounded(make: Make, program: str) -> None:
    stage = Stage(make, ["python3", "-c", program])
    result = await stage.start()
    assert result.success, result
    assert len(result.summary) <= 64 << 10
    told = stage.of("agent.message")
    assert len(told) <= 5 * max(1, result.total_duration_ms / 1000) + 2  # never one event a line
    assert all(len(data["text"]) <= 64 << 10 for data in told)


async def test_a_model_without_its_key(make: Make) -> None:
    """`model`: true gives the model's address and a token, usable without a network; calls are counted."""
    program = (
        "import json, os, sys, urllib.request as r\n"
        "body = {'model': os.environ['RUNRA_MODEL'], 'messages': [{'role': 'user', 'content': sys.stdin.read()}]}\n"
        "head = {'authorization': 'Bearer ' + os.environ['OPENAI_API_KEY'], 'content-type': 'application/json'}\n"
        "url = os.environ['OPENAI_BASE_URL'] + '/chat/completions'\n"
        "print(json.load(r.urlopen(r.Request(url, json.dumps(body).encode(), head)))['choices'][0]['message']['content'])\n"
        "assert os.environ['ANTHROPIC_API_KEY'] and os.environ['ANTHROPIC_BASE_URL'] + '/v1' == os.environ['OPENAI_BASE_URL']\n"
    )
    async with ScriptedModel([Say("a word")]) as model:
        reach = {"model": "m-1", "apiKey": model.key, "baseUrl": f"{model.url}/v1", "prices": PRICE, "format": "chat"}
        llm = {"provider": "openrouter", "config": reach}
        stage = Stage(make, ["python3", "-c", program], llm, model=True, maxCost=1.0)
        result = await stage.start()
        assert (result.success, result.summary, result.cost_source) == (True, "a word", "gateway"), result
        assert result.total_cost == pytest.approx(0.0142)
        assert not any(model.key in event.model_dump_json() for event in stage.events)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"command": []}, "command"),
        ({"command": "agent '{prompt}'"}, "without quotes"),
        ({"command": ["a"], "maxCost": 1.0}, "a budget"),
        ({"command": ["a"], "permissionMode": "plan"}, "permissionMode plan"),
        ({"command": ["a"], "format": "xml"}, "format"),
    ],
)
async def test_refused_before_anything_starts(make: Make, config: dict[str, Any], words: str) -> None:
    with pytest.raises(RunraError, match=words) as caught:
        await make(agent={"provider": "custom", "config": config}).start("go")
    assert caught.value.code == "INVALID_CONFIG"


async def test_no_messages_while_it_works(make: Make) -> None:
    stage = Stage(make, "echo begun; sleep 4242")
    async with stage.runra.stream("go", sandbox_options=NO_NETWORK, timeout_ms=60_000) as run:
        async for event in run:
            if event.type == "agent.message":
                with pytest.raises(RunraError, match="takes no messages"):
                    await run.send_message("more")
                await run.stop()


@pytest.mark.parametrize(
    ("shape", "line", "events"),
    [
        ("auto", '{"type": "message", "text": "a"}', ["a"]),
        ("auto", '{"type": "unknown"}', ['{"type": "unknown"}']),
        ("auto", "{not json", ["{not json"]),
        ("jsonl", '{"type": "unknown"}', []),
        ("jsonl", "plain", []),
        ("text", '{"type": "message", "text": "a"}', ['{"type": "message", "text": "a"}']),
    ],
)
def test_shapes(shape: Shape, line: str, events: list[str]) -> None:
    assert [event.data["text"] for event in Printed(shape).feed(line)] == events


def test_the_words_of_a_command() -> None:
    assert words(["a", "--p={prompt}"], "x y") == (["a", "--p=x y"], False)
    assert words(["a"], "x") == (["a"], True)
    assert words("a {prompt} | b", "$(x)") == (["sh", "-c", 'a "$1" | b', "sh", "$(x)"], False)
