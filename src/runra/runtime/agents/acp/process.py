"""An ACP agent's process in the sandbox: its output into the conversation, its last words, and its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, cast

from runra.contract import ExecutionResult
from runra.errors import RunraError
from runra.runtime.agents.acp.peer import Gone
from runra.runtime.tasks import to_end
from runra.sdk.output import Lines

if TYPE_CHECKING:
    from runra.runtime.process import Process

_log = logging.getLogger("runra.runtime")

#: Longest message of an agent, in characters: it may show an image in one.
_MESSAGE: Final = 32 << 20
_STDERR_LINES: Final = 20
_STDERR_LINE: Final = 500
_KILL_S: Final = 15.0


class AcpProcess:
    """Reads the process from the moment it is made; `close` ends it."""

    def __init__(self, process: Process, program: str) -> None:
        self._process = process
        self._program = program
        self._reader: asyncio.Task[None] | None = None
        #: When it last said anything.
        self.heard = time.monotonic()
        self.stderr: deque[str] = deque(maxlen=_STDERR_LINES)

    async def write(self, line: bytes) -> None:
        await self._process.send_stdin(line)

    def read(self, feed: Callable[[str], None], close: Callable[[Gone], None]) -> asyncio.Task[None]:
        """Hand its lines to `feed` until it ends, then say by `close` how it did."""
        self._reader = asyncio.create_task(self._read(feed, close), name="runra-acp-output")
        return self._reader

    async def close(self) -> None:
        """End it and all it started; one that has ended is fine."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait({self._reader})
        try:
            await to_end(self._process.kill(), _KILL_S)
        except (RunraError, TimeoutError) as error:
            # Its sandbox is gone or stuck, which is looked at after the run and outranks everything else.
            _log.warning("an agent's process may run on: %s", error)

    async def _read(self, feed: Callable[[str], None], close: Callable[[Gone], None]) -> None:
        try:
            await self._pump(feed)
            close(self._gone(await self._process.wait()))
        except Gone as gone:
            close(gone)
        except RunraError as error:
            close(Gone("no_result", f"{self._program}: its output was lost: {error.message}"))

    async def _pump(self, feed: Callable[[str], None]) -> None:
        out, err = Lines(_MESSAGE), Lines(_STDERR_LINE)
        async with aclosing(cast(Any, self._process.output())) as chunks:
            async for chunk in chunks:
                self.heard = time.monotonic()
                if chunk.stream == "stderr":
                    self.stderr.extend(err.feed(chunk.data))
                    continue
                for line in out.feed(chunk.data):
                    if len(line) >= _MESSAGE:
                        raise Gone("protocol", f"{self._program} sent a message longer than {_MESSAGE >> 20} MiB")
                    feed(line)
        self.stderr.extend(err.feed(b"", last=True))

    def _gone(self, done: ExecutionResult) -> Gone:
        if done.oom:
            return Gone("oom", f"{self._program} was killed: the sandbox's memory was full; give it more memory_mb")
        if done.exit_code in (126, 127):
            last = f": {self.stderr[-1]}" if self.stderr else ""
            return Gone("setup", f"{self._program} could not be started{last}")
        return Gone("no_result", f"{self._program} ended in mid-conversation with exit code {done.exit_code}")
