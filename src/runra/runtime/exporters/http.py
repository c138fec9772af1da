"""POST of a batch over HTTP: compression, deadlines, and which answer is worth a retry."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from runra.errors import ErrorCode, RunraError

#: Most bytes of an answer that are read.
_ANSWER_BYTES: Final = 64 * 1024
#: A server may ask for patience, but not for ever.
_MOST_PATIENCE_S: Final = 300.0
_RETRYABLE: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_CODES: Final[Mapping[int, ErrorCode]] = {401: "UNAUTHORIZED", 403: "FORBIDDEN", 429: "RATE_LIMITED"}


def checked_url(url: str) -> str:
    """The URL of a back end, for a model's validator: http or https, and no user or password, which would be logged."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be an http:// or https:// URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must carry no user or password; there are options for those")
    return url


class Poster:
    """One connection pool to one back end. Redirects are not followed and no proxy of the environment is used: what is
    sent, and the key with it, goes where the configuration says."""

    def __init__(self, timeout_ms: int) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_ms / 1000)
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, compress: bool = False) -> bytes:
        """Send it; the answer's body. Raises a RunraError that says whether another attempt makes sense, and in
        `details.retryAfterMs` when the server wants it."""
        if compress:
            # A megabyte takes as long as many commands: not on the event loop.
            body = await asyncio.to_thread(gzip.compress, body, 5)
            headers = {**headers, "Content-Encoding": "gzip"}
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, trust_env=False)
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                content = await answer.content.read(_ANSWER_BYTES)
                if 200 <= answer.status < 300:
                    return content
                raise _refusal(answer, content)
        except aiohttp.ClientError as error:
            raise RunraError(
                "NETWORK_ERROR", f"no answer from {_place(url)}: {type(error).__name__}: {error}", retryable=True
            ) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def _place(url: str) -> str:
    """Scheme, host and port: a path or query may hold a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _refusal(answer: aiohttp.ClientResponse, content: bytes) -> RunraError:
    said = content[:200].decode(errors="replace").strip()
    details: dict[str, float | int | str] = {"status": answer.status}
    wait = _retry_after(answer.headers.get("Retry-After"))
    if wait is not None:
        details["retryAfterMs"] = round(wait * 1000)
    return RunraError(
        _CODES.get(answer.status, "INVALID_REQUEST" if answer.status < 500 else "INTERNAL_ERROR"),
        f"{_place(str(answer.url))} answered {answer.status}{f': {said!r}' if said else ''}",
        details=details,
        status=answer.status,
        retryable=answer.status in _RETRYABLE,
    )


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), _MOST_PATIENCE_S) if seconds == seconds else None
