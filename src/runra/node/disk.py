"""Disk: where sandboxes' folders lie, and the quota each of them has.

With btrfs every sandbox's folder is a subvolume with a limit of its own, made and deleted by ioctl in well under a
millisecond. Where the data folder is on another file system, root keeps one on a loop device over a sparse file.
Without either there are plain folders and no quota, and `enforced` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from runra.errors import RunraError
from runra.node.launcher import Launcher
from runra.node.settings import DiskMode

#: <linux/btrfs.h>: requests, and the arguments' layout.
_SUBVOL_CREATE, _SNAP_DESTROY = 0x5000_940E, 0x5000_940F
_QUOTA_CTL, _QGROUP_LIMIT = 0xC010_9428, 0x8030_942B
_QUOTA_ENABLE, _QUOTA_ENABLE_SIMPLE = 1, 4
_LIMIT_REFERENCED: Final = 1
_SUPER_MAGIC: Final = 0x9123_683E
_SUBVOLUME_INODE: Final = 256

#: Of the space that is free when the image is made, how much it may ever take: the host keeps the rest.
_SHARE: Final = 0.8
_SMALLEST_IMAGE: Final = 1 << 30


class Disk(Protocol):
    """A home for sandboxes' folders. `enforced` says whether `limit_mb` holds."""

    enforced: bool

    def make(self, folder: Path, limit_mb: int) -> None:
        """Make a sandbox's folder, mode 0700."""
        ...

    async def remove(self, folder: Path) -> None:
        """Delete it and all in it."""
        ...

    async def close(self) -> None:
        """Nothing lives here any more."""
        ...


class PlainDisk:
    """Folders without a quota."""

    enforced = False

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def make(self, folder: Path, limit_mb: int) -> None:
        folder.mkdir(mode=0o700)

    async def remove(self, folder: Path) -> None:
        await self._launcher.remove(folder)

    async def close(self) -> None:
        """Nothing to give back."""


class BtrfsDisk:
    """Subvolumes with limits. `image` is the sparse file under the mount at `root`, None on a btrfs of the host's."""

    enforced = True

    def __init__(self, launcher: Launcher, root: Path, image: Path | None) -> None:
        self._launcher = launcher
        self._root = root
        self._image = image

    def make(self, folder: Path, limit_mb: int) -> None:
        _vol_ioctl(folder.parent, _SUBVOL_CREATE, folder.name)
        folder.chmod(0o700)
        limit = struct.pack("=6Q", 0, _LIMIT_REFERENCED, limit_mb << 20, 0, 0, 0)
        with _opened(folder) as fd:
            fcntl.ioctl(fd, _QGROUP_LIMIT, limit)

    async def remove(self, folder: Path) -> None:
        if folder.lstat().st_ino == _SUBVOLUME_INODE:
            # A transaction of the file system may be in its way for some milliseconds.
            await asyncio.to_thread(_vol_ioctl, folder.parent, _SNAP_DESTROY, folder.name)
        else:
            await self._launcher.remove(folder)

    async def close(self) -> None:
        if self._image is not None:
            await self._launcher.run("umount", str(self._root))


async def open_disk(root: Path, mode: DiskMode, launcher: Launcher) -> Disk:
    """Prepare `root` as the home of sandboxes' folders with the best quota this machine has."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if mode == "none" or os.geteuid() != 0:
        return PlainDisk(launcher)
    image = root.with_name("disk.img")
    if not _is_btrfs(root) and not await _mount_image(root, image, launcher):
        return PlainDisk(launcher)
    if not _enable_quota(root):
        if os.path.ismount(root):
            await launcher.run("umount", str(root))
        return PlainDisk(launcher)
    root.chmod(0o700)
    return BtrfsDisk(launcher, root, image if image.exists() else None)


async def _mount_image(root: Path, image: Path, launcher: Launcher) -> bool:
    """Mount a btrfs over a sparse file at `root`. False where this machine lacks a part of that."""
    if any(root.iterdir()) or shutil.which("mkfs.btrfs") is None:
        return False
    if not image.exists():
        free = os.statvfs(root).f_bavail * os.statvfs(root).f_frsize
        fresh = image.with_suffix(".new")
        with fresh.open("wb") as file:
            file.truncate(max(int(free * _SHARE), _SMALLEST_IMAGE))
        try:
            await launcher.run("mkfs.btrfs", "-q", "-m", "single", str(fresh))
        except RunraError:
            fresh.unlink()
            return False
        fresh.rename(image)
    try:
        await launcher.run("mount", "-o", "loop,noatime,nosuid,nodev,discard=async", str(image), str(root))
    except RunraError:
        return False
    return True


def _is_btrfs(folder: Path) -> bool:
    # os.statvfs does not tell the type; statfs(2) does, in the first word of its answer.
    answer = (ctypes.c_long * 32)()
    if ctypes.CDLL(None).statfs(os.fsencode(folder), ctypes.byref(answer)) != 0:
        return False
    return (answer[0] & 0xFFFF_FFFF) == _SUPER_MAGIC


def _enable_quota(root: Path) -> bool:
    """Turn quotas on: the simple kind (Linux 6.7), which costs next to nothing, else the full one."""
    for kind in (_QUOTA_ENABLE_SIMPLE, _QUOTA_ENABLE):
        with contextlib.suppress(OSError), _opened(root) as fd:
            fcntl.ioctl(fd, _QUOTA_CTL, struct.pack("=2Q", kind, 0))
            return True
    return False


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _vol_ioctl(parent: Path, request: int, name: str) -> None:
    with _opened(parent) as fd:
        # A bytearray: what is handed over as bytes may have 1024 at most.
        fcntl.ioctl(fd, request, bytearray(struct.pack("=q4088s", 0, os.fsencode(name))))
