"""The event `exec.streamed`: a command's output in few pieces, so that no amount of it floods a bus or a back end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Literal

from runra.utf8 import as_fields, incomplete_tail

Stream = Literal["stdout", "stderr"]

#: The most bytes of output in one event.
PIECE_BYTES: Final = 16 << 10
#: How long output is gathered for the next event, in seconds; the first piece, and one after a silence, goes at once.
EVERY_S: Final = 0.1
#: How many bytes of one command are told at once, and in each second after that. The rest is counted, not told.
RATE_BYTES: Final = 64 << 10
#: What an event counts as at least: many small pieces of both streams in turn are bounded as well.
_LEAST_BYTES: Final = 1 << 10


class Streamed:
    """Tells of the output of one command while somebody asks for it. Used on one event loop; never blocks.

    `publish` gets the event's `data`: `stream`, `data`, `offset`, `encoding` where that is base64, and `untoldBytes`
    where bytes before this piece were left out because the command writes faster than RATE_BYTES a second.
    """

    def __init__(self, publish: Callable[[dict[str, Any]], None], asked: Callable[[], bool]) -> None:
        self._publish = publish
        self._asked = asked
        self._stream: Stream = "stdout"
        self._offset = 0
        self._data = bytearray()
        self._room = float(RATE_BYTES)
        self._told_at = 0.0
        self._untold = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: Stream, data: bytes, offset: int) -> None:
        """Take a piece of output, which begins at `offset` of both streams taken together."""
        if not self._asked():
            self._drop()
            return
        if self._data and (stream != self._stream or offset != self._offset + len(self._data)):
            self._tell(whole=True)
        if not self._data:
            self._stream, self._offset = stream, offset
        self._data += data
        if len(self._data) >= PIECE_BYTES or time.monotonic() - self._told_at >= EVERY_S:
            self._tell()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._tell)

    def end(self) -> None:
        """The command has ended, or is no longer followed: tell what waits."""
        if self._asked():
            if self._data:
                self._tell(whole=True)
            if self._untold:
                self._piece(b"")
        self._drop()

    def _drop(self) -> None:
        self._data.clear()
        self._untold = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self, whole: bool = False) -> None:
        """Tell what has been gathered; a character that is cut at its end waits for its rest, unless `whole`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = time.monotonic()
        self._room = min(float(RATE_BYTES), self._room + (now - self._told_at) * RATE_BYTES)
        self._told_at = now
        waits = 0 if whole else incomplete_tail(bytes(self._data[-4:]))
        ready = bytes(self._data[: len(self._data) - waits])
        del self._data[: len(ready)]
        at = 0
        while at < len(ready):
            if self._room < _LEAST_BYTES:
                self._untold += len(ready) - at
                self._offset += len(ready) - at
                return
            piece = ready[at : at + min(PIECE_BYTES, int(self._room))]
            if at + len(piece) < len(ready) and (cut := incomplete_tail(piece)) < len(piece):
                piece = piece[: len(piece) - cut]
            self._room -= max(len(piece), _LEAST_BYTES)
            self._piece(piece)
            at += len(piece)

    def _piece(self, data: bytes) -> None:
        fields = {"stream": self._stream, **as_fields(data, self._offset)}
        if self._untold:
            fields["untoldBytes"], self._untold = self._untold, 0
        self._offset += len(data)
        self._publish(fields)
