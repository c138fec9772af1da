"""Cleaning up: what terminated sandboxes and deleted volumes and snapshots leave, off everybody's path.

A folder is first moved to the trash, by one rename, and deleted there; a crash in between is made good at the next
start. What cannot be cleaned now is tried again then as well; the log says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Coroutine
from pathlib import Path
from typing import Any

from runra.errors import RunraError
from runra.node.cgroups import Cgroup
from runra.node.disk import Disk

log = logging.getLogger(__name__)


class CleanUp:
    """`home` is where sandboxes' folders are, `records` where their records and sockets are."""

    def __init__(self, home: Path, records: Path, disk: Disk) -> None:
        self._home = home
        self._records = records
        self._disk = disk
        #: On the same file system as what is thrown into it.
        self._trash = home / ".trash"
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Make the trash, and delete what an earlier server left in it."""
        self._trash.mkdir(mode=0o700, exist_ok=True)
        for folder in self._trash.iterdir():
            self.begin(self.delete(folder))

    def throw_away(self, folder: Path) -> None:
        """Move a folder to the trash, and delete it in the background. One that cannot be moved stays for the next
        start: nobody's start or delete may hang on it."""
        try:
            aside = self._aside(folder)
        except OSError as error:
            log.error("%s stays for the next start: %s", folder, error)
        else:
            self.begin(self.delete(aside))

    async def discard(self, name: str, cgroup: Cgroup) -> None:
        """Remove all that is left of a sandbox that has ended: its groups, its folder, its record and socket."""
        cgroup.thaw()
        await quietly(cgroup.remove())
        with contextlib.suppress(FileNotFoundError):
            await self.delete(self._aside(self._home / name))
        # Last: as long as something is left, the next start finds it by its record.
        for path in self._records.glob(f"{name}.*"):
            path.unlink(missing_ok=True)

    async def delete(self, folder: Path) -> None:
        await quietly(self._disk.remove(folder))

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Clean in the background; `settled` waits for it."""
        task = asyncio.create_task(work, name="clean-up")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self, timeout: float) -> None:
        """Wait until all that was begun is done, for `timeout` seconds at most."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)

    def _aside(self, folder: Path) -> Path:
        aside = self._trash / f"{folder.name}-{secrets.token_hex(4)}"
        folder.rename(aside)
        return aside


async def quietly(work: Awaitable[None]) -> None:
    """Finish, or leave it for the next start."""
    try:
        await work
    except (RunraError, OSError, TimeoutError, asyncio.CancelledError) as error:
        log.warning("left for the next start: %s", error)
