"""Disk: where sandboxes' folders lie, and the quota each of them has.

With btrfs every sandbox's folder is a subvolume with a limit of its own, made and deleted by ioctl in well under a
millisecond, and copied (for snapshots and forks) in a few, whatever its size. Where the data folder is on another
file system, root keeps one on a loop device over a sparse file.
Without either there are plain folders and no quota, and `enforced` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
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
from runra.node.waiting import to_its_end

#: <linux/btrfs.h>: requests, and the arguments' layout.
_SNAP_CREATE, _SUBVOL_CREATE, _SNAP_DESTROY = 0x5000_9401, 0x5000_940E, 0x5000_940F
_TREE_SEARCH, _INO_LOOKUP = 0xD000_9411, 0xD000_9412
_QUOTA_CTL, _QGROUP_LIMIT = 0xC010_9428, 0x8030_942B
_QUOTA_ENABLE, _QUOTA_ENABLE_SIMPLE = 1, 4
_LIMIT_REFERENCED: Final = 1
_SUPER_MAGIC: Final = 0x9123_683E
_SUBVOLUME_INODE: Final = 256
#: Where a subvolume's use is written down: the quota tree, and the key of such an item (<linux/btrfs_tree.h>).
_QUOTA_TREE, _QGROUP_INFO_KEY = 8, 242
#: The layers of a sandbox's folder: what a copy takes along. The rest is the wall's own.
LAYERS: Final = "upper*"
#: Seconds a copy may take where the file system cannot share what two folders have in common.
_COPY_TIMEOUT: Final = 120.0

#: Of the space that is free when the image is made, how much it may ever take: the host keeps the rest.
_SHARE: Final = 0.8
_SMALLEST_IMAGE: Final = 1 << 30
#: <linux/fs.h>: discard what is free. Done when the image has grown by so many bytes.
_FITRIM: Final = 0xC018_5879
_TRIM_GROWTH: Final = 64 << 20


class Disk(Protocol):
    """A home for sandboxes' folders. `enforced` says whether `limit_mb` holds."""

    enforced: bool

    def make(self, folder: Path, limit_mb: int) -> None:
        """Make a sandbox's folder, mode 0700."""
        ...

    async def clone(self, source: Path, target: Path, limit_mb: int | None) -> None:
        """Make `target` with what the sandbox's folder `source` holds; the limit is for what is written from now on.

        Nobody may write to `source` meanwhile. When it fails or is cancelled, `target` may be there in part: the
        caller removes it.
        """
        ...

    async def used(self, folder: Path) -> int:
        """Bytes it takes, as of some seconds ago at most where the file system counts them (else it is walked)."""
        ...

    async def remove(self, folder: Path) -> None:
        """Delete it and all in it."""
        ...

    async def trim(self) -> None:
        """Give the host back what no sandbox uses. Costs next to nothing when nothing has grown."""
        ...

    async def close(self) -> None:
        """Nothing lives here any more."""
        ...


def bytes_below(folder: Path) -> int:
    """What lies in a folder, in bytes on disk. Its owner is hostile: `fwalk` holds every folder open while it looks,
    so one that is swapped for a link leads nowhere. What vanishes meanwhile counts nothing."""
    total = 0
    for _, folders, files, fd in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                total += os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks * 512
    return total


class PlainDisk:
    """Folders without a quota."""

    enforced = False

    def __init__(self, launcher: Launcher, min_free_mb: int = 1024) -> None:
        self._launcher = launcher
        self._min_free_mb = min_free_mb

    def make(self, folder: Path, limit_mb: int) -> None:
        folder.mkdir(mode=0o700)

    async def clone(self, source: Path, target: Path, limit_mb: int | None) -> None:
        layers = sorted(str(layer) for layer in source.glob(LAYERS))
        size = await asyncio.to_thread(lambda: sum(bytes_below(Path(layer)) for layer in layers))
        about = os.statvfs(target.parent)
        with _room():
            # Nothing bounds what a sandbox has written here, and a copy that fills the disk hurts everybody.
            if about.f_bavail * about.f_frsize - size < self._min_free_mb << 20:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        target.mkdir(mode=0o700)
        # -a keeps owners, modes, hard links, extended attributes and whiteouts, and follows no link.
        await self._launcher.run("cp", "-a", "--reflink=auto", "--", *layers, str(target), timeout=_COPY_TIMEOUT)

    async def used(self, folder: Path) -> int:
        return await asyncio.to_thread(bytes_below, folder)

    async def remove(self, folder: Path) -> None:
        await self._launcher.remove(folder)

    async def trim(self) -> None:
        """Files that are deleted are gone."""

    async def close(self) -> None:
        """Nothing to give back."""


