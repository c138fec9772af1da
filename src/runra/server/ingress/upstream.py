"""One HTTP/1.1 exchange with the server inside, over a tunnel: what it says is parsed here, and nowhere trusted."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Final

import h11

from runra.errors import RunraError
from runra.server.ingress.headers import Headers, outward
from runra.server.ingress.pages import Refusal
from runra.server.nodeport import Tunnel

#: Most bytes of an answer's status line and headers, and of a chunk's header.
_MOST_HEAD: Final = 64 << 10
_BODILESS: Final = (204, 304)
#: Most interim answers (100, 103) before the final one.
_MOST_INTERIM: Final = 16


async def read_on(tunnel: Tunnel, idle_s: float) -> bytes:
    """The next bytes from inside. TimeoutError when for `idle_s` seconds none came and none went in."""
    wait = idle_s
    while True:
        try:
            return await tunnel.read(wait)
        except TimeoutError:
            wait = tunnel.written_at + idle_s - time.monotonic()
            if wait <= 0:
                raise


def _bad(what: object) -> Refusal:
    return Refusal("bad_answer", f"It broke HTTP: {what}", 502)


class Exchange:
    """A request, and its answer. One exchange a connection: a server inside that confuses two of them cannot give one
    visitor's answer to another."""

    def __init__(self, method: str, target: bytes, headers: Headers, idle_s: float) -> None:
        """Refusal 400 for what HTTP/1.1 cannot say."""
        self._idle_s = idle_s
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD)
        try:
            raw = self._http.send(h11.Request(method=method, target=target, headers=headers))
        except h11.LocalProtocolError as error:
            raise Refusal("bad_request", f"The request cannot be passed on: {error}", 400, "INVALID_REQUEST") from None
        assert raw is not None
        #: The request's head as it goes out.
        self.head: bytes = raw

    def over(self, tunnel: Tunnel) -> None:
        """Go on over this connection, on which the head went out."""
        self._tunnel = tunnel

    async def send(self, data: bytes) -> None:
        """A piece of the body; waits as long as the server inside takes it."""
        raw = self._http.send(h11.Data(data=data))
        if raw:
            await self._tunnel.write(raw, self._idle_s)

    async def end(self) -> None:
        raw = self._http.send(h11.EndOfMessage())
        if raw:
            await self._tunnel.write(raw, self._idle_s)

    async def answer(self) -> h11.Response | h11.InformationalResponse:
        """The final answer's head, or 101. Refusal when it is none, or none came in time."""
        for _ in range(_MOST_INTERIM):
            event = await self._event()
            if isinstance(event, h11.Response) and 200 <= event.status_code < 600:
                return event
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    return event
                continue
            break
        raise _bad("no final answer")

    @staticmethod
    def headers(response: h11.Response | h11.InformationalResponse) -> Headers:
        """An answer's headers as they go out to the client."""
        given = [(bytes(name), bytes(value)) for name, value in response.headers]
        try:
            return outward(given, bodiless=response.status_code in _BODILESS)
        except ValueError as error:
            raise _bad(error) from None

    async def body(self) -> AsyncGenerator[tuple[bytes, bool], None]:
        """The answer's body, decoded, in pieces of what has come, and whether each is the last. Raises when it is cut
        short."""
        parts: list[bytes] = []
        while True:
            event = self._next()
            if isinstance(event, h11.Data):
                parts.append(bytes(event.data))
            elif event is h11.NEED_DATA and not parts:
                await self._receive()
            elif event is h11.NEED_DATA:
                yield parts[0] if len(parts) == 1 else b"".join(parts), False
                parts = []
            elif isinstance(event, h11.EndOfMessage):
                yield b"".join(parts), True
                return
            else:
                raise _bad("an answer without an end")

    def beyond(self) -> bytes:
        """After 101: what came behind its head."""
        data, _ = self._http.trailing_data
        return data

    def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise _bad(error) from None

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._next()) is h11.NEED_DATA:
            await self._receive()
        return event

    async def _receive(self) -> None:
        try:
            data = await read_on(self._tunnel, self._idle_s)
        except TimeoutError:
            raise Refusal("no_answer", f"Nothing came for {self._idle_s:.0f} s.", 504) from None
        try:
            self._http.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise _bad(error) from None


def broke(error: BaseException) -> bool:
    """Whether writing failed because the server inside reads no more, which its answer may explain."""
    return isinstance(error, RunraError | TimeoutError | h11.LocalProtocolError)
