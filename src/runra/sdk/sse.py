"""Server-sent events: from bytes in any pieces to whole events, in bounded memory."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from pydantic_core import from_json

from runra.sdk.failures import Failure

#: Longest event taken, in bytes.
MAX_EVENT_BYTES: Final = 16 << 20


class ServerEvent(NamedTuple):
    """One event as it came. `id` is None where it had none."""

    name: str
    data: str
    id: str | None

    def json(self) -> dict[str, Any]:
        """The data as an object; anything else is empty, as an event nobody can read."""
        try:
            value = from_json(self.data)
        except ValueError:
            try:
                value = json.loads(self.data)  # slower, but it takes names that are no UTF-8
            except ValueError:
                return {}
        return value if isinstance(value, dict) else {}


class EventParser:
    """Feed it bytes, it gives back the events that became whole. Comments (heartbeats) give nothing."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[str] = []
        self._size = 0
        self._id: str | None = None

    def feed(self, piece: bytes) -> list[ServerEvent]:
        *lines, self._rest = (self._rest + piece if self._rest else piece).split(b"\n")
        if len(self._rest) > MAX_EVENT_BYTES or self._size > MAX_EVENT_BYTES:
            raise Failure("protocol", True, f"an event of more than {MAX_EVENT_BYTES >> 20} MiB")
        events = []
        for raw in lines:
            line = raw[:-1] if raw.endswith(b"\r") else raw
            if not line:
                if self._data:
                    events.append(ServerEvent(self._name or "message", "\n".join(self._data), self._id))
                self._name, self._data, self._size, self._id = "", [], 0, None
                continue
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                self._size += len(value)
                self._data.append(value.decode(errors="replace"))
            elif name == b"event":
                self._name = value.decode(errors="replace")
            elif name == b"id":
                self._id = value.decode(errors="replace")
        return events
