"""Events: their names, their envelope, and the log that keeps the latest and feeds subscribers."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from runra.errors import RunraError
from runra.tracing import current_run

EventType = Literal[
    "sandbox.created",
    "sandbox.started",
    "sandbox.paused",
    "sandbox.resumed",
    "sandbox.terminated",
    "sandbox.error",
    "exec.started",
    "exec.completed",
    "exec.streamed",
    "exec.error",
    "exec.timed_out",
    "file.created",
    "file.modified",
    "file.read",
    "file.deleted",
    "file.error",
    "port.exposed",
    "port.closed",
    "network.egress",
    "resource.cpu",
    "resource.memory",
    "resource.disk",
    "image.progress",
    "image.ready",
    "image.error",
    "image.deleted",
    "agent.thinking",
    "agent.tool_call",
    "agent.tool_result",
    "agent.message",
    "agent.error",
    "cost.runtime",
    "cost.llm",
    "cost.storage",
    "cost.total",
]


def now_iso() -> str:
    """The current time as the API writes it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Event(BaseModel):
    """The envelope of spec 1. `organization_id` routes an event to its tenant and never leaves the server."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    id: str
    timestamp: str
    type: EventType
    sandbox_id: str
    run_id: str = ""
    trace_id: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
    organization_id: str = Field(default="", exclude=True)


class EventIds:
    """Ids that sort in order of publication, also across a restart: milliseconds, then a counter. `source` keeps the
    ids of several publishers apart, such as a runtime's from a server's."""

    def __init__(self, source: str = "") -> None:
        self._prefix = f"evt_{source}{int(datetime.now(UTC).timestamp() * 1000):012x}"
        self._counter = itertools.count()

    def next(self) -> str:
        return f"{self._prefix}{next(self._counter):010x}"


#: Types that only come to who names them: a wildcard would carry all that commands print to every back end.
BY_NAME: Final[frozenset[EventType]] = frozenset({"exec.streamed"})


def matches(pattern: str, type: str) -> bool:
    """Whether a type is meant by a pattern: a type itself, `sandbox.*` for all of a topic, or `*` for all there are,
    in both cases without those of `BY_NAME`."""
    if pattern.endswith("*"):
        return type.startswith(pattern[:-1]) and type not in BY_NAME
    return type == pattern


def check_pattern(pattern: str) -> str:
    """The pattern. Raises INVALID_REQUEST for one that can never match: a misspelt type would be silence for ever."""
    known = get_args(EventType)
    topics = {name.partition(".")[0] for name in known}
    if pattern == "*" or pattern in known or (pattern.endswith(".*") and pattern[:-2] in topics):
        return pattern
    raise RunraError(
        "INVALID_REQUEST",
        f"event: {pattern!r} is none; give a type such as 'exec.completed', a topic such as 'sandbox.*', or '*'. "
        f"Topics: {', '.join(sorted(topics))}",
        details={"field": "event", "value": pattern},
    )


class Subscription:
    """One reader of the log: an async iterator over a bounded queue. A reader that falls behind loses the
    oldest waiting events, and `dropped` counts them; it never slows the publisher."""

    def __init__(self, wanted: Callable[[Event], bool], bound: int, named: frozenset[str] = frozenset()) -> None:
        #: The types of `BY_NAME` that it asks for.
        self.named = named
        self._wanted = wanted
        self._queue: deque[Event] = deque(maxlen=bound)
        self._ready = asyncio.Event()
        self._closed = False
        self.dropped = 0

    def offer(self, event: Event) -> None:
        if not self._wanted(event):
            return
        if len(self._queue) == self._queue.maxlen:
            self.dropped += 1
        self._queue.append(event)
        self._ready.set()

    def close(self) -> None:
        """End the iteration once what is queued has been read."""
        self._closed = True
        self._ready.set()

    async def next(self, timeout: float) -> Event | None:
        """The next event, or None when `timeout` seconds pass without one. Raises StopAsyncIteration at the end."""
        if not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._ready.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._ready.wait()
            except TimeoutError:
                return None
            if not self._queue:
                raise StopAsyncIteration
        return self._queue.popleft()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            try:
                event = await self.next(timeout=3600.0)
            except StopAsyncIteration:
                return
            if event is not None:
                yield event


#: How many events the log keeps for replay, and how many may wait for one slow reader.
KEPT: Final = 10_000
WAITING: Final = 10_000


class EventLog:
    """The latest events of this server, in order, with replay from an id. Used on one event loop only."""

    def __init__(self, kept: int = KEPT) -> None:
        self._events: deque[Event] = deque(maxlen=kept)
        self._subscriptions: set[Subscription] = set()
        self._named: Counter[str] = Counter()
        self._ids = EventIds()
        #: What came before this server: ids sort, also across a restart.
        self._first = self._ids.next()
        #: The latest event of each organization that is no longer kept.
        self._forgotten: dict[str, str] = {}

    @property
    def last_id(self) -> str:
        """What to read after in order to hear everything from now on; an id that sorts between now and then."""
        return self._events[-1].id if self._events else self._ids.next()

    def publish(
        self,
        type: EventType,
        sandbox_id: str,
        data: dict[str, Any] | None = None,
        *,
        organization_id: str = "",
        run_id: str = "",
        trace_id: str = "",
        kept: bool = True,
    ) -> Event:
        """Keep an event and hand it to the subscribers. Its run is the current one unless it is named.

        One that is not `kept` is for those who listen now: it is not replayed, and pushes nothing else out.
        """
        run = current_run.get()
        event = Event(
            id=self._ids.next(),
            timestamp=now_iso(),
            type=type,
            sandbox_id=sandbox_id,
            data=data or {},
            organization_id=organization_id,
            run_id=run_id or (run.id if run else ""),
            trace_id=trace_id or (run.trace_id if run else ""),
        )
        if kept:
            if len(self._events) == self._events.maxlen:
                self._forgotten[self._events[0].organization_id] = self._events[0].id
            self._events.append(event)
        for subscription in tuple(self._subscriptions):
            subscription.offer(event)
        return event

    def subscribe(
        self,
        wanted: Callable[[Event], bool],
        *,
        types: Iterable[str] = ("*",),
        after: str | None = None,
        bound: int = WAITING,
    ) -> Subscription:
        """Start reading: events of `types` (patterns) published from now on, preceded by the kept ones after the id
        `after`.

        The caller owns the subscription and hands it to `unsubscribe` on every path.
        """
        patterns = tuple(types)
        subscription = Subscription(
            lambda event: any(matches(pattern, event.type) for pattern in patterns) and wanted(event),
            bound,
            BY_NAME.intersection(patterns),
        )
        if after is not None:
            for event in self._events:
                if event.id > after:
                    subscription.offer(event)
        self._subscriptions.add(subscription)
        self._named.update(subscription.named)
        return subscription

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._subscriptions)

    def asked(self, type: EventType) -> bool:
        """Whether anybody listens who names this type, one of `BY_NAME`."""
        return self._named[type] > 0

    def missed(self, after: str, organization_id: str) -> Literal["restart", "forgotten"] | None:
        """Why who has read up to the id `after` may miss events that came since: they were of a server before this one,
        or are too many ago. None when all are kept, and for an id that is no whole one: that asks for all there is."""
        if len(after) < len(self._first):
            return None
        if after < self._first:
            return "restart"
        return "forgotten" if after < self._forgotten.get(organization_id, "") else None

    def unsubscribe(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._named.subtract(subscription.named)

    def close(self) -> None:
        for subscription in self._subscriptions:
            subscription.close()
