"""Checkpoints: what runs in a sandbox, written down while it stands still, for copies that go on from there.

A kernel in user space can do that (gVisor's `runsc checkpoint` and `restore`). Its tools are run among the sandbox's
own processes (launcher/enter.c): none of them is the host's root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runra.errors import RunraError
from runra.node.cgroups import Cgroup
from runra.node.disk import Disk
from runra.node.launcher import Launcher

#: The wall's configuration, kept beside the checkpoint: what comes back must be told the same as what was saved.
CONFIG: Final = "config.json"
#: Seconds the wall may take for each of its steps, and the more for a gigabyte of memory.
_STOP_TIMEOUT: Final = 20.0
_SECONDS_PER_GB: Final = 30.0
#: MB that are free on the disk when a checkpoint has been written.
_MIN_FREE_MB: Final = 512
#: MB of a sandbox's memory that its wall's tools need.
_MIN_MEMORY_MB: Final = 64
_MOST_CONFIG: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Standing:
    """A sandbox that stands, as its wall's tools need it. `folder` is its own, on the host; `process` a pidfd of its
    process 1; `first_id` as in `Box`."""

    id: str
    folder: Path
    process: int
    cgroup: Cgroup
    first_id: int
    memory_mb: int


class Checkpoints:
    """Saves what runs behind one kind of wall. `tool` are the words that begin each of its commands."""

    def __init__(self, launcher: Launcher, tool: Sequence[str]) -> None:
        self._launcher = launcher
        self._tool = tool

    def check(self, disk: Path, cgroup: Cgroup, memory_mb: int) -> None:
        """Raise RESOURCE_EXHAUSTED where a sandbox cannot be saved for want of room, before anything is done to it."""
        about = os.statvfs(disk)
        free = about.f_bavail * about.f_frsize >> 20
        if free < 2 * memory_mb + _MIN_FREE_MB:
            raise RunraError(
                "RESOURCE_EXHAUSTED",
                f"this server's disk for sandboxes has {free} MB left, too little for a sandbox of {memory_mb} MB of "
                "memory to be saved; delete snapshots or volumes, or terminate sandboxes",
                details={"freeMb": free},
            )
        left = cgroup.free_memory()
        if left is not None and left >> 20 < _MIN_MEMORY_MB:
            raise RunraError(
                "RESOURCE_EXHAUSTED",
                f"the sandbox has {left >> 20} MB of memory left, and its wall needs {_MIN_MEMORY_MB} MB to save it",
                details={"reason": "out_of_memory", "freeMb": left >> 20},
            )

    @asynccontextmanager
    async def saved(self, box: Standing, disk: Disk, into: Path) -> AsyncIterator[None]:
        """Write down what runs in a sandbox, into a folder this makes. It stands still as long as this is entered, and
        what its files should hold is in them.

        Nothing inside may hold anything of the host's. Raises INVALID_STATE for what cannot be saved,
        RESOURCE_EXHAUSTED when it is too large; then it goes on as before, too.
        """
        config = _read_config(box.folder)
        # Memory, and as much again for what the wall writes about it: with a quota, no wall that is not itself any more
        # fills the disk.
        disk.make(into, 2 * box.memory_mb)
        os.chown(into, box.first_id, box.first_id)
        try:
            await self._run(box, into, _STOP_TIMEOUT, "pause")
            await self._save(box, into)
            _settle(into)
            (into / CONFIG).write_bytes(config)
            yield
        except BaseException:
            with contextlib.suppress(RunraError):  # what went wrong first is what is told
                await self.go_on(box)
            raise
        await self.go_on(box)

    async def _save(self, box: Standing, into: Path) -> None:
        words = ("checkpoint", "--leave-running", "--compression=none", "--image-path=.")
        try:
            await self._run(box, into, _STOP_TIMEOUT + allowance(box.memory_mb), *words)
        except RunraError as error:
            if "failed: " not in error.message or "enter namespaces" in error.message:
                raise  # it took too long, or its sandbox is gone
            raise _refused(box.id, error.message) from error

    async def go_on(self, box: Standing) -> None:
        """Let it run on. Raises INTERNAL_ERROR when it does not stand still.

        Where a server died while it was saved, gVisor finishes that first."""
        await self._run(box, None, _STOP_TIMEOUT + allowance(box.memory_mb), "resume")

    async def _run(self, box: Standing, at: Path | None, timeout: float, *words: str) -> None:
        joined = [word for path in box.cgroup.join_files for word in ("cgroup", str(path))]
        argv = [*self._tool, *words, box.id]
        folder = -1 if at is None else os.open(at, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fds = [box.process] if at is None else [folder, box.process]
            await self._launcher.finish([*joined, "enter"], argv, fds, timeout=timeout)
        finally:
            if folder >= 0:
                os.close(folder)


def allowance(memory_mb: int) -> float:
    """Seconds more that saving a sandbox may take, or bringing it back, for the memory it may have."""
    return _SECONDS_PER_GB * memory_mb / 1024


def _read_config(box: Path) -> bytes:
    """The wall's configuration, in a folder that whoever took over the wall may have changed: no link is followed."""
    folder = os.open(box / "bundle", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fd = os.open(CONFIG, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    with os.fdopen(fd, "rb") as file:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_size > _MOST_CONFIG:
            raise RunraError("INTERNAL_ERROR", "the wall's configuration is not what it was")
        return file.read(_MOST_CONFIG)


def _settle(folder: Path) -> None:
    """What was written belongs to the host from now on; whoever comes back from it, under ids of its own, may read."""
    os.chown(folder, 0, 0)  # first: from here on no name in it changes
    for entry in os.scandir(folder):
        fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise RunraError("INTERNAL_ERROR", "the wall's checkpoint is no file")
            os.fchown(fd, 0, 0)
            os.fchmod(fd, 0o444)
        finally:
            os.close(fd)
    folder.chmod(0o755)


def _refused(box_id: str, said: str) -> RunraError:
    if "Disk quota exceeded" in said or os.strerror(errno.ENOSPC).lower() in said:
        return RunraError("RESOURCE_EXHAUSTED", f"sandbox {box_id}: its memory is larger than what may be saved of it")
    return RunraError(
        "INVALID_STATE",
        f"what runs in sandbox {box_id} cannot be saved; a program may hold a file that was deleted. Close it, or fork "
        f"without processes. gVisor said: {said[:500]}",
        details={"sandboxId": box_id, "reason": "not_saved"},
    )
