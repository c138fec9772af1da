"""The runtime's end of a relay: reads what it says, numbers what it is told, and sees that it lives."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, Protocol, cast

from runra.errors import RunraError
from runra.runtime.relay_connection import Connection
from runra.runtime.relay_lines import CONNECTIONS, Line, Parser, say, strange
from runra.runtime.types import HoldStdin, StdinWriter
from runra.sdk.output import OutputChunk

#: A sign of life goes to the relay this often, and comes back; without one for so long the relay is lost. It ends by
#: itself after 45 s without anything from here.
PING_S: Final = 10.0
SILENCE_S: Final = 45.0
#: How long one write to the relay's stdin may take, and for how long it is tried again where it broke, in seconds.
SEND_S: Final = 30.0
_AGAIN_S: Final = 0.2
#: A stdin that is held open has to bring the first lines to the relay within this; else something in between collects
#: whole requests, and each write is made one of its own.
FLOW_S: Final = 5.0
#: Lines that wait to be sent: with more, what the relay says is not read.
_WAITING_BYTES: Final = 256 << 10
#: Lines that are kept because the relay has not confirmed them: with more, connections read nothing; with very many
#: more, they are those of a relay that only asks.
_KEPT_BYTES: Final = 512 << 10
_KEPT_MAX_BYTES: Final = 8 << 20
#: The relay is asked how far it has got each time so much was sent, and told how much has arrived.
_ASK_BYTES: Final = 128 << 10
_HEARD_BYTES: Final = 128 << 10
_ERRORS_BYTES: Final = 2 << 10


class Carrier(Protocol):
    """What a channel needs of a process in the background."""

    def output(self) -> AsyncIterator[OutputChunk]: ...

    async def send_stdin(self, data: bytes) -> None: ...


class _Writes:
    """A way in where each write is one of its own."""

    def __init__(self, carrier: Carrier) -> None:
        self.write = carrier.send_stdin

    async def wait_closed(self) -> None:
        await asyncio.Event().wait()


class Channel:
    """Speaks with one relay. `hold` opens a way to its stdin that stays open, where the provider has one."""

    def __init__(self, carrier: Carrier, target: Path, hold: HoldStdin | None = None) -> None:
        #: The port inside, once the relay has said it.
        self.port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._carrier = carrier
        self._hold = hold
        self._target = str(target)
        self._parser = Parser()
        self._open: dict[int, Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_id = 0
        self._offset: int | None = None
        self._arrived = 0
        self._told = 0
        self._errors = b""
        # Lines that wait; then, with their last number, those sent and not confirmed.
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._sent: deque[tuple[int, bytes]] = deque()
        self._unconfirmed = 0
        self._unasked = 0
        self._seq = 0
        self._confirmed_at = time.monotonic()
        self._broken_at: float | None = None
        self._done = False
        self._some = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._fewer = asyncio.Event()

    async def run(self) -> None:
        """Carry until it cannot go on, and raise why (RunraError). Cancelled, it ends every connection first."""
        works = [asyncio.create_task(work) for work in (self._read(), self._write(), self._watch())]
        try:
            done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            for work in done:
                work.result()
        finally:
            self._done = True
            self._room.set()
            self._fewer.set()
            rest = {*works, *self._tasks}
            for task in rest:
                task.cancel()
            await asyncio.wait(rest)

    async def quit(self) -> None:
        """Tell the relay to end, once `run` has been cancelled. Raises what sending raises."""
        # What was being sent may have arrived or not, and in part. The relay ends in either case: at this line, or
        # because lines before it are missing.
        self._lines.append(say("q"))
        async with asyncio.timeout(SEND_S):
            await self._carrier.send_stdin(b"\n" + self._numbered())

    # --- what the relay says --------------------------------------------------------------------------------------

    async def _read(self) -> None:
        async with aclosing(cast(Any, self._carrier.output())) as chunks:
            async for chunk in chunks:
                self._whole(chunk)
                if chunk.stream == "stderr":
                    self._errors = (self._errors + chunk.data)[-_ERRORS_BYTES:]
                    continue
                self._arrived += len(chunk.data)
                for line in self._parser.feed(chunk.data):
                    self._take(line)
                    if not self._room.is_set():
                        await self._room.wait()  # what is answered is bounded, whatever is asked
                if self._arrived - self._told >= _HEARD_BYTES:
                    self._told = self._arrived
                    self._put(say("a", 0, self._arrived))
        raise self._ended()

    def _whole(self, chunk: OutputChunk) -> None:
        """See that no output is missing: a provider keeps only so much for a reader that was cut off."""
        if self._offset is not None and chunk.offset > self._offset:
            raise RunraError(
                "NETWORK_ERROR",
                "output of the relay in the sandbox was lost while its provider could not be reached",
                details={"reason": "relay_gap", "sent": True},
                retryable=False,
            )
        self._offset = chunk.offset + len(chunk.data)

    def _take(self, line: Line) -> None:
        if line.op == "!":
            if not self.port.done():
                self.port.set_result(line.number)
        elif line.op == "p":
            self._confirmed(line)
        elif line.op == "o":
            if line.id <= self._last_id:
                raise strange("a connection that cannot be", line)
            self._last_id = line.id
            if len(self._tasks) >= CONNECTIONS:
                # More than the relay has: some have ended inside, and their last bytes are still on their way here.
                self._put(say("r", line.id))
                return
            opened = self._open[line.id] = Connection(line.id, self._target, self._say)
            self._tasks.add(opened.task)
            opened.task.add_done_callback(lambda task: self._over(line.id, task))
        elif line.id > self._last_id:
            raise strange("a connection that was never opened", line)
        elif (known := self._open.get(line.id)) is not None:  # else it has ended here, which the relay did not know yet
            known.take(line)

    def _over(self, id: int, task: asyncio.Task[None]) -> None:
        self._open.pop(id, None)
        self._tasks.discard(task)

    def _ended(self) -> RunraError:
        said = self._errors.decode(errors="replace").strip()
        return RunraError(
            "INTERNAL_ERROR",
            "the relay in the sandbox has ended, " + (f"and said: {said}" if said else "or something inside killed it"),
            details={"reason": "relay_ended", "stderr": said},
            retryable=False,
        )

    # --- what it is told ------------------------------------------------------------------------------------------

    def _put(self, line: bytes) -> None:
        self._lines.append(line)
        self._waiting += len(line)
        if self._waiting > _WAITING_BYTES:
            self._room.clear()
        if self._waiting + self._unconfirmed > _KEPT_MAX_BYTES:
            raise _silent("asks for ever more and takes no answer")
        self._some.set()

    async def _say(self, line: bytes) -> None:
        while self._waiting + self._unconfirmed > _KEPT_BYTES and not self._done:
            self._fewer.clear()
            await self._fewer.wait()
        self._put(line)

    def _confirmed(self, line: Line) -> None:
        if line.number > self._seq:
            raise strange("that it has taken what it was never told", line)
        while self._sent and self._sent[0][0] <= line.number:
            self._unconfirmed -= len(self._sent.popleft()[1])
        self._confirmed_at, self._broken_at = time.monotonic(), None
        self._fewer.set()

    async def _write(self) -> None:
        """Send what there is to say, on one way in after the other: where one broke, everything that was not confirmed
        is said again. The relay knows lines by their numbers, and an empty one ends a line that was torn."""
        await asyncio.shield(self.port)
        while True:
            hold = self._hold
            try:
                if hold is None:
                    await self._speak(_Writes(self._carrier), held=False)
                else:
                    async with hold() as stdin:
                        await self._speak(stdin, held=True)
            except RunraError as error:
                # After a timeout the first attempt may still be on its way, and would mix with the second.
                broken = error.code == "NETWORK_ERROR" and error.details.get("reason") in ("connect", "closed")
                now = time.monotonic()
                self._broken_at = self._broken_at or now
                if not (broken or error.retryable) or now - self._broken_at > SEND_S:
                    raise
            await asyncio.sleep(_AGAIN_S)

    async def _speak(self, stdin: StdinWriter, held: bool) -> None:
        """Say on one way in what was not confirmed, and then what there is. While one write is under way, the lines for
        the next gather."""
        lost = asyncio.ensure_future(stdin.wait_closed())
        lost.add_done_callback(lambda _: self._some.set())
        opened = time.monotonic()
        look = asyncio.get_running_loop().call_later(FLOW_S, self._some.set)
        try:
            if self._sent:
                await self._send(stdin, b"\n" + b"".join(lines for _, lines in self._sent))
            self._put(say("p"))
            while not lost.done():
                await self._some.wait()
                self._some.clear()
                if held and self._confirmed_at < opened and time.monotonic() - opened >= FLOW_S:
                    self._hold = None
                    raise _collected()
                if self._lines:
                    await self._send(stdin, self._next())
            lost.result()
        finally:
            look.cancel()
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)  # a write has raised the same

    def _next(self) -> bytes:
        self._unasked += self._waiting
        if self._unasked >= _ASK_BYTES:
            self._unasked = 0
            self._lines.append(say("p"))
        lines = self._numbered()
        self._sent.append((self._seq, lines))
        self._unconfirmed += len(lines)
        return lines

    def _numbered(self) -> bytes:
        first = self._seq + 1
        self._seq += len(self._lines)
        lines = b"".join(b"%d%b" % (seq, line) for seq, line in enumerate(self._lines, first))
        self._lines.clear()
        self._waiting = 0
        self._room.set()
        return lines

    async def _send(self, stdin: StdinWriter, lines: bytes) -> None:
        try:
            async with asyncio.timeout(SEND_S):
                await stdin.write(lines)
        except TimeoutError:
            raise _silent(f"does not read: a write of {len(lines)} bytes took more than {SEND_S:.0f} s") from None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            if time.monotonic() - self._confirmed_at > SILENCE_S:
                raise _silent(f"has answered nothing for {SILENCE_S:.0f} s")
            self._put(say("p"))


def _collected() -> RunraError:
    return RunraError(
        "NETWORK_ERROR",
        f"nothing of a request that stays open came to the relay within {FLOW_S:.0f} s",
        details={"reason": "closed", "sent": True},
        retryable=False,
    )


def _silent(how: str) -> RunraError:
    return RunraError(
        "NETWORK_ERROR",
        f"the relay in the sandbox {how}; the sandbox may be paused, or too busy",
        details={"reason": "relay_silent", "sent": True},
        retryable=False,
    )
