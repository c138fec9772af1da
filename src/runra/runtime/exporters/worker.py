"""A thread for an exporter's blocking calls: its own, so that one that hangs takes nothing from anybody else."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from runra.errors import RunraError

Result = TypeVar("Result")


class Worker:
    """Runs one blocking call at a time in a daemon thread, started with the first call.

    A daemon, and none of asyncio's shared pool: a call that never returns would use that pool up, and hold the program
    at its end. While one is still running, a further call is refused as retryable instead of waiting behind it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy = False

    async def run(self, call: Callable[..., Result], *args: Any) -> Result:
        """The result of `call(*args)`. Cancelled, it stops waiting; the call itself cannot be stopped."""
        if self._busy:
            raise RunraError("NETWORK_ERROR", "an earlier call has not returned yet", retryable=True)
        self._busy = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"runra-{self._name}", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()

        def work() -> None:
            result: Any = None
            failure: BaseException | None = None
            try:
                result = call(*args)
            except Exception as error:  # noqa: BLE001 - handed to the one who waits
                failure = error
            self._busy = False
            try:
                loop.call_soon_threadsafe(_settle, done, result, failure)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more

        self._calls.put(work)
        return await done

    def stop(self) -> None:
        """End the thread once its call is done. Does not wait for it."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread = None

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _settle(done: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if done.cancelled():
        return
    if failure is None:
        done.set_result(result)
    else:
        done.set_exception(failure)
