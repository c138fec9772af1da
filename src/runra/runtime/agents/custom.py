"""The agent `custom`: a function of the caller's own, given the run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runra.errors import RunraError
from runra.runtime.types import AgentResult

if TYPE_CHECKING:
    from runra.runtime.run import AgentRun


class CustomAgent:
    """Calls `config["run"]`, async or sync, with an `AgentRun`: its prompt, its sandbox, the model, and `emit`.

    What it returns is the run's summary, or a whole `AgentResult`. An exception fails the run.
    """

    id = "custom"

    async def initialize(self, config: Mapping[str, Any]) -> None:
        """Take the function. Raises INVALID_CONFIG without one: a file cannot carry it, the constructor can."""
        run = config.get("run")
        if not callable(run):
            raise RunraError(
                "INVALID_CONFIG",
                "agent.config.run: the custom agent needs a function: "
                'Runra(agent={"provider": "custom", "config": {"run": my_agent}})',
                details={"field": "agent.config.run"},
            )
        self._function = run

    async def start(self, run: AgentRun) -> AgentResult:
        given = self._function(run)
        outcome = await given if inspect.isawaitable(given) else given
        if isinstance(outcome, AgentResult):
            return outcome
        return AgentResult(success=True, summary="" if outcome is None else str(outcome))

    async def dispose(self) -> None:
        return None
