"""Which model an agent gets: the runtime's, or one of the agent's own home."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runra.errors import RunraError
from runra.runtime.llms import PROVIDERS, Target, resolve


def target_for(agent: str, llm: Any, model: str | None, provider: str) -> Target:
    """The model for an agent: that of `llm`, under the name `model` if one is given. Without an `llm`, `model` is
    `provider/name`, or a name at the agent's own `provider`. Raises INVALID_CONFIG."""
    if llm is not None:
        target = getattr(llm, "target", None)
        if not isinstance(target, Target):
            raise RunraError(
                "INVALID_CONFIG",
                f"the agent {agent!r} reaches its model through the gateway, which needs the model's address, and the "
                f"model provider {llm.id!r} tells none; give it a property `target`, or use one of "
                + ", ".join(PROVIDERS),
                details={"field": "llm.provider"},
            )
        return replace(target, model=model) if model else target
    named, slash, name = (model or "").partition("/")
    if slash and named in PROVIDERS:
        return resolve(named, {"model": name})
    if model and provider:
        return resolve(provider, {"model": model})
    raise RunraError(
        "INVALID_CONFIG",
        f"the agent {agent!r} has no model: give llm={{'provider': …, 'config': {{'model': …}}}}, or "
        "agent.config.model as provider/name",
        details={"field": "llm"},
    )
