"""The agent `custom` with `run`: a function or a class of the caller's own, given the run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runra.errors import RunraError
from runra.runtime.types import AgentResult

if TYPE_CHECKING:
    from runra.runtime.run import AgentRun


class FunctionAgent:
    """Calls `config["run"]`, async or sync, with an `AgentRun`: its prompt, its sandbox, the model, and `emit`.

    A class is made with the rest of the configuration as a dict, or with nothing if it takes none, and its method `run`
    is called, or itself. What comes back is the run's summary, or a whole `AgentResult`. An exception fails the run.
    """

    id = "custom"

    async def initialize(self, config: Mapping[str, Any]) -> None:
        given = config["run"]
        if inspect.isclass(given):
            options = {name: value for name, value in config.items() if name != "run"}
            takes = inspect.signature(given).parameters
            make: Any = given
            made = make(options) if takes else make()
            given = getattr(made, "run", made)
        if not callable(given):
            raise RunraError(
                "INVALID_CONFIG",
                "agent.config.run: must be a function, or a class with a method run: "
                'Runra(agent={"provider": "custom", "config": {"run": my_agent}})',
                details={"field": "agent.config.run"},
            )
        self._function = given

    async def start(self, run: AgentRun) -> AgentResult:
        given = self._function(run)
        outcome = await given if inspect.isawaitable(given) else given
        if isinstance(outcome, AgentResult):
            return outcome
        return AgentResult(success=True, summary="" if outcome is None else str(outcome))

    async def dispose(self) -> None:
        return None
