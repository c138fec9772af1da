"""One connection opened in a sandbox, carried to a Unix socket of this machine: two pumps, each paced by its reader."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from runra.runtime.relay_lines import DATA_MAX, GRANT, WINDOW, Line, say, strange

#: Says a line to the relay; comes back once there is room for more.
Say = Callable[[bytes], Awaitable[None]]
_CONNECT_S: Final = 10.0


class Connection:
    """Works in a task of its own until both sides have ended. What the relay says of it goes to `take`."""

    def __init__(self, id: int, target: str, say: Say) -> None:
        self._id = id
        self._target = target
        self._say = say
        #: Bytes that may be sent to the client inside.
        self._credit = WINDOW
        #: Bytes the relay has sent that were not granted again: those that wait here, and those just written.
        self._under_way = 0
        self._waiting = bytearray()
        self._ended = False
        self._changed = asyncio.Event()
        self._credited = asyncio.Event()
        self._credited.set()
        self.task = asyncio.create_task(self._carry(), name=f"runra-forward connection {id}")

    def take(self, line: Line) -> None:
        """What the relay says. Raises RunraError when it must not."""
        match line.op:
            case "d":
                self._under_way += len(line.data)
                if self._ended or self._under_way > WINDOW:
                    raise strange("more data than it may send", line)
                self._waiting += line.data
                self._changed.set()
            case "e":
                if self._ended:
                    raise strange("a second end", line)
                self._ended = True
                self._changed.set()
            case "c":
                self._credit += line.number
                if self._credit > WINDOW:
                    raise strange("more credit than there is", line)
                self._credited.set()
            case "r":
                self.task.cancel()

    async def _carry(self) -> None:
        whole, writer = False, None
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await asyncio.open_unix_connection(self._target, limit=WINDOW // 2)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._inward(reader))
                both.create_task(self._outward(writer))
            whole = True
        except* (OSError, TimeoutError):
            pass  # nobody listens there (any more), or hung up in the middle: so it is inside, too
        finally:
            if writer is not None:
                if whole:
                    writer.close()
                else:
                    writer.transport.abort()
        if not whole:
            await self._say(say("r", self._id))

    async def _inward(self, reader: asyncio.StreamReader) -> None:
        while True:
            await self._credited.wait()
            data = await reader.read(min(DATA_MAX, self._credit))
            if not data:
                await self._say(say("e", self._id))
                return
            self._credit -= len(data)
            if not self._credit:
                self._credited.clear()
            await self._say(say("d", self._id, data))

    async def _outward(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=0)  # what has been drained has been taken
        owed = 0
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._waiting:
                data, self._waiting = self._waiting, bytearray()
                writer.write(data)
                await writer.drain()
                owed += len(data)
                if owed >= GRANT:
                    self._under_way -= owed
                    granted, owed = owed, 0
                    await self._say(say("c", self._id, granted))
            if self._ended and not self._waiting:
                writer.write_eof()
                return
