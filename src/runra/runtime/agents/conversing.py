"""What an agent takes from its caller while it works: further messages, and a stop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from runra.errors import RunraError

#: How many messages may wait for an agent.
_WAITING: Final = 100


class Conversing:
    """The base of agents that do. They ask for `next_message` when a turn has ended, watch `_stopped`, and call
    `ended` once no message can be taken any more."""

    def __init__(self) -> None:
        self._messages: deque[str] = deque()
        self._stopped = asyncio.Event()
        self._closed = False

    async def send_message(self, message: str) -> None:
        """Say more: its next turn. Raises INVALID_STATE when it has ended, RESOURCE_EXHAUSTED beyond 100 waiting."""
        if self._closed:
            raise RunraError("INVALID_STATE", "the agent has ended; go on with its session_id", status=0)
        if len(self._messages) >= _WAITING:
            raise RunraError("RESOURCE_EXHAUSTED", f"{_WAITING} messages wait for the agent already")
        self._messages.append(message)

    async def stop(self) -> None:
        """End its work, with a result."""
        self._stopped.set()

    async def dispose(self) -> None:
        self._closed = True

    def next_message(self) -> str | None:
        """What was said last and not yet heard, the first of it."""
        return self._messages.popleft() if self._messages else None

    def ended(self) -> None:
        """No message can be taken any more."""
        self._closed = True
