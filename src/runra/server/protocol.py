"""uvicorn's HTTP protocol with the bounds it lacks: on headers, on waiting for them, on answers nobody reads."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from runra.errors import RunraError
from runra.server.ingress.hosts import absolute_form
from runra.server.ingress.ingress import Ingress
from runra.server.ingress.upgrade import Upgrade

#: Most bytes of a request line with its headers. A path has at most 4096, written as up to three times that.
MAX_HEAD: Final = 64 << 10
#: Seconds a connection may take to send them, from its start or from the first byte after an answer.
HEAD_DEADLINE: Final = 30.0
#: Seconds an answer may lie unread after the server is done with it.
UNREAD_DEADLINE: Final = 300.0


class BoundedProtocol(HttpToolsProtocol):
    """httptools sets no limit on headers, and uvicorn none on how long they take."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            if self._head_timer is None:
                self._await_head()
            self._head += len(data)
        super().data_received(data)
        # What came after the head in the same piece is body, and parsed by now: only an unfinished head counts.
        if self._in_head and self._head > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response(f"the request line and headers have more than {MAX_HEAD} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # How a stream cuts off a client that reads nothing: closing would wait for it to read the rest.
        self.scope["state"]["abort"] = self.transport.abort

    def on_headers_complete(self) -> None:
        self._head_arrived()
        # uvicorn would add a chunked body's trailers to this list later on: a second Host, say, or another key.
        self.scope["headers"] = list(self.headers)
        self._one_target()
        super().on_headers_complete()

    def _one_target(self) -> None:
        """Keep the request's target as it came, and see that it names no other host than Host does: which of the two
        counts (RFC 9112, 3.2.2) must not be a question here."""
        target = self.url
        whole = absolute_form(target)
        if whole is not None:
            authority, target = whole
            if [value.lower() for name, value in self.headers if name == b"host"] != [authority.lower()]:
                raise ValueError("the request's target and its Host header name different hosts")
        self.scope["state"]["target"] = target

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head, self._head = True, 0

    def handle_websocket_upgrade(self) -> None:
        self._head_arrived()
        ingress: Ingress = self.config.app.state.services.ingress  # type: ignore[union-attr]
        place = ingress.place(self.headers)
        if place is None:
            super().handle_websocket_upgrade()
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # Asked for before the answer to an earlier request was out: the two would run into each other.
            self.transport.abort()
            return
        # A preview's: its bytes are the sandbox's and the client's, no frame of it is ours to read.
        self.connections.discard(self)
        upgrade = Upgrade(ingress, self.transport, self.headers, self.client[0] if self.client else "unknown")
        task = self.loop.create_task(upgrade.serve(place, self.scope["method"], self.scope["state"]["target"]))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(UNREAD_DEADLINE, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        error = RunraError("INVALID_REQUEST", f"{msg.rstrip('.')}; send a valid HTTP/1.1 request")
        body = json.dumps(error.to_wire()).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_DEADLINE, self._late)

    def _head_arrived(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        self._head_timer = None
        if self._in_head and not self.transport.is_closing():
            self.transport.abort()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn takes a handshake that was refused with an answer for one that was forgotten, and logs an error."""

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True
