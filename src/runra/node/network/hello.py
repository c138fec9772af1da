"""The name a TLS client asks for, read from its first message (RFC 8446 4.1.2, RFC 6066 3) and nothing else of it.

Input is hostile: every length is checked against what is there, and whatever is not exactly right is refused.
"""

from __future__ import annotations

from typing import Final

HANDSHAKE: Final = 0x16
_CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 1, 0, 0
#: A ClientHello larger than this is refused; post-quantum key shares come to about 2 KiB.
MAX_BYTES: Final = 16 * 1024
#: fatal access_denied: the client says why in its own words.
ALERT: Final = b"\x15\x03\x03\x00\x02\x02\x31"


class Bad(ValueError):
    """Not a ClientHello we would let pass; the text says what is wrong."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise Bad("a length that does not fit")
        part, self._at = self._data[self._at : end], end
        return part

    def sized(self, width: int) -> bytes:
        return self.take(int.from_bytes(self.take(width), "big"))

    @property
    def left(self) -> int:
        return len(self._data) - self._at


def server_name(data: bytes) -> str | None:
    """The name in the ClientHello that begins `data`, as it stands there; None when it has none.

    Raises Bad, or Incomplete when more bytes are needed.
    """
    message = _message(data)
    hello = _Reader(message)
    hello.take(2 + 32)  # version, random
    hello.sized(1)  # session
    hello.sized(2)  # cipher suites
    hello.sized(1)  # compression
    if not hello.left:
        return None
    extensions = _Reader(hello.sized(2))
    if hello.left:
        raise Bad("bytes after the extensions")
    found: str | None = None
    seen = False
    while extensions.left:
        kind = int.from_bytes(extensions.take(2), "big")
        content = extensions.sized(2)
        if kind == _SERVER_NAME:
            if seen:
                raise Bad("two server names")
            seen, found = True, _one_name(content)
    return found


def _one_name(content: bytes) -> str:
    outer = _Reader(content)
    names = _Reader(outer.sized(2))
    kind, name = names.take(1)[0], names.sized(2)
    if names.left or outer.left or kind != _HOST_NAME:
        raise Bad("a server name list that does not hold one name")
    try:
        return name.decode("ascii")
    except UnicodeDecodeError:
        raise Bad("a server name that is not ASCII") from None


class Incomplete(Exception):
    """More of the message must come first."""


def _message(data: bytes) -> bytes:
    """The handshake message, put together from as many records as it takes."""
    found, at, wanted = b"", 0, -1
    while wanted < 0 or len(found) < wanted:
        if len(data) < at + 5:
            raise Incomplete
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        if data[at] != HANDSHAKE or data[at + 1] != 3 or not 0 < length <= MAX_BYTES:
            raise Bad("not a TLS handshake")
        if len(data) < at + 5 + length:
            raise Incomplete
        found += data[at + 5 : at + 5 + length]
        at += 5 + length
        if wanted < 0 and len(found) >= 4:
            wanted = 4 + int.from_bytes(found[1:4], "big")
            if found[0] != _CLIENT_HELLO or wanted > MAX_BYTES:
                raise Bad("not a ClientHello")
    return found[4:wanted]
