"""What a reader of events is told when some of them are missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from runra.sdk.sse import ServerEvent

#: The name of a gap on the wire.
_NAME: Final = "gap"
_WHY: Final = {
    "restart": "the server has been restarted, and keeps none of before",
    "forgotten": "there were more since than the server keeps",
    "slow": "this reader was too slow",
}


@dataclass(frozen=True)
class EventGap:
    """Events are missing after the one with the id `after` (empty when none was read). `reason`: `restart`, the server
    was restarted, and there may have been some; `forgotten`, it keeps the latest 10,000 only; `slow`, this reader let
    too many wait. `count`: how many, where that is known."""

    reason: str
    after: str
    count: int | None = None

    def __str__(self) -> str:
        many = "events" if self.count is None else f"{self.count} events"
        return f"{many} after {self.after or 'the beginning'} may be missing: {_WHY.get(self.reason, self.reason)}"


GapHandler = Callable[[EventGap], Any]


def read_gap(raw: ServerEvent) -> EventGap | None:
    """The gap that this tells of, or None when it tells of none."""
    content = raw.json()
    reason, after, count = content.get("reason"), content.get("after"), content.get("count")
    if raw.name != _NAME or not isinstance(reason, str):
        return None
    return EventGap(reason, after if isinstance(after, str) else "", count if isinstance(count, int) else None)
