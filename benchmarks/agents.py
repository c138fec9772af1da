"""Benchmark: what a run costs beyond the agent's own time, and twenty runs at once. `python benchmarks/agents.py [--json]`.

The same agent's command line asks the same scripted model twice: on this machine by itself, and as a run in a sandbox that
has no network. What lies between the two until the agent's first event is the runtime's part: looking for the program,
the way to the model, the files, the start inside, and the event's way back. Direct starts and runs alternate; figures are
ms unless the row says otherwise. A server of its own is started; agents that are not on the PATH are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from runra.runtime import Event, Runra
from runra.runtime.agents.cli.claude_code import CLAUDE_CODE
from runra.runtime.agents.cli.codex import CODEX
from runra.runtime.agents.cli.launch import Asked, Cli
from runra.runtime.agents.cli.opencode import OPENCODE
from runra.runtime.agents.options import AgentOptions
from runra.runtime.llms import resolve

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.scripted import Say, ScriptedModel, Seen
from tests.sdk.conftest import RealServer

NO_NETWORK = {"image": "host", "network": {"egress": {"default": "deny"}}}
SPEAKS = {"claude-code": ("anthropic", ""), "codex": ("openai", "/v1"), "opencode": ("openrouter", "/v1")}


def script(seen: Seen) -> Say:
    return Say("Hello.") if seen.tools else Say("A title")


def llm(cli: Cli, model: ScriptedModel) -> dict[str, Any]:
    provider, path = SPEAKS[cli.id]
    config = {"model": "m-1", "apiKey": model.key, "baseUrl": model.url + path, "format": cli.speaks}
    return {"provider": provider, "config": {**config, "prices": {"m-1": {"input": 10, "output": 100}}}}


async def by_itself(cli: Cli, model: ScriptedModel, scratch: str) -> float:
    """Ms from the start of the command line to its first event, asking the model directly."""
    chosen = llm(cli, model)
    target = resolve(chosen["provider"], chosen["config"])
    launch = cli.launch(Asked(AgentOptions(), target, model.url, model.key, scratch))
    for name, content in {**launch.files, "prompt": "say hello"}.items():
        Path(scratch, name).write_text(content)
    env = {"PATH": os.environ["PATH"], "HOME": scratch, **launch.env}
    transcript = cli.transcript()
    began = time.perf_counter()
    with Path(scratch, "prompt").open() as prompt:
        process = await asyncio.create_subprocess_exec(
            *launch.argv,
            cwd=scratch,
            env=env,
            stdin=prompt,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    first = None
    assert process.stdout is not None
    async for line in process.stdout:
        if transcript.feed(line.decode()) and first is None:
            first = (time.perf_counter() - began) * 1000
    await process.wait()
    assert first is not None
    return first


async def as_a_run(runra: Runra, sandbox_id: str) -> tuple[float, float]:
    """Ms from `start` to the agent's first event, and to the result."""
    firsts: list[float] = []
    began = time.perf_counter()

    def heard(event: Event) -> None:
        if not firsts:
            firsts.append((time.perf_counter() - began) * 1000)

    off = runra.on("agent.*", heard)
    try:
        result = await runra.start("say hello", sandbox_id=sandbox_id)
    finally:
        off()
    assert result.success, result
    return firsts[0], (time.perf_counter() - began) * 1000


async def overhead(cli: Cli, rounds: int) -> dict[str, Any]:
    async with ScriptedModel(script) as model, Runra(agent={"provider": cli.id}, llm=llm(cli, model)) as runra:
        sandbox = await runra.create_sandbox(NO_NETWORK)
        # One home for all its starts, as in the sandbox: the first is slower.
        home = tempfile.mkdtemp(dir="/var/tmp")
        await by_itself(cli, model, home)
        await as_a_run(runra, sandbox.id)
        alone, run, whole = [], [], []
        for _ in range(rounds):
            alone.append(await by_itself(cli, model, home))
            first, total = await as_a_run(runra, sandbox.id)
            run.append(first)
            whole.append(total)
        shutil.rmtree(home, ignore_errors=True)
        beyond = [in_run - direct for in_run, direct in zip(run, alone, strict=True)]
        return {
            "agent": cli.id,
            "by itself": statistics.median(alone),
            "in a run": statistics.median(run),
            "runtime's part": statistics.median(beyond),
            "least": min(beyond),
            "whole run": statistics.median(whole),
        }


async def at_once(cli: Cli, runs: int) -> dict[str, Any]:
    """Runs side by side, each in a sandbox of its own."""
    async with ScriptedModel(script) as model, Runra(agent={"provider": cli.id}, llm=llm(cli, model)) as runra:
        began = time.perf_counter()
        results = await asyncio.gather(*(runra.start("say hello", sandbox_options=NO_NETWORK) for _ in range(runs)))
        took = time.perf_counter() - began
        return {
            "agent": cli.id,
            "runs": runs,
            "succeeded": sum(result.success for result in results),
            "seconds": took,
            "runs a minute": runs / took * 60,
            "slowest": max(result.total_duration_ms for result in results),
        }


async def measured(rounds: int, runs: int) -> dict[str, list[dict[str, Any]]]:
    found = [cli for cli in (CODEX, CLAUDE_CODE, OPENCODE) if shutil.which(cli.program)]
    return {
        "overhead": [await overhead(cli, rounds) for cli in found],
        "at once": [await at_once(cli, runs) for cli in found if cli is not OPENCODE],
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--runs", type=int, default=20)
    arguments.add_argument("--json", action="store_true")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = RealServer(Path(folder))
        server.start()
        os.environ["RUNRA_CONFIG_PATH"] = str(server.config)
        try:
            tables = asyncio.run(measured(chosen.rounds, chosen.runs))
        finally:
            server.stop()
    if chosen.json:
        print(json.dumps(tables))
        return
    for title, rows in tables.items():
        if not rows:
            continue
        table = Table(title=title)
        for name in rows[0]:
            table.add_column(name, justify="left" if name == "agent" else "right")
        for row in rows:
            table.add_row(*(value if isinstance(value, str) else f"{value:,.0f}" for value in row.values()))
        Console().print(table)


if __name__ == "__main__":
    main()
