"""What an agent is given: the prompt, the sandbox, the model, and a voice in the run's events."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from runra.errors import RunraError
from runra.events import Event, EventType
from runra.tracing import Run

if TYPE_CHECKING:
    from runra.runtime.gateway import RunLimits
    from runra.runtime.llms import Target
    from runra.runtime.model_access import Door, ModelAccess
    from runra.runtime.providers import LLMProvider
    from runra.runtime.sandbox import Sandbox


@dataclass(frozen=True)
class AgentRun:
    """One run of an agent. `llm` is None when no model is configured; `session_id` is an earlier conversation's to go
    on with, empty for a new one."""

    run: Run
    prompt: str
    sandbox: Sandbox
    llm: LLMProvider | None
    #: Publish an event of this run, such as `emit("agent.message", {"text": …})`.
    emit: Callable[[EventType, dict[str, Any]], Event]
    session_id: str = ""
    access: ModelAccess | None = field(default=None, repr=False)

    def open_model(
        self, target: Target, limits: RunLimits, *, where: Literal["sandbox", "host"] = "sandbox"
    ) -> AbstractAsyncContextManager[Door]:
        """A way to the model without its key while the block lasts: a URL and a token, usable in the sandbox even if
        that has no network, or on this machine. Every call is counted and told as `cost.llm`."""
        if self.access is None:
            raise RunraError("INVALID_STATE", "this run was made without a way to models", status=0)
        return self.access.open(self, target, limits, where)
