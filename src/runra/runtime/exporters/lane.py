"""One exporter's way: its bounded queue, its batches, its retries, and what is told when it fails."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from runra.errors import RunraError
from runra.events import Event, EventType
from runra.runtime.exporters.delivery import FIRST_PAUSE_S, LONGEST_PAUSE_S, SHORTEST_PAUSE_S, Route, Stats, as_failure

log: Final = logging.getLogger("runra.exporters")

#: Rough bytes of one batch: back ends bound a request, OTLP over gRPC at 4 MiB.
_BATCH_BYTES: Final = 1 << 20
#: Seconds an `on_error` that is a coroutine may take.
_TELLING_S: Final = 10.0


class Lane:
    """Takes events at once and delivers them in its own time. When it cannot keep up the oldest waiting are dropped."""

    def __init__(self, route: Route) -> None:
        self.name = route.exporter.name
        self.stats = Stats()
        self._route = route
        self._delivery = route.delivery
        self._wanted: dict[EventType, bool] = {}
        self._queue: deque[tuple[Event, int]] = deque()
        self._bytes = 0
        self._in_flight = 0
        self._stir = asyncio.Event()
        self._hurry = asyncio.Event()
        self._idle = asyncio.Event()
        self._finishing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()
        #: Events lost since the exporter last worked; the stretch is told at its begin and at its end.
        self._lost = 0
        self._failing = False
        self._touched = False

    # --- taking events ---------------------------------------------------------------------------------------------

    def wants(self, type: EventType) -> bool:
        known = self._wanted.get(type)
        if known is None:
            known = self._wanted[type] = self._route.wants(type)
        return known

    def offer(self, event: Event, size: int) -> None:
        queue = self._queue
        queue.append((event, size))
        self._bytes += size
        self.stats.offered += 1
        self._idle.clear()
        while len(queue) > self._delivery.queue_size or (
            self._bytes > self._delivery.queue_kb * 1024 and len(queue) > 1
        ):
            self._bytes -= queue.popleft()[1]
            if not self._lost:
                self._tell(self._overrun())
            self._lose(1)
        self.stats.waiting = len(queue)
        if len(queue) == 1 or len(queue) >= self._delivery.batch_size:
            self._stir.set()

    # --- delivering them -------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._task = asyncio.create_task(self._work(), name=f"runra-exporter {self.name}")

    async def _work(self) -> None:
        begun = False
        while True:
            if not self._queue:
                self._hurry.clear()
                self._idle.set()
                if self._finishing.is_set():
                    return
            # The exporter starts at once, not with the first event: what is wrong is told early.
            if not begun:
                begun = await self._begin()
                continue
            if await self._gather():
                batch = self._take()
                if batch:
                    await self._deliver(batch)

    async def _begin(self) -> bool:
        """Start the exporter. False when it failed for now; then what waits has had its time and is given up."""
        self._touched = True
        failure = await self._attempts(self._route.exporter.start)
        if failure is not None:
            self._lose(len(self._queue))
            self._queue.clear()
            self._bytes = self.stats.waiting = 0
            # One that will never start is not tried again for each event, and not for ever in a busy loop.
            if not self._finishing.is_set():
                await self._pause(LONGEST_PAUSE_S)
            return False
        return True

    async def _gather(self) -> bool:
        """Wait for the first event and then for a full batch, the interval, or somebody in a hurry."""
        if not self._queue:
            self._stir.clear()
            await self._stir.wait()
        if self._queue and not self._hurry.is_set() and not self._finishing.is_set():
            try:
                async with asyncio.timeout(self._delivery.flush_interval_ms / 1000):
                    while len(self._queue) < self._delivery.batch_size and not self._hurry.is_set():
                        self._stir.clear()
                        await self._stir.wait()
            except TimeoutError:
                pass
        return bool(self._queue)

    def _take(self) -> list[Event]:
        batch: list[Event] = []
        size = taken = 0
        while self._queue and taken < self._delivery.batch_size and size < _BATCH_BYTES:
            event, weight = self._queue.popleft()
            self._bytes -= weight
            taken += 1
            try:
                passes = self._route.passes(event)
            except Exception as error:  # noqa: BLE001 - the caller's condition: the event stays here, and is counted
                self._fail(as_failure(error), "its filter's condition failed")
                self._lose(1)
                continue
            if passes:
                batch.append(event)
                size += weight
            else:
                self.stats.offered -= 1
        self.stats.waiting = len(self._queue) + len(batch)
        return batch

    async def _deliver(self, batch: list[Event]) -> None:
        lost = self._in_flight = len(batch)
        try:
            failure = await self._attempts(lambda: self._route.exporter.export(batch))
            # Of a batch that was taken in part, the error says how many were not.
            refused = failure.details.get("failed") if failure else 0
            lost = min(refused, lost) if isinstance(refused, int) else lost
        finally:  # also when the deadline of `close` cancels this
            if self._in_flight:  # else `close` waited no longer, and has counted
                self._in_flight = 0
                self.stats.waiting = len(self._queue)
                self.stats.exported += len(batch) - lost
                self._lose(lost)
        if not lost:
            self._recover()

    async def _attempts(self, call: Callable[[], Awaitable[None]]) -> RunraError | None:
        """Call until it works; the failure when it does not, will not, or did not for `give_up_ms`."""
        give_up = time.monotonic() + self._delivery.give_up_ms / 1000
        pause = FIRST_PAUSE_S
        while True:
            try:
                async with asyncio.timeout(self._delivery.timeout_ms / 1000):
                    await call()
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                failure = as_failure(error)  # the exporter's own, not ours
            except Exception as error:  # noqa: BLE001 - whatever an exporter raises, it is counted and told
                failure = as_failure(error)
            else:
                self.stats.failure = ""
                return None
            asked = failure.details.get("retryAfterMs")
            wait = random.uniform(pause / 2, pause)  # noqa: S311 - no secret: it spreads the retries of many
            if isinstance(asked, int | float):
                wait = max(asked / 1000, SHORTEST_PAUSE_S)
            again = failure.retryable and time.monotonic() + wait < give_up
            self._fail(failure, "will be tried again" if again else "given up: its events are dropped")
            if not again:
                return failure
            self.stats.retries += 1
            pause = min(pause * 2, LONGEST_PAUSE_S)
            await self._pause(wait)

    async def _pause(self, seconds: float) -> None:
        """Sleep. When the pipeline closes meanwhile there is one more attempt at once, and later ones in their time."""
        if self._finishing.is_set():
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._finishing.wait()
        except TimeoutError:
            pass

    # --- telling of failures, once for each stretch ------------------------------------------------------------------

    def _fail(self, failure: RunraError, what: str) -> None:
        self.stats.failure = failure.message
        if not self._failing:
            self._failing = True
            self._tell(failure, what)

    def _lose(self, count: int) -> None:
        self._lost += count
        self.stats.dropped += count

    def _recover(self) -> None:
        full = len(self._queue) * 2 > self._delivery.queue_size or self._bytes * 2 > self._delivery.queue_kb * 1024
        if self._lost and full:
            return  # it works, but not quickly enough: the stretch goes on
        if self._lost:
            log.warning("exporter %s works again; it lost %d events", self.name, self._lost)
        elif self._failing:
            log.info("exporter %s works again; it lost none", self.name)
        self._failing = False
        self._lost = 0

    def _overrun(self) -> RunraError:
        why = f" (its latest failure: {self.stats.failure})" if self.stats.failure else ""
        return RunraError(
            "RESOURCE_EXHAUSTED",
            f"events come quicker than they are taken, the oldest of those that wait are dropped{why}",
            details={"exporter": self.name, "waiting": len(self._queue)},
        )

    def _tell(self, failure: RunraError, what: str = "") -> None:
        """Log it and call `on_error`; later, for `offer` may be the caller and must not wait for either."""
        asyncio.get_running_loop().call_soon(self._say, failure, what)

    def _say(self, failure: RunraError, what: str) -> None:
        log.warning("exporter %s: %s%s", self.name, failure, f" ({what})" if what else "")
        if self._delivery.on_error is None:
            return
        try:
            given = self._delivery.on_error(failure)
        except Exception:
            log.exception("on_error of exporter %s failed", self.name)
            return
        if inspect.iscoroutine(given):
            task = asyncio.create_task(self._finish_saying(given))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _finish_saying(self, given: Coroutine[Any, Any, Any]) -> None:
        try:
            async with asyncio.timeout(_TELLING_S):
                await given
        except Exception:
            log.exception("on_error of exporter %s failed", self.name)

    # --- the end -----------------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Wait until all that was offered so far has been delivered or given up."""
        if self._queue or not self._idle.is_set():
            self._hurry.set()
            self._stir.set()
        await self._idle.wait()

    def finish(self) -> asyncio.Task[None]:
        """Deliver what waits and then end; the task to wait for."""
        assert self._task is not None
        self._finishing.set()
        self._hurry.set()
        self._stir.set()
        return self._task

    async def close(self, timeout: float) -> None:
        """Free the exporter, when its task is over or was cancelled."""
        self._lose(len(self._queue) + self._in_flight)
        self._queue.clear()
        self._in_flight = self.stats.waiting = 0
        if self._touched:
            try:
                async with asyncio.timeout(timeout):
                    await self._route.exporter.close()
            except Exception as error:  # noqa: BLE001 - it is over either way: told
                log.warning("exporter %s did not close: %s", self.name, as_failure(error))
        if self._lost:
            log.warning("exporter %s lost %d events that were not delivered before the end", self.name, self._lost)
        for task in self._telling:
            task.cancel()

    @property
    def complete(self) -> bool:
        """Whether nothing was lost at the end."""
        return not self._lost
