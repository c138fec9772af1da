"""Processes in a sandbox: those started in the background, and every other that is still known."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from runra.contract import ExecutionResult, ProcessInfo
from runra.errors import RunraError
from runra.sdk._async.api import AsyncApi
from runra.sdk._async.outputs import AsyncOutputs
from runra.sdk._async.stdin import AsyncStdin
from runra.sdk.bodies import as_data
from runra.sdk.failures import invalid
from runra.sdk.output import Kept, OutputChunk
from runra.sdk.types import RawPage, parsed
from runra.sdk.wire import sandbox_path


class AsyncProcess:
    """A handle on a process. It needs no closing: the process lives in the sandbox, not here."""

    def __init__(self, api: AsyncApi, sandbox_id: str, pid: int, *, command: str = "", started_at: str = "") -> None:
        self.pid = pid
        self.command = command
        self.started_at = started_at
        #: How it ended; None until `wait` has seen that.
        self.result: ExecutionResult | None = None
        self._api = api
        self._sandbox_id = sandbox_id

    async def info(self) -> ProcessInfo:
        """What the server says of it now: `state` (`running`, `exited`), `exit_code`, `signal`, `oom`."""
        path = sandbox_path(self._sandbox_id, "processes", self.pid)
        answer = await self._api.call("GET", path)
        return parsed(ProcessInfo, answer.json(f"GET {path}"), f"GET {path}")

    async def wait(self, timeout_ms: int | None = None) -> ExecutionResult:
        """Wait for its end; the result has its output, the first 8 MiB of each stream (`truncated` says if more).

        Without `timeout_ms` it waits as long as the process runs and the server answers. Raises NETWORK_ERROR with
        `details["reason"] == "timeout"` when the time is over; the process runs on. Raises EXECUTION_TIMEOUT when
        the process was killed by the timeout it was started with.
        """
        if self.result is not None:
            return self.result
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        outputs = AsyncOutputs(self._api, self._sandbox_id, pid=self.pid, deadline=deadline)
        kept = Kept()
        async with aclosing(outputs.chunks()) as chunks:
            async for chunk in chunks:
                kept.add(chunk)
        self.result = outputs.finished(kept)
        return self.result

    async def logs(self, offset: int = 0) -> AsyncGenerator[OutputChunk, None]:
        """Its output from `offset` bytes on, as it comes, until it ends. What the sandbox still has in its buffer comes
        first; a break in the connection loses nothing."""
        outputs = AsyncOutputs(self._api, self._sandbox_id, pid=self.pid, offset=offset)
        async with aclosing(outputs.chunks()) as chunks:
            async for chunk in chunks:
                yield chunk

    async def send_stdin(self, data: str | bytes) -> None:
        """Write to its stdin; returns when the server has passed it on. Raises INVALID_STATE when it is closed."""
        path = sandbox_path(self._sandbox_id, "processes", self.pid, "stdin")
        await self._api.call("POST", path, body=as_data(data))

    def open_stdin(self, *, close: bool = True) -> AsyncStdin:
        """Its stdin for many writes, on one request that stays open: use it as a context manager. Leaving that ends the
        stdin, unless `close` is False.

        Proxies between here and the server must pass a request on as it comes (nginx: `proxy_request_buffering off`).
        """
        return AsyncStdin(self._api, self._sandbox_id, self.pid, close)

    async def close_stdin(self) -> None:
        """End its stdin."""
        path = sandbox_path(self._sandbox_id, "processes", self.pid, "stdin")
        await self._api.call("POST", path, params={"close": True}, body=b"")

    async def signal(self, name: str) -> None:
        """Send a signal such as `SIGTERM` to it and all its children."""
        path = sandbox_path(self._sandbox_id, "processes", self.pid, "signal")
        await self._api.call("POST", path, content={"signal": name})

    async def kill(self) -> None:
        """Kill it and all its children; one that has ended already is fine."""
        try:
            await self.signal("SIGKILL")
        except RunraError as error:
            if error.details.get("reason") != "no_such_process":
                raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid} {self.command[:60]!r} in {self._sandbox_id}>"


class AsyncProcesses:
    """The processes of a sandbox that were started through the API."""

    def __init__(self, api: AsyncApi, sandbox_id: str) -> None:
        self._api = api
        self._sandbox_id = sandbox_id

    async def list(self) -> list[ProcessInfo]:
        """Those that run, and those whose end is still remembered."""
        path = sandbox_path(self._sandbox_id, "processes")
        answer = await self._api.call("GET", path)
        page = parsed(RawPage, answer.json(f"GET {path}"), f"GET {path}")
        return [parsed(ProcessInfo, item, f"GET {path}") for item in page.data]

    async def get(self, pid: int) -> AsyncProcess:
        """A handle on a process by its pid. Raises INVALID_REQUEST when there is none."""
        if not isinstance(pid, int) or isinstance(pid, bool) or pid < 1:
            raise invalid("pid", f"must be the number of a process, not {pid!r}")
        handle = AsyncProcess(self._api, self._sandbox_id, pid)
        info = await handle.info()
        handle.command, handle.started_at = info.command, info.started_at
        return handle
