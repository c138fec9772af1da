"""What a hostile relay may say: one strict parser, and a channel that ends itself and nothing else."""

from __future__ import annotations

import asyncio
import base64
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runra.errors import RunraError
from runra.runtime.relay_channel import Channel
from runra.runtime.relay_lines import DATA_MAX, LINE_MAX, WINDOW, Line, Parser, say
from runra.runtime.types import StdinWriter
from runra.sdk.output import OutputChunk
from tests.hosting import until

HELLO = b"runra-relay 1 4000\n"


def read(*pieces: bytes) -> list[Line]:
    parser = Parser()
    return [line for piece in (HELLO, *pieces) for line in parser.feed(piece)][1:]


def test_what_a_relay_says() -> None:
    said = b"o 1 \nd 1 aGk=\nc 1 65536\ne 1 \nr 1 \np 0 7\n"
    expected = [Line("o", 1), Line("d", 1, b"hi"), Line("c", 1, number=65536), Line("e", 1), Line("r", 1)]
    expected += [Line("p", number=7)]
    assert read(said) == expected
    assert read(*(said[at : at + 1] for at in range(len(said)))) == expected
    assert say("d", 3, b"hi") == b" d 3 aGk=;\n"
    assert say("c", 3, 9) == b" c 3 9;\n"
    assert say("p") == b" p 0 ;\n"


@pytest.mark.parametrize(
    "said",
    [
        *(b"d 1 !!!!", b"d 1 aGk", b"d 1 aG k=", b"d 1 aGk=\r", b"d 1 ", b"d 0 aGk=", b"d 01 aGk=", b"d -1 aGk="),
        *(
            b"o 1",
            b"o  1 ",
            b"o 1 x",
            b"o 0 ",
            b"c 1 0",
            b"c 1 -5",
            b"c 1 1e3",
            b"c 1 ",
            b"p 1 7",
            b"p 0 ",
            b"p 0 0",
            b"q 0 ",
            b"a 0 1",
            b"",
        ),
        *("o １ ".encode(), b"\xff\xfe", b"o 1 \0", b"o 9999999999999999 ", HELLO.strip(), b"x" * LINE_MAX * 2),
        b"d 1 " + base64.b64encode(bytes(DATA_MAX + 1)),
    ],
)
def test_anything_else_is_refused(said: bytes) -> None:
    with pytest.raises(RunraError) as caught:
        read(said + b"\n")
    assert (caught.value.code, caught.value.details["reason"]) == ("INTERNAL_ERROR", "relay")
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    "first", [b"runra-relay 2 4000\n", b"runra-relay 1 0\n", b"runra-relay 1 65536\n", b"o 1 \n", b"\n"]
)
def test_another_greeting_is_refused(first: bytes) -> None:
    with pytest.raises(RunraError, match="greeting"):
        list(Parser().feed(first))


def test_a_line_without_an_end_is_not_kept() -> None:
    with pytest.raises(RunraError, match="without an end"):
        read(*[b"x" * 1000] * 1000)


@given(
    st.lists(
        st.one_of(st.binary(max_size=40), st.from_regex(rb"[oderc] [0-9]{1,3} [A-Za-z0-9+/=]{0,8}\n", fullmatch=True))
    )
)
def test_any_bytes_are_lines_or_refused(pieces: list[bytes]) -> None:
    try:
        lines = read(*pieces)
    except RunraError:
        return
    # What was accepted is what was said, and nothing but it.
    again = b"".join(
        b"%b %d %b\n"
        % (line.op.encode(), line.id, b"%d" % line.number if line.op == "c" else base64.b64encode(line.data))
        for line in lines
    )
    assert b"".join(pieces).startswith(again)
    assert b"\n" not in b"".join(pieces)[len(again) :]


class Fake:
    """A process that says what it is told to, then nothing; what it hears is kept."""

    def __init__(self, *said: bytes, stderr: bytes = b"", end: bool = False) -> None:
        self.heard = b""
        self._said, self._stderr, self._end = said, stderr, end

    async def output(self) -> AsyncIterator[OutputChunk]:
        offset = 0
        for piece in (HELLO, *self._said):
            yield OutputChunk("stdout", piece, offset)
            offset += len(piece)
        if self._stderr:
            yield OutputChunk("stderr", self._stderr, offset)
        if not self._end:
            await asyncio.Event().wait()

    async def send_stdin(self, data: bytes) -> None:
        self.heard += data


