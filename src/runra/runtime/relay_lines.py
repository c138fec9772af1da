"""The lines a relay in a sandbox speaks (`guest/relay/lines.h` has the protocol): read as hostile, and written."""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from runra.errors import RunraError

#: Bytes of one connection that may be under way in one direction.
WINDOW: Final = 256 << 10
#: Credit is given back in pieces of this size.
GRANT: Final = WINDOW // 4
CONNECTIONS: Final = 256
#: The most bytes of data in one line, and of a line with them.
DATA_MAX: Final = 24 << 10
LINE_MAX: Final = DATA_MAX // 3 * 4 + 64

_GREETING: Final = b"runra-relay 1 "
_DIGITS: Final = 15


@dataclass(frozen=True, slots=True)
class Line:
    """What the relay says: `op` is `o d e r c p`, or `!` for the first line, whose `number` is the port. That of `p` is
    the last line the relay has taken."""

    op: str
    id: int = 0
    data: bytes = b""
    number: int = 0


class Parser:
    """Cuts the relay's output into lines. Whoever owns the sandbox may have written them: anything that is not exactly
    a line of the protocol raises, and so does a line without an end."""

    def __init__(self) -> None:
        self._open = b""
        self._greeted = False

    def feed(self, data: bytes) -> Iterator[Line]:
        """The lines that became whole. Raises RunraError, INTERNAL_ERROR with the reason `relay`."""
        *whole, rest = (self._open + data).split(b"\n")
        if len(rest) > LINE_MAX:
            raise strange("a line without an end", rest)
        self._open = rest
        for text in whole:
            yield self._line(text)

    def _line(self, text: bytes) -> Line:
        if len(text) > LINE_MAX:
            raise strange("a line that is too long", text)
        if not self._greeted:
            port = _number(text.removeprefix(_GREETING)) if text.startswith(_GREETING) else 0
            if not 0 < port < 1 << 16:
                raise strange("no greeting", text)
            self._greeted = True
            return Line("!", number=port)
        parts = text.split(b" ")
        if len(parts) != 3:
            raise strange("no line of the protocol", text)
        op, id, argument = parts[0], _number(parts[1]), parts[2]
        match op:
            case b"d" if id > 0 and argument:
                try:
                    decoded = binascii.a2b_base64(argument, strict_mode=True)
                except binascii.Error:
                    raise strange("data that is no base64", text) from None
                if len(decoded) > DATA_MAX:
                    raise strange("a line that is too long", text)
                return Line("d", id, decoded)
            case b"c" if id > 0 and (number := _number(argument)) > 0:
                return Line("c", id, number=number)
            case b"o" | b"e" | b"r" if id > 0 and not argument:
                return Line(op.decode(), id)
            case b"p" if id == 0 and (number := _number(argument)) > 0:
                return Line("p", number=number)
        raise strange("no line of the protocol", text)


def _number(text: bytes) -> int:
    """A decimal number without leading zeros; -1 for anything else."""
    if not text.isdigit() or len(text) > _DIGITS or (text[0] == 0x30 and len(text) > 1):
        return -1
    return int(text)


def strange(what: str, said: bytes | Line) -> RunraError:
    """The error of a relay that does not keep to the protocol."""
    shown = repr(said[:60]) if isinstance(said, bytes) else f"{said.op} {said.id}"
    return RunraError(
        "INTERNAL_ERROR",
        f"the relay in the sandbox said what it must not ({what}): {shown}; something inside may be meddling with it",
        details={"reason": "relay"},
        retryable=False,
    )


def say(op: str, id: int = 0, argument: bytes | int = b"") -> bytes:
    """A line to the relay, still without its number. Bytes are data, at most DATA_MAX of them."""
    text = b"%d" % argument if isinstance(argument, int) else binascii.b2a_base64(argument, newline=False)
    return b" %b %d %b;\n" % (op.encode(), id, text)
