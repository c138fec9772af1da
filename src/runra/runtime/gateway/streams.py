"""What a stream passes on its way to the client: the key is taken out of it, and a count nobody asked for."""

from __future__ import annotations

import json
from typing import Final

#: A secret shorter than this is none, and taking it out would tear holes into any text.
_SHORTEST: Final = 8


class Redactor:
    """Replaces a secret in a stream of bytes, also where it is cut between two pieces. Only a tail that could be the
    secret's beginning is held back, so nothing else is delayed."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode() if len(secret) >= _SHORTEST else b""
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        secret = self._secret
        if not secret:
            return piece
        piece = (self._held + piece).replace(secret, b"***")
        self._held = b""
        for length in range(min(len(secret) - 1, len(piece)), 0, -1):
            if piece.endswith(secret[:length]):
                self._held = piece[-length:]
                return piece[:-length]
        return piece

    def finish(self) -> bytes:
        """What was held back: it turned out to be no secret."""
        held, self._held = self._held, b""
        return held


class UsageFilter:
    """Drops the chunk with nothing but a count from a chat stream whose client did not ask for one."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> bytes:
        *whole, self._rest = (self._rest + piece).split(b"\n\n")
        return b"".join(event + b"\n\n" for event in whole if not _only_usage(event))

    def finish(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest


def _only_usage(event: bytes) -> bool:
    if b'"usage"' not in event or not event.startswith(b"data:"):
        return False
    try:
        chunk = json.loads(event[5:])
    except ValueError:
        return False
    return isinstance(chunk, dict) and chunk.get("choices") == [] and bool(chunk.get("usage"))
