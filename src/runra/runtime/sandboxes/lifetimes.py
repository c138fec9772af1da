"""Lifetime and idle timers kept on our side, for back ends that have none of their own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from runra.errors import RunraError
from runra.ids import new_id
from runra.runtime.sandboxes.ledger import Ledger

_log = logging.getLogger("runra.runtime")

#: A transition that failed is tried again after this many seconds.
_AGAIN_S: Final = 5.0
#: How often it is looked at what other processes have noted.
_LOOK_S: Final = 30.0
#: How long another process may take to pause one that was idle.
_PAUSING_S: Final = 120.0
#: What this module adds to a note.
_OURS: Final = ("ranMs", "since", "paused", "writer")


@dataclass
class Life:
    """How long one sandbox has run and may run. Paused time does not count. An idle time of None is never over."""

    id: str
    timeout_ms: int
    idle_timeout_ms: int | None
    auto_resume: bool = False
    paused: bool = False
    #: What must be kept beside the times.
    note: dict[str, Any] = field(default_factory=dict)
    ran_ms: float = 0.0
    since: float = field(default_factory=time.monotonic)
    last_used: float = field(default_factory=time.monotonic)
    users: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    watcher: asyncio.Task[None] | None = None

    def total_ms(self) -> int:
        """Time running so far."""
        return int(self.ran_ms + (0.0 if self.paused else (time.monotonic() - self.since) * 1000))

    def stop_clock(self) -> None:
        self.ran_ms, self.paused, self.since = self.total_ms(), True, time.monotonic()

    def start_clock(self) -> None:
        self.paused, self.since = False, time.monotonic()
        self.touch()

    def touch(self) -> None:
        self.last_used = time.monotonic()
        self.changed.set()

    def idle_left(self) -> float | None:
        """Seconds until it counts as idle, None while it cannot."""
        if self.idle_timeout_ms is None or self.users or self.paused:
            return None
        return max(0.0, self.last_used + self.idle_timeout_ms / 1000 - time.monotonic())

    def lifetime_left(self) -> float | None:
        """Seconds of running it has left, None while it is paused."""
        return None if self.paused else max(0.0, (self.timeout_ms - self.total_ms()) / 1000)


Act = Callable[[Life], Awaitable[None]]


class Lifetimes:
    """The sandboxes of one provider. `end` terminates one whose time is over, `idle` pauses one nobody uses.

    Times are written to the ledger with each change, so that another process, or this one after a restart, goes on
    from there (`adopt`). Adopted sandboxes have their lifetime watched; their idle time only once this process uses
    them, for another one may be using them unseen.
    """

    def __init__(self, ledger: Ledger, end: Act, idle: Act) -> None:
        self._ledger = ledger
        self._end = end
        self._idle = idle
        self._lives: dict[str, Life] = {}
        #: Marks the notes of this process: those of another are news.
        self._writer = new_id("w")

    def get(self, id: str) -> Life | None:
        return self._lives.get(id)

    def add(self, life: Life) -> Life:
        """Watch a sandbox from now on."""
        self._lives[life.id] = life
        self.note(life)
        life.watcher = asyncio.create_task(self._watch(life), name=f"runra-life {life.id}")
        return life

    def adopt(self, life: Life, note: dict[str, Any], running_since: float) -> Life:
        """Watch a sandbox that was made earlier. `running_since` (epoch seconds) counts when there is no note."""
        try:
            life.ran_ms = float(note.get("ranMs", 0.0))
            since = float(note.get("since", running_since))
        except (TypeError, ValueError):
            since = running_since
        life.note = {name: value for name, value in note.items() if name not in _OURS}
        life.since = time.monotonic() - max(0.0, time.time() - since)
        idle, life.idle_timeout_ms = life.idle_timeout_ms, None
        life.note["idle"] = idle
        return self.add(life)

    def note(self, life: Life) -> None:
        """Write its times down."""
        since = time.time() - (time.monotonic() - life.since)
        times = {"ranMs": life.ran_ms, "since": since, "paused": life.paused, "writer": self._writer}
        self._ledger.save(life.id, {**life.note, **times})

    def sync(self, life: Life) -> None:
        """Take over what another process has noted of its times since: it paused it, or resumed it."""
        note = self._ledger.load(life.id) or {}
        if note.get("writer") in (None, self._writer):
            return
        try:
            ran_ms, since = float(note["ranMs"]), float(note["since"])
        except (KeyError, TypeError, ValueError):
            return
        life.ran_ms, life.paused = ran_ms, note.get("paused") is True
        life.since = time.monotonic() - max(0.0, time.time() - since)

    def remove(self, id: str) -> Life | None:
        """Forget a sandbox that has ended."""
        life = self._lives.pop(id, None)
        self._ledger.remove(id)
        if life is not None and life.watcher is not None and life.watcher is not asyncio.current_task():
            life.watcher.cancel()
        return life

    @asynccontextmanager
    async def using(self, id: str) -> AsyncIterator[Life | None]:
        """What happens inside is activity."""
        life = self._lives.get(id)
        if life is None:
            yield None
            return
        self.hold(life)
        try:
            yield life
        finally:
            self.release(life)

    def hold(self, life: Life) -> None:
        """Something in it works; `release` when that has ended."""
        if life.idle_timeout_ms is None and "idle" in life.note:
            life.idle_timeout_ms = life.note.pop("idle")
        life.users += 1
        life.touch()

    async def shared(self, life: Life) -> None:
        """Tell other processes that it is in use, once none of them is about to pause it; and hear what they did."""
        deadline = time.monotonic() + _PAUSING_S
        while not self._ledger.in_use.hold(life.id):
            if time.monotonic() > deadline:
                raise RunraError(
                    "INVALID_STATE",
                    f"sandbox {life.id}: another process has been pausing it for {_PAUSING_S:g} s; look at that one",
                    details={"sandboxId": life.id},
                )
            await asyncio.sleep(0.05)
        self.sync(life)

    def release(self, life: Life) -> None:
        life.users -= 1
        life.touch()
        if not life.users:
            self._ledger.in_use.release(life.id)

    @asynccontextmanager
    async def unused(self, life: Life) -> AsyncIterator[bool]:
        """Whether no process uses it, or has within its idle time; none begins to inside."""
        in_use = self._ledger.in_use
        lock = in_use.alone(life.id)
        if lock is None:  # another one works in it
            life.touch()
            yield False
            return
        try:
            ago = max(0.0, time.time() - in_use.last_used(life.id))
            life.last_used = max(life.last_used, time.monotonic() - ago)
            yield life.idle_left() == 0
        finally:
            in_use.let_go(lock)

    async def close(self) -> None:
        """Stop watching. The sandboxes stay as they are."""
        watchers = {life.watcher for life in self._lives.values() if life.watcher is not None}
        for watcher in watchers:
            watcher.cancel()
        if watchers:
            await asyncio.wait(watchers, timeout=10.0)
        self._lives.clear()
        self._ledger.in_use.close()

    async def _watch(self, life: Life) -> None:
        while True:
            life.changed.clear()
            waits = [left for left in (life.lifetime_left(), life.idle_left()) if left is not None]
            if not waits or min(waits) > 0:
                try:
                    # Not for ever: another process may pause, resume or end it.
                    async with asyncio.timeout(min([*waits, _LOOK_S])):
                        await life.changed.wait()
                except TimeoutError:
                    self.sync(life)
                continue
            try:
                if life.lifetime_left() == 0:
                    await self._end(life)
                    if life.id not in self._lives:
                        return
                elif life.idle_left() == 0:
                    await self._idle(life)
            except (RunraError, OSError) as error:
                _log.warning("sandbox %s: its time is over, and ending or pausing it failed: %s", life.id, error)
                await asyncio.sleep(_AGAIN_S)
