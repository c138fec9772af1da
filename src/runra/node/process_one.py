"""Process 1 of a sandbox, as the host holds it: by a pidfd, which never means another process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import Final

from runra.errors import RunraError

#: Seconds the kernel may take to end it once it is killed.
KILL_TIMEOUT: Final = 10.0


class ProcessOne:
    """Watched from `watch` on; `on_death` is called once, when it has ended. Its owner calls `close`."""

    def __init__(self, sandbox_id: str, on_death: Callable[[], None]) -> None:
        self._sandbox_id = sandbox_id
        self._on_death = on_death
        self._fd = -1
        self._died = asyncio.Event()

    @property
    def fd(self) -> int:
        """Its pidfd, which stays ours."""
        return self._fd

    def watch(self, pid: int) -> None:
        """Raises ProcessLookupError when it is gone already."""
        self._fd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._fd, self._ended)

    def unwatch(self) -> None:
        if self._fd >= 0 and not self._died.is_set():
            asyncio.get_running_loop().remove_reader(self._fd)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        self._died.set()
        self._on_death()

    async def kill(self, thaw: Callable[[], None]) -> None:
        """End it, and with it everything in its pid namespace. INTERNAL_ERROR when it is not gone within 10 s."""
        if self._fd >= 0 and not self._died.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            thaw()  # a v1 freezer holds even SIGKILL back
            try:
                async with asyncio.timeout(KILL_TIMEOUT):
                    await self._died.wait()
            except TimeoutError:
                raise RunraError(
                    "INTERNAL_ERROR",
                    f"sandbox {self._sandbox_id} was killed but is not gone after {KILL_TIMEOUT:.0f} s; "
                    "terminate it again",
                    retryable=True,
                ) from None
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
