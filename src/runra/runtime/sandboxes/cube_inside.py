"""Commands and files of CubeSandbox's sandboxes, by the agent inside each of them."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from runra.contract import ExecutionResult
from runra.errors import RunraError
from runra.ids import new_id
from runra.runtime.sandboxes import shell
from runra.runtime.sandboxes.base import Files
from runra.runtime.sandboxes.cube_client import CubeClient, CubeConfig
from runra.runtime.sandboxes.cube_exec import CubeExec
from runra.runtime.sandboxes.cube_shape import HOME, entry
from runra.runtime.sandboxes.running import Attached, finish
from runra.runtime.sandboxes.terminals import SHELL, Resize, TerminalOptions
from runra.runtime.sandboxes.timed import TimedProvider
from runra.runtime.tasks import to_end
from runra.runtime.types import ExecuteOptions, ProcessHandle, TerminalHandle


class CubeInside(TimedProvider):
    """The half of the provider that speaks with what runs in a sandbox; `cubesandbox.py` has its life."""

    _config: CubeConfig
    _client: CubeClient

    def _note(self, id: str) -> dict[str, Any]:
        life = self._lifetimes.get(id)
        return life.note if life is not None else self._ledger.load(id) or {}

    # --- commands ----------------------------------------------------------------------------------------------------

    async def execute(
        self, id: str, command: str | Sequence[str], options: ExecuteOptions | None = None
    ) -> ExecutionResult:
        chosen = options or ExecuteOptions()
        async with self._active(id), self._input(id, chosen.stdin) as feed:
            words = command if isinstance(command, str) else shlex.join(command)
            attached = await self._attach(id, feed(words), chosen, stdin=False)
            return await finish(attached, ExecuteOptions(**{**vars(chosen), "stdin": None}))

    @asynccontextmanager
    async def _input(self, id: str, stdin: str | bytes | None) -> AsyncIterator[Any]:
        """stdin by way of a file: the stream of a process cannot be ended from outside."""
        if stdin is None:
            yield lambda words: words
            return
        path = f"/tmp/.{new_id('stdin')}"  # noqa: S108 - inside the sandbox, with a name of 80 random bits
        await self.write_file(id, path, stdin)
        try:
            yield lambda words: f"{{ rm -f {path} 2>/dev/null; {shlex.join(['/bin/bash', '-c', words])}; }} < {path}"
        finally:
            with contextlib.suppress(RunraError):
                await to_end(self._shell(id, "delete", path, 'rm -f "$1"'), 15.0)

    async def start_process(
        self, id: str, command: str | Sequence[str], options: ExecuteOptions | None = None
    ) -> ProcessHandle:
        chosen = options or ExecuteOptions()
        words = command if isinstance(command, str) else shlex.join(command)
        if chosen.stdin is not None:
            raise RunraError("INVALID_CONFIG", "stdin: with background, use the process's send_stdin at cubesandbox")

        async def attach() -> Attached:
            return await self._attach(id, words, chosen, stdin=True)

        return await self._in_background(id, attach, chosen)

    async def open_terminal(self, id: str, **options: Any) -> TerminalHandle:
        chosen = TerminalOptions.of(options)

        async def attach() -> tuple[CubeExec, Resize]:
            size = chosen.rows, chosen.cols
            attached = await self._attach(id, chosen.command or SHELL, chosen.execute(), stdin=True, size=size)
            return attached, attached.resize

        return await self._in_terminal(id, attach)

    async def _attach(
        self, id: str, command: str, options: ExecuteOptions, *, stdin: bool, size: tuple[int, int] | None = None
    ) -> CubeExec:
        note = self._note(id)

        async def open(body: bytes) -> aiohttp.ClientResponse:
            domain, token = note.get("domain") or self._config.domain, note.get("accessToken")
            return await self._client.stream(id, domain, token, options.user, "/process.Process/Start", body)

        async def call(method: str, message: Any) -> Any:
            return await self._inside(id, "POST", f"/process.Process/{method}", json=message)

        cwd = options.cwd or note.get("workdir") or HOME
        return await CubeExec.start(
            open, call, command, options, stdin=stdin, env=dict(options.env), cwd=cwd, size=size
        )

    async def _inside(self, id: str, method: str, path: str, **options: Any) -> Any:
        note = self._note(id)
        domain, token = note.get("domain") or self._config.domain, note.get("accessToken")
        return await self._client.inside(id, domain, token, method, path, **options)

    # --- files -------------------------------------------------------------------------------------------------------

    async def read_bytes(self, id: str, path: str) -> bytes:
        async with self._active(id):
            query = {"path": self._place(id, path), "username": "root"}
            data = await self._inside(id, "GET", "/files", params=query, again=True)
        return data if isinstance(data, bytes) else b""

    async def write_file(self, id: str, path: str, content: str | bytes) -> None:
        data = content.encode() if isinstance(content, str) else bytes(content)
        query = {"path": self._place(id, path), "username": "root"}
        async with self._active(id):
            try:
                raw = {"Content-Type": "application/octet-stream"}
                await self._inside(id, "POST", "/files", params=query, data=data, headers=raw)
            except RunraError as error:
                if error.code in ("SANDBOX_NOT_FOUND", "NETWORK_ERROR"):
                    raise
                form = aiohttp.FormData()  # what older agents take
                form.add_field("file", data, filename=path.rpartition("/")[2])
                await self._inside(id, "POST", "/files", params=query, data=form)

    async def list_files(self, id: str, path: str) -> Files:
        place = self._place(id, path)
        async with self._active(id):
            told = await self._inside(
                id, "POST", "/filesystem.Filesystem/ListDir", json={"path": place, "depth": 1}, again=True
            )
        entries = told.get("entries", []) if isinstance(told, dict) else []
        found = [one for one in map(entry, entries) if one is not None]
        return sorted(found, key=lambda one: one.name)

    async def delete_file(self, id: str, path: str, *, recursive: bool) -> None:
        # Its own Remove takes a full folder with it, and a missing file for granted.
        await self._shell(id, "delete", self._place(id, path), shell.DELETE, "1" if recursive else "0")

    def _place(self, id: str, path: str) -> str:
        shell.path_argument(path)
        return path if path.startswith("/") else f"{self._note(id).get('workdir') or HOME}/{path}"
