"""One reader, many listeners: whoever joins, and whenever, hears every byte once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runra.contract import ExecutionResult
from runra.events import EventLog
from runra.node.agent.types import Exit, Output
from runra.server.executions import Executions
from runra.server.follow import Ended, Followed, Listener
from runra.server.measure import Measures


class Command:
    """A process and its link in one: what was written so far can be read from any offset, again and again."""

    def __init__(self) -> None:
        self.written = b""
        self.over = False
        self.more = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.written += data
        self.more.set()

    async def attach(self, pid: int, *, offset: int = 0) -> Attached:
        return Attached(self, offset)


class Attached:
    pid = 7

    def __init__(self, command: Command, offset: int) -> None:
        self._command, self._at = command, offset

    async def output(self) -> AsyncIterator[Output]:
        while True:
            if self._at < len(self._command.written):
                piece = Output("stdout", self._at, self._command.written[self._at : self._at + 10])
                self._at += len(piece.data)
                yield piece
            elif self._command.over:
                return
            else:
                self._command.more.clear()
                await self._command.more.wait()

    async def wait(self) -> Exit:
        return Exit(code=0, signal=None, timed_out=False, duration_ms=1, ended_at_ms=1)

    def detach(self) -> None:
        """Nothing to let go of."""


class Hearing(Listener):
    def __init__(self, position: int, slow: float = 0) -> None:
        super().__init__(position)
        self.start, self.heard, self.slow = position, b"", slow

    async def offer(self, output: Output) -> None:
        if self.slow:
            await asyncio.sleep(self.slow)
        fresh = self.fresh(output)
        if fresh is not None:
            assert fresh.offset == self.start + len(self.heard), "a gap"
            self.heard += fresh.data
            self.position = output.offset + len(output.data)

    def end(self, how: Any) -> None:
        assert isinstance(how, Ended)


def ended(exit: Exit) -> Ended:
    return Ended(ExecutionResult(stdout="", stderr="", exit_code=exit.code, duration_ms=1), False)


@pytest.mark.parametrize("slow", [0, 0.002])
@pytest.mark.parametrize("pause", [0, 1, 2, 3, 5])
async def test_joining_while_output_comes(slow: float, pause: int) -> None:
    command = Command()
    followed: Any = Followed(command, Attached(command, 0))  # type: ignore[arg-type]
    first = Hearing(0, slow)
    await followed.listen(first)
    reading = asyncio.create_task(followed.drive(ended))
    joined = []
    async with asyncio.timeout(20):
        for number in range(40):
            command.write(b"%09d\n" % number)
            for _ in range(pause):
                await asyncio.sleep(0)
            if number % 3 == 0:
                one = Hearing(max(0, len(command.written) - 55), slow if number % 2 else 0)
                # Output comes in the very tick in which it joins, and while it waits to.
                joining = asyncio.create_task(followed.listen(one))
                command.write(b"same-tick\n")
                assert await joining
                command.write(b"and-after\n")
                joined.append(one)
        command.over = True
        command.more.set()
        await reading
    for one in (first, *joined):
        assert one.heard == command.written[one.start :]


async def test_finding_a_process_in_the_tick_in_which_another_call_found_it() -> None:
    """Its search is done and not yet forgotten, its command has ended: to wait for it once more would never yield."""
    command = Command()
    command.over = True

    class Box:
        id, organization_id = "sb_0000000000000000", "org"

        @asynccontextmanager
        async def use(self) -> AsyncIterator[Any]:
            yield Link()

    class Link:
        async def attach(self, pid: int, *, offset: int = 0) -> Any:
            attached: Any = await command.attach(pid, offset=offset)
            attached.command = "true"
            return attached

    executions = Executions(EventLog(), Measures(), 1 << 20)
    box: Any = Box()
    finding = asyncio.create_task(executions.find(box, 7))  # runs before the callback that `set_result` schedules
    first: asyncio.Future[Followed] = asyncio.get_running_loop().create_future()
    executions._look_for((box.id, 7), first)
    gone: Any = Followed(command, Attached(command, 0))  # type: ignore[arg-type]
    gone.done = True
    first.set_result(gone)
    async with asyncio.timeout(5):
        found = await finding
    assert found is not gone
    assert not executions._finding
    await executions.close()
