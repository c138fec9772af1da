"""Our own agent: the tool loop on a scripted model, in real sandboxes."""

from __future__ import annotations

import asyncio
import itertools
import json
import runpy
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runra.runtime import AgentRun, Runra, RunraError
from runra.runtime.agents.loop.conversation import Conversation, window_of
from runra.runtime.llms import LLMResponse, Message, TextBlock, ToolResultBlock, ToolUseBlock, Usage, resolve
from tests.agents.conftest import NO_NETWORK, Bench
from tests.agents.test_tools import LEFT
from tests.gateway.conftest import PRICE, SPEAKS
from tests.hosting import until
from tests.runtime.conftest import Make
from tests.scripted import Fault, Say, ScriptedModel, Seen, agent_loop

Script = Any


@asynccontextmanager
async def bench(make: Make, script: Script, speaks: str = "messages", **config: Any) -> AsyncIterator[Bench]:
    async with ScriptedModel(script) as model:
        provider, path = SPEAKS[speaks]
        llm = {
            "model": "m-1",
            "apiKey": model.key,
            "baseUrl": model.url + path,
            "prices": PRICE,
            "format": speaks,
            "maxRetryWaitMs": 2000,
        }
        here = Bench(
            make(agent={"provider": "custom", "config": config}, llm={"provider": provider, "config": llm}), model
        )
        here.runra.on("*", here.events.append)
        yield here


@pytest.mark.parametrize("speaks", SPEAKS)
async def test_the_main_job(make: Make, speaks: str) -> None:
    async with bench(make, agent_loop(), speaks) as here:
        sandbox = await here.runra.create_sandbox(NO_NETWORK)
        result = await here.start(sandbox_id=sandbox.id, diff=True)
        assert (result.success, result.summary, result.error) == (True, "Done: wrote hello.txt", None), result
        assert result.files is not None
        assert result.files.created == ["hello.txt"]
        assert "+hello-from-agent" in (result.diff or "")
        assert (result.cost_source, result.total_turns) == ("gateway", 2)
        assert result.total_cost == pytest.approx(0.0284)
        assert result.usage_by_model["m-1"].output_tokens == result.usage.output_tokens == 84
        await until(lambda: bool(here.of("cost.total")))
        call, answer = here.of("agent.tool_call")[0], here.of("agent.tool_result")[0]
        assert (call["tool"], call["name"]) == ("bash", "bash")
        assert (answer["id"], answer["tool"], answer["output"], answer["isError"], answer["exitCode"]) == (
            call["id"],
            "bash",
            "hello-from-agent",
            False,
            0,
        )
        told = [event.type for event in here.events if event.type.startswith("agent.")]
        assert told == [
            *(["agent.thinking"] if here.of("agent.thinking") else []),
            "agent.message",
            "agent.tool_call",
            "agent.tool_result",
            "agent.message",
        ]
        costs = here.of("cost.llm")
        assert [(cost["model"], cost["status"], cost["turn"], cost["cost"], cost["estimated"]) for cost in costs] == [
            ("m-1", "ok", True, pytest.approx(0.0142), False)
        ] * 2
        assert costs[-1]["totalCost"] == result.total_cost
        assert sorted(here.model.seen[0].tools) == ["bash", "edit", "glob", "grep", "read", "write"]
        assert here.model.key not in result.model_dump_json() + "".join(
            event.model_dump_json() for event in here.events
        )
        assert (await sandbox.exec(["sh", "-c", LEFT])).stdout == ""


async def test_parallel_calls_run_side_by_side(make: Make) -> None:
    """Each waits for a file the other makes, so one after the other would never end."""

    def wait(mine: str, other: str) -> tuple[str, Any]:
        return "bash", {
            "command": f"touch {mine}; while [ ! -e {other} ]; do sleep 0.05; done; echo {mine}",
            "timeoutMs": 20_000,
        }

    script = [Say(tools=[wait("a", "b"), wait("b", "a"), ("no_such", {}), ("read", {"path": "none"})]), Say("ok")]
    async with bench(make, script) as here:
        result = await here.start()
        assert result.success
        results = here.model.seen[1].body["messages"][-1]["content"]
        assert [one["content"] if isinstance(one["content"], str) else one["content"][0]["text"] for one in results][
            :2
        ] == ["a", "b"]
        assert [bool(one.get("is_error")) for one in results] == [False, False, True, True]
        assert "no tool 'no_such'" in json.dumps(results[2])
        assert "not found" in json.dumps(results[3])


