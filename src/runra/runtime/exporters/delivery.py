"""How events are handed to an exporter: the options all of them share, and what is remembered of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from pydantic import Field, SecretStr

from runra.contract import Request
from runra.errors import RunraError
from runra.event_catalogue import at_least
from runra.events import Event, EventType, matches
from runra.runtime.options import ExporterFilter
from runra.runtime.providers import Exporter

#: Text that no repr, log or error shows.
Secret = Annotated[SecretStr, Field(strict=False)]


class Delivery(Request):
    """Options of every exporter. An exporter's own options extend this model; in a file the names are camelCase.

    `batch_size` and `flush_interval_ms`: a batch goes out when it is full, or that long after its first event.
    `queue_size` and `queue_kb`: what may wait; beyond it the oldest events are dropped and counted. `timeout_ms` bounds
    one attempt, `give_up_ms` all attempts at one batch. `on_error` is called once for each stretch of failure, with a
    RunraError; it may be a coroutine function.
    """

    batch_size: int = Field(100, ge=1, le=10_000)
    flush_interval_ms: int = Field(5_000, ge=0, le=3_600_000)
    queue_size: int = Field(10_000, ge=1, le=1_000_000)
    queue_kb: int = Field(32_768, ge=64)
    timeout_ms: int = Field(30_000, ge=1, le=600_000)
    give_up_ms: int = Field(300_000, ge=0, le=86_400_000)
    on_error: Callable[[RunraError], Any] | None = Field(None, exclude=True)


@dataclass(frozen=True)
class Route:
    """An exporter, which events it gets, and how."""

    exporter: Exporter
    filter: ExporterFilter = field(default_factory=ExporterFilter)
    delivery: Delivery = field(default_factory=lambda: Delivery())

    def wants(self, type: EventType) -> bool:
        """By its type alone; the rest is `passes`."""
        return any(matches(pattern, type) for pattern in self.filter.types or ("*",))

    def passes(self, event: Event) -> bool:
        """By level and condition. An exception of the condition is the caller's to handle."""
        if self.filter.min_level is not None and not at_least(event, self.filter.min_level):
            return False
        return self.filter.condition is None or bool(self.filter.condition(event))


@dataclass
class Stats:
    """What became of the events one exporter was to get. `offered` = `exported` + `dropped` + what waits."""

    offered: int = 0
    exported: int = 0
    dropped: int = 0
    retries: int = 0
    waiting: int = 0
    #: Why the latest attempt failed; empty when it did not.
    failure: str = ""


#: An error that says nothing about when to come again waits this long at first, and twice as long each time.
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
#: A back end that says "at once" is not asked without end.
SHORTEST_PAUSE_S: Final = 0.1


def as_failure(error: BaseException) -> RunraError:
    """What an exporter raised, as our error. A lost connection and a deadline are worth another attempt; what we do not
    know is not, for the same batch would most likely fail again."""
    if isinstance(error, RunraError):
        return error
    if isinstance(error, TimeoutError):
        return RunraError("NETWORK_ERROR", "the attempt took too long (timeoutMs)", retryable=True)
    text = str(error).strip().partition("\n")[0][:500]
    told = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, OSError):
        return RunraError("NETWORK_ERROR", told, retryable=True)
    return RunraError("INTERNAL_ERROR", told, retryable=False)
