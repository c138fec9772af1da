"""The bus: every event of a runtime passes here once, and whoever listens gets it in order without slowing the run."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from runra.errors import RunraError
from runra.events import Event, EventType, check_pattern, matches

_log = logging.getLogger("runra.runtime")

#: How many events may wait for one handler; beyond it the oldest are dropped and counted.
WAITING: Final = 10_000

Handler = Callable[[Event], Awaitable[Any] | Any]
#: Takes an event at once and never blocks: it has a queue of its own, as the exporters' pipeline has.
Sink = Callable[[Event], None]


class Bus:
    """Publishes to handlers and sinks. Used on one event loop only.

    Each handler has a bounded queue and a task of its own, so events reach it one after another in the order of
    publication, and a slow one delays nobody else. One that falls more than `bound` events behind loses the oldest;
    `dropped` counts them. An exception in a handler is logged, and its next event comes all the same.
    """

    def __init__(self, bound: int = WAITING) -> None:
        self._bound = bound
        self._readers: list[_Reader] = []
        self._sinks: list[Sink] = []
        self._named: list[frozenset[str]] = []
        self._lost_before = 0

    @property
    def idle(self) -> bool:
        """Whether nobody listens."""
        return not self._readers and not self._sinks

    def asked(self, type: EventType) -> bool:
        """Whether anybody names this type, one of those that have to be named."""
        return any(reader.pattern == type for reader in self._readers) or any(type in names for names in self._named)

    @property
    def dropped(self) -> int:
        """How many events handlers have lost by being slow."""
        return self._lost_before + sum(reader.dropped for reader in self._readers)

    def publish(self, event: Event) -> None:
        """Hand an event to all who want it. Returns at once."""
        for sink in tuple(self._sinks):
            try:
                sink(event)
            except Exception:  # noqa: BLE001 - a broken sink must not hurt the run: logged whole
                _log.exception("a sink of the event bus failed on %s", event.type)
        for reader in tuple(self._readers):
            reader.offer(event)

    def on(self, pattern: str, handler: Handler) -> Callable[[], None]:
        """Call `handler`, sync or async, with each event of a type (`exec.completed`), a topic (`sandbox.*`) or
        all (`*`).

        Returns a function that takes it off again. Raises INVALID_REQUEST for a pattern that can never match and for
        a handler that is not callable.
        """
        check_pattern(pattern)
        if not callable(handler):
            raise RunraError("INVALID_REQUEST", f"handler: must be callable, not {type(handler).__name__}")
        reader = _Reader(pattern, handler, self._bound)
        self._readers.append(reader)

        def off() -> None:
            if reader in self._readers:
                self._readers.remove(reader)
                self._lost_before += reader.dropped
                reader.stop()

        return off

    def attach(self, sink: Sink, named: frozenset[str] = frozenset()) -> Callable[[], None]:
        """Hand every event to `sink` within `publish`; for what queues by itself. `named`: what it asks for of the
        types that have to be named. Returns a function that detaches it."""
        self._sinks.append(sink)
        self._named.append(named)

        def detach() -> None:
            if sink in self._sinks:
                self._sinks.remove(sink)
                self._named.remove(named)

        return detach

    async def drain(self, timeout: float) -> bool:
        """Wait until the handlers have had all that was published; False when `timeout` seconds were too few.

        A handler that calls this is not waited for: it would wait for itself.
        """
        waiting = [reader.empty() for reader in self._readers if not reader.current()]
        try:
            async with asyncio.timeout(timeout):
                await asyncio.gather(*waiting)
        except TimeoutError:
            return False
        return True

    async def close(self, timeout: float) -> None:
        """Let the handlers finish for up to `timeout` seconds, then stop them."""
        if not await self.drain(timeout):
            _log.warning("event handlers had not finished after %g s and were stopped", timeout)
        for reader in self._readers:
            self._lost_before += reader.dropped
            await reader.close()
        self._readers.clear()
        self._sinks.clear()
        self._named.clear()


class _Reader:
    """One handler: its queue, and the task that calls it, started with the first event."""

    def __init__(self, pattern: str, handler: Handler, bound: int) -> None:
        self.pattern = pattern
        self._handler = handler
        self._queue: deque[Event] = deque(maxlen=bound)
        self._task: asyncio.Task[None] | None = None
        self._told = False
        self.dropped = 0

    def offer(self, event: Event) -> None:
        if not matches(self.pattern, event.type):
            return
        if len(self._queue) == self._queue.maxlen:
            self.dropped += 1
            if not self._told:
                self._told = True
                _log.warning("a handler of %r is too slow: events are dropped (%d so far)", self.pattern, self.dropped)
        self._queue.append(event)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work(), name=f"runra-handler {self.pattern}")

    async def _work(self) -> None:
        """Call the handler until nothing waits; the next event starts another such task."""
        while self._queue:
            event = self._queue.popleft()
            try:
                given = self._handler(event)
                if inspect.isawaitable(given):
                    await given
            except Exception:  # noqa: BLE001 - the caller's code: logged whole, and the next event has its turn
                _log.exception("the handler of %r failed on %s", self.pattern, event.type)
        self._told = False

    def current(self) -> bool:
        return self._task is not None and self._task is asyncio.current_task()

    async def empty(self) -> None:
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    def stop(self) -> None:
        self._queue.clear()
        if self._task is not None and not self.current():
            self._task.cancel()

    async def close(self) -> None:
        self.stop()
        if self._task is not None and not self.current():
            # `wait` rather than `await`: a handler that swallows its cancellation must not be waited for for ever.
            await asyncio.wait([self._task], timeout=1.0)
