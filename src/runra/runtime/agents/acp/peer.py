"""One end of a JSON-RPC 2.0 conversation, a message a line: what we ask of an agent, and what it asks of us."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from runra.errors import RunraError
from runra.runtime.llms.wires.parts import mapping, text

#: How many of its requests may be under way at once; more are refused.
_SERVED: Final = 32
#: How many lines that are no message are passed over: agents and their runtimes print warnings.
_GARBAGE: Final = 100
#: How long the agent may take to read what is written to it, in seconds.
_WRITE_S: Final = 60.0
#: How long an agent that takes no more input may take to end, in seconds.
_LAST_WORDS_S: Final = 2.0

METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL: Final = -32603
AUTH_REQUIRED: Final = -32000
NOT_FOUND: Final = -32002
_BUSY: Final = -32005


class RpcError(Exception):
    """An error as it is answered: one of theirs raised here, or one of ours to be sent."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class Gone(Exception):
    """The agent does not speak any more. `kind` is that of the run's failure."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Peer:
    """`write` sends a line; `serve` answers a request of the agent's; `notice` takes what wants no answer, in order.

    Lines come in by `feed`. Nothing here waits without the caller's deadline, except for a write, which has its own.
    """

    def __init__(
        self,
        write: Callable[[bytes], Awaitable[None]],
        serve: Callable[[str, dict[str, Any]], Awaitable[Any]],
        notice: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._write = write
        self._serve = serve
        self._notice = notice
        self._turn = asyncio.Lock()  # lines must not be torn by one another
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._next = 0
        self._garbage = 0
        self._gone: Gone | None = None
        self._closed = asyncio.Event()

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Ask, and wait for the answer. Raises RpcError for one that is an error, Gone when there will be none."""
        if self._gone is not None:
            raise self._gone
        id, self._next = self._next, self._next + 1
        answer = self._asked[id] = asyncio.get_running_loop().create_future()
        try:
            await self._send({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
            return mapping(await answer)
        finally:
            self._asked.pop(id, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # taken note of, though a write that failed was raised before it

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        await self._send({"jsonrpc": "2.0", "method": method, "params": params})

    def feed(self, line: str) -> None:
        """Take a line of the agent's. One that is no message is passed over; too many of them end the conversation."""
        try:
            message = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            message = line
        if message is None:
            return
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            self._garbage += 1
            if self._garbage > _GARBAGE:
                self.close(Gone("protocol", f"more than {_GARBAGE} lines were no JSON-RPC, such as {line[:200]!r}"))
            return
        method = message.get("method")
        if isinstance(method, str):
            if message.get("id") is None:
                self._notice(method, mapping(message.get("params")))
            else:
                self._take(message["id"], method, mapping(message.get("params")))
        else:
            self._answered(message)

    def close(self, gone: Gone) -> None:
        """It will not speak any more: whoever waits for an answer is told why, and what it asked is dropped."""
        self._gone = self._gone or gone
        self._closed.set()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(self._gone)
        for task in self._serving:
            task.cancel()

    def _answered(self, message: dict[str, Any]) -> None:
        id = message.get("id")
        answer = self._asked.get(id) if isinstance(id, int) and not isinstance(id, bool) else None
        if answer is None or answer.done():
            return
        error = message.get("error")
        if error is None:
            answer.set_result(message.get("result"))
            return
        told = mapping(error)
        code = told.get("code")
        words = text(told.get("message")) or "an error without words"
        answer.set_exception(RpcError(code if isinstance(code, int) else INTERNAL, words, told.get("data")))

    def _take(self, id: Any, method: str, params: dict[str, Any]) -> None:
        crowded = len(self._serving) >= _SERVED
        if len(self._serving) >= 2 * _SERVED:  # it does not even wait for refusals
            self.close(Gone("protocol", f"the agent has {2 * _SERVED} requests under way at once"))
            return
        task = asyncio.create_task(self._respond(id, method, params, crowded), name=f"runra-acp {method[:40]}")
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _respond(self, id: Any, method: str, params: dict[str, Any], crowded: bool) -> None:
        message: dict[str, Any] = {"jsonrpc": "2.0", "id": id}
        try:
            if crowded:
                raise RpcError(_BUSY, f"{_SERVED} requests are under way; wait for one of them")
            message["result"] = await self._serve(method, params)
        except RpcError as error:
            message["error"] = {"code": error.code, "message": error.message}
        except RunraError as error:
            message["error"] = {"code": INTERNAL, "message": error.message}
        try:
            await self._send(message)
        except Gone:
            return  # whoever waits for the agent is told of it

    async def _send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"
        try:
            async with asyncio.timeout(_WRITE_S), self._turn:
                if self._gone is not None:
                    raise self._gone
                await self._write(line)
        except TimeoutError:
            gone = Gone("protocol", f"the agent read nothing of what was written to it for {_WRITE_S:g} s")
        except RunraError as error:
            # It may just have ended, and how it did says more than that nobody reads any more.
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._closed.wait()
            gone = self._gone or Gone("no_result", f"the agent takes no more input: {error.message}")
        else:
            return
        self.close(gone)
        raise gone
