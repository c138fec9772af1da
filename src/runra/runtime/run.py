"""What an agent is given: the prompt, the sandbox, the model, and a voice in the run's events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runra.events import Event, EventType
from runra.tracing import Run

if TYPE_CHECKING:
    from runra.runtime.providers import LLMProvider
    from runra.runtime.sandbox import Sandbox


@dataclass(frozen=True)
class AgentRun:
    """One run of an agent. `llm` is None when no model is configured;"""

    run: Run
    prompt: str
    sandbox: Sandbox
    llm: LLMProvider | None
    #: Publish an event of this run, such as `emit("agent.message", {"text": …})`.
    emit: Callable[[EventType, dict[str, Any]], Event]