def data(id: int, size: int) -> bytes:
    return b"d %d %b\n" % (id, base64.b64encode(bytes(size)))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([b"\x00\xffgarbage" * 100_000], "without an end"),
        ([b"hello\n"], "no line"),
        ([b"o 2 \no 2 \n"], "cannot be"),
        ([b"o 2 \no 1 \n"], "cannot be"),
        ([b"d 1 aGk=\n"], "never opened"),
        ([b"o 1 \ne 1 \ne 1 \n"], "second end"),
        ([b"o 1 \ne 1 \nd 1 aGk=\n"], "more data"),
        ([b"o 1 \n", *[data(1, DATA_MAX)] * (WINDOW // DATA_MAX + 1)], "more data"),
        ([b"o 1 \nc 1 1\n"], "more credit"),
        ([b"p 0 99\n"], "never told"),
    ],
)
async def test_a_relay_that_breaks_the_rules_ends_its_forward_and_no_more(said: list[bytes], why: str) -> None:
    others = asyncio.all_tasks()
    channel = Channel(Fake(*said), Path("/nonexistent/socket"))
    async with asyncio.timeout(20):
        with pytest.raises(RunraError, match=why):
            await channel.run()
    assert asyncio.all_tasks() == others


async def test_more_connections_than_there_may_be_are_reset_and_ended_ones_do_not_count() -> None:
    flood = b"".join(b"o %d \nr %d \n" % (n, n) for n in range(1, 3000))
    many = b"".join(b"o %d \n" % n for n in range(3000, 3300))

    class Pausing(Fake):
        async def output(self) -> AsyncIterator[OutputChunk]:
            for at, piece in enumerate((HELLO, flood)):
                yield OutputChunk("stdout", piece, at * len(HELLO))
            while any("connection" in task.get_name() for task in asyncio.all_tasks()):
                await asyncio.sleep(0.01)
            yield OutputChunk("stdout", many, len(HELLO) + len(flood))
            await asyncio.Event().wait()

    pausing = Pausing()
    with tempfile.TemporaryDirectory(prefix="rf-") as folder:
        server = await asyncio.start_unix_server(lambda reader, writer: None, Path(folder, "s"))
        work = asyncio.create_task(Channel(pausing, Path(folder, "s")).run())
        async with asyncio.timeout(20):
            while pausing.heard.count(b" r 32") < 44:
                await asyncio.sleep(0.01)
        assert not work.done()
        work.cancel()
        await asyncio.wait({work})
        server.close()


async def test_its_end_and_its_last_words_are_told() -> None:
    channel = Channel(
        Fake(stderr=b"accepting a connection: out of luck\n" * 1000, end=True), Path("/nonexistent/socket")
    )
    async with asyncio.timeout(20):
        with pytest.raises(RunraError, match="out of luck") as caught:
            await channel.run()
    assert channel.port.result() == 4000
    assert len(caught.value.message) < 3000


async def test_missing_output_is_noticed() -> None:
    class Forgetful(Fake):
        async def output(self) -> AsyncIterator[OutputChunk]:
            yield OutputChunk("stdout", HELLO, 0)
            yield OutputChunk("stdout", b"o 1 \n", 9000)

    async with asyncio.timeout(20):
        with pytest.raises(RunraError, match="was lost"):
            await Channel(Forgetful(), Path("/nonexistent/socket")).run()


def closed() -> RunraError:
    return RunraError("NETWORK_ERROR", "broken", details={"reason": "closed", "sent": True})


@asynccontextmanager
async def running(channel: Channel) -> AsyncIterator[None]:
    work = asyncio.create_task(channel.run())
    async with asyncio.timeout(20):
        yield
    assert not work.done()
    work.cancel()
    await asyncio.wait({work})


async def test_a_write_that_broke_is_said_again_after_an_empty_line() -> None:
    class Shaky(Fake):
        broken = 2

        async def send_stdin(self, data: bytes) -> None:
            if self.broken:
                self.broken -= 1
                raise closed()
            await super().send_stdin(data)

    fake = Shaky(b"o 1 \n")
    async with running(Channel(fake, Path("/nonexistent/socket"))):
        await until(lambda: b" r 1 ;\n" in fake.heard)
    assert fake.heard.startswith(b"\n1 ")
    lines = [line.split() for line in fake.heard.splitlines()[1:]]
    assert [int(line[0]) for line in lines] == list(range(1, len(lines) + 1))


class Held(Fake):
    """A process whose stdin is held open: each way in is kept apart, and ends when its future says so."""

    def __init__(self) -> None:
        super().__init__()
        self.ways: list[tuple[bytearray, asyncio.Future[None]]] = []
        self.says: asyncio.Queue[bytes] = asyncio.Queue()

    async def output(self) -> AsyncIterator[OutputChunk]:
        offset = 0
        while True:
            piece = await self.says.get()
            yield OutputChunk("stdout", piece, offset)
            offset += len(piece)

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[StdinWriter]:
        way = bytearray(), asyncio.get_running_loop().create_future()
        self.ways.append(way)

        class Way:
            async def write(self, data: bytes) -> None:
                way[0].extend(data)

            async def wait_closed(self) -> None:
                await asyncio.shield(way[1])

        yield Way()


async def test_what_was_not_confirmed_is_said_again_on_the_next_way_in() -> None:
    held = Held()
    async with running(Channel(held, Path("/nonexistent/socket"), held.hold)):
        held.says.put_nowait(HELLO)
        await until(lambda: [way[0] for way in held.ways] == [b"1 p 0 ;\n"])
        held.says.put_nowait(b"p 0 1\no 1 \n")
        await until(lambda: held.ways[0][0].endswith(b"\n2 r 1 ;\n"))
        held.ways[0][1].set_exception(closed())
        await until(lambda: len(held.ways) == 2 and held.ways[1][0] == b"\n2 r 1 ;\n3 p 0 ;\n")
        held.says.put_nowait(b"p 0 3\n")
        held.says.put_nowait(b"o 2 \n")
        await until(lambda: held.ways[1][0].endswith(b";\n4 r 2 ;\n"))
    assert held.heard == b""


async def test_a_way_in_that_holds_everything_back_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runra.runtime.relay_channel.FLOW_S", 0.1)
    held = Held()
    async with running(Channel(held, Path("/nonexistent/socket"), held.hold)):
        held.says.put_nowait(HELLO)
        await until(lambda: held.heard == b"\n1 p 0 ;\n2 p 0 ;\n")
        held.says.put_nowait(b"o 1 \n")
        await until(lambda: held.heard.endswith(b"3 r 1 ;\n"))
    assert [bytes(way[0]) for way in held.ways] == [b"1 p 0 ;\n"]


async def test_what_is_kept_for_a_relay_that_confirms_nothing_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runra.runtime.relay_channel._KEPT_BYTES", 1 << 14)
    monkeypatch.setattr("runra.runtime.relay_channel._KEPT_MAX_BYTES", 1 << 16)

    class Asking(Fake):
        async def output(self) -> AsyncIterator[OutputChunk]:
            yield OutputChunk("stdout", HELLO, 0)
            offset, last = len(HELLO), 0
            while True:
                piece = b"".join(b"o %d \n" % n for n in range(last + 1, last + 1001))
                yield OutputChunk("stdout", piece, offset)
                offset, last = offset + len(piece), last + 1000
                await asyncio.sleep(0)

    async with asyncio.timeout(20):
        with pytest.raises(RunraError, match="takes no answer"):
            await Channel(Asking(), Path("/nonexistent/socket")).run()


async def test_a_write_that_is_refused_ends_it() -> None:
    class Closed(Fake):
        async def send_stdin(self, data: bytes) -> None:
            raise RunraError("INVALID_STATE", "the command's stdin is closed", details={"reason": "stdin_closed"})

    async with asyncio.timeout(20):
        with pytest.raises(RunraError, match="stdin is closed"):
            await Channel(Closed(b"o 1 \n"), Path("/nonexistent/socket")).run()
