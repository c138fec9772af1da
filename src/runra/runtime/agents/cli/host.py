"""An agent on the caller's machine with its hands in the sandbox: its own tools off, ours by MCP, walls around it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from runra.contract import ExecutionResult
from runra.errors import RunraError
from runra.runtime.agents.cli.launch import Cli, Launch
from runra.runtime.agents.cli.place import Place
from runra.runtime.agents.cli.reading import LINE, STDERR_LINE, Started
from runra.runtime.agents.cli.walls import walled
from runra.runtime.agents.hands import SandboxTools
from runra.runtime.agents.mcp import ToolServer, serving
from runra.runtime.agents.options import AgentOptions
from runra.runtime.tasks import to_end
from runra.sdk.output import Lines, Stream

if TYPE_CHECKING:
    from runra.runtime.run import AgentRun

#: Marks the agent's process and all it starts, in its environment.
_MARK: Final = "RUNRA_AGENT_RUN"
_KILL_S: Final = 5.0
_CHUNK: Final = 64 << 10
#: Pieces of output that wait to be read; beyond that the agent waits.
_QUEUED: Final = 64


class OnHost:
    """A scratch folder on this machine, the only one the agent may write to, and its home and working folder in it."""

    where: Literal["sandbox", "host"] = "host"

    def __init__(self, scratch: Path, tools: ToolServer, options: AgentOptions, wall: Sequence[str], why: str) -> None:
        self.folder = str(scratch)
        self.tools: ToolServer | None = tools
        self.warnings = [f"the agent ran without walls on this machine: {why}"] if why else []
        self._options = options
        self._wall = list(wall)

    async def start(self, launch: Launch, prompt: str) -> Started:
        scratch = Path(self.folder)
        for name, content in {**launch.files, "prompt": prompt}.items():
            (scratch / name).write_text(content)
        mark = f"{os.getpid()}-{secrets.token_hex(16)}"
        home = scratch / "home"
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "HOME": str(home),
            "TMPDIR": str(scratch / "tmp"),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "XDG_DATA_HOME": str(home / ".local/share"),
            "XDG_STATE_HOME": str(home / ".local/state"),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "CODEX_HOME": str(home / ".codex"),
            **self._options.env,
            **launch.env,
            _MARK: mark,
        }
        with (scratch / "prompt").open("rb") as stdin:
            process = await asyncio.create_subprocess_exec(
                *self._wall,
                *launch.argv,
                cwd=scratch / "work",
                env=env,
                stdin=stdin,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        return HostProcess(process, mark)


class HostProcess:
    """A process of this machine, in a group of its own."""

    def __init__(self, process: asyncio.subprocess.Process, mark: str) -> None:
        self._process = process
        self._mark = mark
        self._began = time.monotonic()

    async def lines(self) -> AsyncIterator[tuple[Stream, str]]:
        queue: asyncio.Queue[tuple[Stream, bytes]] = asyncio.Queue(_QUEUED)

        async def pump(stream: Stream, source: asyncio.StreamReader | None) -> None:
            assert source is not None
            while piece := await source.read(_CHUNK):
                await queue.put((stream, piece))
            await queue.put((stream, b""))

        cutters: dict[Stream, Lines] = {"stdout": Lines(LINE), "stderr": Lines(STDERR_LINE)}
        pumps = [
            asyncio.create_task(pump("stdout", self._process.stdout)),
            asyncio.create_task(pump("stderr", self._process.stderr)),
        ]
        try:
            left = len(pumps)
            while left:
                stream, piece = await queue.get()
                left -= not piece
                for line in cutters[stream].feed(piece, last=not piece):
                    yield stream, line
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.wait(pumps)

    async def wait(self) -> ExecutionResult:
        code = await self._process.wait()
        await self.kill()  # what it left running
        return ExecutionResult(
            stdout="",
            stderr="",
            exit_code=code if code >= 0 else 128 - code,
            signal=signal.Signals(-code).name if code < 0 else None,
            duration_ms=int((time.monotonic() - self._began) * 1000),
        )

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(_kill_marked, f"{_MARK}={self._mark}".encode())
        try:
            async with asyncio.timeout(_KILL_S):
                await self._process.wait()
        except TimeoutError:
            raise RunraError(
                "INTERNAL_ERROR", f"process {self._process.pid} does not end after SIGKILL", status=0
            ) from None


@asynccontextmanager
async def on_host(run: AgentRun, cli: Cli, options: AgentOptions) -> AsyncIterator[Place]:
    """A scratch folder, the tools, and the walls. Raises INVALID_CONFIG where the agent is not installed here, or a
    session of another run is wanted: it lived in a scratch folder that is gone."""
    program = shutil.which(cli.program)
    if program is None:
        raise RunraError(
            "INVALID_CONFIG",
            f"{cli.id} is not on the PATH of this machine (no program {cli.program!r}): install it, or leave placement "
            "out to use the one in the sandbox",
            details={"kind": "setup", "program": cli.program},
        )
    if run.session_id:
        raise RunraError(
            "INVALID_CONFIG",
            "session_id: with placement host a conversation ends with its run; leave it out",
            details={"kind": "setup", "field": "sessionId"},
        )
    hands = SandboxTools(run.sandbox, workdir=options.workdir)
    offered = hands.offered(options.given_tools)
    # 0700, and not below /tmp: codex refuses a home there.
    scratch = Path(tempfile.mkdtemp(prefix="runra-agent-", dir="/var/tmp"))
    try:
        for name in ("home", "home/.codex", "work", "tmp"):
            (scratch / name).mkdir()
        wall, why = await walled(scratch, Path(program))
        async with serving(offered) as tools:
            yield OnHost(scratch, tools, options, wall, why)
    finally:
        await to_end(_cleaned(hands, scratch), 15.0)


async def _cleaned(hands: SandboxTools, scratch: Path) -> None:
    await hands.close()
    await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


def _kill_marked(mark: bytes) -> None:
    """Kill what carries the mark, until nothing does: a process may leave its group, and may be forking."""
    for _ in range(20):
        hit = False
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
                    hit = True
        if not hit:
            return
        time.sleep(0.01)
