"""What has come of blobs that are not unpacked yet: a file each, taken up by the next pull from the same registry."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path


class Parts:
    """The files in `folder`. One that is being fetched is nobody's to delete."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fetched: set[Path] = set()

    @contextlib.contextmanager
    def part(self, scope: str, host: str, digest: str) -> Iterator[Path]:
        """The file for a blob of a registry. Apart for each scope: whoever fetches only the end of another's blob has
        not had it. One at a time may enter this for the same blob."""
        source = hashlib.sha256(f"{scope}\0{host}".encode()).hexdigest()[:16]
        path = self._folder / f"{source}-{digest.removeprefix('sha256:')}"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._fetched.add(path)
        try:
            yield path
        finally:
            self._fetched.discard(path)

    @property
    def bytes(self) -> int:
        """What the files take that nobody fetches."""
        return sum(size for _, size, _ in self._idle())

    def drop(self, *, keep: int = 0, age: float = 0.0) -> int:
        """Delete files that nobody fetches and that are as old as `age` seconds, the oldest first, until the rest takes
        at most `keep` bytes. Returns how many bytes that frees."""
        idle, freed = self._idle(), 0
        left = sum(size for _, size, _ in idle)
        for changed, size, path in sorted(idle):
            if left - freed <= keep or time.time() - changed < age:
                break
            path.unlink(missing_ok=True)
            freed += size
        return freed

    def _idle(self) -> list[tuple[float, int, Path]]:
        """(when it changed, its bytes, the file), of each."""
        found = []
        for path in self._folder.iterdir() if self._folder.exists() else ():
            if path not in self._fetched:
                about = path.stat()
                found.append((about.st_mtime, about.st_size, path))
        return found