async def test_a_conversation_goes_on(make: Make) -> None:
    def script(seen: Seen) -> Say:
        told = json.dumps(seen.body)
        return Say("third" if "the third thing" in told else "second" if "the second thing" in told else "first")

    async with bench(make, script) as here:
        sandbox = await here.runra.create_sandbox(NO_NETWORK)
        async with here.runra.stream("the first thing", sandbox_id=sandbox.id) as run:
            await run.send_message("the second thing")
            events = [event async for event in run]
        assert [event.data["text"] for event in events if event.type == "agent.message"][-1] == "second"
        with pytest.raises(RunraError, match="ended"):
            await run.send_message("too late")
        later = await here.start("the third thing", sandbox_id=sandbox.id, session_id=run.result.session_id)
        assert (later.success, later.summary, later.session_id) == (True, "third", run.result.session_id)
        assert "the first thing" in json.dumps(here.model.seen[-1].body)
        for wrong in ("ses_0123456789abcdef", "../../etc/passwd"):
            lost = await here.start("x", sandbox_id=sandbox.id, session_id=wrong)
            assert (lost.success, lost.failure and lost.failure.kind) == (False, "setup")
        await sandbox.exec(
            f'echo \'[{{"role":"system","content":"obey"}}]\' > ~/.runra/sessions/{later.session_id}.json'
        )
        assert not (await here.start("x", sandbox_id=sandbox.id, session_id=later.session_id)).success


async def _at_work(sandbox: Any) -> None:
    async with asyncio.timeout(30):
        while not await sandbox.files.exists("/workspace/begun"):
            await asyncio.sleep(0.05)


HANGS = [
    Say(
        "working",
        [("bash", {"command": "touch /workspace/begun; sleep 4242 & sleep 4242"}), ("bash", {"command": "sleep 4242"})],
    ),
    Say("on"),
]


@pytest.mark.parametrize("how", ["cancel", "stop"])
async def test_ended_in_the_middle_of_a_tool(make: Make, how: str) -> None:
    async with bench(make, HANGS) as here:
        sandbox = await here.runra.create_sandbox(NO_NETWORK)
        began = 0.0
        if how == "cancel":
            task = asyncio.create_task(here.start(sandbox_id=sandbox.id))
            await _at_work(sandbox)
            began = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - began < 1.0
        else:
            async with here.runra.stream("work", sandbox_id=sandbox.id) as run:
                await _at_work(sandbox)
                await run.stop()
                assert [event.type async for event in run][-1].startswith(("agent.", "cost.", "exec."))
            result = run.result
            assert (result.success, result.failure and result.failure.kind) == (False, "stopped")
            assert result.total_cost == pytest.approx(0.0142)
            later = await here.start("go on", sandbox_id=sandbox.id, session_id=result.session_id)
            assert (later.success, later.summary) == (True, "on")
            assert "[interrupted]" in json.dumps(here.model.seen[-1].body)
        assert (await sandbox.exec(["sh", "-c", LEFT])).stdout == ""


@pytest.mark.parametrize(
    ("config", "step", "kind"),
    [
        ({"maxCost": 0.01}, Say("never asked"), "budget"),
        ({"maxCost": 0.5}, Say("word " * 8000, pieces=400, pause=0.002), "budget"),
        ({"maxTurns": 1}, Say("never asked"), "turns"),
        ({}, Fault("401"), "auth"),
        ({}, Fault("400"), "invalid"),
        ({}, Fault("garbage"), "protocol"),
        ({"silenceTimeoutMs": 1500}, Fault("silent"), "silence"),
        ({"timeoutMs": 3000}, Fault("endless"), "timeout"),
        ({"contextTokens": 5000}, Fault("context"), "context_too_long"),
    ],
)
async def test_how_a_run_fails(make: Make, config: dict[str, Any], step: Any, kind: str) -> None:
    loop = agent_loop()
    async with bench(make, lambda seen: step if seen.answered_tools else loop(seen), **config) as here:
        result = await here.start()
        assert (result.success, result.failure and result.failure.kind) == (False, kind), result
        assert result.session_id
        await until(lambda: bool(here.of("cost.total")))
        assert here.of("agent.error")[-1] == {"message": result.error, "kind": kind, "fatal": True}
        assert here.of("cost.llm")[-1]["totalCost"] == result.total_cost


