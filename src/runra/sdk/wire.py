"""Requests and answers as plain values, and when to try again: shared by both transports, knows neither."""

from __future__ import annotations

import json
import random
import re
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from time import time
from typing import Any, Final
from urllib.parse import quote, urlencode

from runra.errors import RunraError, not_found
from runra.sdk.failures import server_error, strange_answer

#: Longest wait between two attempts, in seconds. A server that asks for more gets its error passed on instead.
MAX_WAIT_S: Final = 60.0
#: An event stream without even a heartbeat (the server sends one every 15 s) is taken for broken after this.
STREAM_IDLE_S: Final = 60.0
CONNECT_S: Final = 10.0
#: Largest JSON answer read: two outputs of 8 MiB in which every byte is escaped.
MAX_ANSWER_BYTES: Final = 128 << 20
CHUNK: Final = 256 << 10

JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"
TAR: Final = "application/x-tar"
EVENTS: Final = "text/event-stream"

Params = Mapping[str, "str | int | bool | None"]


@dataclass(frozen=True)
class Answer:
    """A whole answer. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self, doing: str) -> Any:
        """The body's value. Raises INTERNAL_ERROR when it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise strange_answer(doing, "no JSON", self.headers.get("x-request-id", "")) from None

    def error(self) -> RunraError:
        return error_of(self.status, self.headers, self.body)


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> RunraError:
    """The error an answer carries, whatever its body is."""
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    return server_error(status, content, headers)


def user_agent() -> str:
    try:
        number = version("runra")
    except PackageNotFoundError:  # run from a source tree that was never installed
        number = "0"
    return f"runra-python/{number} (python/{sys.version_info.major}.{sys.version_info.minor})"


def new_key() -> str:
    """A fresh Idempotency-Key."""
    return str(uuid.uuid4())


_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def sandbox_path(sandbox_id: str, *rest: str | int) -> str:
    """`/sandboxes/{id}/…`. What cannot be an id is SANDBOX_NOT_FOUND without asking."""
    if not isinstance(sandbox_id, str) or not _ID.fullmatch(sandbox_id):
        raise not_found(sandbox_id)
    return "/".join(["/sandboxes", sandbox_id, *(quote(str(part), safe="") for part in rest)])


def query(params: Params | None) -> str:
    """`?a=b`, without what is None; true and false as JSON writes them."""
    if not params:
        return ""
    given = {
        name: ("true" if value else "false") if isinstance(value, bool) else value
        for name, value in params.items()
        if value is not None
    }
    return "?" + urlencode(given, errors="surrogateescape", quote_via=quote) if given else ""


def asks_again(status: int, error: RunraError) -> bool:
    """Whether an error answer may be answered by trying again (spec 1): 429, and 5xx that say so."""
    return status == 429 or (status >= 500 and error.retryable)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks to wait, from a number or a date."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        return max(0.0, float(text)) if text.replace(".", "", 1).isdigit() else _until(text)
    except (ValueError, TypeError):
        return None


def _until(date: str) -> float:
    return float(max(0.0, parsedate_to_datetime(date).timestamp() - time()))


def backoff(attempt: int, asked: float | None = None) -> float:
    """Seconds before attempt `attempt` + 1 (from 0): doubling from 0.2 s to 5 s, with jitter, never less than asked."""
    wait = min(5.0, 0.2 * 2.0**attempt) * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
    return wait if asked is None else max(asked, 0.0) + wait * 0.1
