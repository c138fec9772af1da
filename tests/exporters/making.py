"""Events to export, and exporters that do as a test wants."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from runra.errors import RunraError
from runra.events import Event, EventType

_NUMBERS = itertools.count()
_BEGIN = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def event(
    type: EventType = "exec.completed",
    data: dict[str, Any] | None = None,
    *,
    at_ms: int = 0,
    sandbox_id: str = "sb_aaaaaaaaaaaaaaaa",
    run_id: str = "",
    trace_id: str = "",
) -> Event:
    """An event with an id of its own, `at_ms` after a fixed moment."""
    when = (_BEGIN + timedelta(milliseconds=at_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Event(
        id=f"evt_test{next(_NUMBERS):012d}",
        timestamp=when,
        type=type,
        sandbox_id=sandbox_id,
        run_id=run_id,
        trace_id=trace_id,
        data={"command": "true", "pid": 7, "exitCode": 0, "durationMs": 3} if data is None else data,
    )


class Recorder:
    """An exporter that keeps what it gets. `behave` is called first with the number of the attempt, and may raise or
    wait."""

    def __init__(self, name: str = "recorder", behave: Any = None) -> None:
        self.name = name
        self.batches: list[list[Event]] = []
        self.attempts = 0
        self.started = 0
        self.closed = 0
        self._behave = behave

    @property
    def ids(self) -> list[str]:
        return [event.id for batch in self.batches for event in batch]

    async def start(self) -> None:
        self.started += 1

    async def export(self, events: Sequence[Event]) -> None:
        self.attempts += 1
        if self._behave is not None:
            await self._behave(self.attempts)
        self.batches.append(list(events))

    async def close(self) -> None:
        self.closed += 1


async def never(attempt: int) -> None:
    """A back end that does not answer."""
    await asyncio.Event().wait()


def failing(times: int = 10**9, *, retryable: bool = True, retry_after_ms: int | None = 1) -> Any:
    """A back end that refuses the first `times` attempts."""

    async def behave(attempt: int) -> None:
        if attempt <= times:
            details = {} if retry_after_ms is None else {"retryAfterMs": retry_after_ms}
            raise RunraError("NETWORK_ERROR", "it is down", retryable=retryable, details=details)

    return behave
