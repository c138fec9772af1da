"""The wire format of the agent's socket: frames and their fields, packed and parsed without any I/O.

What arrives is hostile until parsed: every length is checked before memory is spent on it, and anything out of
order raises `ProtocolError`. docs/agent-protocol.md has the table.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Final, NamedTuple

VERSION: Final = 1
HEADER: Final = struct.Struct("<IBBHI")
MAX_REQUEST: Final = 4 << 20
MAX_DATA: Final = 64 << 10
MAX_STRINGS: Final = 16 << 10
#: Longest payload of an OUTPUT: its offset and its bytes.
MAX_OUTPUT: Final = MAX_DATA + 8
#: Longest payload of anything else the agent says.
MAX_ANSWER: Final = 8 << 10

_OFFSET: Final = struct.Struct("<Q")
_FIELD: Final = struct.Struct("<BI")
_NUMBER: Final = struct.Struct("<BIQ")


class ProtocolError(Exception):
    """The other side sent what the protocol does not allow; the connection is worth nothing any more."""


class Ask(IntEnum):
    """Frames from the host to the agent."""

    HELLO = 1
    PING = 2
    EXEC = 3
    ATTACH = 4
    LIST = 5
    SIGNAL = 6
    FILE = 7
    DATA = 8
    EOF = 9
    CREDIT = 10
    RESIZE = 11
    DETACH = 12
    CONNECT = 13
    PART = 14


class Tell(IntEnum):
    """Frames from the agent to the host."""

    HELLO = 65
    PONG = 66
    STARTED = 67
    OUTPUT = 68
    EXIT = 69
    ERROR = 70
    CREDIT = 71
    STDIN_CLOSED = 72
    STATUS = 73
    DONE = 74
    CLOSED = 75
    EOF = 76


class Field(IntEnum):
    """Tags of fields: below 32 an integer of 8 bytes, from 32 on a string with its closing NUL."""

    VERSION = 1
    PID = 2
    OFFSET = 3
    WINDOW = 4
    TIMEOUT_MS = 5
    STDIN = 6
    ROWS = 7
    COLS = 8
    SIGNAL = 9
    OP = 10
    LENGTH = 11
    MODE = 12
    FLAGS = 13
    DEPTH = 14
    STARTED_AT = 15
    REUSED = 16
    CODE = 17
    TIMED_OUT = 18
    DURATION_MS = 19
    ENDED_AT = 20
    ERRNO = 21
    STAGE = 22
    TYPE = 23
    SIZE = 24
    MTIME_MS = 25
    UID = 26
    GID = 27
    IS_DIRECTORY = 28
    PORT = 29
    RESUME = 30
    COMMAND = 32
    ARG = 33
    ENV = 34
    CWD = 35
    USER = 36
    TAG = 37
    TITLE = 38
    PATH = 39
    TARGET = 40
    MESSAGE = 41
    NAME = 42
    OWNER = 43
    GROUP = 44


class Stage(IntEnum):
    """What an ERROR is about."""

    REQUEST = 1
    LIMIT = 2
    FORK = 3
    USER = 4
    CWD = 5
    PTY = 6
    NO_PROCESS = 7
    TAKEN = 8
    CONNECT = 9
    PART = 10


class Frame(NamedTuple):
    """One frame from the agent. An OUTPUT's offset is taken out of its payload, which is its bytes alone."""

    type: int
    flags: int
    stream: int
    payload: bytes
    offset: int = 0


def encode_text(text: str) -> bytes:
    """File names need not be UTF-8: `surrogateescape` brings every byte through, both ways."""
    return text.encode("utf-8", "surrogateescape")


