"""`exec.streamed`: in few pieces, bounded, every byte told or counted."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from runra.events import matches
from runra.runtime import Event, Runra
from runra.streamed import EVERY_S, PIECE_BYTES, RATE_BYTES, Streamed
from tests.runtime.conftest import Make
from tests.sdk.conftest import RealServer

pytestmark = pytest.mark.timeout(60)


class Told:
    """What a `Streamed` published."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self.asked = True
        self.it = Streamed(self.found.append, lambda: self.asked)

    def bytes(self, stream: str) -> bytes:
        return b"".join(
            base64.b64decode(one["data"]) if one.get("encoding") else one["data"].encode()
            for one in self.found
            if one["stream"] == stream
        )


async def test_the_first_piece_at_once_and_the_next_together() -> None:
    told = Told()
    told.it.add("stdout", b"a\n", 0)
    assert told.found == [{"stream": "stdout", "data": "a\n", "offset": 0}]
    for at in range(10):
        told.it.add("stdout", b"b\n", 2 + 2 * at)
    assert len(told.found) == 1
    async with asyncio.timeout(10):
        while len(told.found) == 1:
            await asyncio.sleep(EVERY_S / 5)
    assert told.found[1] == {"stream": "stdout", "data": "b\n" * 10, "offset": 2}
    told.it.end()
    assert len(told.found) == 2


async def test_both_streams_and_characters_cut_in_two() -> None:
    told = Told()
    told.it.add("stdout", b"x\xc3", 0)
    told.it.add("stdout", b"\xbc", 2)
    told.it.add("stderr", b"\xff", 3)
    told.it.add("stdout", b"end", 4)
    told.it.end()
    assert [(one["stream"], one["offset"], one["data"]) for one in told.found] == [
        ("stdout", 0, "x"),
        ("stdout", 1, "ü"),
        ("stderr", 3, "/w=="),
        ("stdout", 4, "end"),
    ]


async def test_a_flood_is_bounded_and_counted() -> None:
    told = Told()
    whole, piece = 64 << 20, b"\xc3\xbc" * (16 << 10)
    for at in range(0, whole, len(piece)):
        told.it.add("stdout", piece, at)
    told.it.end()
    assert len(told.bytes("stdout")) < 40 * RATE_BYTES  # as far as the time it took allows
    assert all(len(one["data"].encode()) <= PIECE_BYTES for one in told.found)
    assert len(told.bytes("stdout")) + sum(one.get("untoldBytes", 0) for one in told.found) == whole
    assert told.found[-1]["offset"] + len(told.found[-1]["data"].encode()) == whole
    assert not any("encoding" in one for one in told.found)


async def test_many_small_pieces_of_both_streams_are_bounded() -> None:
    told = Told()
    for at in range(20_000):
        told.it.add("stderr" if at % 2 else "stdout", b".", at)
    told.it.end()
    assert len(told.found) < 1000
    assert len(told.bytes("stdout") + told.bytes("stderr")) + sum(
        one.get("untoldBytes", 0) for one in told.found
    ) == 20_000  # fmt: skip


async def test_nobody_asks() -> None:
    told = Told()
    told.asked = False
    told.it.add("stdout", b"a", 0)
    told.asked = True
    told.it.add("stdout", b"b", 1)
    told.it.end()
    assert told.found == [{"stream": "stdout", "data": "b", "offset": 1}]


def test_it_has_to_be_named() -> None:
    assert matches("exec.streamed", "exec.streamed")
    assert not matches("exec.*", "exec.streamed")
    assert not matches("*", "exec.streamed")


# --- through a real server -----------------------------------------------------------------------------------------


async def told_by(runra: Runra, sandbox: Any, command: str, **options: Any) -> list[Event]:
    found: list[Event] = []
    offs = [runra.on(type, found.append) for type in ("exec.streamed", "exec.completed")]
    await sandbox.exec(command, **options)

    def mine() -> list[Event]:
        return sorted((one for one in found if one.data["command"] == command), key=lambda one: one.id)

    async with asyncio.timeout(20):
        while not mine() or mine()[-1].type != "exec.completed":
            await asyncio.sleep(0.01)
    await runra._session.bus.drain(10)
    for off in offs:
        off()
    return mine()


async def test_of_a_server_for_who_asks_before_and_after_it_began(make: Make) -> None:
    runra = make()
    everything: list[str] = []
    runra.on("*", lambda event: everything.append(event.type))
    async with await runra.create_sandbox() as sandbox:
        await sandbox.exec("echo unheard")
        # The sandbox is followed already: asking now changes what its server is asked for, and nothing comes twice.
        *pieces, ended = await told_by(runra, sandbox, "echo out; echo err >&2; exit 3")
        assert {(one.data["stream"], one.data["data"]) for one in pieces} == {("stdout", "out\n"), ("stderr", "err\n")}
        assert all(one.data["pid"] == ended.data["pid"] and one.run_id for one in pieces)
        assert all(one.id < ended.id for one in pieces)
        *pieces, _ = await told_by(runra, sandbox, "head -c 3000000 /dev/zero | tr '\\0' x")
        told = sum(len(one.data["data"]) for one in pieces)
        assert told + sum(one.data.get("untoldBytes", 0) for one in pieces) == 3_000_000
        assert told < 3_000_000
    assert "exec.streamed" not in everything
    assert everything.count("exec.completed") == 3
    assert everything.count("sandbox.created") == 1


@pytest.fixture
async def client(real: RealServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    from runra import AsyncRunra

    monkeypatch.setenv("RUNRA_CONFIG_PATH", str(real.config))
    async with AsyncRunra() as client:
        yield client


async def test_the_stream_of_the_server_by_types(client: Any) -> None:
    async with (
        await client.sandboxes.create(image="host") as sandbox,
        sandbox.events(types=["exec.streamed", "exec.completed"]) as stream,
    ):
        events = stream.__aiter__()
        reading = asyncio.ensure_future(anext(events))
        await stream.connected.wait(10)
        process = await sandbox.exec("read line; echo got $line", background=True)
        await process.send_stdin("it\n")
        first = await reading
        assert (first.type, first.data["data"], first.data["stream"]) == ("exec.streamed", "got it\n", "stdout")
        assert (await anext(events)).type == "exec.completed"
