"""One session with an ACP agent: begun or taken up again, its mode set, its turns taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from runra.runtime.agents.acp.peer import Gone, Peer, RpcError
from runra.runtime.agents.acp.process import AcpProcess
from runra.runtime.agents.acp.serving import Serving
from runra.runtime.agents.acp.updates import Updates
from runra.runtime.agents.transcripts import AgentEvent
from runra.runtime.llms.wires.parts import mapping, objects, text

if TYPE_CHECKING:
    from runra.runtime.agents.acp.agent import AcpOptions
    from runra.runtime.process import Process
    from runra.runtime.sandbox import Sandbox

#: The version of the protocol we speak.
_VERSION: Final = 1
_CAPABILITIES: Final = {"fs": {"readTextFile": True, "writeTextFile": True}, "terminal": False}


class Session:
    """`tell` gets its events. `open`, then `prompt` for each turn; `close` ends the agent."""

    def __init__(
        self, process: Process, sandbox: Sandbox, options: AcpOptions, tell: Callable[[AgentEvent], object]
    ) -> None:
        self.id = ""
        self.updates = Updates()
        self.process = AcpProcess(process, options.acp[0])
        self.login = ""
        self._tell = tell
        self._muted = False
        self.serving = Serving(
            sandbox,
            self.updates,
            tell,
            options.permission_mode,
            options.on_permission,
            options.permission_timeout_ms / 1000,
        )
        self._peer = Peer(self.process.write, self.serving.answer, self._notice)
        self._reader = self.process.read(self._peer.feed, self._peer.close)

    async def open(self, cwd: str, session_id: str, modes: Sequence[str], *, must: bool) -> None:
        """Greet the agent, begin a session or take up an earlier one, and set the first of `modes` that it has. Raises
        Gone, kind `setup`, where it cannot; without any of the modes only if one `must` be."""
        hello = await self._peer.request(
            "initialize",
            {
                "protocolVersion": _VERSION,
                "clientCapabilities": _CAPABILITIES,
                "clientInfo": {"name": "runra", "version": version("runra")},
            },
        )
        if hello.get("protocolVersion") != _VERSION:
            raise Gone(
                "setup",
                f"the agent speaks version {hello.get('protocolVersion')!r} of ACP, and we {_VERSION}: "
                "use a release of it that does",
            )
        self.login = ", ".join(_method(one) for one in objects(hello.get("authMethods")))[:1000]
        begun = await self._begin(mapping(hello.get("agentCapabilities")), cwd, session_id)
        for mode in modes:
            if await self._set_mode(begun, mode):
                return
        if must:
            raise Gone("setup", "this agent has no mode in which it changes nothing, so permissionMode plan cannot be")

    async def prompt(self, words: str) -> dict[str, Any]:
        """One turn; what it ended with. Raises RpcError, Gone."""
        try:
            return await self._peer.request(
                "session/prompt", {"sessionId": self.id, "prompt": [{"type": "text", "text": words}]}
            )
        finally:
            self.settle()

    def settle(self) -> None:
        """Tell what is still open in a turn that has ended, however."""
        for event in self.updates.turn_ended():
            self._tell(event)

    async def cancel(self, turn: asyncio.Task[Any], seconds: float) -> None:
        """Ask it to end the turn, and give it `seconds`."""
        self.serving.cancelled.set()
        with suppress(TimeoutError, Gone):
            async with asyncio.timeout(seconds):
                await self._peer.notify("session/cancel", {"sessionId": self.id})
                await asyncio.wait({turn})

    async def close(self) -> None:
        self._peer.close(Gone("stopped", "the conversation is over"))
        await self.process.close()

    async def _begin(self, abilities: dict[str, Any], cwd: str, session_id: str) -> dict[str, Any]:
        where: dict[str, Any] = {"cwd": cwd, "mcpServers": []}
        if not session_id:
            begun = await self._peer.request("session/new", where)
            self.id = text(begun.get("sessionId"))
            if not self.id:
                raise Gone("protocol", "the agent began a session without a sessionId")
            return begun
        if abilities.get("loadSession") is True:
            method = "session/load"
        elif "resume" in mapping(abilities.get("sessionCapabilities")):
            method = "session/resume"
        else:
            raise Gone("setup", "this agent cannot go on with an earlier conversation; leave session_id out")
        self.id, self._muted = session_id, True  # it tells the whole conversation again, which was told before
        try:
            return await self._peer.request(method, {"sessionId": session_id, **where})
        finally:
            self.updates.turn_ended()
            self.updates.summary = ""
            self._muted = False

    async def _set_mode(self, begun: dict[str, Any], mode: str) -> bool:
        offered = objects(mapping(begun.get("modes")).get("availableModes"))
        if any(one.get("id") == mode for one in offered):
            await self._peer.request("session/set_mode", {"sessionId": self.id, "modeId": mode})
            return True
        for option in objects(begun.get("configOptions")):
            values = {text(one.get("value")) for one in objects(option.get("options"))}
            if option.get("category") == "mode" and mode in values:
                chosen = {"sessionId": self.id, "configId": text(option.get("id")), "value": mode}
                await self._peer.request("session/set_config_option", chosen)
                return True
        return False

    def _notice(self, method: str, params: dict[str, Any]) -> None:
        if method != "session/update":
            return
        update = mapping(params.get("update"))
        self.serving.noticed(update)
        for event in self.updates.feed(update):
            if not self._muted:
                self._tell(event)


def words_of(error: RpcError) -> str:
    """What an agent's error says, its details included: the message alone is often «Internal error»."""
    data = error.data
    details = data if isinstance(data, str) else ""
    for name in ("details", "message", "error", "errorMessage"):
        details = details or text(mapping(data).get(name))
    return f"{error.message}: {details[:2000]}" if details and details != error.message else error.message


def _method(method: dict[str, Any]) -> str:
    name, told = text(method.get("name")) or text(method.get("id")), text(method.get("description"))
    return f"{name} ({told})" if told and told != name else name
