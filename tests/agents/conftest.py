"""Agents at work in real sandboxes without a network, on a scripted model."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from runra.runtime import AgentResult, Event, Runra, RunraError
from tests.gateway.conftest import PRICE, SPEAKS
from tests.runtime.conftest import Make, alive, clean_environment, make, real  # noqa: F401 - fixtures
from tests.scripted import Say, ScriptedModel, Seen, Step

PROGRAMS = {"claude-code": "claude", "codex": "codex", "opencode": "opencode"}
PACKAGES = {"claude-code": "@anthropic-ai/claude-code", "codex": "@openai/codex", "opencode": "opencode-ai"}
#: What each speaks by itself.
OWN = {"claude-code": "messages", "codex": "responses", "opencode": "chat"}
NO_NETWORK = {"network": {"egress": {"default": "deny"}}}


def needs(agent: str) -> None:
    """Skip where the agent is not installed: the image `host` shows what this machine has."""
    if shutil.which(PROGRAMS[agent]) is None:
        pytest.skip(f"{PROGRAMS[agent]} is not on the PATH: npm install -g {PACKAGES[agent]}")


@dataclass
class Bench:
    """A runtime with one agent on a scripted model, and what happened."""

    runra: Runra
    model: ScriptedModel
    events: list[Event] = field(default_factory=list)

    def of(self, type: str) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.type == type]

    async def start(self, prompt: str = "write hello.txt", **more: Any) -> AgentResult:
        if "sandbox_id" not in more:
            more["sandbox_options"] = NO_NETWORK
        return await self.runra.start(prompt, timeout_ms=100_000, **more)


Script = Sequence[Step] | Callable[[Seen], Step]


@asynccontextmanager
async def bench(make: Make, agent: str, script: Script, speaks: str = "", **config: Any) -> AsyncIterator[Bench]:  # noqa: F811
    """`config` is the agent's; its model speaks what the agent does unless `speaks` says otherwise."""
    needs(agent)
    async with ScriptedModel(script) as model:
        provider, path = SPEAKS[speaks or OWN[agent]]
        llm = {
            "provider": provider,
            "config": {
                "model": "m-1",
                "apiKey": model.key,
                "baseUrl": model.url + path,
                "prices": PRICE,
                "format": speaks or OWN[agent],
                "maxRetryWaitMs": 2000,
            },
        }
        here = Bench(make(agent={"provider": agent, "config": config}, llm=llm), model)
        here.runra.on("*", here.events.append)
        yield here


def in_order(seen: Seen) -> Say:
    """The model of `conversation`: it answers the latest thing it was told."""
    if not seen.tools:
        return Say("A title")
    told = json.dumps(seen.body)
    return Say("third" if "the third thing" in told else "second" if "the second thing" in told else "first")


async def conversation(here: Bench) -> None:
    """Further messages while an agent works, then a later run that knows of the first. `here` has `in_order`; its events
    are those of the later run alone afterwards."""
    sandbox = await here.runra.create_sandbox(NO_NETWORK)
    async with here.runra.stream("the first thing", sandbox_id=sandbox.id, timeout_ms=100_000) as run:
        await run.send_message("the second thing")
        events = [event async for event in run]
    said = [event.data["text"] for event in events if event.type == "agent.message"]
    assert [words for words in said if not words.startswith("Warning")] == ["first", "second"]
    assert run.result.success, run.result
    with pytest.raises(RunraError, match="ended"):
        await run.send_message("too late")
    here.events.clear()
    later = await here.start("the third thing", sandbox_id=sandbox.id, session_id=run.result.session_id)
    assert (later.success, later.summary) == (True, "third"), later
    assert "the first thing" in json.dumps(here.model.seen[-1].body)
