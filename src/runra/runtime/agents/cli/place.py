"""Where an agent's process runs: in the sandbox, as here, or on the caller's machine (`host.py`)."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal, Protocol

from runra.errors import RunraError
from runra.runtime.agents.cli.launch import Cli, Launch
from runra.runtime.agents.cli.reading import InSandbox, Started
from runra.runtime.agents.options import AgentOptions
from runra.runtime.tasks import to_end

if TYPE_CHECKING:
    from runra.runtime.agents.mcp import ToolServer
    from runra.runtime.run import AgentRun

_CLEAN_S: Final = 15.0
# The prompt is a file on stdin: no process list shows it, and codex and opencode wait for an open stdin for ever.
_START: Final = 'exec "$@" < "$0"'


class Place(Protocol):
    """A place made ready for one run. `folder` is the run's own there, private; `tools` are the agent's hands where it
    has none of its own."""

    where: Literal["sandbox", "host"]
    folder: str
    tools: ToolServer | None
    warnings: list[str]

    async def start(self, launch: Launch, prompt: str) -> Started:
        """Start the agent for one turn."""
        ...


class Inside:
    """In the sandbox."""

    where: Literal["sandbox", "host"] = "sandbox"
    tools: ToolServer | None = None

    def __init__(self, run: AgentRun, options: AgentOptions, folder: str) -> None:
        self.folder = folder
        self.warnings: list[str] = []
        self._run = run
        self._options = options

    async def start(self, launch: Launch, prompt: str) -> Started:
        for name, content in {**launch.files, "prompt": prompt}.items():
            await self._run.sandbox.files.write(f"{self.folder}/{name}", content)
        process = await self._run.sandbox.exec(
            ["sh", "-c", _START, f"{self.folder}/prompt", *launch.argv],
            background=True,
            cwd=self._options.workdir,
            env={**self._options.env, **launch.env},
        )
        return InSandbox(process)


@asynccontextmanager
async def in_sandbox(run: AgentRun, cli: Cli, options: AgentOptions) -> AsyncIterator[Place]:
    """A private folder in the sandbox, once the agent is known to be there."""
    folder = f"/var/tmp/.runra-agent-{secrets.token_hex(8)}"  # noqa: S108 - in the sandbox, unguessable, 0700
    script = 'command -v -- "$1" >/dev/null || exit 127; umask 077 && mkdir -p -- "$2"'
    done = await run.sandbox.exec(["sh", "-c", script, "sh", cli.program, folder])
    if done.exit_code == 127:
        raise RunraError(
            "INVALID_CONFIG",
            f"{cli.id} is not in the image {run.sandbox.image!r} (no program {cli.program!r}): make one "
            f"with `runra image build agents/{cli.id}` and use image='agents/{cli.id}'",
            details={"kind": "setup", "program": cli.program, "image": run.sandbox.image},
        )
    if done.exit_code != 0:
        raise RunraError(
            "INVALID_STATE", f"{folder} could not be made: {done.stderr[-500:]}", details={"kind": "setup"}
        )
    try:
        yield Inside(run, options, folder)
    finally:
        # Where this fails the sandbox is gone or stuck, and the folder with it; the run's result says so.
        with contextlib.suppress(RunraError, TimeoutError):
            await to_end(_remove(run, folder), _CLEAN_S)


async def _remove(run: AgentRun, folder: str) -> None:
    await run.sandbox.exec(["rm", "-rf", "--", folder], timeout_ms=10_000)