def decode_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def pack(kind: Ask | Tell, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return HEADER.pack(len(payload), kind, flags, 0, stream) + payload


def pack_credit(stream: int, count: int) -> bytes:
    return HEADER.pack(4, Ask.CREDIT, 0, 0, stream) + count.to_bytes(4, "little")


def pack_output(stream: int, offset: int, data: bytes, *, stderr: bool = False) -> bytes:
    return pack(Tell.OUTPUT, stream, _OFFSET.pack(offset) + data, int(stderr))


def unpack_credit(payload: bytes) -> int:
    if len(payload) != 4:
        raise ProtocolError("a credit of the wrong size")
    return int.from_bytes(payload, "little")


def pack_fields(values: Iterable[tuple[Field, int | str | bytes]]) -> bytes:
    """Fields in order. A text with a NUL in it is the caller's mistake: ValueError."""
    parts: list[bytes] = []
    for tag, value in values:
        if isinstance(value, int):
            parts.append(_NUMBER.pack(tag, 8, value))
            continue
        raw = encode_text(value) if isinstance(value, str) else value
        if b"\0" in raw:
            raise ValueError("a text with a NUL byte in it")
        parts += (_FIELD.pack(tag, len(raw) + 1), raw, b"\0")
    return b"".join(parts)


class Fields:
    """Parsed fields. Reading one that is absent raises ProtocolError, unless a default is given."""

    def __init__(self, numbers: Mapping[int, int], texts: Mapping[int, bytes]) -> None:
        self.numbers, self.texts = numbers, texts

    def number(self, tag: Field, default: int | None = None) -> int:
        value = self.numbers.get(tag, default)
        if value is None:
            raise ProtocolError(f"field {tag.name} is missing")
        return value

    def text(self, tag: Field, default: str | None = None) -> str:
        raw = self.texts.get(tag)
        if raw is not None:
            return decode_text(raw)
        if default is None:
            raise ProtocolError(f"field {tag.name} is missing")
        return default


def unpack_fields(payload: bytes) -> Fields:
    """Parse fields; unknown tags are left out (a newer agent may say more), repeated ones are an error."""
    numbers: dict[int, int] = {}
    texts: dict[int, bytes] = {}
    at, end = 0, len(payload)
    while at < end:
        if end - at < _FIELD.size:
            raise ProtocolError("a field is cut off")
        tag, size = _FIELD.unpack_from(payload, at)
        at += _FIELD.size
        if size > end - at:
            raise ProtocolError("a field is longer than its frame")
        raw = payload[at : at + size]
        at += size
        if tag in numbers or tag in texts:
            raise ProtocolError(f"field {tag} is there twice")
        if tag < 32:
            if size != 8:
                raise ProtocolError(f"field {tag} is no number")
            numbers[tag] = int.from_bytes(raw, "little")
        else:
            if not raw or raw.find(0) != size - 1:
                raise ProtocolError(f"field {tag} is no text")
            texts[tag] = raw[:-1]
    return Fields(numbers, texts)


class Decoder:
    """Cuts a byte stream into frames, in one fixed buffer that serves as the target of reads.

    `writable()` is where the next bytes go; `written(n)` says how many came and returns the frames now whole.
    """

    def __init__(self, size: int = 256 << 10) -> None:
        if size < HEADER.size + MAX_OUTPUT:
            raise ValueError("the buffer must hold the largest frame")
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    def writable(self) -> memoryview:
        if self._start == self._end:
            self._start = self._end = 0
        elif len(self._buffer) - self._end < HEADER.size + MAX_OUTPUT:
            held = self._end - self._start
            self._view[:held] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, held
        return self._view[self._end :]

    def written(self, count: int) -> list[Frame]:
        self._end += count
        frames: list[Frame] = []
        start, end, view = self._start, self._end, self._view
        while end - start >= HEADER.size:
            length, kind, flags, reserved, stream = HEADER.unpack_from(view, start)
            if not Tell.HELLO <= kind <= Tell.EOF or reserved:
                raise ProtocolError(f"a frame of unknown type {kind}")
            output = kind == Tell.OUTPUT
            if length > (MAX_OUTPUT if output else MAX_ANSWER) or flags > output:
                raise ProtocolError(f"a {Tell(kind).name} frame of {length} bytes, flags {flags}")
            body = start + HEADER.size
            if end - body < length:
                break
            start = body + length
            if not output:
                frames.append(Frame(kind, flags, stream, bytes(view[body:start])))
            elif length > _OFFSET.size:
                data = bytes(view[body + _OFFSET.size : start])
                frames.append(Frame(kind, flags, stream, data, _OFFSET.unpack_from(view, body)[0]))
            else:
                raise ProtocolError("output without bytes")
        self._start = start
        return frames

    def feed(self, data: bytes) -> list[Frame]:
        """The same for bytes that are already there, in pieces of any size."""
        frames: list[Frame] = []
        while data:
            room = self.writable()
            part = data[: len(room)]
            room[: len(part)] = part
            frames += self.written(len(part))
            data = data[len(part) :]
        return frames
