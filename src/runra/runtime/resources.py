"""The events `resource.cpu`, `.memory` and `.disk` of sandboxes whose provider has no server to tell them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from runra.errors import RunraError
from runra.events import EventType
from runra.runtime.types import ResourceUse

if TYPE_CHECKING:
    from runra.runtime.session import Session

_log = logging.getLogger("runra.runtime")

#: How often is looked, in seconds: as a server does.
EVERY_S: Final = 10.0
#: How long a look may take, and how many are taken at a time.
_LOOK_S: Final = 8.0
_AT_ONCE: Final = 8


class Resources:
    """Looks at sandboxes while somebody listens, and tells what has changed. It runs while there is one to look at."""

    def __init__(self, session: Session, every_s: float = EVERY_S) -> None:
        self.every_s = every_s
        self._session = session
        self._watched: dict[str, dict[EventType, Any]] = {}
        self._task: asyncio.Task[None] | None = None

    def watch(self, sandbox_id: str) -> None:
        """Look at this one from now on."""
        self._watched.setdefault(sandbox_id, {})
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look_on(), name="runra-resources")

    def forget(self, sandbox_id: str) -> None:
        """It has ended, or is of no more concern."""
        self._watched.pop(sandbox_id, None)

    async def close(self) -> None:
        self._watched.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1.0)

    async def _look_on(self) -> None:
        places = asyncio.Semaphore(_AT_ONCE)
        while self._watched:
            await asyncio.sleep(self.every_s)
            if self._session.telling:
                await asyncio.gather(*(self._look(id, told, places) for id, told in tuple(self._watched.items())))
            else:
                for told in self._watched.values():
                    told.clear()  # whoever comes next hears of all

    async def _look(self, sandbox_id: str, told: dict[EventType, Any], places: asyncio.Semaphore) -> None:
        try:
            async with places, asyncio.timeout(_LOOK_S):
                used = await self._session.provider.usage(sandbox_id)
        except RunraError as error:
            if error.code == "SANDBOX_NOT_FOUND":
                self.forget(sandbox_id)
            _log.debug("sandbox %s: what it uses is not known: %s", sandbox_id, error)
            return
        except TimeoutError:
            return  # the next look may have more luck
        if self._watched.get(sandbox_id) is told:
            self._tell(sandbox_id, used, told)

    def _tell(self, sandbox_id: str, used: ResourceUse, told: dict[EventType, Any]) -> None:
        found: tuple[tuple[EventType, str, Any, str, Any], ...] = (
            ("resource.cpu", "cpuMs", used.cpu_ms, "limitCores", used.cpu_limit),
            ("resource.memory", "memoryBytes", used.memory_bytes, "limitBytes", used.memory_limit_bytes),
            ("resource.disk", "diskBytes", used.disk_bytes, "limitBytes", used.disk_limit_bytes),
        )
        for type, field, value, ceiling, limit in found:
            if value is not None and told.get(type) != value:
                told[type] = value
                self._session.tell(
                    type, sandbox_id, {field: value} if limit is None else {field: value, ceiling: limit}
                )
