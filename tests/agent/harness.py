"""Real agents for the tests: compiled once, started over a listening socket, killed at the end."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from runra.node.agent.link import AgentLink
from runra.node.agent.process import AgentProcess
from runra.node.agent.types import ExecSpec, Exit

ROOT = Path(__file__).parents[2]
SANITIZED = os.environ.get("RUNRA_AGENT_SANITIZE") == "1"


def compile_agent(folder: Path, program: str = "runra-agent", source: str = "guest", *more: str) -> Path:
    """The agent, or another program, with the build's own flags and `more`; under RUNRA_AGENT_SANITIZE=1 with ASan and
    UBSan. Once for all workers."""
    target = folder / (f"{program}-sanitized" if SANITIZED else program)
    with open(folder / "compile.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        flags = _flags()
        if SANITIZED:
            flags = [f for f in flags if f != "-static" and "FORTIFY" not in f and f != "-O2"]
            flags += ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
        sources = sorted(map(str, (ROOT / source).glob("*.c")))
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, *flags, *more, "-o", f"{target}.new", *sources], check=True)
        Path(f"{target}.new").rename(target)
    return target


def _flags() -> list[str]:
    """FLAGS of build_native.py, without importing it: its base class belongs to the build tool."""
    tree = ast.parse((ROOT / "build_native.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "FLAGS":
            names: dict[str, list[str]] = {}
            exec(compile(ast.Module([node], []), "build_native.py", "exec"), names)
            return names["FLAGS"]
    raise AssertionError("build_native.py has no FLAGS")


class Agent:
    """One running agent: `path` of its socket, `pid` as this machine sees it, `home` a folder of its own."""

    def __init__(self, binary: Path, home: Path, prefix: Sequence[str] = ()) -> None:
        self.home, self.path, self.log = home, home / "agent.sock", home / "agent.log"
        home.mkdir(parents=True, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        with contextlib.closing(listener):
            listener.bind(os.fspath(self.path))
            listener.listen(8)
            fd = listener.fileno()
            with open(self.log, "wb") as log:
                self.popen = subprocess.Popen(
                    [*prefix, str(binary), "--listen-fd", str(fd)], pass_fds=[fd], stderr=log, stdin=subprocess.DEVNULL
                )
        self.pid = self.popen.pid

    async def connect(self) -> AgentLink:
        return await AgentLink.connect(self.path)

    def memory(self, field: str = "RssAnon") -> int:
        """Bytes of a field of /proc/PID/status; RssAnon leaves out the program's own pages, which sandboxes share."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(field)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def stop(self) -> None:
        self.popen.kill()
        self.popen.wait(10)
        log = self.log.read_text(errors="replace")
        assert "Sanitizer" not in log, log
        assert "runtime error" not in log, log


async def run(link: AgentLink, command: str | Sequence[str], **options: object) -> tuple[bytes, bytes, Exit]:
    """Run to the end: stdout, stderr, exit."""
    program = {"command": command} if isinstance(command, str) else {"argv": tuple(command)}
    process = await link.exec(ExecSpec(**program, **options))  # type: ignore[arg-type]
    return await finish(process)


async def finish(process: AgentProcess) -> tuple[bytes, bytes, Exit]:
    parts: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    async with asyncio.timeout(60):
        async for piece in process.output():
            parts[piece.stream].append(piece.data)
        return b"".join(parts["stdout"]), b"".join(parts["stderr"]), await process.wait()


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rsplit(")", 1)[1].split()[0] not in "ZX"


def children(pid: int) -> Iterator[tuple[int, str]]:
    """(pid, state) of the direct children of a process."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                state, parent = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[:2]
                if int(parent) == pid:
                    yield int(entry), state


def can_unshare() -> bool:
    """Whether this machine lets us make a pid namespace, for tests with the agent as a real process 1."""
    tool = shutil.which("unshare")
    return tool is not None and subprocess.run([tool, "-Urpf", "--mount-proc", "true"], check=False).returncode == 0
