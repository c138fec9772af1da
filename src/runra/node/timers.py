"""A sandbox's time limits: `timeoutMs` of running time ends it, `idleTimeoutMs` without activity pauses it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from runra.errors import RunraError

if TYPE_CHECKING:
    from runra.node.sandbox import Sandbox

log = logging.getLogger(__name__)

#: While a background process keeps an idle sandbox busy, look again after at most so many seconds.
_BUSY_RECHECK: Final = 5.0


class Timers:
    """The two timers of one sandbox. They count from `arm` to `disarm`, while it runs; after `close` never again."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._last_activity = time.monotonic()
        self._lifetime: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._closed = False

    def touch(self) -> None:
        """A moment of activity: the idle time starts again."""
        self._last_activity = time.monotonic()

    def arm(self) -> None:
        """Count, from what has run so far and from the last activity."""
        self.disarm()
        if self._closed:
            return
        left = max(0, self._sandbox.config.timeout_ms - self._sandbox.ran_ms()) / 1000
        end = self._sandbox.background
        self._lifetime = asyncio.get_running_loop().call_later(left, lambda: end(self._end_of_life()))
        self._look_again(self._idle_left())

    def disarm(self) -> None:
        for timer in (self._lifetime, self._idle):
            if timer is not None:
                timer.cancel()
        self._lifetime = self._idle = None

    def close(self) -> None:
        self._closed = True
        self.disarm()

    async def _end_of_life(self) -> None:
        sandbox = self._sandbox
        try:
            # The deadline may have been moved while this waited for its turn.
            await sandbox.terminate_if("timeout", lambda: sandbox.ran_ms() >= sandbox.config.timeout_ms)
        finally:
            if sandbox.record.state == "running":  # moved, or it would not die: then it is tried again
                self.arm()

    def _idle_left(self) -> float:
        left: float = self._last_activity + self._sandbox.config.idle_timeout_ms / 1000 - time.monotonic()
        return max(0.0, left)

    def _look_again(self, delay: float) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = None if self._closed else asyncio.get_running_loop().call_later(delay, self._check_idle)

    def _check_idle(self) -> None:
        """The idle time may be over; activity since only moved `_last_activity`, which is cheaper than a timer."""
        if self._sandbox.in_use:
            self._look_again(min(self._sandbox.config.idle_timeout_ms / 1000, _BUSY_RECHECK))
        elif (left := self._idle_left()) > 0:
            self._look_again(left)
        else:
            self._sandbox.background(self._pause_if_idle())

    async def _pause_if_idle(self) -> None:
        """Nobody holds it; but a background process is work, too, and its end the last activity."""
        sandbox = self._sandbox
        try:
            try:
                processes = await sandbox.processes()
            except RunraError as error:
                log.warning("sandbox %s: pausing it without a word from its agent: %s", sandbox.id, error)
                processes = []
            if any(process.exit is None for process in processes):
                self.touch()
            else:
                ended = max((process.exit.ended_at_ms for process in processes if process.exit), default=0)
                since = (time.time_ns() // 1_000_000 - ended) / 1000
                self._last_activity = max(self._last_activity, time.monotonic() - max(0.0, since))
            await sandbox.pause_if("idle", lambda: not sandbox.in_use and self._idle_left() <= 0)
        finally:
            if sandbox.record.state == "running":
                self._look_again(min(_BUSY_RECHECK, max(self._idle_left(), 0.05)))
