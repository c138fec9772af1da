"""One stream of the link, shared by processes and file work: output and input under credit, and how it ended."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from runra.errors import RunraError
from runra.node.agent.failures import agent_error, signal_name
from runra.node.agent.frames import (
    MAX_DATA,
    Ask,
    Field,
    Fields,
    Frame,
    ProtocolError,
    Tell,
    pack,
    pack_credit,
    unpack_credit,
    unpack_fields,
)
from runra.node.agent.types import AgentLost, Exit

if TYPE_CHECKING:
    from runra.node.agent.link import AgentLink

#: Bytes of output the agent may send ahead of their consumption: the most a stream holds in memory here.
WINDOW: Final = 512 << 10
#: The most the agent may allow us for one stream's stdin.
_MOST_CREDIT: Final = 16 << 20


def unpack_exit(fields: Fields) -> Exit:
    number = fields.number(Field.SIGNAL)
    code = fields.number(Field.CODE)
    if code > 255 or number > 64:
        raise ProtocolError("an exit code no process has")
    return Exit(
        code=code,
        signal=signal_name(number) if number else None,
        timed_out=bool(fields.number(Field.TIMED_OUT)),
        duration_ms=fields.number(Field.DURATION_MS),
        ended_at_ms=fields.number(Field.ENDED_AT),
    )


class Channel:
    """The link's end of one stream. Frames come in through `frame`; the rest is for its one user."""

    def __init__(self, link: AgentLink, stream: int, about: dict[str, Any]) -> None:
        self._link, self.stream, self._about = link, stream, about
        self.chunks: deque[tuple[int, int, bytes]] = deque()
        self.held = 0
        self.exit: Exit | None = None
        self.error: RunraError | None = None
        self.left = False
        self.stdin_open = False
        #: Called for each piece of output beyond what a user reads; see AgentProcess.wait.
        self.on_output: Callable[[], None] | None = None
        self._expected: int | None = None
        self._granted = WINDOW
        self._owed = 0
        self._credit = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self.started: asyncio.Future[Fields] = link.loop.create_future()

    # --- from the agent ---

    def frame(self, frame: Frame) -> None:
        kind, payload = frame.type, frame.payload
        if kind == Tell.OUTPUT:
            self._output(frame)
        elif kind == Tell.CREDIT:
            self._credit += unpack_credit(payload)
            if self._credit > _MOST_CREDIT:
                raise ProtocolError("more credit than any stream needs")
        elif kind == Tell.STDIN_CLOSED:
            self.stdin_open = False
        elif kind == Tell.STARTED:
            self._start(unpack_fields(payload))
        elif kind == Tell.EXIT:
            if self._expected is None:
                raise ProtocolError("an exit before the start")
            self.exit = unpack_exit(unpack_fields(payload))
            self._end()
        elif kind == Tell.ERROR:
            self.fail(agent_error(unpack_fields(payload), **self._about))
        else:
            raise ProtocolError(f"{Tell(kind).name} on a process's stream")
        self._wake()

    def _start(self, fields: Fields) -> None:
        if self._expected is not None:
            raise ProtocolError("started twice")
        self._expected = fields.number(Field.OFFSET)
        self._credit = fields.number(Field.WINDOW, 0)
        self.stdin_open = Field.WINDOW in fields.numbers
        if not self.started.done():
            self.started.set_result(fields)

    def _output(self, frame: Frame) -> None:
        offset, data = frame.offset, frame.payload
        if offset != self._expected:
            raise ProtocolError(f"output at {offset}, not at {self._expected}")
        count = len(data)
        self._expected = offset + count
        self._granted -= count
        if self._granted < 0:
            raise ProtocolError("more output than it had credit for")
        self.chunks.append((frame.flags, offset, data))
        self.held += count
        if self.on_output:
            self.on_output()

    def _end(self) -> None:
        self.stdin_open = False
        self._link.forget(self.stream)

    def fail(self, error: RunraError) -> None:
        """The stream ends without an exit: refused, taken over, or lost with the link."""
        self.error = error
        self._end()
        if not self.started.done():
            self.started.set_exception(error)
            self.started.exception()  # seen, even if nobody waits any more
        self._wake()

    # --- to the user ---

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def changed(self, timeout: float | None = None) -> None:
        """Wait for the next frame, loss or leave. TimeoutError after `timeout` seconds."""
        waiter = self._link.loop.create_future()
        self._waiters.add(waiter)
        try:
            if timeout is None:
                await waiter
            else:
                async with asyncio.timeout(timeout):
                    await waiter
        finally:
            self._waiters.discard(waiter)

    @property
    def over(self) -> bool:
        return self.exit is not None or self.error is not None or self.left

    def take(self) -> tuple[int, int, bytes]:
        """The oldest piece of output: (1 for stderr, offset, bytes). Gives the agent credit for more."""
        chunk = self.chunks.popleft()
        self.held -= len(chunk[2])
        self._owed += len(chunk[2])
        # in steps: a frame for each piece would cost as much as the piece
        if self._owed >= WINDOW // 4 and not self.over:
            self._link.send(pack_credit(self.stream, self._owed))
            self._granted += self._owed
            self._owed = 0
        return chunk

    async def write(self, data: bytes | memoryview, timeout: float | None = None) -> None:
        """Send input as the window allows. INVALID_STATE when nobody reads it any more."""
        view = memoryview(data)
        while view:
            while not self._credit and self.stdin_open:
                await self.changed(timeout)
            if not self.stdin_open:
                if isinstance(self.error, AgentLost):
                    raise self.error
                raise RunraError("INVALID_STATE", "the process does not read its stdin any more")
            part = view[: min(self._credit, MAX_DATA)]
            self._credit -= len(part)
            self._link.send(pack(Ask.DATA, self.stream, bytes(part)))
            view = view[len(part) :]

    def close_stdin(self, *, terminal: bool = False) -> None:
        if self.stdin_open:
            self._link.send(pack(Ask.EOF, self.stream))
            self.stdin_open = terminal
            self._wake()

    def leave(self) -> None:
        """Take no more frames. A command lives on; file work is cancelled."""
        if not self.over:
            self.left = True
            self.stdin_open = False
            self._link.leave(self.stream)
            self._wake()
        if not self.started.done():
            self.started.cancel()
