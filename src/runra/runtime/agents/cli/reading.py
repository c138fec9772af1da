"""An agent's process, read to its end: events as they come, and why it ended when not by itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, cast

from runra.contract import ExecutionResult
from runra.errors import RunraError
from runra.runtime.agents.transcripts import AgentEvent, Transcript
from runra.runtime.process import Process
from runra.runtime.tasks import to_end
from runra.sdk.output import Lines, Stream

_log = logging.getLogger("runra.runtime")

#: Longest line of an agent, in characters: it may show an image in one.
LINE: Final = 32 << 20
#: How long a process may live on after its last event, in seconds, before it is ended.
GRACE_S: Final = 10.0
#: How long ending it may take, in seconds.
_KILL_S: Final = 15.0
_STDERR_LINES: Final = 20
STDERR_LINE: Final = 500

Ended = Literal["itself", "grace", "silence", "stopped", "lost"]


class Started(Protocol):
    """A process of an agent, wherever it runs."""

    def lines(self) -> AsyncIterator[tuple[Stream, str]]:
        """Its output, line by line, to its end. Read once."""
        ...

    async def wait(self) -> ExecutionResult:
        """How it ended, once its output has."""
        ...

    async def kill(self) -> None:
        """End it and all it started; one that has ended is fine."""
        ...


class InSandbox:
    """A process in a sandbox."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def lines(self) -> AsyncIterator[tuple[Stream, str]]:
        open_lines: dict[Stream, Lines] = {"stdout": Lines(LINE), "stderr": Lines(STDERR_LINE)}
        async with aclosing(cast(Any, self._process.output())) as chunks:
            async for chunk in chunks:
                for line in open_lines[chunk.stream].feed(chunk.data):
                    yield chunk.stream, line
        for stream, rest in open_lines.items():
            for line in rest.feed(b"", last=True):
                yield stream, line

    async def wait(self) -> ExecutionResult:
        return await self._process.wait()

    async def kill(self) -> None:
        await self._process.kill()


@dataclass
class Reading:
    """What came of a process. `exit_code` is None when it was ended by us or by a signal."""

    ended: Ended = "itself"
    exit_code: int | None = None
    oom: bool = False
    why: str = ""
    stderr: deque[str] = field(default_factory=lambda: deque(maxlen=_STDERR_LINES))


async def read(
    started: Started,
    transcript: Transcript,
    tell: Callable[[AgentEvent], object],
    *,
    silence_s: float,
    stopped: asyncio.Event,
    lost: asyncio.Future[RunraError] | None,
) -> Reading:
    """Read a process to its end, telling its events. It is ended when it says nothing for `silence_s`, lives on after
    its last event, is `stopped`, or its way to the model is `lost`. Cancelled, it is ended as well."""
    reading = Reading()
    last, whole = [time.monotonic()], False

    async def lines() -> None:
        async with aclosing(cast(Any, started.lines())) as output:
            async for stream, line in output:
                last[0] = time.monotonic()
                if stream == "stderr":
                    reading.stderr.append(line[:STDERR_LINE])
                    continue
                for event in transcript.feed(line):
                    tell(event)

    reader = asyncio.create_task(lines(), name="runra-agent-output")
    stop = asyncio.create_task(stopped.wait())
    watched: set[asyncio.Future[Any]] = {reader, stop}
    if lost is not None:
        watched.add(lost)
    try:
        while not reader.done():
            limit = GRACE_S if transcript.ended else silence_s
            left = last[0] + limit - time.monotonic()
            if left <= 0:
                reading.ended = "grace" if transcript.ended else "silence"
                break
            await asyncio.wait(watched, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                reading.ended = "stopped"
                break
            if lost is not None and lost.done() and not reader.done():
                reading.ended, reading.why = "lost", lost.result().message
                break
        if reading.ended == "itself":
            reader.result()  # raises what broke the stream
            done = await started.wait()
            reading.exit_code, reading.oom, whole = done.exit_code, done.oom, True
    finally:
        stop.cancel()
        reader.cancel()
        if not whole:
            await _kill(started)
        await asyncio.wait({reader})
    return reading


async def _kill(started: Started) -> None:
    try:
        await to_end(started.kill(), _KILL_S)
    except (RunraError, TimeoutError) as error:
        # Its sandbox is gone or stuck, which is looked at after the run and outranks everything else.
        _log.warning("an agent's process may run on: %s", error)
