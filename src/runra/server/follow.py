"""One command, one reader, any number of listeners: the agent keeps a single stream per process, we share it out."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from runra.contract import ExecutionResult
from runra.errors import RunraError
from runra.node.agent.types import Exit, Output
from runra.server.decode import Collected
from runra.server.nodeport import AgentLink, AgentProcess

#: Chunks that may wait for one streaming client. Then the reader waits, the agent's credit runs out, and the
#: command blocks on its pipe: nothing piles up anywhere.
_WAITING: Final = 4
#: How long a listener that wants earlier output waits for a write to stdin to get out of the way.
_SWAP_S: Final = 5.0
_STDIN_CHUNK: Final = 64 << 10
#: Without a listener yet, so much output is read before the reader waits for one, and so long. Less than what makes
#: the link give the agent credit: nothing of the beginning is lost to whoever attaches in that time.
_FIRST_BYTES: Final = 64 << 10
_PATIENCE_S: Final = 1.0


class Ended:
    """How a command ended: its result without output, and whether its timeout killed it."""

    __slots__ = ("result", "timed_out")

    def __init__(self, result: ExecutionResult, timed_out: bool) -> None:
        self.result = result
        self.timed_out = timed_out


class Listener(ABC):
    """Takes a command's output from `position` on, each byte once, however often the reader goes back."""

    def __init__(self, position: int = 0) -> None:
        self.position = position

    def fresh(self, output: Output) -> Output | None:
        """The part of a chunk this listener has not had."""
        end = output.offset + len(output.data)
        if end <= self.position:
            return None
        if output.offset < self.position:
            return Output(output.stream, self.position, output.data[self.position - output.offset :])
        return output

    @abstractmethod
    async def offer(self, output: Output) -> None:
        """Take a piece of output; a listener that makes this wait slows the command."""

    @abstractmethod
    def end(self, how: Ended | RunraError) -> None:
        """Hear how the command ended."""


class Collector(Listener):
    """Gathers the output for one JSON answer. It takes everything at once, so it needs no queue."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.collected = Collected(limit)
        self._how: Ended | RunraError | None = None
        self._over = asyncio.Event()

    async def offer(self, output: Output) -> None:
        fresh = self.fresh(output)
        if fresh is not None:
            self.collected.add(fresh)
            self.position = output.offset + len(output.data)

    def end(self, how: Ended | RunraError) -> None:
        self._how = how
        self._over.set()

    async def wait(self) -> Ended | RunraError:
        """How it ended. The reader has the deadline, and tells whatever happens to it."""
        await self._over.wait()
        assert self._how is not None
        return self._how


class Stream(Listener):
    """A bounded queue to one client. `close` may be called at any time: what is offered from then on is dropped."""

    def __init__(self, position: int = 0) -> None:
        super().__init__(position)
        self._queue: asyncio.Queue[Output | Ended | RunraError] = asyncio.Queue()
        self._room = asyncio.Semaphore(_WAITING)
        self._open = True

    async def offer(self, output: Output) -> None:
        if self._open and (fresh := self.fresh(output)) is not None:
            await self._room.acquire()
            self._queue.put_nowait(fresh)
            self.position = output.offset + len(output.data)

    def end(self, how: Ended | RunraError) -> None:
        self._queue.put_nowait(how)

    async def next(self) -> Output | Ended | RunraError:
        """The next piece of output, or how it ended."""
        item = await self._queue.get()
        if isinstance(item, Output):
            self._room.release()
        return item

    def close(self) -> None:
        self._open = False
        self._room.release()  # lets go of the one reader that may wait for room


class Followed:
    """A process whose output this server reads. Its owner awaits `drive`; anybody may listen meanwhile."""

    def __init__(self, link: AgentLink, process: AgentProcess, witness: Listener | None = None) -> None:
        self.pid = process.pid
        self.process = process
        #: Hears everything, and counts as nobody: it never makes the reader wait, nor go back.
        self._witness = witness
        #: No listener hears any more of it: follow the process anew.
        self.done = False
        self._link = link
        self._listeners: list[Listener] = []
        self._at = 0
        self._rewind = False
        self._scope: asyncio.Timeout | None = None
        self._heard = asyncio.Event()
        # Held by a write to stdin, and while the stream is swapped for one that starts earlier: a swap in the middle
        # of a write would leave open how much of it arrived.
        self._stdin = asyncio.Lock()

    async def listen(self, listener: Listener) -> bool:
        """Add a listener; when it wants output the reader is already past, the reader goes back for it (the agent
        keeps the latest output of each process). False when the command ended meanwhile: follow it anew."""
        if listener.position < self._at:
            try:
                async with asyncio.timeout(_SWAP_S):
                    await self._stdin.acquire()
            except TimeoutError:
                raise RunraError(
                    "INVALID_STATE",
                    f"process {self.pid} does not read its stdin while somebody writes to it; attach when it does",
                    retryable=True,
                ) from None
            if self.done:
                self._stdin.release()
                return False
            # From here to the end of `_swap` the lock is the reader's.
            self._rewind = True
            if self._scope is not None:
                self._scope.reschedule(asyncio.get_running_loop().time())
        if not self.done:
            self._listeners.append(listener)
            self._heard.set()
        return not self.done

    def leave(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

    async def drive(self, ended: Callable[[Exit], Ended]) -> Ended:
        """Read until the command has ended, and tell every listener how; also when reading fails."""
        how: Ended | RunraError = RunraError("INTERNAL_ERROR", "the server is stopping; attach again", retryable=True)
        try:
            how = ended(await self._read())
        except RunraError as error:
            how = error
            raise
        finally:
            self.done = True
            if self._rewind:
                self._stdin.release()
            if self._witness is not None:
                self._witness.end(how)
            for listener in self._listeners:
                listener.end(how)
        return how

    async def _read(self) -> Exit:
        while True:
            try:
                async with asyncio.timeout(None) as self._scope:
                    async for output in self.process.output():
                        # Somebody wants what came before this piece: it comes again after the swap, for everybody.
                        if self._rewind:
                            break
                        # First of all: who comes while another listener is waited for has missed this piece.
                        self._at = output.offset + len(output.data)
                        if self._witness is not None:
                            await self._witness.offer(output)
                        for listener in tuple(self._listeners):
                            await listener.offer(output)
                        if self._at >= _FIRST_BYTES and not self._heard.is_set():
                            await self._first_listener()
                        if self._rewind:
                            break
                    else:
                        exit = await self.process.wait()
                        if not self._rewind:
                            return exit
            except TimeoutError:
                if not self._rewind:
                    raise
            finally:
                self._scope = None
            await self._swap()

    async def _first_listener(self) -> None:
        """A command left in the background may write faster than its caller can attach: it waits a little, once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self._heard.wait()
        self._heard.set()

    async def _swap(self) -> None:
        """Take the stream again, from the earliest byte a listener still wants."""
        offset = min((listener.position for listener in self._listeners), default=self._at)
        # The new stream takes over from the old one. Left first, the agent would for a moment keep nothing for anybody.
        before, self.process = self.process, await self._link.attach(self.pid, offset=offset)
        before.detach()
        self._at = offset
        self._rewind = False
        self._stdin.release()

    async def write(self, data: bytes) -> None:
        """Write to the command's stdin, in order with other writers' chunks."""
        for start in range(0, len(data), _STDIN_CHUNK):
            async with self._stdin:
                await self.process.write_stdin(data[start : start + _STDIN_CHUNK])

    async def close_stdin(self) -> None:
        async with self._stdin:
            await self.process.close_stdin()

    async def resize(self, rows: int, cols: int) -> None:
        await self.process.resize(rows, cols)
