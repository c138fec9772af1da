"""A run: one piece of work of an agent, whose id and trace id every event in it carries."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from runra.events import Event, EventType
from runra.ids import new_id

if TYPE_CHECKING:
    from runra.runtime.providers import LLMProvider
    from runra.runtime.sandbox import Sandbox


@dataclass(frozen=True)
class Run:
    """`id` is `run_` and 16 characters; `trace_id` 32 hex digits, as W3C Trace Context and OpenTelemetry have it."""

    id: str = field(default_factory=lambda: new_id("run"))
    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))


#: The run the current task works for; tasks it starts inherit it.
current_run: Final[ContextVar[Run | None]] = ContextVar("runra_run", default=None)


@dataclass(frozen=True)
class AgentRun:
    """What an agent is given: the prompt, the sandbox to work in, the model if one is configured, and a voice."""

    run: Run
    prompt: str
    sandbox: Sandbox
    llm: LLMProvider | None
    #: Publish an event of this run, such as `emit("agent.message", {"text": …})`.
    emit: Callable[[EventType, dict[str, Any]], Event]
