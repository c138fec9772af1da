"""What the async form needs of asyncio; `concurrency_sync` is the same for threads."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from runra.sdk.bodies import cut

T = TypeVar("T")
_log = logging.getLogger("runra.sdk")


async def sleep(seconds: float) -> None:
    """Wait."""
    await asyncio.sleep(seconds)


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run what may block. Cancelled, it goes on by itself and nobody waits: for reading only."""
    return await asyncio.to_thread(function, *arguments)


async def to_end(function: Callable[..., T], *arguments: Any) -> T:
    """Run what works on the local disk. Cancelled, its end is still waited for, so that what it uses may be freed."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        raise


async def call_back(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a caller's function; what it returns is awaited if it can be."""
    outcome = function(*arguments)
    if inspect.isawaitable(outcome):
        await outcome


async def undo(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Let `work` go on by itself although the task that asked for it is being cancelled; `settle` sees it end."""

    async def undoing() -> None:
        try:
            await work()
        except Exception:  # noqa: BLE001 - logged whole
            _log.exception("an interrupted call could not be taken back")

    task = asyncio.get_running_loop().create_task(undoing())
    _undoing.add(task)
    task.add_done_callback(_undoing.discard)


async def settle(seconds: float) -> None:
    """Wait for what is being undone."""
    loop = asyncio.get_running_loop()
    tasks = {task for task in _undoing if task.get_loop() is loop}
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)


_undoing: set[asyncio.Task[None]] = set()


class AsyncSignal:
    """A flag one can wait for."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    def clear(self) -> None:
        self._event.clear()

    def is_set(self) -> bool:
        return self._event.is_set()

    async def wait(self, seconds: float) -> bool:
        """Whether it was set within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


class AsyncBuffer:
    """Bytes from those who put them to the one who takes them: `limit` of them, and the piece that went beyond."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: deque[memoryview] = deque()
        self._held = 0
        self._ended = False
        self._room = asyncio.Event()
        self._some = asyncio.Event()

    async def put(self, data: bytes, seconds: float) -> bool:
        """Whether it was taken within `seconds`, as a whole; after `end` nothing is."""
        try:
            async with asyncio.timeout(seconds):
                while self._held >= self._limit and not self._ended:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            return False
        if self._ended:
            return False
        self._pieces.append(memoryview(data))
        self._held += len(data)
        self._some.set()
        return True

    async def take(self, most: int, seconds: float | None) -> bytes:
        """What there is, at most `most` bytes. None of them: nothing came within `seconds`, or `end` was called."""
        try:
            async with asyncio.timeout(seconds):
                while not self._held and not self._ended:
                    self._some.clear()
                    await self._some.wait()
        except TimeoutError:
            return b""
        taken = cut(self._pieces, most)
        self._held -= len(taken)
        self._room.set()
        return taken

    def end(self, *, drop: bool = False) -> None:
        """Take no more; with `drop` also forget what there is."""
        self._ended = True
        if drop:
            self._pieces.clear()
            self._held = 0
        self._room.set()
        self._some.set()


class AsyncWorker:
    """One piece of work in the background, owned by whoever closes it."""

    def __init__(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(work), name=name)

    async def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:  # noqa: BLE001 - logged whole
            _log.exception("%s failed", self._task.get_name())

    def running(self) -> bool:
        return not self._task.done()

    async def close(self, seconds: float) -> None:
        """End it. Called by the work itself, it only stops once that returns."""
        if self._task is asyncio.current_task():
            return
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=seconds)