class BtrfsDisk:
    """Subvolumes with limits. `image` is the sparse file under the mount at `root`, None on a btrfs of the host's."""

    enforced = True

    def __init__(self, launcher: Launcher, root: Path, image: Path | None) -> None:
        self._launcher = launcher
        self._root = root
        self._image = image
        #: Bytes the image took after it was last trimmed.
        self._trimmed_at = 0

    def make(self, folder: Path, limit_mb: int) -> None:
        with _room():
            _vol_ioctl(folder.parent, _SUBVOL_CREATE, folder.name)
            folder.chmod(0o700)
            _limit(folder, limit_mb << 20)

    async def clone(self, source: Path, target: Path, limit_mb: int | None) -> None:
        # The ioctl first writes out what the source has in the page cache, then commits a transaction.
        with _room():
            await to_its_end(asyncio.to_thread(_snapshot, source, target))
        if limit_mb is not None:
            # What is shared counts for whoever wrote it (simple quotas) or for both (full ones); the limit is meant
            # for what comes now.
            _limit(target, (limit_mb << 20) + _referenced(target))

    async def used(self, folder: Path) -> int:
        return await asyncio.to_thread(_referenced, folder)

    async def remove(self, folder: Path) -> None:
        if folder.lstat().st_ino == _SUBVOLUME_INODE:
            # A transaction of the file system may be in its way for some milliseconds.
            await asyncio.to_thread(_vol_ioctl, folder.parent, _SNAP_DESTROY, folder.name)
        else:
            await self._launcher.remove(folder)

    async def trim(self) -> None:
        """By FITRIM. The file system discards by itself what it frees, but late, and hardly ever under churn: three
        times over 300 MB of quota made the image 540 MB large, also after the sandbox's end."""
        if self._image is None or self._image.stat().st_blocks * 512 < self._trimmed_at + _TRIM_GROWTH:
            return
        await to_its_end(asyncio.to_thread(_trim, self._root))
        self._trimmed_at = self._image.stat().st_blocks * 512

    async def close(self) -> None:
        if self._image is not None:
            await self._launcher.run("umount", str(self._root))


async def open_disk(root: Path, mode: DiskMode, launcher: Launcher, min_free_mb: int = 1024) -> Disk:
    """Prepare `root` as the home of sandboxes' folders with the best quota this machine has. Where a copy takes its
    whole size, copies leave `min_free_mb` free."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if mode == "none" or os.geteuid() != 0:
        return PlainDisk(launcher, min_free_mb)
    image = root.with_name("disk.img")
    if not _is_btrfs(root):
        if image.exists():
            await _mount_again(root, image, launcher)
        elif not await _make_image(root, image, launcher):
            return PlainDisk(launcher, min_free_mb)
    if not _enable_quota(root):
        if os.path.ismount(root):
            await launcher.run("umount", str(root))
        return PlainDisk(launcher, min_free_mb)
    root.chmod(0o700)
    return BtrfsDisk(launcher, root, image if image.exists() else None)


def promised_mb(root: Path) -> int:
    """How much the sparse file under `root` may yet grow. Who takes that space breaks every sandbox's disk."""
    if not os.path.ismount(root):
        return 0
    try:
        about = root.with_name("disk.img").stat()
    except FileNotFoundError:
        return 0
    return max(0, about.st_size - about.st_blocks * 512) >> 20


