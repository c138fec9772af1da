"""Calls to one server: the key, the contract's retries, and every failure as a RunraError."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from runra.errors import RunraError
from runra.sdk.concurrency_async import settle, sleep
from runra.sdk.failures import Failure, network_error
from runra.sdk.settings import Settings
from runra.sdk.transport_async import AsyncIncoming, AsyncSocket, AsyncTransport
from runra.sdk.wire import (
    BYTES,
    EVENTS,
    JSON,
    MAX_WAIT_S,
    STREAM_IDLE_S,
    Answer,
    Params,
    asks_again,
    backoff,
    error_of,
    query,
    retry_after,
    user_agent,
)
from runra.tracing import current_run

#: How long a closing client waits for what interrupted calls take back, in seconds.
_SETTLE_S = 15.0


class AsyncClosable(Protocol):
    async def close(self) -> None: ...


class AsyncApi:
    """One server and what this client holds open on it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._transport = AsyncTransport()
        self._agent = user_agent()
        self._held: dict[int, AsyncClosable] = {}
        self._closed = False

    def hold(self, thing: AsyncClosable) -> None:
        """Close `thing` with the client, unless it is released before."""
        self._held[id(thing)] = thing

    def release(self, thing: AsyncClosable) -> None:
        self._held.pop(id(thing), None)

    async def close(self) -> None:
        """Free every connection, thread and task. Calling it twice does no harm."""
        await settle(_SETTLE_S)
        self._closed = True
        for thing in list(self._held.values()):
            await thing.close()
        self._held.clear()
        await self._transport.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        content: Any = None,
        body: bytes | Callable[[], AsyncIterable[bytes]] | None = None,
        media: str = BYTES,
        key: str | None = None,
        safe: bool | None = None,
        replayable: bool = True,
        timeout_ms: int | None = None,
        public: bool = False,
    ) -> Answer:
        """A whole answer with a status below 300; everything else is raised.

        `content` is a JSON body, `body` a raw one (a callable makes it anew for each attempt; not `replayable`, for
        one attempt only). `key` is the Idempotency-Key. `safe` calls may be repeated when the connection broke
        after sending: reads, and what carries a key.
        """
        doing = f"{method} {path}"
        headers = self._headers(doing, JSON, key, public)
        sent: bytes | Callable[[], AsyncIterable[bytes]] | None = body
        if content is not None:
            sent, media = json.dumps(content).encode(), f"{JSON}; charset=utf-8"
        if sent is not None:
            headers["Content-Type"] = media
        repeatable = (method == "GET" or key is not None) if safe is None else safe
        timeout_s = (self.settings.timeout_ms if timeout_ms is None else timeout_ms) / 1000
        url = f"{self.settings.api_url}/v1{path}{query(params)}"
        attempt = 0
        while True:
            try:
                answer = await self._transport.request(
                    method, url, headers, sent() if callable(sent) else sent, timeout_s
                )
            except Failure as failure:
                wait = self._after(failure, doing, attempt, repeatable and replayable, timeout_s)
            else:
                if answer.status < 300:
                    return answer
                wait = self._again(answer.error(), answer.status, answer.headers.get, attempt, replayable)
            await sleep(wait)
            attempt += 1

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        content: Any = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        accept: str = EVENTS,
        idle_s: float = STREAM_IDLE_S,
        timeout_ms: int | None = None,
    ) -> AsyncIterator[AsyncIncoming]:
        """An answer to be read as it comes. A break in the middle is NETWORK_ERROR: whoever reads it goes on."""
        doing = f"{method} {path}"
        asked = {**self._headers(doing, accept, key, False), **(headers or {})}
        sent = None
        if content is not None:
            sent = json.dumps(content).encode()
            asked["Content-Type"] = f"{JSON}; charset=utf-8"
        repeatable = method == "GET" or key is not None
        timeout_s = (self.settings.timeout_ms if timeout_ms is None else timeout_ms) / 1000
        url = f"{self.settings.api_url}/v1{path}{query(params)}"
        attempt = 0
        while True:
            try:
                incoming = await self._transport.open(method, url, asked, sent, timeout_s, idle_s)
                if incoming.status < 300:
                    break
                try:
                    error = error_of(incoming.status, incoming.headers, await incoming.read())
                finally:
                    await incoming.close()
                wait = self._again(error, incoming.status, incoming.headers.get, attempt, True)
            except Failure as failure:
                wait = self._after(failure, doing, attempt, repeatable, timeout_s)
            await sleep(wait)
            attempt += 1
        try:
            yield incoming
        except Failure as failure:
            raise network_error(failure, self.settings.api_url, doing, idle_s) from failure
        finally:
            await incoming.close()

    async def websocket(self, path: str, params: Params) -> AsyncSocket:
        doing = f"WebSocket {path}"
        headers = self._headers(doing, "*/*", None, False)
        url = f"{self.settings.api_url}/v1{path}{query(params)}"
        attempt = 0
        while True:
            try:
                opened = await self._transport.websocket(url, headers, self.settings.timeout_s)
            except Failure as failure:
                wait = self._after(failure, doing, attempt, False, self.settings.timeout_s)
            else:
                if isinstance(opened, AsyncSocket):
                    return opened
                wait = self._again(opened.error(), opened.status, opened.headers.get, attempt, True)
            await sleep(wait)
            attempt += 1

    def _headers(self, doing: str, accept: str, key: str | None, public: bool) -> dict[str, str]:
        if self._closed:
            raise RunraError("INVALID_STATE", f"{doing}: this client is closed; make another one", status=0)
        headers = {"User-Agent": self._agent, "Accept": accept, "Accept-Encoding": "identity"}
        if not public:
            if self.settings.api_key is None:
                raise RunraError("UNAUTHORIZED", self.settings.key_missing, status=0)
            headers["Authorization"] = f"Bearer {self.settings.api_key}"
        if key is not None:
            headers["Idempotency-Key"] = key
        run = current_run.get()
        return headers if run is None else headers | run.headers()

    def _after(self, failure: Failure, doing: str, attempt: int, repeatable: bool, timeout_s: float) -> float:
        """Seconds until the next attempt after no answer; raises when there is none."""
        may = not failure.sent if failure.reason in ("timeout", "tls") else not failure.sent or repeatable
        if failure.reason == "tls" or not may or attempt >= self.settings.max_retries:
            raise network_error(failure, self.settings.api_url, doing, timeout_s) from failure
        return backoff(attempt)

    def _again(
        self, error: RunraError, status: int, header: Callable[[str, str], str], attempt: int, replayable: bool
    ) -> float:
        """Seconds until the next attempt after an error answer; raises it when there is none."""
        asked = retry_after({"retry-after": header("retry-after", "")})
        if (
            not replayable
            or attempt >= self.settings.max_retries
            or not asks_again(status, error)
            or (asked is not None and asked > MAX_WAIT_S)
        ):
            raise error
        return backoff(attempt, asked)
