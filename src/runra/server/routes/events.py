"""The event stream, of one sandbox or of all of an organization's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

from pydantic import Field
from starlette.responses import Response

from runra.errors import RunraError
from runra.events import Event, Subscription, check_pattern
from runra.server.calls import Query
from runra.server.faults import bad_request
from runra.server.routing import Caller, Parameters, Routes
from runra.server.streams import EVENT_HEADERS, Opened, event, events

routes: Final = Routes("events")

_EXAMPLE: Final = (
    'id: evt_0\nevent: sandbox.paused\ndata: {"id":"evt_0","timestamp":"2026-01-01T00:00:00.000Z",'
    '"type":"sandbox.paused","sandboxId":"sb_0123456789abcdef","runId":"","traceId":"","data":{}}\n\n'
)
_LAST: Final = {"Last-Event-ID": "first the events after this one, as far back as the server keeps them"}
#: Seconds; only how often an idle reader looks up. The stream's own heartbeat is elsewhere.
_PATIENCE: Final = 3600.0
#: A reader that was told of no event is told of the gap under this name: it is no event, and has no id.
_GAP: Final = "gap"


class EventsQuery(Query):
    #: Which, separated by commas: types (exec.completed), topics (sandbox.*), all (*). `exec.streamed` has to be named.
    types: Annotated[str, Field(min_length=1, max_length=1000)] = "*"


@routes.route(
    "GET", "/sandboxes/{id}/events", scope="sandbox:read", content={"text/event-stream": _EXAMPLE}, headers=_LAST
)
async def sandbox_events(call: Caller, query: Annotated[EventsQuery, Parameters()]) -> Response:
    """Stream what happens in one sandbox. Listening does not keep it from being paused when idle. An `event: gap` tells
    that events are missing here, and why."""
    sandbox_id = call.info().id
    return events(call, _subscribed(call, lambda it: it.sandbox_id == sandbox_id))


@routes.route("GET", "/events", scope="sandbox:read", content={"text/event-stream": _EXAMPLE}, headers=_LAST)
async def all_events(call: Caller, query: Annotated[EventsQuery, Parameters()]) -> Response:
    """Stream what happens in all of your organization's sandboxes. An `event: gap` tells that events are missing here,
    and why."""
    return events(call, _subscribed(call, lambda it: True))


@asynccontextmanager
async def _subscribed(call: Caller, wanted: Callable[[Event], bool]) -> AsyncIterator[Opened]:
    organization_id = call.key.organization_id
    last = call.header(b"last-event-id")
    if last is not None and (len(last) > 64 or not last.isascii()):
        raise bad_request("Last-Event-ID", "must be the id of an event", last)
    log = call.services.events
    subscription = log.subscribe(
        lambda it: it.organization_id == organization_id and wanted(it), types=_types(call.query), after=last or None
    )
    gap = log.missed(last, organization_id) if last else None
    try:
        yield Opened(_lines(subscription, {"reason": gap, "after": last} if gap else None), EVENT_HEADERS)
    finally:
        log.unsubscribe(subscription)


def _types(query: EventsQuery) -> list[str]:
    try:
        return [check_pattern(one.strip()) for one in query.types.split(",")]
    except RunraError as error:
        raise bad_request("types", error.message.removeprefix("event: ")) from None


async def _lines(subscription: Subscription, gap: dict[str, Any] | None) -> AsyncGenerator[bytes]:
    if gap is not None:
        yield event(_GAP, gap)
    told, last = 0, ""
    while True:
        try:
            item = await subscription.next(_PATIENCE)
        except StopAsyncIteration:
            return
        if item is None:
            continue
        if subscription.dropped > told:
            yield event(_GAP, {"reason": "slow", "after": last, "count": subscription.dropped - told})
            told = subscription.dropped
        last = item.id
        yield event(item.type, item.model_dump_json(by_alias=True), item.id)
