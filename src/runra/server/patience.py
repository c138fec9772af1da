"""How long a sandbox is waited for, and what is said when it did not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from runra.errors import RunraError
from runra.node.agent.types import AgentLost
from runra.server.nodeport import Sandbox

#: How much longer than a command's own timeout we wait for the agent to say that it ended.
_MARGIN_S: Final = 30.0
_TICK_S: Final = 5.0
#: How long a sandbox whose agent has gone may take to be called terminated.
_ENDING_S: Final = 1.0


@asynccontextmanager
async def deadline(sandbox: Sandbox, timeout_ms: int | None) -> AsyncIterator[None]:
    """Our own limit, should the agent never say that a command ended. Like the command's, it stands still while
    the sandbox is paused. A command without a timeout has none: its stream has heartbeats instead."""
    if timeout_ms is None:
        yield
        return
    loop = asyncio.get_running_loop()
    left = timeout_ms / 1000 + _MARGIN_S
    timer: asyncio.TimerHandle | None = None

    def tick() -> None:
        nonlocal left, timer
        if sandbox.info().state != "paused":
            left -= _TICK_S
        if left <= 0:
            limit.reschedule(loop.time())
        else:
            timer = loop.call_later(_TICK_S, tick)

    timer = loop.call_later(_TICK_S, tick)
    try:
        async with asyncio.timeout(None) as limit:
            yield
    except TimeoutError:
        raise AgentLost(
            f"the sandbox did not say how the command ended {_MARGIN_S:.0f} s after its timeout; "
            "it may be stuck: see GET …/processes, or terminate it"
        ) from None
    finally:
        timer.cancel()


async def lost(sandbox: Sandbox, error: RunraError) -> RunraError:
    """A connection that ended because the sandbox did is no failure of ours: say what became of the sandbox."""
    if not isinstance(error, AgentLost):
        return error
    # A sandbox that ends loses its agent a moment before it is called terminated.
    deadline = asyncio.get_running_loop().time() + _ENDING_S
    while (info := sandbox.info()).state != "terminated":
        if asyncio.get_running_loop().time() > deadline:
            return error
        await asyncio.sleep(0.01)
    return RunraError(
        "INVALID_STATE",
        f"sandbox {info.id} was terminated (reason {info.termination_reason}) before this call ended",
        details={"sandboxId": info.id, "state": info.state, "terminationReason": info.termination_reason},
    )
