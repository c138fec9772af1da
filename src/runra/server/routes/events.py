"""The event stream, of one sandbox or of all of an organization's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from starlette.responses import Response

from runra.events import Event, Subscription
from runra.server.faults import bad_request
from runra.server.routing import Caller, Routes
from runra.server.streams import EVENT_HEADERS, Opened, event, events

routes: Final = Routes("events")

_EXAMPLE: Final = (
    'id: evt_0\nevent: sandbox.paused\ndata: {"id":"evt_0","timestamp":"2026-01-01T00:00:00.000Z",'
    '"type":"sandbox.paused","sandboxId":"sb_0123456789abcdef","runId":"","traceId":"","data":{}}\n\n'
)
_LAST: Final = {"Last-Event-ID": "first the events after this one, as far back as the server keeps them"}
#: Seconds; only how often an idle reader looks up. The stream's own heartbeat is elsewhere.
_PATIENCE: Final = 3600.0


@routes.route(
    "GET", "/sandboxes/{id}/events", scope="sandbox:read", content={"text/event-stream": _EXAMPLE}, headers=_LAST
)
async def sandbox_events(call: Caller) -> Response:
    """Stream what happens in one sandbox. Listening does not keep it from being paused when idle."""
    sandbox_id = call.info().id
    return events(call, _subscribed(call, lambda it: it.sandbox_id == sandbox_id))


@routes.route("GET", "/events", scope="sandbox:read", content={"text/event-stream": _EXAMPLE}, headers=_LAST)
async def all_events(call: Caller) -> Response:
    """Stream what happens in all of your organization's sandboxes."""
    return events(call, _subscribed(call, lambda it: True))


@asynccontextmanager
async def _subscribed(call: Caller, wanted: Callable[[Event], bool]) -> AsyncIterator[Opened]:
    organization_id = call.key.organization_id
    last = call.header(b"last-event-id")
    if last is not None and (len(last) > 64 or not last.isascii()):
        raise bad_request("Last-Event-ID", "must be the id of an event", last)
    log = call.services.events
    subscription = log.subscribe(lambda it: it.organization_id == organization_id and wanted(it), after=last or None)
    try:
        yield Opened(_lines(subscription), EVENT_HEADERS)
    finally:
        log.unsubscribe(subscription)


async def _lines(subscription: Subscription) -> AsyncGenerator[bytes]:
    told = 0
    while True:
        try:
            item = await subscription.next(_PATIENCE)
        except StopAsyncIteration:
            return
        if item is None:
            continue
        if subscription.dropped > told:
            # A comment, for people: the gap in the ids is all a client needs to see.
            yield f": {subscription.dropped - told} events were dropped, you read too slowly\n\n".encode()
            told = subscription.dropped
        yield event(item.type, item.model_dump_json(by_alias=True), item.id)
