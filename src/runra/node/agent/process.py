"""A command in the sandbox, as the host sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING

from runra.errors import RunraError
from runra.node.agent.channel import WINDOW, Channel
from runra.node.agent.frames import Ask, Field, Fields, pack
from runra.node.agent.types import Exit, Output

if TYPE_CHECKING:
    from runra.node.agent.link import AgentLink


class AgentProcess:
    """A process to read from, write to and wait for. Leaving it, even by an error, never ends it.

    `reused` says that a tag matched a process that was already there. `async with` detaches at its end.
    """

    def __init__(self, link: AgentLink, channel: Channel, fields: Fields) -> None:
        self._link, self._channel = link, channel
        self.pid = fields.number(Field.PID)
        self.started_at_ms = fields.number(Field.STARTED_AT)
        self.command = fields.text(Field.TITLE, "").encode("utf-8", "replace").decode()
        self.reused = bool(fields.number(Field.REUSED, 0))
        self._terminal = False
        self._reading = False
        self._waiting = 0
        self._writing = asyncio.Lock()

    def output(self) -> AsyncIterator[Output]:
        """All output from where this process was attached, in order, until its end.

        For one consumer: a second call raises INVALID_STATE. Credit goes out as pieces are taken, so a slow
        consumer slows the command, not the server. Raises AgentLost when the link dies first.
        """
        if self._reading:
            raise RunraError("INVALID_STATE", "this process's output has a reader; attach once more for a second")
        self._reading = True
        self._channel.on_output = None
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[Output]:
        channel = self._channel
        while True:
            while channel.chunks:
                stderr, offset, data = channel.take()
                yield Output("stderr" if stderr else "stdout", offset, data)
            if channel.error is not None:
                raise channel.error
            if channel.over:
                return
            await channel.changed()

    async def wait(self) -> Exit:
        """How it ended. Output nobody asked for is dropped once the window is half full, so it cannot block."""
        channel = self._channel
        if not self._reading:
            channel.on_output = self._drop
            self._drop()
        while channel.exit is None:
            if channel.error is not None:
                raise channel.error
            if channel.left:
                raise RunraError(
                    "INVALID_STATE", f"detached from process {self.pid}; attach to it again to wait for it"
                )
            await channel.changed()
        return channel.exit

    def _drop(self) -> None:
        if self._channel.held >= WINDOW // 2:
            while self._channel.chunks:
                self._channel.take()

    async def write_stdin(self, data: bytes) -> None:
        """Write all of `data`, as fast as the process reads it. INVALID_STATE when nothing reads it any more."""
        async with self._writing:
            if not data and not self._channel.stdin_open:
                raise RunraError("INVALID_STATE", "the process does not read its stdin any more")
            await self._channel.write(data)

    async def close_stdin(self) -> None:
        """End stdin; on a terminal, type its end-of-file character. Fine when it is closed already."""
        async with self._writing:
            self._channel.close_stdin(terminal=self._terminal)

    async def resize(self, rows: int, cols: int) -> None:
        """Tell the terminal its size in characters (1 to 65535). Without effect on a process that has none."""
        if not (0 < rows < 65536 and 0 < cols < 65536):
            raise RunraError("INVALID_REQUEST", "rows and cols must be between 1 and 65535")
        if not self._channel.over:
            payload = rows.to_bytes(2, "little") + cols.to_bytes(2, "little")
            self._link.send(pack(Ask.RESIZE, self._channel.stream, payload))

    def detach(self) -> None:
        """Stop listening; the process lives on and can be attached to again."""
        self._channel.leave()

    async def __aenter__(self) -> AgentProcess:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        return f"<AgentProcess {self.pid} {self.command!r}>"
