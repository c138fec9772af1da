"""The real agents through the gateway, on a model of each format. They run where their CLIs are on the PATH:
`npm install -g @anthropic-ai/claude-code @openai/codex opencode-ai`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from runra.runtime.agents.transcripts import TRANSCRIPTS, Verdict
from runra.runtime.gateway import RunLimits
from tests.gateway.conftest import Stand, stand
from tests.scripted import Fault, Say, ScriptedModel, Seen, agent_loop

PACKAGES = {"claude": "@anthropic-ai/claude-code", "codex": "@openai/codex", "opencode": "opencode-ai"}
NAMES = {"claude": "claude-code", "codex": "codex", "opencode": "opencode"}
SPOKEN = ["messages", "responses", "chat", "gemini"]


def command(agent: str, url: str, token: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    if agent == "claude":
        quiet = {
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "IS_SANDBOX": "1",
            "CLAUDE_CODE_MAX_RETRIES": "2",
        }
        return [
            "claude",
            "-p",
            "write hello.txt",
            "--output-format",
            "stream-json",
            "--verbose",
            "--dangerously-skip-permissions",
        ], {**quiet, "ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": token}
    if agent == "codex":
        provider = f'model_providers.rt={{name="rt",base_url="{url}/v1",env_key="RT_KEY",wire_api="responses",request_max_retries=1,stream_max_retries=2}}'
        settings = ["model_provider=rt", provider, "analytics.enabled=false", "check_for_update_on_startup=false"]
        options = [part for one in settings for part in ("-c", one)]
        return [
            "codex",
            "exec",
            "--json",
            "--skip-git-repo-check",
            "--dangerously-bypass-approvals-and-sandbox",
            "-m",
            "gpt-5.2",
            *options,
            "--disable",
            "apps",
            "--disable",
            "plugins",
            "write hello.txt",
        ], {"RT_KEY": token}
    provider_options = {"baseURL": url + "/v1", "apiKey": "{env:RT_KEY}"}
    model = {"name": "m", "tool_call": True, "reasoning": True, "limit": {"context": 128_000, "output": 8192}}
    config = {
        "autoupdate": False,
        "share": "disabled",
        "model": "rt/m",
        "small_model": "rt/m",
        "provider": {"rt": {"npm": "@ai-sdk/openai-compatible", "options": provider_options, "models": {"m": model}}},
    }
    (folder / "opencode.json").write_text(json.dumps(config))
    quiet = {
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    }
    return ["opencode", "run", "--format", "json", "--auto", "--thinking", "write hello.txt"], {
        **quiet,
        "RT_KEY": token,
    }


async def run(agent: str, here: Stand) -> tuple[Verdict, str, str]:
    """Verdict, what is in hello.txt, and all it printed."""
    if shutil.which(agent) is None:
        pytest.skip(f"{agent} is not on the PATH: npm install -g {PACKAGES[agent]}")
    # Not below /tmp: codex refuses a home there.
    with tempfile.TemporaryDirectory(dir="/var/tmp", ignore_cleanup_errors=True) as scratch:
        home, work = Path(scratch, "home"), Path(scratch, "work")
        home.mkdir()
        work.mkdir()
        argv, env = command(agent, here.server.url, here.token, work)
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=work,
            env={"PATH": os.environ["PATH"], "HOME": str(home), **env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(90):
                out, err = await process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        transcript = TRANSCRIPTS[NAMES[agent]]()
        for line in out.decode().splitlines():
            transcript.feed(line)
        written = work / "hello.txt"
        return (
            transcript.verdict(process.returncode),
            written.read_text() if written.exists() else "",
            (out + err).decode(),
        )


def then(step: Any) -> Any:
    """One command, then `step`."""
    loop = agent_loop()
    return lambda seen: step if isinstance(seen, Seen) and seen.tools and seen.answered_tools else loop(seen)


# opencode takes ten seconds of a core to start: its own format is the main job's of tests/agents/test_cli.py, and what
# the gateway makes of that format for each model, a real client of it says in test_official_clients.py.
@pytest.mark.parametrize(
    ("agent", "speaks"),
    [*((agent, speaks) for agent in ("claude", "codex") for speaks in SPOKEN), ("opencode", "gemini")],
)
async def test_every_agent_on_every_model(agent: str, speaks: str) -> None:
    async with ScriptedModel(agent_loop()) as model, stand(model, speaks) as here:
        verdict, written, printed = await run(agent, here)
        assert (verdict.success, written) == (True, "hello-from-agent\n"), printed[-2000:]
        assert verdict.summary == "Done: wrote hello.txt"
        assert model.key not in printed + json.dumps(here.events)
        assert here.gateway.totals("run_1").turns == 2
        assert len(here.events) == len(model.seen) == (3 if agent == "opencode" else 2)  # with its title


STOPS: list[tuple[str, Any, RunLimits | None]] = [
    ("budget", Say("never asked"), RunLimits(max_cost=0.005)),
    ("turns", Say("never asked"), RunLimits(max_turns=1)),
    ("auth", Fault("401"), None),
]
# What a wrong key makes of opencode is seen in its sandbox, by tests/agents/test_cli.py.
# In the middle of an answer opencode hears of it as well, and makes no further call, but may take minutes to leave.
MIDDLE = ("budget", Say("word " * 8000, pieces=400, pause=0.002), RunLimits(max_cost=0.5))


@pytest.mark.parametrize(
    ("agent", "kind", "step", "limits"),
    [(agent, *stop) for agent in PACKAGES for stop in STOPS if (agent, stop[0]) != ("opencode", "auth")]
    + [(agent, *MIDDLE) for agent in ("claude", "codex")],
)
async def test_an_agent_stops_when_it_must(agent: str, kind: str, step: Any, limits: RunLimits | None) -> None:
    async with ScriptedModel(then(step)) as model, stand(model, "chat", limits) as here:
        verdict, _, printed = await run(agent, here)
        assert (verdict.success, verdict.kind) == (False, kind), printed[-2000:]
        assert len(model.seen) <= 3
