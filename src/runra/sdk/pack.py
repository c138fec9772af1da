"""A local folder as a tar stream, made piece by piece in constant memory."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from runra.sdk.wire import CHUNK

_END: Final = bytes(2 * tarfile.BLOCKSIZE)


class Packer:
    """Packs what is in `folder`, with names relative to it. Links go as links; what is neither file, folder nor link
    is left out and named in `skipped`, and so are files that cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.files = 0
        self.bytes = 0
        self.skipped: list[str] = []
        self._folder = folder

    def pieces(self) -> Iterator[bytes]:
        """The archive. Raises OSError when the folder itself cannot be read."""
        waiting = [("", str(self._folder))]
        while waiting:
            prefix, path = waiting.pop()
            try:
                with os.scandir(path) as entries:
                    found = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                if not prefix:
                    raise
                self.skipped.append(f"{prefix}: {error.strerror}")
                continue
            for entry in found:
                name = prefix + entry.name
                try:
                    yield from self._member(entry, name)
                except OSError as error:
                    self.skipped.append(f"{name}: {error.strerror}")
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((f"{name}/", entry.path))
        yield _END

    def _member(self, entry: os.DirEntry[str], name: str) -> Iterator[bytes]:
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            yield from self._file(entry.path, name)
        elif stat.S_ISDIR(status.st_mode):
            yield _header(f"{name}/", tarfile.DIRTYPE, status)
        elif stat.S_ISLNK(status.st_mode):
            yield _header(name, tarfile.SYMTYPE, status, link=str(Path(entry.path).readlink()))
            self.files += 1
        else:
            self.skipped.append(f"{name}: neither a file, a folder nor a link")

    def _file(self, path: str, name: str) -> Iterator[bytes]:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "it changed while it was read")
            yield _header(name, tarfile.REGTYPE, status)
            left = status.st_size
            while left:
                # The header has promised a size: a file that grows is cut there, one that shrinks is filled up.
                data = file.read(min(CHUNK, left)) or bytes(min(CHUNK, left))
                left -= len(data)
                self.bytes += len(data)
                yield data
            yield bytes(-status.st_size % tarfile.BLOCKSIZE)
            self.files += 1


def _header(name: str, kind: bytes, status: os.stat_result, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.mode = stat.S_IMODE(status.st_mode) & 0o777
    info.mtime = max(0, int(status.st_mtime))
    info.size = status.st_size if kind == tarfile.REGTYPE else 0
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
