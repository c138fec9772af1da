"""HTTP and WebSockets for the async form, on aiohttp and websockets. `transport_sync` has the same shape."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Any, Final

import aiohttp
import yarl

from runra.sdk.failures import Failure
from runra.sdk.wire import CHUNK, CONNECT_S, MAX_ANSWER_BYTES, Answer

#: Connections for ordinary calls; more calls at once wait for one. Streams are not counted: they are held for long.
_CONNECTIONS: Final = 256
_PAUSE_S: Final = 0.05


class AsyncTransport:
    """Connections to one server. Belongs to one event loop at a time; another loop gets new connections."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: aiohttp.ClientSession | None = None
        self._streams: aiohttp.ClientSession | None = None
        self._used = 0.0

    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes] | None,
        timeout_s: float,
    ) -> Answer:
        """A whole answer. A `bytes` body has `timeout_s` for everything, another one for each step."""
        await self._look_up()
        if body is None or isinstance(body, bytes):
            try:
                async with asyncio.timeout(timeout_s):
                    async with self._session(False).request(
                        method, _url(url), headers=headers, data=body, allow_redirects=False
                    ) as response:
                        return Answer(response.status, _lower(response.headers), await _read(response))
            except Exception as error:
                raise _failure(error) from error
        feed = _Feed(body, timeout_s)
        try:
            async with (
                feed.limit,
                self._session(True).request(
                    method, _url(url), headers=headers, data=feed.chunks(), allow_redirects=False
                ) as response,
            ):
                answer = Answer(response.status, _lower(response.headers), await _read(response))
                if not feed.whole:
                    # Answered before its body was sent: what follows on this connection would be read as that.
                    response.close()
                return answer
        except Exception as error:
            if feed.error is not None:
                raise feed.error from None
            raise _failure(error) from error

    async def open(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float, idle_s: float
    ) -> AsyncIncoming:
        """An answer whose body is read as it comes; it must begin within `timeout_s`. The caller closes it."""
        await self._look_up()
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._session(True).request(
                    method, _url(url), headers=headers, data=body, allow_redirects=False
                )
        except Exception as error:
            raise _failure(error) from error
        return AsyncIncoming(response, idle_s)

    async def websocket(self, url: str, headers: Mapping[str, str], timeout_s: float) -> AsyncSocket | Answer:
        """An open WebSocket, or the answer that refused it."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidHandshake, InvalidStatus

        try:
            socket = await connect(
                "ws" + url.removeprefix("http"),
                additional_headers=dict(headers),
                user_agent_header=None,
                compression=None,
                proxy=None,
                open_timeout=timeout_s,
                close_timeout=5,
            )
        except InvalidStatus as refusal:
            response = refusal.response
            return Answer(
                response.status_code,
                {k.lower(): v for k, v in response.headers.raw_items()},
                bytes(response.body or b""),
            )
        except InvalidHandshake as error:
            raise Failure("protocol", True, str(error)) from error
        except ssl.SSLError as error:
            raise Failure("tls", False, str(error)) from error
        except TimeoutError as error:
            raise Failure("timeout", False, "the WebSocket did not open") from error
        except OSError as error:
            raise Failure("connect", False, _told(error)) from error
        return AsyncSocket(socket)

    async def close(self) -> None:
        for session in (self._calls, self._streams):
            if session is not None and self._loop is asyncio.get_running_loop():
                await session.close()
        self._calls = self._streams = None

    async def _look_up(self) -> None:
        """After a pause, let the loop see which connections the server closed meanwhile: a caller that kept the loop
        busy would send on one of them, and not know whether that arrived. Two rounds: one reads, one closes."""
        now = time.monotonic()
        if now - self._used > _PAUSE_S:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        self._used = now

    def _session(self, streaming: bool) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # Sessions of a loop that has ended went down with it.
            self._loop, self._calls, self._streams = loop, None, None
        session = self._streams if streaming else self._calls
        if session is None:
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0 if streaming else _CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Content-Type"),
                auto_decompress=False,
                read_bufsize=CHUNK,
            )
            if streaming:
                self._streams = session
            else:
                self._calls = session
        return session


class AsyncIncoming:
    """An open answer. Each read ends within `idle_s`, and none outlasts `deadline` (by `time.monotonic`)."""

    def __init__(self, response: aiohttp.ClientResponse, idle_s: float) -> None:
        self.status = response.status
        self.headers = _lower(response.headers)
        self.deadline: float | None = None
        self._response = response
        self._idle_s = idle_s

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces as they come. Raises Failure when it breaks off."""
        content = self._response.content
        while True:
            wait = self._idle_s if self.deadline is None else min(self._idle_s, self.deadline - time.monotonic())
            try:
                async with asyncio.timeout(wait):
                    chunk = await content.readany()
            except Exception as error:
                raise _failure(error) from error
            if not chunk:
                return
            yield chunk

    async def read(self) -> bytes:
        """The rest of a small body, such as an error's."""
        parts = [part async for part in self.chunks()]
        return b"".join(parts)

    def abort(self) -> None:
        """End a read that another task waits in."""
        self._response.close()

    async def close(self) -> None:
        self._response.close()


class AsyncSocket:
    """An open WebSocket."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    async def send(self, message: bytes | str) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            await self._socket.send(message)
        except ConnectionClosed as error:
            raise Failure("closed", True, "the terminal's connection has ended") from error

    async def recv(self, timeout_s: float | None) -> bytes | str | None:
        """The next message, or None when the server closed the connection in good order."""
        from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

        try:
            async with asyncio.timeout(timeout_s):
                message: bytes | str = await self._socket.recv()
        except ConnectionClosedOK:
            return None
        except ConnectionClosedError as error:
            raise Failure("closed", True, str(error)) from error
        except TimeoutError as error:
            raise Failure("timeout", True, "nothing came") from error
        return message

    async def close(self) -> None:
        await self._socket.close()


class _Feed:
    """A body sent as it is made: the time the caller takes to make it does not count, the server's does."""

    def __init__(self, body: AsyncIterable[bytes], step_s: float) -> None:
        self.limit = asyncio.timeout(step_s)
        self.error: BaseException | None = None
        self.whole = False
        self._body = body
        self._step_s = step_s

    async def chunks(self) -> AsyncIterator[bytes]:
        source = aiter(self._body)
        while True:
            self._allow(None)
            try:
                chunk = await anext(source)
            except StopAsyncIteration:
                break
            except Exception as error:
                self.error = error
                raise
            self._allow(self._step_s)
            yield chunk
        self.whole = True
        self._allow(self._step_s)

    def _allow(self, seconds: float | None) -> None:
        if not self.limit.expired():
            self.limit.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise Failure("protocol", True, f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB")
        parts.append(part)
    return b"".join(parts)


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _url(url: str) -> yarl.URL:
    return yarl.URL(url, encoded=True)


def _told(error: BaseException) -> str:
    inner = getattr(error, "os_error", error)
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__


def _failure(error: Exception) -> Exception:
    """What a failure of the transport means; anything else stays what it is."""
    match error:
        case Failure():
            return error
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            return Failure("tls", False, str(error))
        case aiohttp.ClientConnectorError():
            return Failure("connect", False, _told(error))
        case aiohttp.ConnectionTimeoutError():
            return Failure("timeout", False, "connecting took too long")
        case TimeoutError():
            return Failure("timeout", True, "no answer in time")
        case aiohttp.ClientResponseError():
            return Failure("protocol", True, error.message.split("\n")[0][:200])
        case aiohttp.ClientError() | OSError():
            return Failure("closed", True, str(error).split("\n")[0][:200] or type(error).__name__)
    return error
