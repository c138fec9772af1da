"""The agent `custom`: what its configuration names, or our own tool loop."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from runra.errors import RunraError
from runra.runtime.agents.options import LOOP_ABILITIES, Ability

if TYPE_CHECKING:
    from runra.runtime.run import AgentRun
    from runra.runtime.types import AgentResult

#: The key of the configuration that chooses an agent, and where that is; without any of them it is the loop.
_KINDS: Final = {
    "run": "runra.runtime.agents.function:FunctionAgent",
    "command": "runra.runtime.agents.command:CommandAgent",
    "acp": "runra.runtime.agents.acp:AcpAgent",
}
_LOOP: Final = "runra.runtime.agents.loop:LoopAgent"


class CustomAgent:
    """Hands everything on to the agent its configuration chooses."""

    id = "custom"

    def __init__(self) -> None:
        self._inner: Any = None
        #: What was said before there was an agent to say it to.
        self._early: list[str] = []
        self._stopped = False

    @property
    def abilities(self) -> frozenset[Ability]:
        """Those of the loop, until another agent is chosen."""
        if self._inner is None:
            return LOOP_ABILITIES
        found: frozenset[Ability] = getattr(self._inner, "abilities", frozenset())
        return found

    @property
    def tracks_files(self) -> bool:
        return bool(getattr(self._inner, "tracks_files", False))

    @property
    def workdir(self) -> str | None:
        workdir: str | None = getattr(self._inner, "workdir", None)
        return workdir

    async def initialize(self, config: Mapping[str, Any]) -> None:
        """Choose the agent. Raises INVALID_CONFIG for two at once, and what the chosen one refuses."""
        chosen = [key for key in _KINDS if config.get(key) is not None]
        if len(chosen) > 1:
            raise RunraError(
                "INVALID_CONFIG",
                f"agent.config: {' and '.join(chosen)} are agents each; give one of them",
                details={"field": f"agent.config.{chosen[1]}"},
            )
        module, _, name = (_KINDS[chosen[0]] if chosen else _LOOP).partition(":")
        self._inner = getattr(import_module(module), name)()
        await self._inner.initialize(config)
        for message in self._early:
            await self.send_message(message)
        if self._stopped:
            await self.stop()

    async def start(self, run: AgentRun) -> AgentResult:
        result: AgentResult = await self._inner.start(run)
        return result

    async def send_message(self, message: str) -> None:
        if self._inner is None:
            self._early.append(message)
            return
        send = getattr(self._inner, "send_message", None)
        if send is None:
            raise RunraError("INVALID_CONFIG", "this agent takes no messages while it works")
        await send(message)

    async def stop(self) -> None:
        if self._inner is None:
            self._stopped = True
            return
        stop = getattr(self._inner, "stop", None)
        if stop is None:
            raise RunraError("INVALID_CONFIG", "this agent cannot be stopped with a result; cancel the run")
        await stop()

    async def dispose(self) -> None:
        if self._inner is not None:
            await self._inner.dispose()
