"""A connection to a port inside the sandbox: bytes both ways, each side with an end of its own."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final

from runra.errors import RunraError
from runra.node.agent.channel import Channel
from runra.node.agent.frames import Fields, Frame, ProtocolError, Tell
from runra.node.agent.types import AgentLost

#: Most bytes of one `read`.
_MOST: Final = 256 << 10
#: Bytes that may go out with CONNECT, before the agent has said how much it takes.
EARLY: Final = 16 << 10


class TunnelChannel(Channel):
    """The link's end of a tunnel's stream."""

    #: Inside has ended its side.
    ended = False
    #: Both sides have ended, and with them the stream.
    done = False
    #: Bytes that went out with CONNECT.
    early = 0

    def frame(self, frame: Frame) -> None:
        kind = frame.type
        if kind == Tell.OUTPUT and not self.ended:
            self._output(frame)
        elif kind == Tell.EOF and not self.ended and self.started.done():
            self.ended = True
        elif kind == Tell.DONE and self.ended:
            self.done = True
            self._end()
        elif kind in (Tell.CREDIT, Tell.STDIN_CLOSED, Tell.STARTED, Tell.ERROR):
            super().frame(frame)
            return
        else:
            raise ProtocolError(f"{Tell(kind).name} on a tunnel's stream")
        self._wake()

    def _start(self, fields: Fields) -> None:
        super()._start(fields)
        self._credit -= self.early
        if self._credit < 0:
            raise ProtocolError("a window smaller than any agent's")

    @property
    def over(self) -> bool:
        return self.done or self.error is not None or self.left


class Tunnel:
    """An open connection, for one reader and one writer. `async with` closes it at its end.

    What the other side sends waits in at most 512 KiB here, then in the sandbox's kernel: whoever reads slowly slows
    the sender.
    """

    def __init__(self, channel: TunnelChannel, port: int) -> None:
        self._channel = channel
        self.port = port
        self._why: RunraError | None = None
        #: When bytes last went in, by the monotonic clock.
        self.written_at = time.monotonic()

    async def read(self, timeout: float | None = None) -> bytes:
        """The next bytes, b"" at the end of what inside sends. TimeoutError after `timeout` seconds without any.

        Raises INVALID_STATE when the connection broke, AgentLost when the sandbox or its agent went, and what `abort`
        was given.
        """
        channel = self._channel
        while not channel.chunks:
            if self._why is not None:
                raise self._why
            if channel.error is not None:
                raise channel.error
            if channel.ended or channel.left:
                return b""
            await channel.changed(timeout)
        if self._why is not None:
            raise self._why
        data = channel.take()[2]
        if not channel.chunks:
            return data
        parts, size = [data], len(data)
        while channel.chunks and size < _MOST:
            parts.append(channel.take()[2])
            size += len(parts[-1])
        return b"".join(parts)

    async def write(self, data: bytes | memoryview, timeout: float | None = None) -> None:
        """Send all of `data` as fast as inside takes it. INVALID_STATE when it takes no more; TimeoutError when it took
        nothing for `timeout` seconds."""
        self.written_at = time.monotonic()
        try:
            await self._channel.write(data, timeout)
        except AgentLost:
            raise
        except RunraError:
            raise self._why or RunraError(
                "INVALID_STATE",
                f"port {self.port}: the server in the sandbox reads no more",
                details={"reason": "connection_broke", "port": self.port},
            ) from None
        self.written_at = time.monotonic()

    def end_write(self) -> None:
        """Say that nothing more comes; the other direction stays open."""
        self._channel.close_stdin()

    def abort(self, why: RunraError) -> None:
        """End it from anywhere: whoever reads or writes gets `why`."""
        if self._why is None:
            self._why = why
            self._channel.leave()

    def close(self) -> None:
        """Give it up: the server inside sees a closed connection. Fine when it is closed already."""
        self._channel.leave()

    async def __aenter__(self) -> Tunnel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
