"""A tar stream from a sandbox into a fresh folder. The stream is hostile: nothing in it leads out of that folder.

Stricter than tarfile's `data` filter, and fed piece by piece: names are followed one real folder at a time, without
links; files are made anew and never replaced; links are made last of all, so that nothing is written through one,
and only those that stay inside. What cannot be taken over is left out and named, since a backup with one odd file is
better than none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tarfile
from pathlib import Path
from typing import BinaryIO, Final

from runra.errors import RunraError

#: Most members, and most bytes of content, that one archive may have (a sandbox's disk has at most 50 GiB).
MAX_ENTRIES: Final = 1_000_000
MAX_BYTES: Final = 64 << 30
_MAX_EXTRA: Final = 1 << 20
_MAX_DEPTH: Final = 256
_MAX_SKIPPED: Final = 1000
_BLOCK: Final = tarfile.BLOCKSIZE
#: Members that say something about the next one.
_EXTRA: Final = frozenset(
    (
        tarfile.XHDTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )
)
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Failures of this machine rather than of a member: the whole download fails with them.
_DISK: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EACCES))
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Unpacker:
    """Feed it the stream, then `finish()`; `close()` on every path. `root` is an empty folder nobody else writes to."""

    def __init__(self, root: Path, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self.files = 0
        self.bytes = 0
        self.skipped: list[str] = []
        self._root = os.open(root, _FOLDER)
        self._entries = 0
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._rest = b""
        self._left = 0
        self._padding = 0
        self._file: BinaryIO | None = None
        self._extra: tuple[bytes, bytearray] | None = None
        self._next: dict[str, str] = {}
        self._links: list[tuple[tuple[str, ...], str]] = []
        self._ended = False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def feed(self, data: bytes) -> None:
        """The next piece. Raises INVALID_REQUEST for what is no archive or too much, OSError from the local disk."""
        view = memoryview(self._rest + data if self._rest else data)
        at, end = 0, len(view)
        while at < end and not self._ended:
            if self._left:
                part = view[at : at + self._left]
                self._content(part)
                self._left -= len(part)
                at += len(part)
                if not self._left:
                    self._complete()
            elif self._padding:
                skipped = min(self._padding, end - at)
                self._padding -= skipped
                at += skipped
            elif end - at < _BLOCK:
                break
            else:
                self._header(bytes(view[at : at + _BLOCK]))
                at += _BLOCK
        self._rest = b"" if self._ended else bytes(view[at:])

    def finish(self) -> None:
        """The stream is over: raises INVALID_REQUEST when it was cut off; makes the links."""
        if not self._ended and (self._rest or self._left or self._padding or self._extra or not self._entries):
            raise _bad("it is cut off")
        for name, target in self._links:
            self._make_link(name, target)

    # --- reading -------------------------------------------------------------------------------------------

    def _header(self, block: bytes) -> None:
        if not any(block):
            self._ended = True
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _bad(str(error)) from None
        self._entries += 1
        if self._entries > self._max_entries:
            raise _bad(f"it has more than {self._max_entries} members")
        size = info.size
        if info.type in _EXTRA:
            if not 0 < size <= _MAX_EXTRA:
                raise _bad("a header record of an impossible length")
            self._extra = info.type, bytearray()
        else:
            said, self._next = self._next, {}
            size = self._member(info, said)
        self._left, self._padding = size, -size % _BLOCK

    def _content(self, part: memoryview) -> None:
        if self._extra is not None:
            self._extra[1].extend(part)
            return
        self.bytes += len(part)
        if self.bytes > self._max_bytes:
            raise _bad(f"it has more than {self._max_bytes} bytes")
        if self._file is not None:
            self._file.write(part)

    def _complete(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._extra is not None:
            kind, data = self._extra
            self._extra = None
            if kind == tarfile.GNUTYPE_LONGNAME:
                self._next["path"] = _text(bytes(data).rstrip(b"\0"))
            elif kind == tarfile.GNUTYPE_LONGLINK:
                self._next["linkpath"] = _text(bytes(data).rstrip(b"\0"))
            elif kind != tarfile.XGLTYPE:
                self._next.update(_pax(bytes(data)))

    # --- writing -------------------------------------------------------------------------------------------

    def _member(self, info: tarfile.TarInfo, said: dict[str, str]) -> int:
        """Make what a header describes; the size of its content."""
        size = info.size
        if "size" in said:
            if not (said["size"].isascii() and said["size"].isdigit() and len(said["size"]) < 19):
                raise _bad("a size that is no number")
            size = int(said["size"])
        if size < 0:
            raise _bad("a negative size")
        name, target = said.get("path", info.name), said.get("linkpath", info.linkname)
        is_file = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
        # Old writers mark a folder by a '/' at the end of its name.
        folder = info.type == tarfile.DIRTYPE or (is_file and name.endswith("/"))
        if not is_file and info.type in tarfile.SUPPORTED_TYPES and info.type != tarfile.GNUTYPE_SPARSE:
            size = 0  # folders, links and devices have no content, whatever the header says
        parts = _parts(name)
        if parts is None:
            self._skip(name, "its name leads out of the folder")
        elif info.type == tarfile.GNUTYPE_SPARSE or "GNU.sparse.major" in said or "GNU.sparse.map" in said:
            self._skip(name, "a sparse file")
        elif not (folder or is_file or info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE)):
            self._skip(name, "a device, a pipe or something unknown")
        else:
            self._make(info, parts, target, name, folder=folder)
        if self._file is not None and not size:
            self._file.close()
            self._file = None
        return size

    def _make(self, info: tarfile.TarInfo, parts: tuple[str, ...], target: str, name: str, *, folder: bool) -> None:
        if not parts:
            if not folder:
                self._skip(name, "it has no name")
            return
        if info.type == tarfile.SYMTYPE:
            self._links.append((parts, target))
            return
        try:
            parent = self._folder(parts if folder else parts[:-1])
            try:
                if folder:
                    os.fchmod(parent, (info.mode & 0o755) | 0o700)
                elif info.type == tarfile.LNKTYPE:
                    self._hard_link(parent, parts[-1], target, name)
                else:
                    handle = os.open(parts[-1], _NEW_FILE, 0o600, dir_fd=parent)
                    self._file = open(handle, "wb")  # noqa: SIM115 - closed after its last byte, or by close()
                    os.fchmod(handle, (info.mode & 0o755) | 0o600)
                    self.files += 1
            finally:
                os.close(parent)
        except OSError as error:
            if error.errno in _DISK:
                raise
            self._skip(name, error.strerror or "it cannot be made")

    def _folder(self, parts: tuple[str, ...]) -> int:
        """The open folder at `parts`, made on the way; every step is a real folder, no link."""
        at = os.dup(self._root)
        try:
            for part in parts:
                # One that is there is fine if it is a folder: opening it tells.
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=at)
                inner = os.open(part, _FOLDER, dir_fd=at)
                os.close(at)
                at = inner
        except BaseException:
            os.close(at)
            raise
        return at

    def _hard_link(self, parent: int, last: str, target: str, name: str) -> None:
        found = _parts(target)
        if not found:
            self._skip(name, "its link leads out of the folder")
            return
        home = self._folder(found[:-1])
        try:
            if not stat.S_ISREG(os.stat(found[-1], dir_fd=home, follow_symlinks=False).st_mode):
                self._skip(name, "its link leads to no file")
                return
            os.link(found[-1], last, src_dir_fd=home, dst_dir_fd=parent, follow_symlinks=False)
            self.files += 1
        finally:
            os.close(home)

    def _make_link(self, parts: tuple[str, ...], target: str) -> None:
        name = "/".join(parts)
        if not _stays_inside(target, len(parts) - 1):
            self._skip(name, f"a link out of the folder, to {target[:100]!r}")
            return
        try:
            parent = self._folder(parts[:-1])
            try:
                os.symlink(target, parts[-1], dir_fd=parent)
                self.files += 1
            finally:
                os.close(parent)
        except OSError as error:
            if error.errno in _DISK:
                raise
            self._skip(name, error.strerror or "it cannot be made")

    def _skip(self, name: str, why: str) -> None:
        if len(self.skipped) < _MAX_SKIPPED:
            self.skipped.append(f"{name[:500]}: {why}")


def _parts(name: str) -> tuple[str, ...] | None:
    """The steps of a name, or None when it is absolute, goes up, or cannot be a name here."""
    steps = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in steps or "\0" in name or len(steps) > _MAX_DEPTH:
        return None
    return steps


def _stays_inside(target: str, depth: int) -> bool:
    """Whether a link in a folder `depth` steps below the root leads to something inside, whatever other links do.

    '..' is only allowed at the front: after a name, which may be a link itself, it would go up from elsewhere.
    """
    if not target or target.startswith("/") or "\0" in target:
        return False
    steps = [part for part in target.split("/") if part not in ("", ".")]
    up = 0
    while up < len(steps) and steps[up] == "..":
        up += 1
    return up <= depth and ".." not in steps[up:]


def _pax(data: bytes) -> dict[str, str]:
    """The records of a pax header: `LENGTH KEY=VALUE\\n`, where LENGTH counts all of it."""
    found: dict[str, str] = {}
    while data:
        digits, space, _ = data.partition(b" ")
        if not space or not digits.isdigit() or len(digits) > 8:
            raise _bad("a malformed pax record")
        length = int(digits)
        record = data[len(digits) + 1 : length]
        key, equals, value = record.partition(b"=")
        if length > len(data) or not equals or not value.endswith(b"\n"):
            raise _bad("a malformed pax record")
        found[_text(key)] = _text(value[:-1])
        data = data[length:]
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bad(why: str) -> RunraError:
    return RunraError(
        "INVALID_REQUEST",
        f"the sandbox's archive cannot be unpacked: {why}",
        details={"reason": "bad_archive"},
    )
