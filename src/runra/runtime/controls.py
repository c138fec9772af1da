"""What a caller can say to a run that is under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runra.errors import RunraError

if TYPE_CHECKING:
    from runra.runtime.providers import AgentAdapter


class RunControls:
    """Hands messages and a stop to the run's agent while it works."""

    def __init__(self, agent: AgentAdapter | None) -> None:
        self.agent = agent
        self._ended = False

    def detach(self) -> None:
        """The run has ended."""
        self._ended = True

    async def send_message(self, message: str) -> None:
        if not message:
            raise RunraError("INVALID_REQUEST", "message: must not be empty", details={"field": "message"})
        if self._ended:
            raise RunraError("INVALID_STATE", "the run has ended; go on with its session_id in another", status=0)
        send = getattr(self.agent, "send_message", None)
        if send is None:
            raise RunraError("INVALID_CONFIG", f"the agent {self._name} takes no messages while it works")
        await send(message)

    async def stop(self) -> None:
        if self._ended:
            return
        stop = getattr(self.agent, "stop", None)
        if stop is None:
            raise RunraError(
                "INVALID_CONFIG", f"the agent {self._name} cannot be stopped with a result; cancel the run"
            )
        await stop()

    @property
    def _name(self) -> str:
        return repr(self.agent.id) if self.agent is not None else "that is not configured"
