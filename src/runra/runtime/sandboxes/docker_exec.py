"""One command in a container: its streams over the connection Docker hands out, and its end."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import aiodocker
import aiohttp

from runra.errors import RunraError, not_found
from runra.ids import new_id
from runra.runtime.sandboxes import shell
from runra.runtime.types import ExecuteOptions
from runra.sdk.output import Stream

_log = logging.getLogger("runra.runtime")

_STREAMS: Final[dict[int, Stream]] = {1: "stdout", 2: "stderr"}
#: Without output for so long, one looks whether the command still runs.
_QUIET_S: Final = 1.0
#: The exit code is there a moment after the stream has ended.
_EXIT_S: Final = 10.0


class DockerExec:
    """A started exec. `pid` is its number on the engine's host, 0 when it had ended before one could look."""

    def __init__(
        self, docker: aiodocker.Docker, container: str, exec: Any, stream: Any, options: ExecuteOptions, tag: str
    ) -> None:
        self.pid = 0
        self._docker = docker
        self._container = container
        self._exec = exec
        self._stream = stream
        self._options = options
        self._tag = tag
        self._reading: asyncio.Future[Any] | None = None
        self._ended = False

    @classmethod
    async def start(
        cls,
        docker: aiodocker.Docker,
        container: str,
        argv: list[str],
        options: ExecuteOptions,
        *,
        stdin: bool,
        limit_s: float,
        tty: bool = False,
    ) -> DockerExec:
        """Start a command. Raises DockerError."""
        tag = new_id("exec")
        exec = await docker.containers.container(container).exec(
            argv,
            stdin=stdin,
            tty=tty,
            environment={**options.env, shell.TAG: tag},
            workdir=options.cwd,
            user=options.user or "",
        )
        stream = exec.start(detach=False)
        started = cls(docker, container, exec, stream, options, tag)
        try:
            async with asyncio.timeout(limit_s):
                await stream._init()  # the way to send its request without waiting for output
        except BaseException:
            await started.close()
            raise
        return started

    async def find_pid(self) -> None:
        """Learn its number, which is there a moment after the start."""
        for _ in range(50):
            shown = await self._exec.inspect()
            self.pid = int(shown.get("Pid") or 0)
            if self.pid or shown.get("ExitCode") is not None:
                return
            await asyncio.sleep(0.01)

    async def read(self) -> tuple[Stream, bytes] | None:
        try:
            while True:
                if self._reading is None:
                    self._reading = asyncio.ensure_future(self._stream.read_out())
                await asyncio.wait({self._reading}, timeout=_QUIET_S)
                if not self._reading.done():
                    if self._ended:
                        return None
                    # The stream outlives the command when the engine is stuck on stdin that nobody read any more, and
                    # when something the command left behind holds its output open.
                    self._ended = not (await self._exec.inspect()).get("Running")
                    continue
                message, self._reading = self._reading.result(), None
                if message is None:
                    return None
                if message.stream in _STREAMS:
                    return _STREAMS[message.stream], message.data
        except aiodocker.DockerError as error:
            raise mapped(error, "a command's output", self._container.removeprefix("runra-")) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._broken(error) from error

    async def exit(self) -> tuple[int | None, str | None]:
        """The exit code as the engine has it: of a signal it only knows 128 + n, as a shell would say."""
        try:
            async with asyncio.timeout(_EXIT_S):
                while True:
                    shown = await self._exec.inspect()
                    if not shown.get("Running"):
                        code = shown.get("ExitCode")
                        return (code if isinstance(code, int) else None), None
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise self._broken(TimeoutError("its output ended, and it did not")) from None
        except aiodocker.DockerError as error:
            raise mapped(error, "a command's end", self._container.removeprefix("runra-")) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._broken(error) from error

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.write_in(data)
        except (RuntimeError, aiohttp.ClientError, OSError, AssertionError) as error:
            raise self._closed() from error

    async def resize(self, rows: int, cols: int) -> None:
        """Of a terminal. The engine knows it a moment after the start."""
        try:
            for last in (*[False] * 49, True):
                try:
                    await self._exec.resize(h=rows, w=cols)
                    return
                except aiodocker.DockerError as error:
                    if (await self._exec.inspect()).get("ExitCode") is not None:
                        return  # it has ended
                    if last:
                        raise mapped(error, "resizing a terminal", self._container.removeprefix("runra-")) from None
                await asyncio.sleep(0.02)
        except (aiohttp.ClientError, OSError) as error:
            raise self._broken(error) from error

    async def close_stdin(self) -> None:
        # aiodocker can only close both directions; half of it is asyncio's own.
        connection = self._stream._resp.connection if self._stream._resp is not None else None
        transport = connection.transport if connection is not None else None
        if transport is not None and not transport.is_closing() and transport.can_write_eof():
            transport.write_eof()

    async def kill(self) -> None:
        options = ExecuteOptions(user=self._options.user)
        argv = shell.argv(shell.KILL, f"{shell.TAG}={self._tag}")
        try:
            container = self._docker.containers.container(self._container)
            killer = await container.exec(argv, user=options.user or "", stdout=False, stderr=False)
            await killer.start(detach=True)
        except aiodocker.DockerError as error:
            if error.status in (404, 409):  # the sandbox is gone or paused: nothing in it runs
                return
            raise mapped(error, "killing a command", self._container.removeprefix("runra-")) from None

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
        await self._stream.close()

    def _broken(self, error: Exception) -> RunraError:
        return RunraError(
            "NETWORK_ERROR",
            f"the connection to the engine broke before the command had ended ({error}); it may run on",
            details={"reason": "closed", "sent": True},
            retryable=False,
        )

    def _closed(self) -> RunraError:
        return RunraError("INVALID_STATE", "the command's stdin is closed", details={"reason": "stdin_closed"})


def mapped(error: aiodocker.DockerError, doing: str, id: str = "", image: str = "") -> RunraError:
    """The engine's error with the contract's code."""
    text = error.message if isinstance(error.message, str) else str(error)
    lowered = text.lower()
    details: dict[str, Any] = {"engineStatus": error.status, **({"sandboxId": id} if id else {})}
    if error.status == 404 and "no such container" in lowered:
        return not_found(id)
    if image and (error.status == 404 or "pull access denied" in lowered or "manifest" in lowered):
        return RunraError(
            "INVALID_REQUEST",
            f"image: there is no {image!r} at this engine, and it could not be pulled ({text[:300]})",
            details={**details, "field": "image"},
        )
    if error.status == 409 and "is paused" in lowered:
        message = f"sandbox {id} is paused: resume it first, or create it with auto_resume"
        return RunraError("INVALID_STATE", message, details={**details, "state": "paused"})
    if error.status == 409 and "is not running" in lowered:
        return not_found(id)
    if error.status == 409:
        return RunraError("INVALID_STATE", f"docker, {doing}: {text[:500]}", details=details)
    if error.status == 400:
        return RunraError("INVALID_REQUEST", f"docker, {doing}: {text[:500]}", details=details)
    if "no space left" in lowered or "cannot allocate memory" in lowered:
        return RunraError("RESOURCE_EXHAUSTED", f"docker, {doing}: {text[:500]}", details=details)
    return RunraError("INTERNAL_ERROR", f"docker, {doing}: {text[:500]}", details=details)
