"""Output as events carry it: every byte once, characters whole."""

from __future__ import annotations

import base64
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runra.node.agent.types import Output
from runra.server.decode import Collected, OutputDecoder, incomplete_tail

pieces = st.lists(
    st.tuples(
        st.sampled_from(["stdout", "stderr"]),
        st.one_of(st.binary(min_size=1, max_size=9), st.text(min_size=1).map(str.encode)),
    )
)


def _bytes(fields: dict[str, Any]) -> bytes:
    return base64.b64decode(fields["data"]) if fields.get("encoding") else fields["data"].encode()


def _outputs(parts: list[tuple[Any, bytes]], size: int) -> list[Output]:
    found, offset = [], 0
    for stream, data in parts:
        for start in range(0, len(data), size):
            found.append(Output(stream, offset, data[start : start + size]))
            offset += len(found[-1].data)
    return found


@given(pieces, st.integers(1, 7))
def test_nothing_is_lost_or_doubled(parts: list[tuple[Any, bytes]], size: int) -> None:
    outputs, decoder = _outputs(parts, size), OutputDecoder()
    got = [piece for output in outputs if (piece := decoder.feed(output))] + decoder.finish()
    for stream in ("stdout", "stderr"):
        wanted = b"".join(output.data for output in outputs if output.stream == stream)
        assert b"".join(_bytes(piece.fields) for piece in got if piece.stream == stream) == wanted
    assert decoder.resume == sum(len(output.data) for output in outputs)


@given(st.text(), st.integers(1, 7))
def test_text_stays_text(text: str, size: int) -> None:
    decoder = OutputDecoder()
    got = [piece for output in _outputs([("stdout", text.encode())], size) if (piece := decoder.feed(output))]
    assert decoder.finish() == []
    assert "".join(piece.fields["data"] for piece in got) == text


@given(pieces, st.integers(1, 5), st.integers(0, 200))
def test_continuing_at_an_id_misses_nothing(parts: list[tuple[Any, bytes]], size: int, cut: int) -> None:
    outputs, first = _outputs(parts, size), OutputDecoder()
    before = [piece for output in outputs[:cut] if (piece := first.feed(output))]
    resume = before[-1].resume if before else 0
    second = OutputDecoder(resume)
    after = []
    for output in outputs:
        if output.offset + len(output.data) > resume:
            cut_off = max(0, resume - output.offset)
            piece = second.feed(Output(output.stream, output.offset + cut_off, output.data[cut_off:]))
            after += [piece] if piece else []
    after += second.finish()
    for stream in ("stdout", "stderr"):
        wanted = b"".join(output.data for output in outputs if output.stream == stream)
        had = b"".join(_bytes(piece.fields) for piece in before if piece.stream == stream)
        rest = b"".join(_bytes(piece.fields) for piece in after if piece.stream == stream)
        assert wanted.startswith(had)
        assert wanted.endswith(rest)
        assert len(had) + len(rest) >= len(wanted)


def test_tails() -> None:
    for text in ("é", "€", "😀"):
        raw = text.encode()
        for cut in range(1, len(raw)):
            assert incomplete_tail(b"ab" + raw[:cut]) == cut
        assert incomplete_tail(raw) == 0
    assert incomplete_tail(b"") == incomplete_tail(b"\xff") == incomplete_tail(b"\x80") == 0


def test_collecting_cuts_between_characters() -> None:
    collected = Collected(4)
    collected.add(Output("stdout", 0, "aé€".encode()))
    assert (collected.text("stdout"), collected.truncated) == ("aé", True)
    gap = Collected(100)
    gap.add(Output("stderr", 7, b"late"))
    assert (gap.text("stderr"), gap.truncated) == ("late", True)
