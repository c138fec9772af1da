"""What a caller can say to a run that is under way."""

from __future__ import annotations

from typing import Any

from runra.errors import RunraError


class RunControls:
    """Hands messages and a stop to the run's agent while it works."""

    def __init__(self) -> None:
        self._agent: Any = None
        self._ended = False

    def attach(self, agent: Any) -> None:
        self._agent = agent

    def detach(self) -> None:
        self._agent, self._ended = None, True

    async def send_message(self, message: str) -> None:
        if not message:
            raise RunraError("INVALID_REQUEST", "message: must not be empty", details={"field": "message"})
        if self._agent is None:
            raise RunraError(
                "INVALID_STATE",
                "the run has ended; go on with its session_id in another" if self._ended else "the run has not begun",
                status=0,
            )
        send = getattr(self._agent, "send_message", None)
        if send is None:
            raise RunraError("INVALID_CONFIG", f"the agent {self._agent.id!r} takes no messages while it works")
        await send(message)

    async def stop(self) -> None:
        if self._agent is None:
            return
        stop = getattr(self._agent, "stop", None)
        if stop is None:
            raise RunraError(
                "INVALID_CONFIG", f"the agent {self._agent.id!r} cannot be stopped with a result; cancel the run"
            )
        await stop()
