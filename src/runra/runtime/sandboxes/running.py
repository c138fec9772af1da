"""A command of a provider that streams its output: read to its end with a deadline, or kept in the background."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final, Protocol

from runra.contract import ExecutionResult
from runra.errors import RunraError
from runra.runtime.tasks import to_end
from runra.runtime.types import ExecuteOptions
from runra.sdk.concurrency_async import call_back
from runra.sdk.output import Kept, Lines, OutputChunk, Stream

_log = logging.getLogger("runra.runtime")

#: What `execute` grants a command that names no timeout, in ms (spec 1).
DEFAULT_MS: Final = 60_000
#: Output of a background process that nobody has read yet: beyond it the oldest goes.
UNREAD_BYTES: Final = 1 << 20
#: How long killing a command and letting go of its stream may take, in seconds.
KILL_S: Final = 15.0
_PIECE: Final = 64 << 10


class Attached(Protocol):
    """A command that has been started, and the stream of its output. One reader at a time."""

    pid: int

    async def read(self) -> tuple[Stream, bytes] | None:
        """The next piece of output, None at the end. Raises NETWORK_ERROR when the stream breaks before that."""
        ...

    async def exit(self) -> tuple[int | None, str | None]:
        """Exit code and signal, once `read` has given None."""
        ...

    async def write(self, data: bytes) -> None: ...

    async def close_stdin(self) -> None: ...

    async def kill(self) -> None:
        """End it and what it started. One that has ended is fine."""
        ...

    async def close(self) -> None:
        """Let go of the stream. The command is not touched."""
        ...


def timed_out(timeout_ms: int, kept: Kept, began: float) -> RunraError:
    """EXECUTION_TIMEOUT with what came until then, as a server tells it."""
    return RunraError(
        "EXECUTION_TIMEOUT",
        f"the command ran longer than timeout_ms {timeout_ms} and was killed; raise it, or run it with background=True",
        details={
            "timeoutMs": timeout_ms,
            "durationMs": int((time.monotonic() - began) * 1000),
            "stdout": kept.text("stdout"),
            "stderr": kept.text("stderr"),
            "truncated": kept.truncated,
        },
    )


async def finish(attached: Attached, options: ExecuteOptions) -> ExecutionResult:
    """Run a command to its end, feeding stdin and calling back with lines. At its deadline, and when the caller is
    cancelled, it is killed."""
    timeout_ms = DEFAULT_MS if options.timeout_ms is None else options.timeout_ms
    began, offset = time.monotonic(), 0
    kept, lines = Kept(), _Callbacks(options)
    feeding = asyncio.create_task(_feed(attached, options.stdin))
    try:
        try:
            async with asyncio.timeout(timeout_ms / 1000) as limit:
                while (piece := await attached.read()) is not None:
                    chunk = OutputChunk(*piece, offset)
                    offset += len(chunk.data)
                    kept.add(chunk)
                    if options.on_output is not None:
                        options.on_output(chunk)
                    await lines.feed(*piece)
                await lines.end()
                code, signal = await attached.exit()
        except BaseException as error:
            await to_end(attached.kill(), KILL_S)
            if isinstance(error, TimeoutError) and limit.expired():
                await lines.end()
                raise timed_out(timeout_ms, kept, began) from None
            raise
    finally:
        feeding.cancel()
        await asyncio.wait({feeding})
        await to_end(attached.close(), KILL_S)
    return _result(kept, code, signal, began)


async def _feed(attached: Attached, stdin: str | bytes | None) -> None:
    if stdin is None:
        return
    data = stdin.encode() if isinstance(stdin, str) else stdin
    try:
        for at in range(0, len(data), _PIECE):
            await attached.write(data[at : at + _PIECE])
        await attached.close_stdin()
    except (RunraError, OSError) as error:
        # A command need not read its stdin, and may have ended meanwhile; its end is what counts.
        _log.debug("a command did not take all of its stdin: %s", error)


class _Callbacks:
    def __init__(self, options: ExecuteOptions) -> None:
        self._calls: dict[Stream, tuple[Lines, Callable[[str], Any] | None]] = {
            "stdout": (Lines(), options.on_stdout),
            "stderr": (Lines(), options.on_stderr),
        }

    async def feed(self, stream: Stream, data: bytes, last: bool = False) -> None:
        lines, call = self._calls[stream]
        if call is not None:
            for line in lines.feed(data, last):
                await call_back(call, line)

    async def end(self) -> None:
        await self.feed("stdout", b"", last=True)
        await self.feed("stderr", b"", last=True)


def _result(kept: Kept, code: int | None, signal: str | None, began: float) -> ExecutionResult:
    return ExecutionResult(
        stdout=kept.text("stdout"),
        stderr=kept.text("stderr"),
        exit_code=code,
        duration_ms=int((time.monotonic() - began) * 1000),
        signal=signal,
        truncated=kept.truncated,
    )


class Running:
    """A command in the background. Its output is always read, so it never blocks for want of a reader; while somebody
    reads `output`, that reader sets the pace and misses nothing."""

    def __init__(
        self, attached: Attached, options: ExecuteOptions | None = None, ended: Callable[[], None] = lambda: None
    ) -> None:
        chosen = options or ExecuteOptions()
        self._attached = attached
        self._timeout_ms = chosen.timeout_ms
        self._tap = chosen.on_output
        self._ended = ended
        self._began = time.monotonic()
        self._kept = Kept()
        self._unread: deque[OutputChunk] = deque()
        self._unread_bytes = 0
        self._offset = 0
        self._reading = False
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._pump(), name=f"runra-process {attached.pid}")
        # Whoever waits gets the failure; with nobody waiting it is no news.
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    @property
    def pid(self) -> int:
        return self._attached.pid

    async def _pump(self) -> ExecutionResult:
        limit = asyncio.timeout(None if self._timeout_ms is None else self._timeout_ms / 1000)
        try:
            try:
                async with limit:
                    while (piece := await self._attached.read()) is not None:
                        await self._take(*piece)
                    code, signal = await self._attached.exit()
            except TimeoutError:
                if not limit.expired():
                    raise
                await to_end(self._attached.kill(), KILL_S)
                raise timed_out(self._timeout_ms or 0, self._kept, self._began) from None
            return _result(self._kept, code, signal, self._began)
        finally:
            self._ended()
            await to_end(self._attached.close(), KILL_S)
            async with self._changed:
                self._changed.notify_all()

    async def _take(self, stream: Stream, data: bytes) -> None:
        chunk = OutputChunk(stream, data, self._offset)
        self._offset += len(data)
        self._kept.add(chunk)
        if self._tap is not None:
            self._tap(chunk)
        async with self._changed:
            await self._changed.wait_for(lambda: not self._reading or self._unread_bytes < UNREAD_BYTES)
            self._unread.append(chunk)
            self._unread_bytes += len(data)
            while self._unread_bytes > UNREAD_BYTES and len(self._unread) > 1:
                self._unread_bytes -= len(self._unread.popleft().data)
                self._kept.truncated = True
            self._changed.notify_all()

    async def output(self) -> AsyncGenerator[OutputChunk, None]:
        self._reading = True
        try:
            while True:
                async with self._changed:
                    await self._changed.wait_for(lambda: bool(self._unread) or self._task.done())
                    if not self._unread:
                        break
                    chunk = self._unread.popleft()
                    self._unread_bytes -= len(chunk.data)
                    self._changed.notify_all()
                yield chunk
        finally:
            self._reading = False
            async with self._changed:
                self._changed.notify_all()

    async def wait(self) -> ExecutionResult:
        return await asyncio.shield(self._task)

    async def send_stdin(self, data: bytes) -> None:
        for at in range(0, len(data), _PIECE):
            await self._attached.write(data[at : at + _PIECE])

    async def close_stdin(self) -> None:
        await self._attached.close_stdin()

    async def kill(self) -> None:
        if not self._task.done():
            await self._attached.kill()

    async def abandon(self) -> None:
        """Stop reading; the command runs on."""
        self._task.cancel()
        await asyncio.wait({self._task})
