"""The wire format by itself: what goes in comes out, in pieces of any size; nonsense is refused, never worse."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runra.node.agent.frames import (
    HEADER,
    MAX_ANSWER,
    MAX_DATA,
    Ask,
    Decoder,
    Field,
    Frame,
    ProtocolError,
    Stage,
    Tell,
    pack,
    pack_fields,
    pack_output,
    unpack_credit,
    unpack_fields,
)

streams = st.integers(0, (1 << 32) - 1)
outputs = st.builds(
    lambda stream, offset, data, stderr: (
        pack_output(stream, offset, data, stderr=stderr),
        Frame(Tell.OUTPUT, int(stderr), stream, data, offset),
    ),
    streams,
    st.integers(0, (1 << 64) - 1),
    st.binary(min_size=1, max_size=400),
    st.booleans(),
)
answers = st.builds(
    lambda kind, stream, payload: (pack(kind, stream, payload), Frame(kind, 0, stream, payload)),
    st.sampled_from([kind for kind in Tell if kind != Tell.OUTPUT]),
    streams,
    st.binary(max_size=300),
)


@given(st.lists(outputs | answers, max_size=20), st.data())
def test_frames_in_pieces_of_any_size(frames: list[tuple[bytes, Frame]], data: st.DataObject) -> None:
    decoder = Decoder(HEADER.size + MAX_DATA + 8)
    wire = b"".join(raw for raw, _ in frames)
    got: list[Frame] = []
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        got += decoder.feed(wire[:size])
        wire = wire[size:]
    assert got == [frame for _, frame in frames]


@given(st.binary(min_size=1, max_size=MAX_DATA), st.integers(1, 70_000))
def test_large_frames(data: bytes, size: int) -> None:
    decoder = Decoder(HEADER.size + MAX_DATA + 8)
    wire = pack_output(7, 1 << 40, data) * 3
    got = [frame for at in range(0, len(wire), size) for frame in decoder.feed(wire[at : at + size])]
    assert [(frame.offset, frame.payload) for frame in got] == [(1 << 40, data)] * 3


@given(st.binary(max_size=200))
def test_nonsense_is_an_error_or_not_whole_yet(noise: bytes) -> None:
    try:
        frames = Decoder().feed(noise)
    except ProtocolError:
        return
    assert sum(len(frame.payload) + HEADER.size for frame in frames) <= len(noise)


@pytest.mark.parametrize(
    "header",
    [
        (0, 0, 0, 0, 1),
        (0, 1, 0, 0, 1),
        (0, 77, 0, 0, 1),
        (0, 255, 0, 0, 1),
        (0, Tell.PONG, 1, 0, 1),
        (9, Tell.OUTPUT, 2, 0, 1),
        (0, Tell.PONG, 0, 1, 1),
        (MAX_ANSWER + 1, Tell.STATUS, 0, 0, 1),
        (MAX_DATA + 9, Tell.OUTPUT, 0, 0, 1),
        ((1 << 32) - 1, Tell.OUTPUT, 0, 0, 1),
    ],
)
def test_bad_headers(header: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(ProtocolError):
        Decoder().feed(HEADER.pack(*header))


numbers = st.integers(0, (1 << 64) - 1)
texts = st.binary(max_size=60).filter(lambda raw: 0 not in raw)
fields = st.dictionaries(st.sampled_from(Field), st.none()).flatmap(
    lambda tags: st.fixed_dictionaries({tag: numbers if tag < 32 else texts for tag in tags})
)


@given(fields)
def test_fields_round_trip(values: dict[Field, int | bytes]) -> None:
    parsed = unpack_fields(pack_fields(values.items()))
    assert {**parsed.numbers, **parsed.texts} == values
    for tag, value in values.items():
        if isinstance(value, int):
            assert parsed.number(tag) == value
        else:
            assert parsed.text(tag).encode("utf-8", "surrogateescape") == value


@given(st.binary(max_size=100))
def test_nonsense_fields(noise: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        unpack_fields(noise)


def test_both_sides_have_the_same_numbers() -> None:
    """guest/frames.h against frames.py: every enumerator, in order."""
    text = re.sub(r"/\*.*?\*/", "", (Path(__file__).parents[2] / "guest/frames.h").read_text(), flags=re.S)
    values: dict[str, int] = {}
    for body in re.findall(r"enum (?:frame_type|field|stage) \{(.*?)\}", text, flags=re.S):
        at = -1
        for item in filter(None, (part.strip() for part in body.split(","))):
            name, _, number = item.partition("=")
            at = int(number) if number else at + 1
            values[name.strip()] = at
    expected = {f"F_{kind.name}": int(kind) for kind in Ask} | {f"A_{kind.name}": int(kind) for kind in Tell}
    expected |= {f"T_{tag.name}": int(tag) for tag in Field} | {f"STAGE_{stage.name}": int(stage) for stage in Stage}
    assert values == expected


def test_field_rules() -> None:
    one = pack_fields([(Field.PID, 1)])
    for bad in (
        one + one,
        one[:-1],
        b"\x01",
        b"\x01\x04\0\0\0abcd",
        b"\x27\x02\0\0\0a\0\0"[:7] + b"\1",
        b"\x27\0\0\0\0",
    ):
        with pytest.raises(ProtocolError):
            unpack_fields(bad)
    for bad in (b"", b"12345678"):
        with pytest.raises(ProtocolError):
            Decoder().feed(pack(Tell.OUTPUT, 1, bad))
    with pytest.raises(ProtocolError):
        unpack_credit(b"123")
    with pytest.raises(ValueError, match="NUL"):
        pack_fields([(Field.PATH, "a\0b")])
    with pytest.raises(ProtocolError, match="PID"):
        unpack_fields(b"").number(Field.PID)
    with pytest.raises(ProtocolError, match="PATH"):
        unpack_fields(b"").text(Field.PATH)
    assert unpack_fields(pack_fields([(Field.PATH, "x")])).text(Field.NAME, "none") == "none"
