"""A command's output as the stream of its output and its JSON answer carry it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from runra.node.agent.types import Output
from runra.utf8 import as_fields, incomplete_tail

Stream = Literal["stdout", "stderr"]


class Piece(NamedTuple):
    """One output event: its fields, and the offset a client continues at after it."""

    stream: Stream
    fields: dict[str, Any]
    resume: int


class OutputDecoder:
    """Turns a process's output into pieces, holding back a character cut at a chunk's border until it is whole.

    `resume` is where to continue without losing a byte: the end of what came, or the first byte held back. After
    such a border the other stream's bytes in between may come twice; each piece's `offset` tells.
    """

    def __init__(self, offset: int = 0) -> None:
        self._held: dict[Stream, tuple[int, bytes]] = {}
        self._end = offset

    @property
    def resume(self) -> int:
        return min((offset for offset, _ in self._held.values()), default=self._end)

    def feed(self, output: Output) -> Piece | None:
        """The event for this chunk, or None when all of it is held back."""
        offset, data = self._held.pop(output.stream, (output.offset, b""))
        data += output.data
        self._end = output.offset + len(output.data)
        tail = incomplete_tail(data)
        if tail:
            self._held[output.stream] = (self._end - tail if tail <= len(output.data) else offset, data[-tail:])
            data = data[:-tail]
        return self._piece(output.stream, offset, data) if data else None

    def finish(self) -> list[Piece]:
        """What is still held back once the process has ended: characters that never came to an end."""
        held, self._held = self._held, {}
        return [self._piece(stream, offset, data) for stream, (offset, data) in held.items()]

    def _piece(self, stream: Stream, offset: int, data: bytes) -> Piece:
        return Piece(stream, as_fields(data, offset), self.resume)


class Collected:
    """Output gathered for a JSON answer: at most `limit` bytes of each stream, the rest dropped and said so."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: dict[Stream, list[bytes]] = {"stdout": [], "stderr": []}
        self._sizes: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        self._end = 0
        self.truncated = False

    def add(self, output: Output) -> None:
        # A gap means the agent's buffer had already let go of what came before (a retry that attached late).
        if output.offset > self._end:
            self.truncated = True
        self._end = output.offset + len(output.data)
        room = self._limit - self._sizes[output.stream]
        if room < len(output.data):
            self.truncated = True
            if room <= 0:
                return
        part = output.data[:room]
        self._parts[output.stream].append(part)
        self._sizes[output.stream] += len(part)

    def text(self, stream: Stream) -> str:
        """The stream as text; bytes that are no UTF-8 become U+FFFD (the event stream carries them exactly)."""
        data = b"".join(self._parts[stream])
        if self.truncated and (tail := incomplete_tail(data)) and len(data) == self._limit:
            data = data[:-tail]
        return data.decode(errors="replace")
