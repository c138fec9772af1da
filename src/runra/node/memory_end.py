"""The end of memory behind a wall that is one memory (gVisor): the whole sandbox ends, at once, and as what it was.

When a group's memory is gone the host's kernel kills its largest process. Of gVisor that may be any part: its kernel,
and then all of it has ended, or the memory of one program inside, the agent's included. Builds of 2024 and early 2025
go on without that: they say that the program ended by itself with 1, or stand still for ever. cgroups v2 kill such a
group as a whole; v1 only tell us.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Final

from runra.node.cgroups import Cgroup

#: The notice comes before the kernel has killed: look so often, so many seconds apart, for it to have done it.
_LOOKS: Final = 40
_APART: Final = 0.025


class MemoryEnd:
    """Watches from `watch` on; `on_end` is called once, when the kernel has killed. Its owner calls `close`."""

    def __init__(self, cgroup: Cgroup, on_end: Callable[[], None]) -> None:
        self._cgroup = cgroup
        self._on_end = on_end
        self._notices: int | None = None
        self._look: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        self._notices = self._cgroup.memory_notices()
        if self._notices is not None:
            asyncio.get_running_loop().add_reader(self._notices, self._noticed)

    def _noticed(self) -> None:
        assert self._notices is not None
        os.eventfd_read(self._notices)
        self._see(_LOOKS)

    def _see(self, left: int) -> None:
        if self._look is not None:
            self._look.cancel()
        with contextlib.suppress(OSError):  # the group is gone: so is the sandbox
            if self._cgroup.oom_kills():
                self.close()
                self._on_end()
            elif left:
                self._look = asyncio.get_running_loop().call_later(_APART, self._see, left - 1)

    def close(self) -> None:
        if self._look is not None:
            self._look.cancel()
        if self._notices is not None:
            asyncio.get_running_loop().remove_reader(self._notices)
            os.close(self._notices)
            self._notices = None
