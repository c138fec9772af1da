"""The three real coding agents in real sandboxes that have no network but the way to their model."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import pytest

from runra.runtime import RunraError
from tests.agents.conftest import NO_NETWORK, PROGRAMS, Bench, bench, conversation, in_order
from tests.hosting import until
from tests.runtime.conftest import Make, alive
from tests.scripted import Fault, Say, Seen, agent_loop, shell_call
from tests.sdk.conftest import RealServer

AGENTS = list(PROGRAMS)
pytestmark = pytest.mark.timeout(180)

#: Processes of an agent or of what it started, and what the run has put anywhere; the shell that looks is left out.
LEFT = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done | grep -E '[s]leep 4242|claud[e]|[c]odex|opencod[e]|[r]unra-relay'; ls -d /var/tmp/.runra-* /tmp/.runra-* 2>/dev/null; true"


@pytest.mark.parametrize("agent", AGENTS)
async def test_the_main_job(make: Make, agent: str) -> None:
    """A prompt becomes a file, with events, cost, files changed, and nothing left; the key is nowhere inside."""
    async with bench(make, agent, agent_loop()) as here:
        sandbox = await here.runra.create_sandbox(NO_NETWORK)
        result = await here.start(sandbox_id=sandbox.id, diff=True)
        assert result.success, result
        assert (result.summary, result.error, result.failure) == ("Done: wrote hello.txt", None, None)
        assert result.files is not None
        assert result.files.created == ["hello.txt"]
        assert "+hello-from-agent" in (result.diff or "")
        assert (result.cost_source, result.total_turns, result.sandbox_id) == ("gateway", 2, sandbox.id)
        assert result.session_id
        assert result.usage.output_tokens == result.usage_by_model["m-1"].output_tokens >= 84
        # 2 calls of 700 + 300 tokens in and 42 out, at 10 and 100 dollars a million; cached ones cost as much here.
        assert result.total_cost == pytest.approx(len(here.model.seen) * 0.0142)
        await until(lambda: bool(here.of("cost.total")))
        assert here.of("cost.total")[0]["amount"] == result.total_cost
        assert len(here.of("cost.llm")) == len(here.model.seen)
        assert [call["tool"] for call in here.of("agent.tool_call")] == ["bash"]
        assert "hello-from-agent" in here.of("agent.tool_result")[0]["output"]
        assert {event.run_id for event in here.events if event.type.startswith(("agent.", "cost."))} == {result.run_id}
        # The key: in no event, no result, no file, no environment, no memory of the sandbox.
        key = here.model.key
        assert key not in result.model_dump_json()
        assert not any(key in event.model_dump_json() for event in here.events)
        left = await sandbox.exec(LEFT)
        assert left.stdout == "", left.stdout
        found = await sandbox.exec(
            ["grep", "-rslF", key.removeprefix("sk-real-"), "/root", "/tmp", "/var/tmp", "/workspace", "/etc"]
        )
        assert found.stdout == ""


@pytest.mark.parametrize("agent", AGENTS)
async def test_the_key_is_not_in_the_sandboxs_memory(make: Make, agent: str) -> None:
    """Looked for while the agent works: environments, command lines and memory of every process inside."""
    search = (
        "import os, sys\nkey, known = (line.encode() for line in sys.stdin.read().split())\n"
        "control, hits, block = 0, [], 1 << 20\n"
        "for pid in [p for p in os.listdir('/proc') if p.isdigit() and int(p) not in (1, os.getpid())]:\n"
        "    for name in ('environ', 'cmdline'):\n"
        "        try: hits += [(pid, name)] if key in open(f'/proc/{pid}/{name}', 'rb').read() else []\n"
        "        except OSError: pass\n"
        "    try: maps, mem, pages = (open(f'/proc/{pid}/{name}', 'rb') for name in ('maps', 'mem', 'pagemap'))\n"
        "    except OSError: continue\n"
        "    for line in maps.read().decode().splitlines():\n"
        "        where, rights = line.split()[:2]\n"
        "        if 'rw' not in rights: continue\n"
        "        low, high = (int(x, 16) for x in where.split('-'))\n"
        "        tail = b''\n"
        "        for at in range(low, high, block):\n"  # only what is really there: runtimes reserve terabytes
        "            size = min(block, high - at)\n"
        "            pages.seek(at >> 9)\n"
        "            if not any(pages.read(size >> 9)): continue\n"
        "            try: mem.seek(at); data = mem.read(size)\n"
        "            except (OSError, ValueError, OverflowError): continue\n"
        "            control += known in data\n"
        "            if key in tail + data: hits.append((pid, where))\n"
        "            tail = data[-len(key):]\n"
        "print(control, hits)\n"
    )

    def script(seen: Seen) -> Say:
        if seen.tools and not seen.answered_tools:
            return Say("working", [shell_call(seen, "touch /workspace/begun; sleep 4242")])
        return Say("A title")

    async with bench(make, agent, script) as here:
        sandbox = await here.runra.create_sandbox(NO_NETWORK)
        await sandbox.files.write("/usr/local/bin/search.py", search)
        run = asyncio.create_task(here.start(sandbox_id=sandbox.id))
        async with asyncio.timeout(60):
            while not await sandbox.files.exists("/workspace/begun"):
                await asyncio.sleep(0.1)
        # The whole key is never on a command line or in the searcher's own environment: it comes on stdin.
        found = await sandbox.exec(
            ["python3", "/usr/local/bin/search.py"], stdin=f"{here.model.key} rgw_", timeout_ms=60_000
        )
        control, _, hits = found.stdout.partition(" ")
        assert int(control) > 0, f"the run's own token, which is there, must be found too: {found}"
        assert hits.strip() == "[]"
        # And a cancellation in the middle of a tool's work is done within a second.
        began = time.monotonic()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert time.monotonic() - began < 1.0
        assert (await sandbox.exec(LEFT)).stdout == ""


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_conversation_goes_on(make: Make, agent: str) -> None:
    async with bench(make, agent, in_order) as here:
        await conversation(here)


async def test_stopped_with_a_result(make: Make) -> None:
    def script(seen: Seen) -> Say:
        return Say("working", [shell_call(seen, "sleep 4242")]) if seen.tools else Say("A title")

    async with bench(make, "claude-code", script) as here:
        sandbox = await here.runra.create_sandbox(NO_NETWORK)
        async with here.runra.stream("work", sandbox_id=sandbox.id) as run:
            async for event in run:
                if event.type == "agent.tool_call":
                    await run.stop()
        result = run.result
        assert (result.success, result.failure and result.failure.kind) == (False, "stopped")
        assert result.total_cost == pytest.approx(0.0142)
        assert (await sandbox.exec(LEFT)).stdout == ""


def then(step: Any) -> Any:
    """One command, then `step`, for ever."""
    loop = agent_loop()
    return lambda seen: step if isinstance(seen, Seen) and seen.tools and seen.answered_tools else loop(seen)


@pytest.mark.parametrize(
    ("agent", "config", "step", "kind"),
    [
        ("claude-code", {"maxCost": 0.01}, Say("never asked"), "budget"),
        ("codex", {"maxCost": 0.01}, Say("never asked"), "budget"),
        ("claude-code", {"maxTurns": 1}, Say("never asked"), "turns"),
        ("codex", {"maxTurns": 1}, Say("never asked"), "turns"),
        ("claude-code", {}, Fault("401"), "auth"),
        ("codex", {}, Fault("401"), "auth"),
        ("opencode", {}, Fault("401"), "auth"),
        ("codex", {}, Fault("context"), "context_too_long"),
        ("claude-code", {"silenceTimeoutMs": 10_000}, Fault("silent"), "silence"),
        ("codex", {"silenceTimeoutMs": 8000}, Fault("slow"), "silence"),
    ],
)
async def test_how_a_run_fails(make: Make, agent: str, config: dict[str, Any], step: Any, kind: str) -> None:
    async with bench(make, agent, then(step), **config) as here:
        result = await here.start()
        assert (result.success, result.failure and result.failure.kind) == (False, kind), result
        assert result.error
        assert result.files is not None
        assert result.files.created == ["hello.txt"], "what it did before is told all the same"
        await until(lambda: bool(here.of("cost.total")))
        assert here.of("agent.error")[-1] == {"message": result.error, "kind": kind, "fatal": True}


@pytest.mark.parametrize("agent", ["claude-code", "codex"])
@pytest.mark.parametrize(
    "fault", [Fault("429", retry_after=0.1), Fault("500"), Fault("reset"), Fault("garbage")], ids=lambda f: f.kind
)
async def test_a_model_that_falters_once(make: Make, agent: str, fault: Fault) -> None:
    loop, failed = agent_loop(), []

    def script(seen: Seen) -> Any:
        if seen.tools and not failed:
            failed.append(seen)
            return fault
        return loop(seen)

    async with bench(make, agent, script) as here:
        result = await here.start()
        assert (result.success, result.summary) == (True, "Done: wrote hello.txt"), result


async def test_a_model_that_hangs_after_its_last_event(make: Make) -> None:
    async with bench(make, "claude-code", then(Say("all said", then="hang"))) as here:
        result = await here.start()
        assert (result.success, result.summary) == (True, "all said"), result


async def test_a_broken_sandbox_outranks_the_agents_own_word(make: Make, real: RealServer) -> None:
    holder: list[Bench] = []

    async def end_it() -> None:
        found = await holder[0].runra.get_sandbox(alive(real)[0])
        assert found is not None
        await found.terminate()

    tasks: list[asyncio.Task[None]] = []

    def script(seen: Seen) -> Say:
        if seen.answered_tools:
            tasks.append(asyncio.create_task(end_it()))
            return Say("word " * 2000, pieces=100, pause=0.05)
        return Say("work", [shell_call(seen, "true")])

    async with bench(make, "codex", script) as here:
        holder.append(here)
        result = await here.start()
        assert (result.success, result.failure and result.failure.kind) == (False, "sandbox"), result
        assert re.search("ended under the agent|is lost", result.error or "")
        assert result.cost_source == "gateway", "what was spent until then is told"
        assert result.total_cost is not None
        assert result.total_cost > 0


async def test_an_agent_that_is_not_there(make: Make) -> None:
    async with bench(make, "codex", agent_loop()) as here:
        sandbox = await here.runra.create_sandbox(NO_NETWORK)
        await sandbox.exec("rm -f /usr/bin/codex")
        result = await here.start(sandbox_id=sandbox.id)
        assert (result.success, result.failure and result.failure.kind) == (False, "setup")
        assert "runra image build agents/codex" in (result.error or "")
        assert not here.model.seen


@pytest.mark.parametrize(
    ("agent", "config", "words"),
    [
        ("codex", {"allowedTools": ["read"]}, "some tools only"),
        ("codex", {"permissionMode": "plan"}, "permissionMode plan"),
        ("claude-code", {"permissionMode": "prompt"}, "permissionMode prompt"),
        ("opencode", {"maxTurn": 3}, "maxTurn"),
        ("claude-code", {"allowedTools": ["fly"]}, "allowedTools"),
    ],
)
async def test_what_an_agent_cannot_hold_is_refused_before_anything_starts(
    make: Make, real: RealServer, agent: str, config: dict[str, Any], words: str
) -> None:
    async with bench(make, agent, agent_loop(), **config) as here:
        before = alive(real)
        with pytest.raises(RunraError, match=words) as caught:
            await here.start()
        assert caught.value.code == "INVALID_CONFIG"
        assert (alive(real), here.model.seen) == (before, [])


@pytest.mark.parametrize("agent", ["claude-code", "opencode"])
async def test_some_tools_a_plan_and_a_system_prompt(make: Make, agent: str) -> None:
    async with bench(make, agent, [Say("a plan")], permissionMode="plan", systemPrompt="Speak like a pirate.") as here:
        assert (await here.start()).success
        asked = here.model.seen[-1]
        names = {name.lower() for name in asked.tools}
        assert "read" in names
        assert not names & {"bash", "write", "edit", "multiedit", "patch", "task", "webfetch"}
        assert "Speak like a pirate." in json.dumps(asked.body)


async def test_the_sandbox_of_a_run(make: Make) -> None:
    """Of the agent's own image where none is named, and longer-lived than the run."""
    async with bench(make, "codex", [Say("done")]) as here:
        await here.start()
        await here.runra.start("again", sandbox_options={**NO_NETWORK, "timeoutMs": 250_000})
        created = [event.sandbox_id for event in here.events if event.type == "sandbox.created"]
        lives = [(await here.runra.provider.get(id)).timeout_ms for id in created]
        assert lives == [400_000, 250_000]
        del here.runra.config.values["sandbox"]["defaults"]["image"]
        with pytest.raises(RunraError, match="agents/codex"):
            await here.runra.start("and again")
