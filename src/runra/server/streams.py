"""Streaming answers: back-pressure to the source, an end when the client has gone, stalls or the server stops."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runra.server.calls import Call
from runra.server.services import Services

EVENT_STREAM: Final = "text/event-stream; charset=utf-8"
_COMMENT: Final = b": keep-alive\n\n"


@dataclass
class Opened:
    """A stream that is ready to be sent."""

    chunks: AsyncGenerator[bytes]
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


Source = AbstractAsyncContextManager[Opened]


class Streamed(Response):
    """Sends what `source` yields once opened; an error while opening is still an ordinary error answer.

    One task reads the source and writes to the client, each chunk only when the one before has gone out, so a slow
    client slows the source and nothing piles up here. Meanwhile this watches: when the client goes, stalls for
    `stall_s`, or the server stops, the task is cancelled and the source frees what it holds.
    """

    def __init__(self, call: Call, source: Source, *, events: bool = False) -> None:
        # Response.__init__ would render a body; there is none yet.
        self.status_code = 200
        self.background = None
        self._call = call
        self._source = source
        self._events = events
        self._started = False
        self._sending_since: float | None = None
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services: Services = self._call.services
        loop = asyncio.get_running_loop()
        writer = loop.create_task(self._write(send))
        gone = loop.create_task(self._call.gone())
        closing = loop.create_task(services.closing.wait())
        settings = services.settings
        tick = min(settings.heartbeat_s, settings.stall_s)
        try:
            while True:
                await asyncio.wait({writer, gone, closing}, timeout=tick, return_when=asyncio.FIRST_COMPLETED)
                if writer.done():
                    writer.result()
                    return
                if gone.done():
                    return
                if closing.done():
                    break
                now = loop.time()
                if self._sending_since is not None:
                    if now - self._sending_since >= settings.stall_s:
                        services.measures.dropped_clients += 1
                        if (abort := scope["state"].get("abort")) is not None:
                            abort()
                        return
                elif self._events and self._started and now - self._last_sent >= settings.heartbeat_s:
                    self._last_sent = now
                    await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
        finally:
            await _cancelled(writer, gone, closing)
        if self._started and self._events:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        async with self._source as opened:
            headers = [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in opened.headers.items()
            ]
            await send({"type": "http.response.start", "status": opened.status, "headers": headers})
            self._started = True
            self._last_sent = loop.time()
            async with aclosing(opened.chunks):
                async for chunk in opened.chunks:
                    self._sending_since = loop.time()
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    self._sending_since = None
                    self._last_sent = loop.time()
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and see them end; what they failed with meanwhile has been reported or matters to nobody."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def event(name: str, data: Any, id: str | int | None = None) -> bytes:
    """One server-sent event; bytes and text are JSON already. JSON has no line breaks of its own, so it is always one
    `data` line."""
    if not isinstance(data, bytes):
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        data = text.encode(errors="replace")
    head = f"event: {name}\ndata: " if id is None else f"id: {id}\nevent: {name}\ndata: "
    return b"%b%b\n\n" % (head.encode(errors="replace"), data)


EVENT_HEADERS: Final[Mapping[str, str]] = {
    "content-type": EVENT_STREAM,
    "cache-control": "no-cache, no-transform",
    # A proxy that collects the answer before passing it on would hold back every event.
    "x-accel-buffering": "no",
}


def events(call: Call, source: Source) -> Streamed:
    """An answer of server-sent events with heartbeats."""
    return Streamed(call, source, events=True)
