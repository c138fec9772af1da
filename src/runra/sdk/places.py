"""Where downloads go on this machine: a temporary name beside the target, then one rename."""

from __future__ import annotations

import os
import posixpath
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

from runra.sdk.failures import invalid
from runra.sdk.unpack import Unpacker


def target_of(local: str | os.PathLike[str], remote: str) -> Path:
    """The name a download gets: `local` itself, or in it under the remote name when it is a folder."""
    place = Path(local)
    if place.is_dir():
        name = posixpath.basename(remote.rstrip("/"))
        if name in ("", ".", ".."):
            raise invalid("local", f"{str(place)!r} is a folder; name what {remote!r} becomes in it")
        place = place / name
    if not place.parent.is_dir():
        raise invalid("local", f"there is no folder {str(place.parent)!r}; make it first")
    return place


class NewFile:
    """A file that appears under its name when `keep()` is called, and never half."""

    def __init__(self, place: Path) -> None:
        if place.exists() and not place.is_symlink() and not place.is_file():
            raise invalid("local", f"{str(place)!r} is no file, and would be replaced by one; give another name")
        self._place = place
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name[:100]}.")
        self._temporary: Path | None = Path(name)
        self._file: BinaryIO = open(handle, "wb")  # noqa: SIM115 - closed by close()

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def keep(self, mode: int) -> None:
        os.fchmod(self._file.fileno(), mode)
        self._file.close()
        assert self._temporary is not None, "keep() once"
        self._temporary.replace(self._place)
        self._temporary = None

    def close(self) -> None:
        self._file.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None


class NewFolder:
    """A folder that is unpacked beside its name and appears under it when `keep()` is called."""

    def __init__(self, place: Path) -> None:
        if place.is_symlink() or place.exists():
            raise invalid("local", f"{str(place)!r} exists; remove it or give another name")
        self._place = place
        self._temporary: Path | None = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name[:100]}."))
        self.unpacker = Unpacker(self._temporary)

    def keep(self) -> None:
        assert self._temporary is not None, "keep() once"
        self.unpacker.finish()
        self.unpacker.close()
        self._temporary.chmod(0o755)
        if self._place.exists():
            raise invalid("local", f"{str(self._place)!r} was made meanwhile; remove it or give another name")
        self._temporary.rename(self._place)
        self._temporary = None

    def close(self) -> None:
        self.unpacker.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None
