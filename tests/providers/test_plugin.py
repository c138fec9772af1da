"""The suite as a plug-in's author runs it: `pytest --runra-provider module:Class`, in a project of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from runra.runtime.capabilities import Capabilities
from runra.runtime.registry import SANDBOX_PROVIDERS

#: The least that is a provider: the document's calls and no more, here with a folder and a local shell for a sandbox.
_MINIMAL = '''
import asyncio, os, shutil, subprocess, tempfile, uuid
from pathlib import Path
from runra.contract import ExecutionResult
from runra.errors import RunraError, not_found
from runra.runtime import Capabilities, SandboxHandle

class Folders:
    """Sandboxes without walls: for the test of the suite alone."""
    id = "folders"
    capabilities = Capabilities.of()
    known = {}

    async def initialize(self, config): pass
    async def dispose(self): pass

    def _at(self, id):
        if id not in self.known:
            raise not_found(id)
        return self.known[id][0]

    async def create(self, config):
        if config.image != "base":
            raise RunraError("INVALID_REQUEST", "no such image")
        id, folder = uuid.uuid4().hex, Path(tempfile.mkdtemp())
        handle = SandboxHandle(id=id, state="running", image="base", workdir=str(folder), env=config.env, created_at="2026-01-01T00:00:00.000Z")
        self.known[id] = (folder, handle)
        return handle

    async def get(self, id):
        self._at(id)
        return self.known[id][1]

    async def list(self, options=None): return [handle for _, handle in self.known.values()]
    async def pause(self, id): raise AssertionError("not declared")
    async def resume(self, id): raise AssertionError("not declared")

    async def terminate(self, id):
        shutil.rmtree(self.known.pop(id)[0]) if id in self.known else None

    async def execute(self, id, command, options=None):
        folder, handle = self._at(id), self.known[id][1]
        argv = ["/bin/bash", "-c", command] if isinstance(command, str) else command
        env = {**os.environ, **handle.env, **(options.env if options else {})}
        cwd = (options.cwd if options else None) or folder
        process = await asyncio.create_subprocess_exec(*argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        parts = {"out": bytearray(), "err": bytearray()}
        async def copy(pipe, into):
            while piece := await pipe.read(65536):
                into += piece
        work = asyncio.gather(copy(process.stdout, parts["out"]), copy(process.stderr, parts["err"]), process.wait())
        text = lambda name: bytes(parts[name]).decode(errors="replace")
        try:
            async with asyncio.timeout(((options.timeout_ms if options else None) or 60000) / 1000):
                await work
        except BaseException as error:
            os.killpg(process.pid, 9)
            await process.wait()
            if isinstance(error, TimeoutError):
                raise RunraError("EXECUTION_TIMEOUT", "too long", details={"stdout": text("out"), "stderr": text("err")}) from None
            raise
        code = process.returncode
        return ExecutionResult(stdout=text("out"), stderr=text("err"), exit_code=128 - code if code < 0 else code, duration_ms=0)

    async def write_file(self, id, path, content):
        place = self._at(id) / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)

    async def read_file(self, id, path):
        place = self._at(id) / path
        if not place.exists():
            raise RunraError("INVALID_REQUEST", "not found", details={"reason": "not_found"})
        try:
            return place.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise RunraError("INVALID_REQUEST", str(error)) from None
'''


def _pytest(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", f"--basetemp={folder}/tmp", *words]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        command, cwd=folder, env={**env, "PYTHONPATH": str(folder)}, capture_output=True, text=True, timeout=110
    )


def test_an_author_runs_the_suite(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_MINIMAL)
    done = _pytest(tmp_path, "--runra-provider", "mine:Folders")
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
    assert " skipped" in done.stdout  # what it does not declare


def test_the_suite_finds_a_liar(tmp_path: Path) -> None:
    lie = _MINIMAL.replace("Capabilities.of()", 'Capabilities.of("metadata", "stdin")').replace(
        "exit_code=128 - code if code < 0 else code", "exit_code=0"
    )
    (tmp_path / "mine.py").write_text(lie)
    done = _pytest(tmp_path, "--runra-provider", "mine:Folders", "-k", "exit_code or metadata or stdin")
    assert done.returncode == 1
    for test in ("test_output_and_exit_code", "test_metadata", "test_stdin"):
        assert f"::{test}" in done.stdout.partition("short test summary")[2], done.stdout[-3000:]


def test_every_built_in_provider_fulfils_what_it_declares() -> None:
    """For each ability with a call of its own, the call is there."""
    from runra.runtime.sandboxes.base import BaseProvider

    calls = {
        "background": "start_process",
        "pty": "open_terminal",
        "ports": "expose_port",
        "pause": "pause",
        "network_change": "set_network",
        "events": "events",
    }
    for id in ("runra-sandbox", "docker", "e2b", "cubesandbox"):
        provider = SANDBOX_PROVIDERS.factory(id)
        capabilities: Capabilities = provider.capabilities  # type: ignore[attr-defined]
        for ability, call in calls.items():
            has = getattr(provider, call) is not getattr(BaseProvider, call)
            assert has == (ability in capabilities), f"{id}: {ability}"


def test_the_table_is_up_to_date() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "scripts/generate_providers.py", "--check"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
