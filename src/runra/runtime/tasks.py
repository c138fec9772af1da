"""Work that must come to an end in order: calls a runtime waits for, and clean-up that a cancellation must not stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from runra.errors import RunraError

T = TypeVar("T")
_log = logging.getLogger("runra.runtime")

#: How long taking back the outcome of a cancelled call may take, in seconds.
_UNDO_S = 30.0


class Tasks:
    """The calls under way. Each runs in a task of its own, so that closing can cancel the work without cancelling the
    caller's task: the caller gets INVALID_STATE."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def run(
        self, work: Coroutine[Any, Any, T], name: str, undo: Callable[[T], Coroutine[Any, Any, Any]] | None = None
    ) -> T:
        """Do the work. Cancelled, it is cancelled and its end waited for; if it had just succeeded, `undo` takes it
        back."""
        if self._closed:
            work.close()
            raise _disposed()
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            while not task.done():
                try:
                    await asyncio.wait({task})
                except asyncio.CancelledError:
                    continue  # a second one changes nothing: the work is ending
            if not task.cancelled() and task.exception() is None and undo is not None:
                await to_end(undo(task.result()), _UNDO_S)
            raise
        if task.cancelled():
            raise _disposed()
        return task.result()

    async def close(self, timeout: float) -> None:
        """Cancel what is under way and wait up to `timeout` seconds for it; refuse what comes later."""
        self._closed = True
        here = asyncio.current_task()
        tasks = {task for task in self._tasks if task is not here}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)


def _disposed() -> RunraError:
    return RunraError("INVALID_STATE", "this Runra was disposed of; make another one", status=0)


async def to_end(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """Do what must be done even when the caller is cancelled, such as ending a sandbox. Raises TimeoutError when
    `seconds` were too few; a cancellation that came meanwhile is raised afterwards."""

    async def bounded() -> T:
        async with asyncio.timeout(seconds):
            return await work

    task = asyncio.create_task(bounded())
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled() and task.exception() is not None:
            _log.warning("cleaning up after a cancelled call failed: %s", task.exception())
        raise cancelled
    return task.result()


async def gathered(*work: Callable[[], Awaitable[None]]) -> None:
    """Do all of it side by side; what fails is logged, and the rest is done all the same."""
    for outcome in await asyncio.gather(*(one() for one in work), return_exceptions=True):
        if isinstance(outcome, Exception):
            _log.warning("cleaning up: %s", outcome)