async def _make_image(root: Path, image: Path, launcher: Launcher) -> bool:
    """Mount a fresh btrfs over a sparse file at `root`. False where this machine lacks a part of that."""
    if any(_held(root)) or shutil.which("mkfs.btrfs") is None:
        return False
    free = os.statvfs(root).f_bavail * os.statvfs(root).f_frsize
    fresh = image.with_suffix(".new")
    with fresh.open("wb") as file:
        file.truncate(max(int(free * _SHARE), _SMALLEST_IMAGE))
    try:
        await launcher.run("mkfs.btrfs", "-q", "-m", "single", str(fresh))
        fresh.rename(image)
        await _mount(image, root, launcher)
    except RunraError:
        fresh.unlink(missing_ok=True)
        image.unlink(missing_ok=True)
        return False
    return True


async def _mount_again(root: Path, image: Path, launcher: Launcher) -> None:
    """Mount the image of an earlier start. It holds volumes and snapshots, and a start without it would call them gone:
    INVALID_CONFIG says what is in the way."""
    for entry in _held(root):
        raise RunraError(
            "INVALID_CONFIG",
            f"{entry} is of a server that ran without the disk image {image}: move what is in that folder elsewhere, "
            "or the image if nothing in it is wanted",
        )
    try:
        await _mount(image, root, launcher)
    except RunraError as error:
        raise RunraError(
            "INVALID_CONFIG",
            f"the disk image {image}, with all volumes and snapshots, does not mount: {error.message}",
        ) from error


def _held(root: Path) -> Iterator[Path]:
    """What lies in a home of sandboxes, empty folders of the server's own apart."""
    return (entry for entry in root.iterdir() if entry.name[0] != "." or any(entry.iterdir()))


async def _mount(image: Path, root: Path, launcher: Launcher) -> None:
    await launcher.run("mount", "-o", "loop,noatime,nosuid,nodev,discard=async", str(image), str(root))


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


def _trim(root: Path) -> None:
    with _opened(root) as fd:
        fcntl.ioctl(fd, _FITRIM, struct.pack("=3Q", 0, 2**64 - 1, 0))


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _vol_ioctl(parent: Path, request: int, name: str, source: int = 0) -> None:
    with _opened(parent) as fd:
        # A bytearray: what is handed over as bytes may have 1024 at most.
        fcntl.ioctl(fd, request, bytearray(struct.pack("=q4088s", source, os.fsencode(name))))


@contextlib.contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunraError(
            "RESOURCE_EXHAUSTED",
            "this server's disk for sandboxes is full; delete snapshots or volumes, or terminate sandboxes",
        ) from error


def _snapshot(source: Path, target: Path) -> None:
    with _opened(source) as fd:
        _vol_ioctl(target.parent, _SNAP_CREATE, target.name, fd)


def _limit(folder: Path, limit_bytes: int) -> None:
    with _opened(folder) as fd:
        fcntl.ioctl(fd, _QGROUP_LIMIT, struct.pack("=6Q", 0, _LIMIT_REFERENCED, limit_bytes, 0, 0, 0))


def _referenced(folder: Path) -> int:
    """Bytes a subvolume's quota group counts, as of the file system's last transaction."""
    with _opened(folder) as fd:
        lookup = bytearray(struct.pack("=2Q4080x", 0, _SUBVOLUME_INODE))
        fcntl.ioctl(fd, _INO_LOOKUP, lookup)
        (subvolume,) = struct.unpack_from("=Q", lookup)
        key = (_QUOTA_TREE, 0, 0, subvolume, subvolume, 0, 2**64 - 1, _QGROUP_INFO_KEY, _QGROUP_INFO_KEY, 1)
        found = bytearray(struct.pack("=7Q3I36x3992x", *key))
        fcntl.ioctl(fd, _TREE_SEARCH, found)
    # The key (104 bytes, its count at 64), then one item: a header of 32 bytes, a generation, what it references.
    (count,) = struct.unpack_from("=I", found, 64)
    return int(struct.unpack_from("=Q", found, 104 + 32 + 8)[0]) if count else 0
