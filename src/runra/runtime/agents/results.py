"""An agent's result, with what its door to the model has counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runra.runtime.llms.failures import KINDS
from runra.runtime.types import AgentResult, Failure, Usage

if TYPE_CHECKING:
    from runra.runtime.model_access import Door

#: Failures after which the same run may well succeed, beside those of models.
_RETRYABLE = frozenset({"silence", "timeout", "oom"})


def spent(door: Door | None, warnings: Sequence[str] = ()) -> AgentResult:
    """A result with nothing in it but tokens and cost. The gateway's count is the one to go by: it sees side calls, and
    knows the prices."""
    if door is None:
        return AgentResult(success=False, summary="", warnings=list(warnings))
    totals = door.totals
    noted = list(warnings)
    if totals.unpriced:
        noted.append(f"the price of {door.target.model} is not known: {totals.unpriced} calls are in no sum")
    return AgentResult(
        success=False,
        summary="",
        total_turns=totals.turns,
        total_cost=None if totals.unpriced else totals.cost,
        cost_source="gateway",
        usage=Usage.model_validate(totals.usage.model_dump()),
        usage_by_model=dict(totals.models),
        warnings=noted,
    )


def failed(
    kind: str, message: str, door: Door | None = None, stderr: Sequence[str] = (), warnings: Sequence[str] = ()
) -> AgentResult:
    """A failed run's result."""
    retryable = KINDS[kind][1] if kind in KINDS else kind in _RETRYABLE
    failure = Failure(kind=kind or "failed", message=message, retryable=retryable, stderr=list(stderr))
    return spent(door, warnings).model_copy(update={"error": message, "failure": failure})
