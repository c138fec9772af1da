"""The real agents on this machine with their hands in a sandbox: what they do lands there, and nothing here is touched."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runra.runtime.agents.cli import host
from runra.runtime.agents.options import TOOLS
from tests.agents.conftest import NO_NETWORK, PROGRAMS, bench
from tests.agents.test_tools import LEFT
from tests.runtime.conftest import Make
from tests.scripted import Fault, Say, Seen
from tests.sdk.conftest import RealServer

AGENTS = list(PROGRAMS)
#: In its own format codex groups the tools of a server; where the gateway translates, each has one name.
FLAT = {"codex": "chat"}
#: What codex offers beside ours: none of it reaches a file or a program.
CODEX = {"list_mcp_resources", "list_mcp_resource_templates", "read_mcp_resource", "request_user_input"}
pytestmark = pytest.mark.timeout(180)


class Canary:
    """Files in the caller's home, working folder and temporary folder, and what they were like."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders
        self.scratch: list[Path] = []
        for folder in folders:
            (folder / "deep").mkdir(parents=True)
            (folder / "deep/canary.txt").write_text("canary-secret-content\n")
            (folder / "CLAUDE.md").write_text("canary-instructions\n")
            (folder / "AGENTS.md").write_text("canary-instructions\n")
            (folder / "canary.txt").write_text("canary-secret-content\n")
        self.before = self.look()

    def look(self) -> dict[str, str]:
        seen = {}
        for folder in self.folders:
            for path in sorted(folder.rglob("*")):
                stat = path.lstat()
                content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
                seen[str(path)] = f"{stat.st_mode} {stat.st_mtime_ns} {content}"
        return seen


