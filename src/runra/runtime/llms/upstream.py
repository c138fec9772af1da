"""HTTP to a model: one request, retried by the provider's rules until its first byte, then read with deadlines."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import aiohttp

from runra.errors import RunraError
from runra.runtime.llms.failures import failure, from_answer, redact, unreachable
from runra.runtime.llms.targets import Target
from runra.runtime.llms.types import Failed, Format, Stopped, StreamEvent
from runra.runtime.llms.wires import Decoder
from runra.sdk.failures import Failure
from runra.sdk.sse import EventParser, ServerEvent

#: Most of an error's body that is read.
_MAX_ERROR: Final = 64 << 10
#: First wait before a retry, doubled each time, when the provider names none.
_BACKOFF_S: Final = 0.5
#: How long an answer that is complete may take to end: some servers never send their last event, or never hang up.
GRACE_S: Final = 3.0


class Answer:
    """An answer that has begun. Its owner calls `close` on every path; that also cancels it at the provider."""

    def __init__(self, response: aiohttp.ClientResponse, first: bytes, target: Target, began: float) -> None:
        self._response = response
        self._first = first
        self._target = target
        self._began = began
        self.secret = target.key
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        #: Set when the answer is complete in its format's own words: then only GRACE_S is waited for what follows.
        self.complete = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, piece by piece. Raises `unavailable` when it breaks off, stalls, or takes too long in all."""
        yield self._first
        timeouts = self._target.timeouts
        loop = asyncio.get_running_loop()
        while True:
            left = self._began + timeouts.total_ms / 1000 - loop.time()
            if left <= 0:  # asked here as well: a read that never has to wait never times out
                raise _broken(self._target, f"more than {timeouts.total_ms / 1000:g} s in all")
            idle = GRACE_S if self.complete else timeouts.idle_ms / 1000
            try:
                async with asyncio.timeout(min(left, idle)):
                    piece = await self._response.content.readany()
            except TimeoutError:
                if self.complete:
                    return
                what = f"nothing for {idle:g} s" if idle < left else f"more than {timeouts.total_ms / 1000:g} s in all"
                raise _broken(self._target, what) from None
            except (aiohttp.ClientError, OSError) as error:
                if self.complete:
                    return
                raise _broken(self._target, _reason(error)) from None
            if not piece:
                return
            yield piece

    def close(self) -> None:
        """Drop the connection unless the answer was read to its end: then it is used again."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


class Upstream:
    """The connections to models, shared by whoever calls. Used on one event loop."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def open(
        self,
        target: Target,
        url: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        on_retry: Callable[[RunraError, float], None] | None = None,
    ) -> Answer:
        """Send a request and wait for the first byte of its answer.

        429 and 5xx are tried again after what the provider asks for, a reset before the first byte after a growing
        pause; `on_retry` is told the error and the seconds. Raises a RunraError with `details.kind` for the last one.
        """
        for attempt in range(target.max_retries + 1):
            got, again = await self._once(target, url, body, headers or {})
            if isinstance(got, Answer):
                return got
            error = got
            wait = error.details.get("retryAfterMs", 1000 * _BACKOFF_S * 2**attempt) / 1000
            if not again or attempt == target.max_retries or wait > target.max_retry_wait_s:
                raise error
            if on_retry is not None:
                on_retry(error, wait)
            spread = 1.0 + random.random() / 4  # noqa: S311 - so that many runs do not come back at once
            await asyncio.sleep(wait * spread if "retryAfterMs" not in error.details else wait)
        raise AssertionError("the last attempt returns or raises")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _once(
        self, target: Target, url: str, body: bytes, extra: Mapping[str, str]
    ) -> tuple[Answer, bool] | tuple[RunraError, bool]:
        """One attempt: the answer, or an error and whether it may be tried again."""
        name, timeouts = target.provider.id, target.timeouts
        headers = {**extra, **target.request_headers()}
        # Asked for plain: usage is read from the answer as it passes.
        headers.update({"content-type": "application/json", "accept-encoding": "identity"})
        connecting = aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_ms / 1000)
        began = asyncio.get_running_loop().time()
        response: aiohttp.ClientResponse | None = None
        kept = False
        try:
            async with asyncio.timeout(timeouts.first_byte_ms / 1000):
                # A redirect is not followed: it would carry the key elsewhere.
                response = await self._connections().post(
                    url, data=body, headers=headers, allow_redirects=False, timeout=connecting
                )
                if 200 <= response.status < 300:
                    first = await response.content.readany()
                    if not first:
                        return unreachable(name, target.base_url, "it ended before it began"), True
                    kept = True
                    return Answer(response, first, target, began), False
                said = await response.content.read(_MAX_ERROR)
        except aiohttp.ClientError as failed:  # first: aiohttp's own timeouts are TimeoutErrors as well
            return unreachable(name, target.base_url, _reason(failed)), True
        except TimeoutError:
            # Not tried again: the model may be at work, and paid for.
            seconds = timeouts.first_byte_ms / 1000
            return unreachable(name, target.base_url, f"nothing within {seconds:g} s"), False
        except OSError as failed:
            return unreachable(name, target.base_url, _reason(failed)), True
        finally:
            if response is not None and not kept:
                response.close()
        if response.status < 400:
            return failure("protocol", f"{name} redirects ({response.status}); correct its base URL"), False
        error = from_answer(response.status, response.headers, said, provider=name, secret=target.key)
        return error, error.retryable and response.headers.get("x-should-retry") != "false"

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


async def events(answer: Answer, decoder: Decoder) -> AsyncIterator[list[StreamEvent]]:
    """The answer's events, in the batches they came in. Raises `protocol` for what is no stream of this format, and
    `unavailable` for one that breaks off."""
    parser = EventParser()
    stopped = heard = False
    async for piece in answer.chunks():
        batch: list[StreamEvent] = []
        for event in parse(parser, piece):
            batch += [_clean(one, answer.secret) for one in decoder.feed(event)]
            if decoder.done:
                break
        heard = heard or bool(batch)
        stopped = stopped or any(isinstance(event, Stopped) for event in batch)
        answer.complete = stopped
        if batch:
            yield batch
        if decoder.done:
            return
    if not heard:
        raise failure("protocol", "the model's server answered with something that is no stream of events")
    if not stopped:
        raise failure("unavailable", "the model's answer broke off in the middle")


def _clean(event: StreamEvent, secret: str) -> StreamEvent:
    """The event; a failure's words without the key, should the provider repeat it."""
    return Failed(event.kind, redact(event.message, secret)) if isinstance(event, Failed) else event


def parse(parser: EventParser, piece: bytes) -> list[ServerEvent]:
    """Whole events from a piece of a stream. Raises `protocol` for one beyond the parser's bound."""
    try:
        return parser.feed(piece)
    except Failure as error:
        raise failure("protocol", f"the model's answer: {error}") from None


def request_url(target: Target, format: Format, path: str = "") -> str:
    """Where a request of a format goes; `path` for what is below it, such as `/count_tokens`."""
    return target.url(format) + path


def _broken(target: Target, what: str) -> RunraError:
    return failure("unavailable", f"{target.provider.id}: the answer broke off: {what}", provider=target.provider.id)


def _reason(error: Any) -> str:
    """Few words for a connection's failure; never the request, which holds the key."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect ({error.os_error.strerror or type(error.os_error).__name__})"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | ConnectionResetError):
        return "the connection was cut"
    return type(error).__name__
