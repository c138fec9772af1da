"""Agents for the tests of the command line, brought by a package with entry points, as anybody's would be."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.cli.conftest import Cli

_MODULE = r'''
import asyncio
from runra.runtime.types import AgentResult, Failure

HOSTILE = "\x1b]0;owned\x07\x1b[2J[bold red]not markup[/] \u202egnp.exe \x9b31m\r\ttail"


class Scripted:
    """Does what its prompt says."""

    id = "scripted"
    abilities = frozenset({"resume", "max_turns", "prompt"})
    tracks_files = True
    workdir = None
    image = "host"

    async def initialize(self, config):
        self.config = config
        self.stopped = asyncio.Event()

    async def start(self, run):
        def called(id, tool, input):
            run.emit("agent.tool_call", {"id": id, "tool": tool, "name": tool, "input": input})

        async def bash(id, command):
            called(id, "bash", {"command": command})
            done = await run.sandbox.exec(command)
            output = done.stdout + done.stderr
            run.emit("agent.tool_result", {"id": id, "tool": "bash", "name": "bash", "output": output,
                                           "isError": done.exit_code != 0, "exitCode": done.exit_code})

        def paid(total):
            run.emit("cost.llm", {"provider": "p", "model": "m", "inputTokens": 1000, "cacheReadTokens": 200,
                                  "outputTokens": 50, "cost": 0.01, "currency": "USD", "totalCost": total})

        run.emit("agent.thinking", {"text": "I think\n" + "\n".join(f"thought {n}" for n in range(20))})
        paid(0.01)
        if run.prompt == "hostile":
            run.emit("agent.message", {"text": HOSTILE})
            called("c", "bash", {"command": HOSTILE})
            run.emit("agent.tool_result", {"id": "c", "tool": HOSTILE, "name": "b", "output": HOSTILE, "isError": False})
            return AgentResult(success=False, summary="", error=HOSTILE,
                               failure=Failure(kind="failed", message=HOSTILE, stderr=[HOSTILE]))
        if run.prompt == "wait":
            run.emit("agent.message", {"text": "waiting"})
            await self.stopped.wait()
            return AgentResult(success=False, summary="", error="it was stopped",
                               failure=Failure(kind="stopped", message="it was stopped"))
        if run.prompt == "stuck":
            run.emit("agent.message", {"text": "waiting"})
            await asyncio.sleep(600)
        if run.prompt == "permit":
            called("p", "bash", {"command": "rm -r /"})
            allowed = await self.config["on_permission"]("bash", {"command": "rm -r /"})
            run.emit("agent.message", {"text": f"allowed: {allowed}"})
            return AgentResult(success=True, summary="asked")
        await bash("1", run.prompt)
        await bash("2", "exit 3")
        paid(0.0123)
        run.emit("agent.message", {"text": "Done."})
        return AgentResult(success=True, summary="Done.", total_turns=2, total_cost=0.0123, cost_source="gateway",
                           session_id="ses-1")

    async def stop(self):
        self.stopped.set()

    async def dispose(self):
        pass


class Stubborn(Scripted):
    id = "stubborn"
    stop = None
'''
_POINTS = """[runra.agents]
scripted = scripted_agents:Scripted
stubborn = scripted_agents:Stubborn
broken = scripted_agents_broken:Nothing
rude = scripted_agents_rude:Nothing
"""


def with_agents(cli: Cli, folder: Path) -> Cli:
    """The same command line, in a process that has the package installed; its working directory is `folder`."""
    (folder / "scripted_agents.py").write_text(_MODULE)
    (folder / "scripted_agents_rude.py").write_text("raise ValueError('\\x1b[2Jno \\u202eway')")
    info = folder / "scripted_agents-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scripted-agents\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(_POINTS)
    mine = Cli(cli.home)
    mine.env = {**cli.env, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    return mine
