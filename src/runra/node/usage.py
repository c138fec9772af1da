"""What a sandbox uses of the machine: measured where its groups and its folder are."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any, Final

from runra.node.cgroups import Cgroup
from runra.node.disk import bytes_below

#: Seconds for which a look at a sandbox's disk use stays good.
_DISK_FRESH: Final = 5.0


class Usage:
    """Of one sandbox, whose files are below `folder`."""

    def __init__(self, cgroup: Cgroup, folder: Path) -> None:
        self._cgroup = cgroup
        self._folder = folder
        self._disk_bytes = 0
        self._disk_seen = -_DISK_FRESH
        self._disk_looking = asyncio.Lock()

    def oom_kills(self) -> int:
        """How often the kernel killed one of its processes for want of memory."""
        try:
            return self._cgroup.oom_kills()
        except OSError:  # gone in the meantime
            return 0

    async def read(self) -> dict[str, Any]:
        """cpuMs, memoryBytes, processes and diskBytes as far as this machine measures them, and oomKills."""
        found: dict[str, Any] = {"oomKills": self.oom_kills()}
        with contextlib.suppress(OSError):
            found.update(self._cgroup.usage())
        found["diskBytes"] = await self.disk_bytes()
        return found

    async def disk_bytes(self) -> int:
        """Bytes on disk, as of some seconds ago at most; one look at a time, however many ask."""
        async with self._disk_looking:
            if time.monotonic() - self._disk_seen >= _DISK_FRESH:
                self._disk_bytes = await asyncio.to_thread(bytes_below, self._folder)
                self._disk_seen = time.monotonic()
            return self._disk_bytes
