"""The small parts: events from bytes, lines from pieces, a position in an output."""

from __future__ import annotations

import base64
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runra.sdk.failures import Failure
from runra.sdk.output import KEPT_BYTES, MAX_LINE, Kept, Lines, OutputChunk, Position
from runra.sdk.sse import MAX_EVENT_BYTES, EventParser, ServerEvent
from runra.sdk.wire import backoff, query, retry_after, sandbox_path


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(marks)]


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.text().filter(lambda t: not set(t) & set("\r\n")), st.booleans())
    ),
    st.lists(st.integers(0, 10_000)),
    st.sampled_from(["\n", "\r\n"]),
)
def test_events_come_whole_however_they_are_cut(sent: list[tuple[str, str, bool]], cuts: list[int], end: str) -> None:
    data = "".join(
        f": beat{end}{end}" + (f"id: 7{end}" if mark else "") + f"event: {name}{end}data: {text}{end}{end}"
        for name, text, mark in sent
    )
    parser = EventParser()
    found = [event for piece in pieces(data.encode(), cuts) for event in parser.feed(piece)]
    assert found == [ServerEvent(name, text, "7" if mark else None) for name, text, mark in sent]


def test_an_endless_event_is_refused() -> None:
    parser = EventParser()
    for _ in range(MAX_EVENT_BYTES >> 20):
        assert parser.feed(b"x" * (1 << 20)) == []
    with pytest.raises(Failure, match="MiB"):
        parser.feed(b"x")


@pytest.mark.parametrize("text", ["", "no json", "[1]", "3", "null"])
def test_data_that_is_no_object_is_empty(text: str) -> None:
    assert ServerEvent("x", text, None).json() == {}


@given(st.text(alphabet="aé\n\r\u2028😀", max_size=60), st.lists(st.integers(0, 300)))
def test_lines_do_not_depend_on_the_pieces(text: str, cuts: list[int]) -> None:
    lines = Lines()
    found = [line for piece in pieces(text.encode(), cuts) for line in lines.feed(piece)]
    found += lines.feed(b"", True)
    wanted = text.split("\n")
    if wanted[-1] == "":
        wanted.pop()
    assert found == [line.removesuffix("\r") for line in wanted] or (
        text.endswith("\r") and found == [line.removesuffix("\r") for line in wanted][: len(found)]
    )


def test_a_line_without_end_comes_in_bounded_pieces() -> None:
    lines = Lines()
    found = [line for _ in range(40) for line in lines.feed(b"x" * (MAX_LINE // 10))] + lines.feed(b"", True)
    assert "".join(found) == "x" * (40 * (MAX_LINE // 10))
    assert max(map(len, found)) <= MAX_LINE


def test_bytes_that_are_no_text_are_replaced() -> None:
    lines = Lines()
    assert lines.feed(b"a\xff\xc3") + lines.feed(b"\xa9\n\xc3") + lines.feed(b"", True) == ["a\ufffdé", "\ufffd"]


def test_what_is_kept_is_bounded() -> None:
    kept = Kept()
    kept.add(OutputChunk("stdout", b"x" * (KEPT_BYTES - 1), 0))
    assert not kept.truncated
    kept.add(OutputChunk("stdout", b"yz", 0))
    kept.add(OutputChunk("stderr", b"e", 0))
    assert kept.truncated
    assert kept.text("stdout")[-2:] == "xy"
    assert kept.text("stderr") == "e"


def event(stream: str, data: bytes, offset: int, resume: int) -> ServerEvent:
    content = {"data": base64.b64encode(data).decode(), "offset": offset, "encoding": "base64"}
    return ServerEvent(stream, json.dumps(content), str(resume))


@given(
    st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1, max_size=20)), max_size=20),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30)), max_size=5),
)
def test_a_position_takes_each_byte_once(output: list[tuple[str, bytes]], breaks: list[tuple[int, int]]) -> None:
    """However often the stream breaks, and however far before the position it begins again."""
    position, found = Position(), {"stdout": b"", "stderr": b""}
    ends, at = [], 0
    for stream, data in output:
        ends.append((stream, data, at))
        at += len(data)

    def send(start: int, upto: int) -> None:
        position.attach()
        for stream, data, offset in ends[:upto]:
            if offset + len(data) <= start:
                continue
            cut = max(0, start - offset)
            chunk = position.take(event(stream, data[cut:], offset + cut, offset + len(data)))
            if chunk is not None:
                found[chunk.stream] += chunk.data

    for upto, back in breaks:
        send(max(0, position.offset - back), upto)
    send(position.offset, len(ends))
    assert found["stdout"] == b"".join(data for stream, data in output if stream == "stdout")
    assert found["stderr"] == b"".join(data for stream, data in output if stream == "stderr")
    assert not position.gap


def test_a_gap_is_noticed() -> None:
    position = Position()
    position.attach()
    position.take(event("stdout", b"late", 5000, 5004))
    assert position.gap


@pytest.mark.parametrize(
    ("text", "seconds"), [("3", 3.0), ("0.5", 0.5), ("", None), ("soon", None), ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0)]
)
def test_retry_after(text: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": text}) == seconds


def test_waits_grow_to_a_bound_and_keep_what_was_asked() -> None:
    assert all(0.1 <= backoff(0) <= 0.2 for _ in range(100))
    assert all(2.5 <= backoff(20) <= 5 for _ in range(100))
    assert 7 <= backoff(0, 7.0) <= 7.1


def test_paths_and_queries_are_quoted() -> None:
    assert sandbox_path("sb_1", "processes", "a/../b") == "/sandboxes/sb_1/processes/a%2F..%2Fb"
    assert query({"a": None, "b": True, "c": "é&=/ +", "metadata[x]": 3}) == (
        "?b=true&c=%C3%A9%26%3D%2F%20%2B&metadata%5Bx%5D=3"
    )
