"""An event loop in a thread, and the way into it for calls that wait: what the blocking form stands on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar

from runra.errors import RunraError

T = TypeVar("T")

#: How long the loop's thread, and work that is cancelled, may take to end, in seconds.
_END_S = 20.0


class Portal:
    """Runs work on a loop of its own. A wait that is interrupted (Ctrl-C) cancels its work and waits for that.

    Handlers and agents run on the loop's thread: one that blocks there holds up everything, and a call of the blocking
    form from there is refused, since it would wait for itself.
    """

    def __init__(self, wrappers: Mapping[type[Any], Callable[..., Any]]) -> None:
        self._wrappers = wrappers
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_serve, args=(self._loop,), name="runra-runtime", daemon=True)
        self._thread.start()
        # Forgotten without `dispose`, it ends all the same; sandboxes do not: their own timers end them.
        self._finalizer = weakref.finalize(self, _stop, self._loop)

    @property
    def open(self) -> bool:
        return self._finalizer.alive

    def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do the work and wait for its end."""
        self._outside()
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            tasks.append(self._loop.create_task(_made(work)))
            tasks[0].add_done_callback(lambda task: _hand_over(task, future))

        self._loop.call_soon_threadsafe(begin)
        try:
            return future.result()
        except BaseException as error:
            if not future.done():  # the wait was interrupted, not the work: it is cancelled, and its end waited for
                self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
                concurrent.futures.wait([future], _END_S)
            raise error from None if isinstance(error, _End) else error.__cause__

    def do(self, work: Callable[[], T]) -> T:
        """Call what does not wait, on the loop's thread."""

        async def done() -> T:
            return work()

        return self.call(done)

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items, each when it comes. Left early, the source is closed."""
        try:
            while True:
                try:
                    yield self.call(lambda: _next(items))
                except _End:
                    return
        finally:
            close = getattr(items, "aclose", None)
            if close is not None and self._thread.is_alive():
                self.call(close)

    def wrap(self, value: Any) -> Any:
        """A result in its blocking form; lists one by one."""
        if isinstance(value, list):
            return [self.wrap(one) for one in value]
        wrapper = self._wrappers.get(type(value))
        return value if wrapper is None else wrapper(self, value)

    def close(self) -> None:
        """End the loop and its thread. Calling it twice does no harm."""
        self._outside()
        self._finalizer()
        self._thread.join(_END_S)

    def _outside(self) -> None:
        if threading.current_thread() is self._thread:
            raise RunraError(
                "INVALID_STATE",
                "the blocking form was called from a handler or agent, where it would wait for itself; use what they "
                "are given, or run blocking work in a thread of its own",
                status=0,
            )
        if not self._thread.is_alive():
            raise RunraError("INVALID_STATE", "this Runra was disposed of; make another one", status=0)


class _End(Exception):
    """The end of an iteration, which may not travel through a future as StopAsyncIteration."""


async def _next(items: AsyncIterator[T]) -> T:
    try:
        return await anext(items)
    except StopAsyncIteration:
        raise _End from None


async def _made(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return await work()


def _hand_over(task: asyncio.Task[T], future: concurrent.futures.Future[T]) -> None:
    if task.cancelled():
        future.set_exception(concurrent.futures.CancelledError())
    elif (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
