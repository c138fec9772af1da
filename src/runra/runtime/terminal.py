"""A terminal in a sandbox of any provider."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

from runra.runtime.types import TerminalHandle
from runra.sdk.types import TerminalExit


class Terminal:
    """An open terminal: send keys, read what it shows. Close it, or use it as a context manager.

    With `runra-sandbox` closing only detaches; its command runs on, and `terminal(pid=…, offset=…)` takes it up again.
    At the other providers nobody could: closing ends it.
    """

    def __init__(self, inner: TerminalHandle) -> None:
        self._inner = inner

    @property
    def pid(self) -> int | None:
        """The process behind it, as the provider numbers it; None where that is not told."""
        return self._inner.pid

    @property
    def exit(self) -> TerminalExit | None:
        """How its command ended; None while it runs."""
        return self._inner.exit

    async def send(self, data: str | bytes) -> None:
        """Type `data`. Raises INVALID_STATE or NETWORK_ERROR when its command has ended."""
        await self._inner.send(data)

    async def recv(self, timeout_ms: int | None = None) -> bytes | None:
        """The next output, or None once its command has ended. Raises NETWORK_ERROR, with `details["reason"]`
        `timeout` when nothing came within `timeout_ms` milliseconds, `closed` when the connection was lost."""
        return await self._inner.recv(timeout_ms)

    async def resize(self, rows: int, cols: int) -> None:
        """Tell it the size of its window, in characters."""
        await self._inner.resize(rows, cols)

    async def wait(self, timeout_ms: int | None = None) -> TerminalExit:
        """Wait for its command to end; what it shows meanwhile is dropped. Raises NETWORK_ERROR as `recv` does."""
        return await self._inner.wait(timeout_ms)

    async def close(self) -> None:
        """Let go of it. Closing it twice is fine."""
        await self._inner.close()

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        while (data := await self.recv()) is not None:
            yield data

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid}>"
