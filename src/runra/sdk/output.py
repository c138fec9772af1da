"""A command's output on this side: pieces, lines, what is kept of it, and how far it has been read."""

from __future__ import annotations

import base64
import binascii
from codecs import getincrementaldecoder
from dataclasses import dataclass
from typing import Any, Final, Literal

from runra.sdk.sse import ServerEvent

Stream = Literal["stdout", "stderr"]

#: Most bytes of each stream an ExecutionResult keeps; the rest is dropped and `truncated` says so.
KEPT_BYTES: Final = 8 << 20
#: A line longer than this comes in pieces of this many characters.
MAX_LINE: Final = 1 << 20
#: A re-attached stream may rightly begin this much later: characters cut in two, held back on the server.
_HELD: Final = 8

_Decoder: Final = getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """A piece of output. `offset` is where it begins in stdout and stderr taken together, in bytes."""

    stream: Stream
    data: bytes
    offset: int

    @property
    def text(self) -> str:
        """The data as text; bytes that are no UTF-8 become U+FFFD."""
        return self.data.decode(errors="replace")


class Lines:
    """Cuts a stream into lines, without their ends (`\\n` or `\\r\\n`). One longer than `limit` characters comes in
    pieces."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._decode = _Decoder(errors="replace").decode
        self._open: list[str] = []
        self._length = 0

    def feed(self, data: bytes, last: bool = False) -> list[str]:
        """The lines that became whole; with `last` also the one that never ended."""
        *whole, rest = self._decode(data, last).split("\n")
        lines = []
        for part in whole:
            lines.append("".join([*self._open, part]).removesuffix("\r"))
            self._open, self._length = [], 0
        if rest:
            self._open.append(rest)
            self._length += len(rest)
            if self._length > self._limit:
                long = "".join(self._open)
                whole_pieces = len(long) - len(long) % self._limit
                lines += [long[at : at + self._limit] for at in range(0, whole_pieces, self._limit)]
                self._open = [long[whole_pieces:]]
                self._length = len(self._open[0])
        if last and (tail := "".join(self._open)):
            lines.append(tail.removesuffix("\r"))
            self._open, self._length = [], 0
        return lines


class Kept:
    """What an ExecutionResult keeps of a stream: its first `KEPT_BYTES`."""

    def __init__(self) -> None:
        self._parts: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self.truncated = False

    def add(self, chunk: OutputChunk) -> None:
        part = self._parts[chunk.stream]
        room = KEPT_BYTES - len(part)
        if room < len(chunk.data):
            self.truncated = True
        part += chunk.data[: max(room, 0)]

    def text(self, stream: Stream) -> str:
        return self._parts[stream].decode(errors="replace")


class Position:
    """How far a command's output has been read, so that a reader which re-attaches misses nothing and sees nothing
    twice: the server may begin a little earlier than asked, at a character it had held back."""

    def __init__(self, offset: int = 0) -> None:
        #: Where to continue.
        self.offset = offset
        #: Whether output was lost: the sandbox keeps a bounded buffer and had let go of some before it was read.
        self.gap = False
        self._ends: dict[Stream, int] = {"stdout": offset, "stderr": offset}
        self._attached = False

    def attach(self) -> None:
        """A stream begins anew at `offset`."""
        self._attached = True

    def take(self, event: ServerEvent) -> OutputChunk | None:
        """The new part of an output event, or None when there is none."""
        content = event.json()
        stream: Stream = "stderr" if event.name == "stderr" else "stdout"
        data, offset = _bytes(content), content.get("offset")
        if not isinstance(offset, int):
            offset = self.offset
        if self._attached:
            self._attached = False
            self.gap = self.gap or offset > self.offset + _HELD
        resume = int(event.id) if event.id is not None and event.id.isdigit() else offset + len(data)
        seen = self._ends[stream] - offset
        self._ends[stream] = max(self._ends[stream], offset + len(data), resume)
        self.offset = resume
        if seen > 0:
            data, offset = data[seen:], offset + seen
        return OutputChunk(stream, data, offset) if data else None


def _bytes(content: dict[str, Any]) -> bytes:
    data = content.get("data")
    if not isinstance(data, str):
        return b""
    if content.get("encoding") == "base64":
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            return b""
    return data.encode(errors="surrogatepass")
