"""Fuzz the host's parsers of what an agent says: by atheris where it is installed, else by Hypothesis.

`fuzz_link.py SECONDS CORPUS`. The oracle: any bytes, cut in any pieces, give frames and fields or a ProtocolError;
the pieces make no difference, and what was accepted is what an honest agent would have packed.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["runra.node.agent.frames"]) if atheris else contextlib.nullcontext():
    from runra.node.agent.frames import (
        HEADER,
        Decoder,
        Field,
        Frame,
        ProtocolError,
        Tell,
        pack,
        pack_fields,
        pack_output,
        unpack_credit,
        unpack_fields,
    )


def decode(pieces: list[bytes]) -> tuple[list[Frame], bool]:
    """All frames up to the first lie, and whether there was one."""
    decoder, frames = Decoder(), []
    for piece in pieces:
        for at in range(len(piece)):  # byte by byte: what came before a lie is not lost with it
            try:
                frames += decoder.feed(piece[at : at + 1])
            except ProtocolError:
                return frames, True
    return frames, False


def whole(data: bytes) -> list[Frame] | None:
    try:
        return Decoder().feed(data)
    except ProtocolError:
        return None


def packed(frame: Frame) -> bytes:
    if frame.type == Tell.OUTPUT:
        return pack_output(frame.stream, frame.offset, frame.payload, stderr=bool(frame.flags))
    return pack(Tell(frame.type), frame.stream, frame.payload, frame.flags)


def check(data: bytes) -> None:
    frames, lied = decode([data])
    at_once = whole(data)
    assert (at_once is None) == lied
    if at_once is not None:
        assert at_once == frames
        said = b"".join(map(packed, frames))
        assert data.startswith(said)
        assert len(data) - len(said) < HEADER.size + (64 << 10) + 8
    for frame in [*frames, Frame(Tell.STARTED, 0, 1, data)]:
        with contextlib.suppress(ProtocolError):
            assert 0 <= unpack_credit(frame.payload) < 1 << 32
        with contextlib.suppress(ProtocolError):
            fields = unpack_fields(frame.payload)
            known = {int(tag) for tag in Field}
            values = [(tag, value) for tag, value in fields.numbers.items() if tag in known]
            values += [(tag, value) for tag, value in fields.texts.items() if tag in known]
            again = unpack_fields(pack_fields((Field(tag), value) for tag, value in values))
            assert again.numbers == {tag: value for tag, value in fields.numbers.items() if tag in known}
            assert again.texts == {tag: value for tag, value in fields.texts.items() if tag in known}


def by_hypothesis(seconds: float, corpus: Path) -> None:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    frame = st.builds(
        lambda length, kind, flags, zero, stream, payload: (
            HEADER.pack(length or len(payload), kind, flags, zero, stream) + payload
        ),
        st.one_of(st.just(0), st.integers(0, (1 << 32) - 1)),
        st.integers(60, 80),
        st.sampled_from((0, 0, 0, 1, 2)),
        st.sampled_from((0, 0, 0, 1)),
        st.integers(0, (1 << 32) - 1),
        st.one_of(
            st.binary(max_size=200),
            st.lists(
                st.one_of(
                    st.tuples(st.sampled_from([tag for tag in Field if tag < 32]), st.integers(0, (1 << 64) - 1)),
                    st.tuples(
                        st.sampled_from([tag for tag in Field if tag >= 32]),
                        st.binary(max_size=40).map(lambda raw: raw.replace(b"\0", b"")),
                    ),
                ),
                max_size=6,
            ).map(pack_fields),
        ),
    )
    end = time.monotonic() + seconds
    for seed in corpus.iterdir():
        check(seed.read_bytes())
    rules = settings(
        max_examples=300,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    count = 0
    while time.monotonic() < end:

        @settings(rules)
        @given(st.one_of(st.lists(frame, max_size=4).map(b"".join), st.binary(max_size=300)))
        def attempt(data: bytes) -> None:
            if time.monotonic() < end:
                check(data)

        attempt()
        count += 300
    print(f"frames.py by Hypothesis: {count} inputs, no failure")


def main() -> None:
    seconds, corpus = float(sys.argv[1]), Path(sys.argv[2])
    if atheris is None:
        by_hypothesis(seconds, corpus)
        return
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={int(seconds)}",
            "-max_len=4096",
            f"-artifact_prefix={corpus}/../",
            str(corpus),
        ],
        check,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
