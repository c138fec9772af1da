"""An agent at work on one prompt: what it may end with, and what is told of that."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from runra.events import Event, EventType
from runra.runtime.run import AgentRun
from runra.runtime.types import AgentResult

if TYPE_CHECKING:
    from runra.runtime.providers import AgentAdapter, LLMProvider
    from runra.runtime.sandbox import Sandbox
    from runra.runtime.session import Session
    from runra.tracing import Run

_log = logging.getLogger("runra.runtime")


async def work_on(
    agent: AgentAdapter,
    prompt: str,
    sandbox: Sandbox,
    llm: LLMProvider | None,
    session: Session,
    run: Run,
    timeout_ms: int | None,
) -> AgentResult:
    """How the agent's work ended. Its failure is a result, told as `agent.error`; a cancellation is raised."""

    def emit(type: EventType, data: dict[str, Any]) -> Event:
        return session.emit(type, sandbox.id, data, run)

    limit = asyncio.timeout(None if timeout_ms is None else timeout_ms / 1000)
    try:
        async with limit:
            return await agent.start(AgentRun(run, prompt, sandbox, llm, emit))
    except Exception as error:  # noqa: BLE001 - an agent's failure is the run's result, and logged whole
        if limit.expired():
            message = f"the run took longer than {timeout_ms} ms and was stopped"
        else:
            message = str(error) or type(error).__name__
            _log.warning("run %s: the agent failed", run.id, exc_info=True)
    emit("agent.error", {"message": message})
    return AgentResult(success=False, summary="", error=message)
