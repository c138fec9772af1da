"""A terminal of a provider that streams what its command shows: read when asked, and ended when it is closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from pydantic import Field, ValidationError

from runra.contract import Request
from runra.errors import RunraError
from runra.runtime.sandboxes.running import KILL_S, Attached
from runra.runtime.tasks import to_end
from runra.runtime.types import ExecuteOptions
from runra.sdk.failures import invalid
from runra.sdk.types import TerminalExit, refused

#: What a terminal runs when nothing is named: the sandbox's best shell.
SHELL: Final = "if command -v bash >/dev/null 2>&1; then exec bash; else exec sh; fi"
_TERM: Final = "xterm-256color"

Resize = Callable[[int, int], Awaitable[None]]


class TerminalOptions(Request):
    """What a terminal is opened with. `cols`, `rows`: characters. `command`: through the shell; a shell alone
    when unset."""

    cols: int = Field(80, ge=1, le=10_000)
    rows: int = Field(24, ge=1, le=10_000)
    command: str | None = Field(None, min_length=1)
    cwd: str | None = None
    user: str | None = None
    env: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TerminalOptions:
        """The options, checked. Raises INVALID_REQUEST."""
        try:
            return cls.model_validate({name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            problem = refused(error)
            raise invalid("terminal", problem.message) from None

    def execute(self) -> ExecuteOptions:
        """As a command is run with them."""
        return ExecuteOptions(cwd=self.cwd, env={"TERM": _TERM, **self.env}, user=self.user)


class AttachedTerminal:
    """A terminal over the stream of its command. `ended` is called once, when it is closed."""

    def __init__(self, attached: Attached, resize: Resize, ended: Callable[[], None] = lambda: None) -> None:
        #: How its command ended; None while it runs.
        self.exit: TerminalExit | None = None
        self._attached = attached
        self._resize = resize
        self._ended = ended
        self._began = time.monotonic()
        self._reading: asyncio.Task[Any] | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        return self._attached.pid or None

    async def send(self, data: str | bytes) -> None:
        await self._attached.write(data.encode() if isinstance(data, str) else bytes(data))

    async def resize(self, rows: int, cols: int) -> None:
        await self._resize(rows, cols)

    async def recv(self, timeout_ms: int | None = None) -> bytes | None:
        if self.exit is not None or self._closed:
            return None
        if self._reading is None:
            self._reading = asyncio.create_task(self._next(), name=f"runra-terminal {self._attached.pid}")
        # Not cancelled when the time is over: what it reads is for the next call.
        await asyncio.wait({self._reading}, timeout=None if timeout_ms is None else timeout_ms / 1000)
        if not self._reading.done():
            raise RunraError(
                "NETWORK_ERROR",
                f"the terminal showed nothing within {timeout_ms} ms",
                details={"reason": "timeout"},
                retryable=False,
            )
        reading, self._reading = self._reading, None
        data: bytes | None = reading.result()
        return data

    async def _next(self) -> bytes | None:
        piece = await self._attached.read()
        if piece is not None:
            return piece[1]
        code, signal = await self._attached.exit()
        took = int((time.monotonic() - self._began) * 1000)
        self.exit = TerminalExit(exit_code=code, signal=signal, duration_ms=took)
        return None

    async def wait(self, timeout_ms: int | None = None) -> TerminalExit:
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        while True:
            left = None if deadline is None else int(max(0.0, deadline - time.monotonic()) * 1000)
            if await self.recv(left) is None:
                break
        if self.exit is None:
            raise RunraError("INVALID_STATE", "the terminal was closed before its command ended")
        return self.exit

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await to_end(self._close(), 2 * KILL_S)

    async def _close(self) -> None:
        try:
            if self._reading is not None:
                self._reading.cancel()
                await asyncio.wait({self._reading})
            if self.exit is None:
                await self._attached.kill()
        finally:
            self._ended()
            await self._attached.close()
