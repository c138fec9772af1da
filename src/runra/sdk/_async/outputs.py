"""A command's output as it comes, taken up again where a connection broke."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Any

from runra.contract import ExecutionResult
from runra.errors import RunraError
from runra.sdk._async.api import AsyncApi
from runra.sdk.concurrency_async import sleep
from runra.sdk.failures import Failure, network_error, told_error
from runra.sdk.output import Kept, OutputChunk, Position
from runra.sdk.sse import EventParser, ServerEvent
from runra.sdk.transport_async import AsyncIncoming
from runra.sdk.types import parsed
from runra.sdk.wire import backoff, new_key, sandbox_path

#: How long a broken stream is tried again without anything new coming, in seconds: a server that restarts is back.
_PATIENCE_S = 30.0


class AsyncOutputs:
    """The output of one process, from `offset` on: of a command that `start` (an execute body) runs, or of `pid`.

    `deadline` (by `time.monotonic`) ends the reading with NETWORK_ERROR, reason `timeout`.
    """

    def __init__(
        self,
        api: AsyncApi,
        sandbox_id: str,
        *,
        start: dict[str, Any] | None = None,
        pid: int | None = None,
        offset: int = 0,
        deadline: float | None = None,
    ) -> None:
        self.pid = pid
        self.result: ExecutionResult | None = None
        self._api = api
        self._sandbox_id = sandbox_id
        self._start = start
        self._key = new_key()
        self._position = Position(offset)
        self._deadline = deadline

    def finished(self, kept: Kept) -> ExecutionResult:
        """How the command ended, with what was kept of its output."""
        assert self.result is not None, "chunks() ends with a result or an error"
        truncated = self.result.truncated or kept.truncated or self._position.gap
        return self.result.model_copy(
            update={"stdout": kept.text("stdout"), "stderr": kept.text("stderr"), "truncated": truncated}
        )

    async def chunks(self) -> AsyncGenerator[OutputChunk, None]:
        """Pieces of output in order, each once, until the command ends; then `result` is set."""
        attempt, heard = 0, time.monotonic()
        while True:
            try:
                async with self._open() as incoming:
                    incoming.deadline = self._deadline
                    self._position.attach()
                    parser = EventParser()
                    async for piece in incoming.chunks():
                        # A heartbeat is no output, but it says that the server is there.
                        attempt, heard = 0, time.monotonic()
                        for event in parser.feed(piece):
                            chunk = self._take(event)
                            if chunk is not None:
                                yield chunk
                            if self.result is not None:
                                return
                    raise Failure("closed", True, "the stream ended before the command did")
            except RunraError as error:
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    raise self._late() from error
                lost = error.code == "NETWORK_ERROR" and (self.pid is not None or error.details.get("sent"))
                if not lost or not self._api.settings.max_retries or time.monotonic() - heard > _PATIENCE_S:
                    raise
            await sleep(backoff(min(attempt, 4)))
            attempt += 1

    def _open(self) -> AbstractAsyncContextManager[AsyncIncoming]:
        if self.pid is None:
            # The key makes a repeated start attach to the first one's process.
            path = sandbox_path(self._sandbox_id, "execute")
            return self._api.stream("POST", path, content=self._start, key=self._key)
        path = sandbox_path(self._sandbox_id, "processes", self.pid, "output")
        return self._api.stream("GET", path, headers={"Last-Event-ID": str(self._position.offset)})

    def _take(self, event: ServerEvent) -> OutputChunk | None:
        match event.name:
            case "stdout" | "stderr":
                return self._position.take(event)
            case "start":
                pid = event.json().get("pid")
                if isinstance(pid, int):
                    self.pid = pid
            case "exit":
                self.result = parsed(
                    ExecutionResult, {"stdout": "", "stderr": "", **event.json()}, "the end of a command"
                )
            case "error":
                error = told_error(event.json())
                if error.retryable:
                    # Such as a server that stops: the command runs on, and the next server takes it up.
                    raise Failure("closed", True, error.message) from error
                raise error
        return None

    def _late(self) -> RunraError:
        failure = Failure("timeout", True, "still running")
        error = network_error(failure, self._api.settings.api_url, "output")
        return RunraError(
            "NETWORK_ERROR",
            f"process {self.pid} has not ended within the time given; it runs on, wait again or kill it",
            details={**error.details, "pid": self.pid},
            retryable=False,
        )