@pytest.fixture
def canary(real: RealServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Canary:
    """Made once the server runs: it is the one who has the usual home. Notes the agents' scratch folders as well."""
    home, here, temporary = tmp_path / "home", tmp_path / "here", tmp_path / "tmp"
    made = Canary([home, here, temporary])
    for name, value in {"HOME": home, "TMPDIR": temporary}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-canary-of-the-caller")
    monkeypatch.chdir(here)
    mkdtemp = host.tempfile.mkdtemp

    def noted(*arguments: Any, **named: Any) -> str:
        folder = Path(mkdtemp(*arguments, **named))
        if folder.name.startswith("runra-agent-"):
            made.scratch.append(folder)
        return str(folder)

    monkeypatch.setattr(host.tempfile, "mkdtemp", noted)
    return made


@pytest.fixture
def walls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With bubblewrap around the agent, and without: then only its own tools being off protects the caller."""
    if request.param == "bare":

        async def none(scratch: Path, program: Path) -> tuple[list[str], str]:
            return [], "a test"

        monkeypatch.setattr(host, "walled", none)
    return str(request.param)


def ours(seen: Seen, tool: str) -> str:
    """What this agent calls a tool of ours."""
    return next(name for name in seen.tools if name.rpartition("__")[2] == tool or name == f"runra_{tool}")


def native(path: str) -> list[tuple[str, Any]]:
    """Calls of every agent's own tools that would touch the caller's files."""
    command = f"echo touched > {path}/touched.txt; echo touched > canary.txt"
    patch = f"*** Begin Patch\n*** Add File: {path}/touched.txt\n+touched\n*** End Patch"
    return [
        ("Bash", {"command": command, "description": "x"}),
        ("bash", {"command": command, "description": "x"}),
        ("exec_command", {"cmd": command}),
        ("shell", {"command": ["bash", "-lc", command]}),
        ("shell_command", {"command": command}),
        ("local_shell", {"command": ["bash", "-lc", command]}),
        ("Write", {"file_path": f"{path}/touched.txt", "content": "touched"}),
        ("write", {"filePath": f"{path}/touched.txt", "content": "touched"}),
        ("Edit", {"file_path": f"{path}/canary.txt", "old_string": "secret", "new_string": "touched"}),
        ("edit", {"filePath": f"{path}/canary.txt", "oldString": "secret", "newString": "touched"}),
        ("apply_patch", {"input": patch}),
        ("patch", {"patchText": patch}),
        ("Read", {"file_path": f"{path}/canary.txt"}),
        ("read", {"filePath": f"{path}/canary.txt"}),
        ("Task", {"description": "x", "prompt": "touch it", "subagent_type": "general-purpose"}),
        ("task", {"description": "x", "prompt": "touch it", "subagent_type": "general"}),
    ]


def attack(canary: Canary) -> Callable[[Seen], Say]:
    """Our tools first, then every tool of the agent's own by name, one folder after the other, then the end."""
    waiting = [native(str(folder)) for folder in canary.folders]
    first = [True]

    def step(seen: Seen) -> Say:
        if not seen.tools:
            return Say("A title")
        if first:
            first.clear()
            return Say(
                "work",
                [
                    (ours(seen, "bash"), {"command": "echo hello-from-agent > hello.txt; hostname"}),
                    (ours(seen, "write"), {"path": "written.txt", "content": "w"}),
                ],
            )
        return Say("attack", waiting.pop()) if waiting else Say("Done")

    return step


# opencode, slow to start, is behind the walls when it is cancelled, and without them shows that it has no tools here.
@pytest.mark.parametrize(
    ("agent", "walls"),
    [(agent, walls) for agent in AGENTS for walls in ("walls", "bare") if (agent, walls) != ("opencode", "walls")],
    indirect=["walls"],
)
async def test_nothing_of_the_callers_is_touched(make: Make, agent: str, canary: Canary, walls: str) -> None:
    async with bench(make, agent, attack(canary), FLAT.get(agent, ""), placement="host") as here:
        sandbox = await here.runra.create_sandbox(NO_NETWORK)
        result = await here.start(sandbox_id=sandbox.id, diff=True)
        assert canary.look() == canary.before
        assert result.success, result
        assert result.summary == "Done"
        assert result.files is not None
        assert result.files.created == ["hello.txt", "written.txt"]
        assert await sandbox.files.read("hello.txt") == "hello-from-agent\n"
        assert (result.cost_source, bool(result.warnings)) == ("gateway", walls == "bare"), result.warnings
        # Only our tools were offered, and the contract's names are told of them.
        offered = {name for seen in here.model.seen for name in seen.tools}
        mine = {name.removeprefix("mcp__runra__").removeprefix("runra_") for name in offered}
        assert mine - (CODEX if agent == "codex" else set()) == set(TOOLS), offered
        assert [call["tool"] for call in here.of("agent.tool_call")][:2] == ["bash", "write"]
        assert here.of("agent.tool_call")[0]["input"]["command"].startswith("echo hello")
        assert not here.of("agent.tool_result")[0]["isError"]
        # The caller's own instructions and keys did not reach the model either.
        told = b"".join(seen.raw for seen in here.model.seen).decode()
        assert "canary-instructions" not in told
        assert "secret-content" not in told
        assert "sk-canary" not in told + "".join(json.dumps(seen.headers) for seen in here.model.seen)
        assert (await sandbox.exec(["sh", "-c", LEFT])).stdout == ""
        assert _processes() == []
        assert canary.scratch
        assert not [folder for folder in canary.scratch if folder.exists()]


def _processes() -> list[str]:
    """Processes of agents that this test's program started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"RUNRA_AGENT_RUN={os.getpid()}-".encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().decode(errors="replace"))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("agent", AGENTS)
async def test_cancelled_in_the_middle_of_a_tool(make: Make, agent: str, canary: Canary) -> None:
    def script(seen: Seen) -> Say:
        if not seen.tools or seen.answered_tools:
            return Say("A title")
        return Say("w", [(ours(seen, "bash"), {"command": "touch begun; sleep 4242"})])

    async with bench(make, agent, script, FLAT.get(agent, ""), placement="host") as here:
        sandbox = await here.runra.create_sandbox(NO_NETWORK)
        task = asyncio.create_task(here.start(sandbox_id=sandbox.id))
        async with asyncio.timeout(60):
            while not await sandbox.files.exists("begun"):
                await asyncio.sleep(0.05)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 1.5
        assert _processes() == []
        assert (await sandbox.exec(["sh", "-c", LEFT])).stdout == ""
        assert canary.look() == canary.before


async def test_messages_plan_and_system_prompt(make: Make, canary: Canary) -> None:
    def script(seen: Seen) -> Say:
        return Say("second" if "the second thing" in json.dumps(seen.body) else "first")

    async with bench(make, "codex", script, "chat", placement="host", permissionMode="plan", systemPrompt="Speak like a pirate.") as here:
        sandbox = await here.runra.create_sandbox(NO_NETWORK)
        async with here.runra.stream("the first thing", sandbox_id=sandbox.id, timeout_ms=100_000) as run:
            await run.send_message("the second thing")
            events = [event async for event in run]
        assert [event.data["text"] for event in events if event.type == "agent.message"] == ["first", "second"]
        seen = here.model.seen[-1]
        assert {name.rpartition("__")[2] for name in seen.tools} - CODEX == {"read", "glob", "grep"}
        assert "Speak like a pirate." in json.dumps(seen.body)
        later = await here.start("x", sandbox_id=sandbox.id, session_id=run.result.session_id)
        assert (later.success, later.failure and later.failure.kind) == (False, "setup")


async def test_failures_and_deadlines(make: Make, canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(make, "claude-code", [Fault("401")], placement="host") as here:
        result = await here.start(sandbox_options=NO_NETWORK)
        assert (result.success, result.failure and result.failure.kind) == (False, "auth"), result
    async with bench(make, "codex", [Fault("slow")], placement="host", silenceTimeoutMs=3000) as here:
        result = await here.start(sandbox_options=NO_NETWORK)
        assert (result.success, result.failure and result.failure.kind) == (False, "silence"), result
        monkeypatch.setenv("PATH", "/nowhere")
        result = await here.start(sandbox_options=NO_NETWORK)
        assert (result.success, result.failure and result.failure.kind) == (False, "setup"), result
        assert "not on the PATH of this machine" in (result.error or "")
    assert _processes() == []
