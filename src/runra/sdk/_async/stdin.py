"""A process's stdin held open: what is written goes out on one long request, instead of a request for each write."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from types import TracebackType
from typing import Final, Self

from runra.errors import RunraError
from runra.sdk._async.api import AsyncApi
from runra.sdk.bodies import as_data
from runra.sdk.concurrency_async import AsyncBuffer, AsyncSignal, AsyncWorker
from runra.sdk.failures import strange_answer
from runra.sdk.wire import CHUNK, sandbox_path

#: Bytes that wait here until the command takes them; with more, `write` waits.
_WAITING_BYTES: Final = 256 << 10
#: A request on which nothing was written for so long is ended, and the next write begins another: servers, and proxies
#: before them, give up on a body that pauses for longer.
_IDLE_S: Final = 20.0
#: The server takes nothing, or does not answer at the end, for so long while the command does not read.
_STUCK_MS: Final = 300_000
#: How long the work in the background may take to end when it is cut off.
_END_S: Final = 1.0


class AsyncStdin:
    """An open stdin, from `process.open_stdin()`. Leaving its block sends what was written and ends the command's stdin
    (not with `close=False`); left by an exception, it gives up what was not sent and ends nothing.

    Several may write at once: each write stays whole, in the order of the calls.
    """

    def __init__(self, api: AsyncApi, sandbox_id: str, pid: int, close: bool) -> None:
        #: The process it is of.
        self.pid = pid
        self._api = api
        self._path = sandbox_path(sandbox_id, "processes", pid, "stdin")
        self._close = close
        self._buffer = AsyncBuffer(_WAITING_BYTES)
        self._error: RunraError | None = None
        self._whole = False
        self._over = AsyncSignal()
        self._worker = AsyncWorker(f"runra-stdin-{pid}", self._carry)
        self._cut = _Cut(self)
        api.hold(self._cut)

    async def write(self, data: str | bytes) -> None:
        """Write to the command's stdin. Returns when the data is on its way: at once, unless more than 256 KiB wait for
        the command to read. A call that raises, or is cancelled, has written nothing.

        Raises what ended the stream: INVALID_STATE when the command does not read its stdin any more, NETWORK_ERROR
        when the connection broke (how much of what was under way arrived is not known then). Raises NETWORK_ERROR
        with `details["reason"] == "timeout"` when there was no room within the client's `timeout_ms`; then write again.
        """
        body = as_data(data)
        if body and not await self._buffer.put(body, self._api.settings.timeout_s):
            raise self._ended() or self._late("did not read what waits for it already; nothing of this was written")
        if (error := self._error) is not None:
            raise error

    async def close(self) -> None:
        """Send what was written, wait until the server has handed all of it over, and end the command's stdin (not with
        `close=False`). Closing it twice does no harm.

        Raises what ended the stream, as `write` does; NETWORK_ERROR, reason `timeout`, when the command did not read
        all of it within the client's `timeout_ms`, and then the rest is given up.
        """
        if self._over.is_set() and self._error is None:
            return
        self._buffer.end()
        try:
            if not await self._over.wait(self._api.settings.timeout_s):
                raise self._late("did not read all of its stdin")
            if self._error is not None:
                raise self._error
        finally:
            await self.abort()
        if self._close:
            await self._api.call("POST", self._path, params={"close": True}, body=b"")

    async def abort(self) -> None:
        """Give up what was not sent yet, and leave the command's stdin as it is."""
        self._api.release(self._cut)
        self._buffer.end(drop=True)
        await self._worker.close(_END_S)
        self._over.set()

    async def wait_closed(self, timeout_ms: int | None = None) -> None:
        """Wait until it is over: returns when it was closed, raises what ended it before (as `write` does)."""
        while not await self._over.wait(_STUCK_MS / 1000 if timeout_ms is None else timeout_ms / 1000):
            if timeout_ms is not None:
                raise self._late("went on reading its stdin")
        if self._error is not None:
            raise self._error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.close()
        else:
            await self.abort()

    async def _carry(self) -> None:
        """Send what is written, on one request after the other. Each begins with its first bytes: an attempt that did
        not reach the server has taken no more than these."""
        try:
            while first := await self._buffer.take(CHUNK, None):
                await self._api.call(
                    "POST",
                    self._path,
                    body=partial(self._body, first),
                    replayable=False,
                    timeout_ms=_STUCK_MS,
                )
                if not self._whole:
                    raise strange_answer(f"POST {self._path}", "an answer before the end of the request")
        except RunraError as error:
            self._error = error
        finally:
            self._buffer.end(drop=True)
            self._over.set()

    async def _body(self, first: bytes) -> AsyncIterator[bytes]:
        self._whole = False
        piece = first
        while piece:
            yield piece
            piece = await self._buffer.take(CHUNK, _IDLE_S)
        self._whole = True

    def _ended(self) -> RunraError | None:
        if not self._over.is_set():
            return None
        return self._error or RunraError("INVALID_STATE", "this stdin was closed here; open another one", status=0)

    def _late(self, what: str) -> RunraError:
        return RunraError(
            "NETWORK_ERROR",
            f"process {self.pid} {what} within the time given",
            details={"reason": "timeout", "sent": True, "apiUrl": self._api.settings.api_url, "pid": self.pid},
            retryable=False,
        )


class _Cut:
    """What a client that closes does to a stdin that is still open."""

    def __init__(self, stdin: AsyncStdin) -> None:
        self._stdin = stdin

    async def close(self) -> None:
        await self._stdin.abort()
