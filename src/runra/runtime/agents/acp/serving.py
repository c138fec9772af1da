"""What an ACP agent may ask of us: permissions, and files of the sandbox it is in."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Literal

from runra.errors import RunraError
from runra.runtime.agents.acp.peer import INVALID_PARAMS, METHOD_NOT_FOUND, NOT_FOUND, RpcError
from runra.runtime.agents.options import Permit
from runra.runtime.agents.transcripts import AgentEvent
from runra.runtime.llms.wires.parts import count, mapping, objects, text

if TYPE_CHECKING:
    from runra.runtime.agents.acp.updates import Updates
    from runra.runtime.sandbox import Sandbox

#: Largest file that is read or written for an agent, in bytes.
_FILE: Final = 10 << 20
_ALLOW: Final = ("allow_once", "allow_always")
_REJECT: Final = ("reject_once", "reject_always")


class Serving:
    """Answers an agent's requests by the run's permission mode. Terminals are not offered: its commands run where the
    agent does, which is the sandbox."""

    def __init__(
        self,
        sandbox: Sandbox,
        updates: Updates,
        tell: Callable[[AgentEvent], object],
        mode: Literal["auto-approve", "prompt", "plan"],
        permit: Permit | None,
        permit_s: float,
    ) -> None:
        self._sandbox = sandbox
        self._updates = updates
        self._tell = tell
        self._mode = mode
        self._permit = permit
        self._permit_s = permit_s
        self._granted: set[str] = set()
        #: How many questions wait for the caller: the agent's silence meanwhile is ours.
        self.asking = 0
        #: The turn is being ended: whatever is asked is answered so.
        self.cancelled = asyncio.Event()

    async def answer(self, method: str, params: dict[str, Any]) -> Any:
        match method:
            case "session/request_permission":
                return {"outcome": await self._permission(params)}
            case "fs/read_text_file":
                return {"content": await self._read(params)}
            case "fs/write_text_file":
                await self._write(params)
                return {}
        raise RpcError(METHOD_NOT_FOUND, f"{method[:100]} is not offered")

    def noticed(self, update: dict[str, Any]) -> None:
        """A call that was granted and has ended grants nothing more."""
        if update.get("status") in ("completed", "failed"):
            self._granted.discard(text(update.get("toolCallId")))

    async def _permission(self, params: dict[str, Any]) -> dict[str, Any]:
        call = mapping(params.get("toolCall"))
        events, tool, given = self._updates.asked(call)
        for event in events:
            self._tell(event)
        allowed = await self._allowed(tool, given)
        if self.cancelled.is_set():
            return {"outcome": "cancelled"}
        options = list(objects(params.get("options")))
        for kind in _ALLOW if allowed else _REJECT:
            for option in options:
                if option.get("kind") == kind:
                    if allowed and len(self._granted) < 1000:
                        self._granted.add(text(call.get("toolCallId")))
                    return {"outcome": "selected", "optionId": text(option.get("optionId"))}
        return {"outcome": "cancelled"}  # no such option: the turn ends

    async def _allowed(self, tool: str, given: Any) -> bool:
        if self._mode != "prompt":
            return self._mode == "auto-approve"
        if self._permit is None:
            return False
        self.asking += 1
        try:
            answer = self._permit(tool, given)
            if not inspect.isawaitable(answer):
                return bool(answer)
            return await self._awaited(answer, tool)
        except Exception as error:  # noqa: BLE001 - the caller's function; what it raises permits nothing
            self._warn(f"on_permission failed for {tool}, which was refused: {type(error).__name__}: {error}")
        finally:
            self.asking -= 1
        return False

    async def _awaited(self, answer: Awaitable[Any], tool: str) -> bool:
        """The caller's answer, unless the turn is ended or too much time goes by before."""
        waiting, ended = asyncio.ensure_future(answer), asyncio.ensure_future(self.cancelled.wait())
        try:
            await asyncio.wait({waiting, ended}, timeout=self._permit_s, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return bool(waiting.result())
            if not ended.done():
                self._warn(f"nobody said within {self._permit_s:g} s whether {tool} may be used; it was refused")
            return False
        finally:
            waiting.cancel()
            ended.cancel()

    def _warn(self, message: str) -> None:
        self._tell(AgentEvent("agent.error", {"message": message[:2000], "fatal": False}))

    async def _read(self, params: dict[str, Any]) -> str:
        path = _path(params)
        try:
            data = await self._sandbox.files.read(path, format="bytes")
        except RunraError as error:
            raise _file_error(error) from None
        if len(data) > _FILE:
            raise RpcError(INVALID_PARAMS, f"{path} is larger than {_FILE >> 20} MiB")
        content = data.decode(errors="replace")
        if params.get("line") is None and params.get("limit") is None:
            return content
        lines = content.splitlines(keepends=True)[max(count(params.get("line")), 1) - 1 :]
        return "".join(lines if params.get("limit") is None else lines[: count(params.get("limit"))])

    async def _write(self, params: dict[str, Any]) -> None:
        path, content = _path(params), params.get("content")
        if not isinstance(content, str) or len(content) > _FILE:
            raise RpcError(INVALID_PARAMS, f"content: must be text of at most {_FILE >> 20} MiB")
        # An agent that asked for its edit is not asked about again for each file of it.
        if not self._granted and not await self._allowed("write", {"path": path, "content": content}):
            raise RpcError(INVALID_PARAMS, f"writing {path} was not permitted")
        try:
            await self._sandbox.files.write(path, content.encode(errors="replace"))
        except RunraError as error:
            raise _file_error(error) from None


def _path(params: dict[str, Any]) -> str:
    path = params.get("path")
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path or len(path) > 4096:
        raise RpcError(INVALID_PARAMS, "path: must be an absolute path")
    return path


def _file_error(error: RunraError) -> RpcError:
    return RpcError(NOT_FOUND if error.details.get("reason") == "not_found" else INVALID_PARAMS, error.message)
