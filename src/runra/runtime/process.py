"""A command in the background, as the runtime gives it: with its events."""

from __future__ import annotations

import shlex
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

from runra.contract import ExecutionResult
from runra.errors import RunraError
from runra.runtime.capabilities import require
from runra.runtime.session import Session
from runra.runtime.types import ProcessHandle
from runra.sdk.output import OutputChunk
from runra.streamed import RATE_BYTES, Streamed


def shown(command: str | Sequence[str]) -> str:
    """A command as events and messages show it."""
    return command if isinstance(command, str) else shlex.join(command)


def tell_end(session: Session, sandbox_id: str, command: str, pid: int | None, result: ExecutionResult) -> None:
    """Publish how a command ended, with the fields a server's event has."""
    data = {
        "command": command,
        "pid": pid,
        "exitCode": result.exit_code,
        "signal": result.signal,
        "durationMs": result.duration_ms,
        "oom": result.oom,
    }
    session.tell("exec.completed", sandbox_id, data)


@asynccontextmanager
async def telling(session: Session, sandbox_id: str, command: str, pid: int | None = None) -> AsyncIterator[None]:
    """Publish what goes wrong inside as `exec.timed_out` or `exec.error`."""
    try:
        yield
    except RunraError as error:
        if error.code == "EXECUTION_TIMEOUT":
            data = {"command": command, "pid": pid, "exitCode": None, "signal": "SIGKILL", "oom": False}
            data["durationMs"] = error.details.get("durationMs", error.details.get("timeoutMs", 0))
            session.tell("exec.timed_out", sandbox_id, data)
        else:
            data = {"command": command, "code": error.code, "message": error.message}
            session.tell("exec.error", sandbox_id, data if pid is None else {**data, "pid": pid})
        raise


class Told:
    """Tells of a command's output as `exec.streamed`, where no server does: pass its `add` on as `on_output`."""

    def __init__(self, session: Session, sandbox_id: str, command: str) -> None:
        self._data: dict[str, Any] = {"command": command, "pid": None}
        self._begun = False
        self._early: list[OutputChunk] = []
        self._streamed = Streamed(
            lambda data: session.tell("exec.streamed", sandbox_id, {**self._data, **data}), session.output_asked
        )

    def begin(self, pid: int | None) -> None:
        """Its start has been told."""
        self._data["pid"], self._begun = pid, True
        for chunk in self._early:
            self.add(chunk)
        self._early.clear()

    def add(self, chunk: OutputChunk) -> None:
        if self._begun:
            self._streamed.add(chunk.stream, chunk.data, chunk.offset)
        elif sum(len(one.data) for one in self._early) < RATE_BYTES:  # more would not be told anyway
            self._early.append(chunk)

    def end(self) -> None:
        self._streamed.end()


class Process:
    """A command that runs in the background. It lives in the sandbox, not here: a handle needs no closing."""

    def __init__(self, session: Session, sandbox_id: str, command: str, inner: ProcessHandle, output: Told) -> None:
        self.command = command
        #: How it ended; None until `wait` has seen that.
        self.result: ExecutionResult | None = None
        self._session = session
        self._sandbox_id = sandbox_id
        self._inner = inner
        self._output = output
        session.tell("exec.started", sandbox_id, {"command": command, "pid": inner.pid})
        output.begin(inner.pid)

    @property
    def pid(self) -> int:
        """Its number, as seen inside where the provider tells that."""
        return self._inner.pid

    async def output(self) -> AsyncGenerator[OutputChunk, None]:
        """Its output as it comes, until it ends. Read it once: what nobody reads is kept only in part."""
        async with aclosing(cast(Any, self._inner.output())) as chunks:
            async for chunk in chunks:
                yield chunk

    async def wait(self) -> ExecutionResult:
        """Wait for its end. The result has the output that was kept, the first 8 MiB of each stream.

        Raises EXECUTION_TIMEOUT when it was killed by the timeout it was started with.
        """
        if self.result is None:
            async with telling(self._session, self._sandbox_id, self.command, self.pid):
                try:
                    result = await self._inner.wait()
                finally:
                    self._output.end()
            if self.result is None:  # the first of several who wait tells of it
                self.result = result
                tell_end(self._session, self._sandbox_id, self.command, self.pid, result)
        return self.result

    async def send_stdin(self, data: str | bytes) -> None:
        """Write to its stdin. Raises INVALID_STATE when that is closed."""
        await self._inner.send_stdin(data.encode() if isinstance(data, str) else data)

    async def close_stdin(self) -> None:
        """End its stdin."""
        provider = self._session.provider
        require(provider.id, provider.capabilities, [("stdin_end", "close_stdin")])
        await self._inner.close_stdin()

    async def kill(self) -> None:
        """Kill it and what it started; one that has ended already is fine."""
        await self._inner.kill()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid} {self.command[:60]!r} in {self._sandbox_id}>"
