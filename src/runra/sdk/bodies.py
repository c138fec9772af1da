"""What `files.write` takes, and what each of it is on the way; a body in memory, cut into pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, Iterable, Iterator
from typing import Any, Protocol

from runra.sdk.failures import invalid
from runra.sdk.wire import CHUNK


class Readable(Protocol):
    """A file object, binary or text."""

    def read(self, size: int, /) -> Any: ...


Content = str | bytes | bytearray | memoryview | Readable | Iterable[bytes]
AsyncContent = Content | AsyncIterable[bytes]


def whole(content: object) -> bytes | None:
    """Content that is in memory already, or None when it is to be read piece by piece."""
    if isinstance(content, str):
        try:
            return content.encode()
        except UnicodeEncodeError:
            raise invalid("content", "has half a surrogate pair, which is no text; write bytes instead") from None
    if isinstance(content, bytes):
        return content
    if isinstance(content, bytearray | memoryview):
        return bytes(content)
    if hasattr(content, "read") or hasattr(content, "__iter__") or hasattr(content, "__aiter__"):
        return None
    raise invalid("content", f"must be str, bytes, a file object or an iterable of bytes, not {type(content).__name__}")


def pieces(content: Any) -> Iterator[bytes]:
    """The bytes of a file object or of an iterable, in pieces that are never empty."""
    if not hasattr(content, "read") and not hasattr(content, "__iter__"):
        raise invalid("content", "is asynchronous; only AsyncRunra can read it")
    for piece in _read(content) if hasattr(content, "read") else content:
        data = as_bytes(piece)
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]


def _read(file: Readable) -> Iterator[Any]:
    while piece := file.read(CHUNK):
        yield piece


def as_bytes(piece: object) -> bytes:
    if isinstance(piece, bytes):
        return piece
    if isinstance(piece, str):
        return piece.encode()
    if isinstance(piece, bytearray | memoryview):
        return bytes(piece)
    raise invalid("content", f"must give bytes, not {type(piece).__name__}")


def as_data(data: object) -> bytes:
    """What is written to a process: text or bytes."""
    if not isinstance(data, str | bytes | bytearray | memoryview):
        raise invalid("data", f"must be str or bytes, not {type(data).__name__}")
    return as_bytes(data)


def no_bytes() -> tuple[bytes, ...]:
    """The pieces of a body that has none."""
    return ()


def cut(pieces: deque[memoryview], most: int) -> bytes:
    """Take the first bytes, at most `most`, out of `pieces`."""
    taken, size = [], 0
    while pieces and size < most:
        piece = pieces.popleft()
        if len(piece) > most - size:
            pieces.appendleft(piece[most - size :])
            piece = piece[: most - size]
        taken.append(piece)
        size += len(piece)
    return b"".join(taken)