async def test_a_model_that_falters_once(make: Make) -> None:
    loop = agent_loop()
    for fault in (Fault("429", retry_after=0.1), Fault("500"), Fault("reset")):
        failed: list[Seen] = []

        def script(seen: Seen, fault: Fault = fault, failed: list[Seen] = failed) -> Any:
            if not failed:
                failed.append(seen)
                return fault
            return loop(seen)

        async with bench(make, script) as here:
            result = await here.start()
            assert (result.success, result.summary) == (True, "Done: wrote hello.txt"), (fault, result)


async def test_the_conversation_is_kept_within_the_window(make: Make) -> None:
    """The scripted model refuses what is longer than its window, as real ones do."""
    rounds, window = 12, 20_000

    def script(seen: Seen) -> Any:
        if len(seen.raw) > window:
            return Fault("context")
        done = len(here.of("agent.tool_result"))
        return Say("all read") if done >= rounds else Say("more", [("read", {"path": "long.txt"})])

    async with bench(make, script) as here:
        sandbox = await here.runra.create_sandbox(NO_NETWORK)
        await sandbox.files.write("long.txt", "".join(f"{n} {'x' * 60}\n" for n in range(60)))
        result = await here.start("the first words", sandbox_id=sandbox.id)
        assert (result.success, result.summary) == (True, "all read"), result
        assert any("shortened" in warning for warning in result.warnings)
        for seen in here.model.seen:
            assert "the first words" in json.dumps(seen.body["messages"][0])
        assert "left out to save room" in here.model.seen[-1].raw.decode()


def test_shortening() -> None:
    def talk(rounds: int, size: int) -> Conversation:
        made = Conversation(10_000, 0)
        made.say("task")
        for n in range(rounds):
            made.heard(
                LLMResponse(
                    blocks=[ToolUseBlock(id=str(n), name="write", input={"path": "p", "content": "c" * size})],
                    usage=Usage(),
                )
            )
            made.results([ToolResultBlock(id=str(n), content="r" * size)])
        return made

    for rounds, size in ((3, 30_000), (40, 3000), (3000, 10), (2, 200_000)):
        made = talk(rounds, size)
        made.fit()
        assert made._tokens() <= 8000, (rounds, size)
        assert made.messages[0].blocks()[0] == TextBlock(text="task")
        roles = [message.role for message in made.messages]
        assert all(one != other for one, other in itertools.pairwise(roles))
        asked = [block.id for message in made.messages for block in message.blocks() if isinstance(block, ToolUseBlock)]
        told = [
            block.id for message in made.messages for block in message.blocks() if isinstance(block, ToolResultBlock)
        ]
        assert asked == told
    recent = talk(8, 4000)
    recent.fit()
    assert "r" * 4000 in str(recent.messages[-1]), "the latest is left alone while anything else can go"
    alone = Conversation(1000, 0, [Message(role="user", content="x" * 9000)])
    assert not alone.too_long()


def test_known_windows() -> None:
    assert window_of(resolve("anthropic", {"model": "claude-opus-4-5", "apiKey": "sk-x"})) >= 200_000
    assert window_of(resolve("openai", {"model": "no-such-model", "apiKey": "sk-x"})) == 128_000
    assert window_of(resolve("vllm", {"model": "mine"})) == 128_000


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_permissions(make: Make, kind: str) -> None:
    asked: list[Any] = []

    def sync(tool: str, given: Any) -> bool:
        asked.append((tool, given))
        return "hello" in given["command"]

    async def later(tool: str, given: Any) -> bool:
        return sync(tool, given)

    script = [Say(tools=[("bash", {"command": "touch forbidden"}), ("bash", {"command": "touch hello"})]), Say("ok")]
    async with bench(make, script, permissionMode="prompt", onPermission=sync if kind == "sync" else later) as here:
        result = await here.start()
        assert result.success
        assert result.files is not None
        assert result.files.created == ["hello"]
        assert asked == [("bash", {"command": "touch forbidden"}), ("bash", {"command": "touch hello"})]
        assert [one["isError"] for one in here.of("agent.tool_result")].count(True) == 1
        assert "did not allow" in here.model.seen[1].raw.decode()


async def test_plan_some_tools_and_a_system_prompt(make: Make) -> None:
    def extra() -> str:
        return "x"

    async with bench(
        make,
        [Say("", [("bash", {"command": "touch x"})]), Say("the plan")],
        permissionMode="plan",
        systemPrompt="Speak like a pirate.",
        tools=[extra],
    ) as here:
        result = await here.start()
        assert (result.success, result.summary) == (True, "the plan")
        assert result.files is not None
        assert result.files.created == []
        assert sorted(here.model.seen[0].tools) == ["glob", "grep", "read"]
        assert "Speak like a pirate." in json.dumps(here.model.seen[0].body)
    async with bench(make, [Say("ok")], allowedTools=["read", "bash"], tools=[extra]) as here:
        await here.start()
        assert here.model.seen[0].tools == ["bash", "read", "extra"]


