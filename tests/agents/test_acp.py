"""The real ACP agents in real sandboxes without a network, on a scripted model."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.agents.conftest import NO_NETWORK, Bench, Script, conversation, in_order
from tests.gateway.conftest import PRICE, SPEAKS
from tests.hosting import until
from tests.runtime.conftest import Make
from tests.scripted import Fault, Say, ScriptedModel, Seen, agent_loop, shell_call

pytestmark = pytest.mark.timeout(180)

#: Each agent's command, npm package, and what it speaks by itself.
AGENTS = {
    "opencode": (["opencode", "acp"], "opencode-ai", "chat"),
    "claude": (["claude-agent-acp"], "@agentclientprotocol/claude-agent-acp", "messages"),
    "codex": (["codex-acp"], "@agentclientprotocol/codex-acp", "responses"),
}
LEFT = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done | grep -E '[s]leep 4242|claud[e]|[c]odex|opencod[e]'; true"


@asynccontextmanager
async def acp(make: Make, agent: str, script: Script, **config: Any) -> AsyncIterator[Bench]:
    command, package, speaks = AGENTS[agent]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not on the PATH: npm install -g {package}")
    async with ScriptedModel(script) as model:
        provider, path = SPEAKS[speaks]
        reach = {"model": "m-1", "apiKey": model.key, "baseUrl": model.url + path, "prices": PRICE, "format": speaks}
        llm = {"provider": provider, "config": {**reach, "maxRetryWaitMs": 2000}}
        here = Bench(make(agent={"provider": "custom", "config": {"acp": command, **config}}, llm=llm), model)
        here.runra.on("*", here.events.append)
        yield here


@pytest.mark.parametrize("agent", AGENTS)
async def test_the_main_job(make: Make, agent: str) -> None:
    async with acp(make, agent, agent_loop()) as here:
        sandbox = await here.runra.create_sandbox(NO_NETWORK)
        result = await here.start(sandbox_id=sandbox.id)
        assert result.success, result
        assert (result.summary, result.failure) == ("Done: wrote hello.txt", None)
        assert result.files is not None
        assert "hello.txt" in result.files.created
        assert (result.cost_source, result.total_turns) == ("gateway", 2)
        assert result.session_id
        assert result.total_cost == pytest.approx(len(here.model.seen) * 0.0142)
        await until(lambda: bool(here.of("cost.total")))
        (call,) = here.of("agent.tool_call")
        (answer,) = here.of("agent.tool_result")
        assert (call["tool"], answer["tool"], answer["id"], answer["isError"]) == ("bash", "bash", call["id"], False)
        assert "hello.txt" in json.dumps(call["input"])
        assert "hello-from-agent" in answer["output"]
        assert not any(here.model.key in event.model_dump_json() for event in here.events)
        assert (await sandbox.exec(LEFT)).stdout == ""


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_conversation_goes_on(make: Make, agent: str) -> None:
    """Further messages while it works, then a later run that knows of the first and tells none of it again."""
    async with acp(make, agent, in_order) as here:
        await conversation(here)
        await until(lambda: bool(here.of("cost.total")))
        assert "first" not in [data["text"] for data in here.of("agent.message")]


@pytest.mark.parametrize("agent", AGENTS)
async def test_cancelled_in_the_middle_of_a_tool(make: Make, agent: str) -> None:
    def script(seen: Seen) -> Say:
        if seen.tools and not seen.answered_tools:
            return Say("working", [shell_call(seen, "touch /workspace/begun; sleep 4242")])
        return Say("A title")

    async with acp(make, agent, script) as here:
        sandbox = await here.runra.create_sandbox(NO_NETWORK)
        run = asyncio.create_task(here.start(sandbox_id=sandbox.id))
        async with asyncio.timeout(90):
            while not await sandbox.files.exists("/workspace/begun"):
                assert not run.done(), run.result()
                await asyncio.sleep(0.1)
        began = time.monotonic()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert time.monotonic() - began < 1.0
        assert (await sandbox.exec(LEFT)).stdout == ""


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_model_that_fails(make: Make, agent: str) -> None:
    async with acp(make, agent, [Fault("401")]) as here:
        result = await here.start()
        assert not result.success, result
        assert result.failure is not None
        assert result.failure.kind == "auth", result.failure
