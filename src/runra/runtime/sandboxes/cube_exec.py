"""One command in a CubeSandbox: a Connect stream of its output, and unary calls beside it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import shlex
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp

from runra.errors import RunraError
from runra.ids import new_id
from runra.runtime.sandboxes import shell
from runra.runtime.sandboxes.connect import Frames, frame
from runra.runtime.sandboxes.envd import ended_as
from runra.runtime.types import ExecuteOptions
from runra.sdk.output import Stream

#: Opens a stream by its body, as the given user; and calls a method with a message.
Open = Callable[[bytes], Awaitable[aiohttp.ClientResponse]]
Call = Callable[[str, Any], Awaitable[Any]]
_START_S: Final = 30.0


class CubeExec:
    """A started command."""

    def __init__(
        self, opened: aiohttp.ClientResponse, call: Call, kill: Callable[[], Awaitable[None]], input: str = "stdin"
    ) -> None:
        self.pid = 0
        self._input = input
        self._opened = opened
        self._call = call
        self._kill = kill
        self._frames = Frames()
        self._pieces: deque[tuple[Stream, bytes]] = deque()
        self._end: dict[str, Any] | None = None

    @classmethod
    async def start(
        cls,
        open: Open,
        call: Call,
        command: str,
        options: ExecuteOptions,
        *,
        stdin: bool,
        env: dict[str, str],
        cwd: str,
        size: tuple[int, int] | None = None,
    ) -> CubeExec:
        """Start a command, in a terminal of `size` (rows, columns) if that is set. Raises what the sandbox answers."""
        tag = new_id("exec")
        config = {"cmd": "/bin/bash", "args": ["-l", "-c", command], "envs": {**env, shell.TAG: tag}, "cwd": cwd}

        async def kill() -> None:
            words = shlex.join(shell.argv(shell.KILL, f"{shell.TAG}={tag}"))
            killer = await open(frame({"process": {"cmd": "/bin/sh", "args": ["-c", words]}, "stdin": False}))
            with contextlib.closing(killer):
                await killer.read()  # its end: then they are dead

        asked: dict[str, Any] = {"process": config, "stdin": stdin}
        if size is not None:
            asked["pty"] = {"size": {"rows": size[0], "cols": size[1]}}
        it = cls(await open(frame(asked)), call, kill, "stdin" if size is None else "pty")
        try:
            async with asyncio.timeout(_START_S):
                while not it.pid and it._end is None:
                    await it._more()
        except TimeoutError:
            it._opened.close()
            raise it._broken("it did not say that the command started") from None
        except BaseException:
            it._opened.close()
            raise
        return it

    async def read(self) -> tuple[Stream, bytes] | None:
        while not self._pieces and self._end is None:
            await self._more()
        return self._pieces.popleft() if self._pieces else None

    async def _more(self) -> None:
        try:
            data = await self._opened.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise self._broken(str(error) or type(error).__name__) from error
        if not data:
            raise self._broken("the stream ended before the command did")
        for message in self._frames.feed(data):
            self._take(message.get("event"))
        if self._frames.ended and self._end is None:
            raise self._broken("the stream ended without the command's end")

    def _take(self, event: Any) -> None:
        if not isinstance(event, dict):
            return
        start, data, end = event.get("start"), event.get("data"), event.get("end")
        if isinstance(start, dict) and isinstance(start.get("pid"), int):
            self.pid = start["pid"]
        if isinstance(data, dict):
            for name in ("stdout", "stderr", "pty"):
                if isinstance(text := data.get(name), str):
                    with contextlib.suppress(binascii.Error):
                        self._pieces.append(("stderr" if name == "stderr" else "stdout", base64.b64decode(text)))
        if isinstance(end, dict):
            self._end = end

    async def exit(self) -> tuple[int | None, str | None]:
        assert self._end is not None, "read() has given None"
        code, status = self._end.get("exitCode"), self._end.get("status") or self._end.get("error")
        return ended_as(code if isinstance(code, int) else 0, status if isinstance(status, str) else None)

    async def write(self, data: bytes) -> None:
        told = {"process": {"pid": self.pid}, "input": {self._input: base64.b64encode(data).decode()}}
        try:
            await self._call("SendInput", told)
        except RunraError as error:
            if error.details.get("reason") == "not_found":
                raise RunraError(
                    "INVALID_STATE", "the command's stdin is closed", details={"reason": "stdin_closed"}
                ) from error
            raise

    async def resize(self, rows: int, cols: int) -> None:
        await self._call("Update", {"process": {"pid": self.pid}, "pty": {"size": {"rows": rows, "cols": cols}}})

    async def close_stdin(self) -> None:
        raise RunraError("INVALID_CONFIG", "CubeSandbox cannot end the stdin of a process; let the command read less")

    async def kill(self) -> None:
        with contextlib.suppress(RunraError):  # it may have ended; what counts is what it left
            await self._call("SendSignal", {"process": {"pid": self.pid}, "signal": "SIGNAL_SIGKILL"})
        try:
            await self._kill()
        except (aiohttp.ClientError, OSError) as error:
            raise self._broken(str(error) or type(error).__name__) from error

    async def close(self) -> None:
        self._opened.close()

    def _broken(self, why: str) -> RunraError:
        return RunraError(
            "NETWORK_ERROR",
            f"cubesandbox: the command's stream broke before its end ({why}); it may run on",
            details={"reason": "closed", "sent": True, "pid": self.pid},
            retryable=False,
        )