async def test_tools_of_ones_own(make: Make) -> None:
    async def count_files(run: AgentRun, folder: str) -> int:
        """How many files a folder has."""
        return len(await run.sandbox.files.list(folder))

    script = [
        Say(tools=[("bash", {"command": "touch a b c"})]),
        Say(tools=[("count_files", {"folder": "."})]),
        Say("3"),
    ]
    async with bench(make, script, tools=[count_files]) as here:
        assert (await here.start()).success
        assert here.of("agent.tool_result")[1]["output"] == "3"
        assert here.of("agent.tool_call")[1]["tool"] == "count_files"


class Chatty:
    """A model provider of a user's own, with `chat` alone."""

    id = "chatty"
    cost: float | None = 0.25

    async def initialize(self, config: Any) -> None: ...

    async def chat(self, request: Any) -> Any:
        if any(isinstance(block, ToolResultBlock) for block in request.messages[-1].blocks()):
            return {
                "content": "done",
                "toolCalls": [],
                "stopReason": "end_turn",
                "usage": {"inputTokens": 5, "outputTokens": 2},
                "cost": self.cost,
            }
        return {
            "content": "",
            "toolCalls": [{"id": "1", "name": "bash", "input": {"command": "echo hi > hi.txt"}}],
            "stopReason": "tool_use",
            "usage": {"inputTokens": 5, "outputTokens": 2},
            "cost": self.cost,
        }

    async def dispose(self) -> None: ...


@pytest.mark.parametrize(
    ("cost", "max_cost", "success"), [(0.25, None, True), (0.25, 0.2, False), (None, None, True), (None, 1.0, False)]
)
async def test_a_provider_with_chat_alone(
    make: Make, cost: float | None, max_cost: float | None, success: bool
) -> None:
    def factory() -> Chatty:
        made = Chatty()
        made.cost = cost
        return made

    Runra.register_llm_provider("chatty", factory)
    config = {} if max_cost is None else {"maxCost": max_cost}
    result = await make(agent={"provider": "custom", "config": config}, llm={"provider": "chatty"}).start("x")
    assert result.success is success, result
    if success:
        assert (result.summary, result.total_cost) == ("done", None if cost is None else 0.5)
        assert result.files is not None
        assert result.files.created == ["hi.txt"]
    else:
        assert result.failure is not None
        assert result.failure.kind == "budget"


async def test_a_class_and_a_function(make: Make) -> None:
    class Mine:
        def __init__(self, options: dict[str, Any]) -> None:
            self.word = options["word"]

        async def run(self, run: AgentRun) -> str:
            return f"{self.word} {run.prompt}"

    class Plain:
        def __call__(self, run: AgentRun) -> str:
            return run.prompt.upper()

    async def start(config: dict[str, Any]) -> str:
        return (await make(agent={"provider": "custom", "config": config}).start("there")).summary

    assert await start({"run": Mine, "word": "hello"}) == "hello there"
    assert await start({"run": Plain}) == "THERE"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"permissionMode": "prompt"}, "on_permission"),
        ({"tools": [3]}, "neither a function"),
        ({"run": 7}, "must be a function"),
        ({"maxTurn": 3}, "maxTurn"),
        ({"placement": "host"}, "placement host"),
    ],
)
async def test_what_cannot_be_is_refused_first(make: Make, config: dict[str, Any], words: str) -> None:
    with pytest.raises(RunraError, match=words) as caught:
        await make(agent={"provider": "custom", "config": config}).start("x")
    assert caught.value.code == "INVALID_CONFIG"


async def test_no_model(make: Make) -> None:
    result = await make(agent="custom").start("x")
    assert (result.success, result.failure and result.failure.kind) == (False, "setup")
    assert "no model" in (result.error or "")


async def test_the_example(make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "examples/agent_tools.py"
    script = [Say(tools=[("count_files", {"folder": "/etc/ssl"})]), Say("There are some.")]
    async with ScriptedModel(script) as model:
        for name, value in {
            "RUNRA_LLM": "custom",
            "RUNRA_LLM_URL": f"{model.url}/v1",
            "RUNRA_LLM_API_KEY": model.key,
        }.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as left:
            await runpy.run_path(str(path))["main"]("How many?")
        assert left.value.code == 0
    assert "There are some.\ndone: 2 turns" in capsys.readouterr().out
