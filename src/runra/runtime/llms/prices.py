"""What a call cost: the provider's own word, the user's prices, nothing for a local model, genai-prices, or unknown."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Final, Literal

from runra.runtime.llms.targets import Target
from runra.runtime.llms.types import Usage

_log = logging.getLogger("runra.llms")

Source = Literal["provider", "config", "local", "genai-prices", "unknown"]


@dataclass(frozen=True)
class Cost:
    """US dollars, or None where the price is not known: never a guess."""

    amount: float | None
    source: Source


#: Models whose price is not known and of which the log has been told.
_warned: Final[set[tuple[str, str]]] = set()


def cost(target: Target, usage: Usage, model: str = "") -> Cost:
    """What these tokens cost. The first call for a model of no known price logs a warning.

    Importing genai-prices takes a third of a second, once: call `load` in a thread before where that matters.
    """
    model = model or target.model
    if usage.cost is not None:
        return Cost(usage.cost, "provider")
    own = target.prices.get(model)
    if own is not None:
        read = own.input if own.cache_read is None else own.cache_read
        write = own.input if own.cache_write is None else own.cache_write
        total = (
            usage.input_tokens * own.input
            + usage.cache_read_tokens * read
            + usage.cache_write_tokens * write
            + usage.output_tokens * own.output
        )
        return Cost(total / 1e6, "config")
    if target.local:
        return Cost(0.0, "local")
    amount = _listed(target.provider.prices, model, usage) if target.provider.prices else None
    if amount is not None:
        return Cost(amount, "genai-prices")
    if (target.provider.id, model) not in _warned:
        _warned.add((target.provider.id, model))
        _log.warning(
            "the price of model %r of %s is not known: its cost is reported as unknown; set `prices` in the llm config",
            model,
            target.provider.id,
        )
    return Cost(None, "unknown")


def known(target: Target) -> bool:
    """Whether calls to this target can be priced, so that a budget can hold."""
    return cost(target, Usage()).amount is not None


def load() -> None:
    """Import the price list."""
    import genai_prices.data  # noqa: F401


def _listed(provider_id: str, model: str, usage: Usage) -> float | None:
    # Imported here: it takes longer than all else, and local models never need it.
    from genai_prices import Usage as Counted
    from genai_prices import calc_price

    named = re.sub(r"\[.*\]$", "", model)  # claude-code's mark of a long context
    counted = Counted(
        input_tokens=usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
    )
    try:
        return float(calc_price(counted, named, provider_id=provider_id).total_price)
    except (LookupError, ValueError):  # not in the list; or listed without a price for one of these kinds
        return None
