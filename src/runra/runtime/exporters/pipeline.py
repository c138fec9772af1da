"""The pipeline: every event goes to every exporter that wants it, and none of them can slow a run or another one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Final

from runra.events import BY_NAME, Event
from runra.runtime.exporters.delivery import Route, Stats
from runra.runtime.exporters.lane import Lane, log
from runra.runtime.exporters.redaction import Redactor

#: Seconds an exporter has to let go of what it holds, also when the deadline has passed.
_LETTING_GO_S: Final = 1.0


class Pipeline:
    """Hands events to exporters, each over a queue and a task of its own. Used on one event loop only.

    Delivery is at least once: an attempt that timed out may have arrived. An event's `id` tells its repetition.
    The pipeline owns its exporters: `close` closes them.
    """

    def __init__(self, routes: Iterable[Route], redactor: Redactor | None = None) -> None:
        self.redactor = redactor or Redactor()
        self._lanes = [Lane(route) for route in routes]
        self._started = False
        self._closed = False
        self._told = False

    async def start(self) -> None:
        """Begin to deliver. Connecting happens in the background: a back end that is down delays nothing, and what is
        offered meanwhile waits."""
        if not self._started and not self._closed:
            self._started = True
            for lane in self._lanes:
                lane.start()

    def offer(self, event: Event) -> None:
        """Take an event. Never blocks and never raises: it costs microseconds, whatever state the exporters are in."""
        if self._closed:
            return
        wanting = [lane for lane in self._lanes if lane.wants(event.type)]
        if not wanting:
            return
        try:
            clean, size = self.redactor.clean(event)
        except Exception as error:  # noqa: BLE001 - an event we cannot read must not hurt the run: counted, told once
            for lane in wanting:
                lane.stats.offered += 1
                lane.stats.dropped += 1
            if not self._told:
                self._told = True
                log.warning("an event %s cannot be exported (%s: %s)", event.type, type(error).__name__, error)
            return
        for lane in wanting:
            lane.offer(clean, size)

    @property
    def named(self) -> frozenset[str]:
        """What the exporters' filters ask for of the types that have to be named."""
        return frozenset(type for type in BY_NAME if any(lane.wants(type) for lane in self._lanes))

    @property
    def stats(self) -> dict[str, Stats]:
        """What became of the events, by exporter's name; a second one of the same name is `name#2`."""
        found: dict[str, Stats] = {}
        for lane in self._lanes:
            number = 1 + sum(1 for name in found if name.partition("#")[0] == lane.name)
            found[lane.name if number == 1 else f"{lane.name}#{number}"] = lane.stats
        return found

    async def flush(self, timeout: float = 10.0) -> bool:
        """Deliver now what waits. False when `timeout` seconds were too few for some exporter; it goes on by itself."""
        if not self._started or self._closed or not self._lanes:
            return True
        waits = [asyncio.ensure_future(lane.flush()) for lane in self._lanes]
        try:
            _, late = await asyncio.wait(waits, timeout=timeout)
        finally:
            for wait in waits:
                wait.cancel()
        return not late

    async def close(self, timeout: float = 10.0) -> bool:
        """Deliver what waits for up to `timeout` seconds, then stop and close the exporters. What was not delivered
        by then is dropped, counted and told. False when there was any such. Repeated, it does nothing."""
        if self._closed:
            return True
        self._closed = True
        if not self._started:
            return True
        deadline = time.monotonic() + timeout
        tasks = [lane.finish() for lane in self._lanes]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=timeout)
        finally:
            for task in tasks:
                task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_LETTING_GO_S)
        left = max(_LETTING_GO_S, deadline - time.monotonic())
        await asyncio.gather(*(lane.close(left) for lane in self._lanes))
        return all(lane.complete for lane in self._lanes)
