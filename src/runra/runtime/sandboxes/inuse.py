"""Which sandboxes are in use, by any process: a lock on a file that the kernel lets go of when its process ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class InUse:
    """One empty file for each sandbox: who uses it shares the lock, who pauses it for being idle has it alone. The
    file's time says when it was last used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}

    def hold(self, id: str) -> bool:
        """Share the lock until `release`; False while somebody has it alone. Held already is fine."""
        if id in self._held:
            return True
        fd = self._locked(id, fcntl.LOCK_SH)
        if fd is not None:
            self._held[id] = fd
        return fd is not None

    def release(self, id: str) -> None:
        fd = self._held.pop(id, None)
        if fd is not None:
            os.utime(fd)
            os.close(fd)

    def alone(self, id: str) -> int | None:
        """The lock alone, for `let_go`; None while anybody shares it."""
        return self._locked(id, fcntl.LOCK_EX)

    def let_go(self, lock: int) -> None:
        os.close(lock)

    def last_used(self, id: str) -> float:
        """When it was last let go of, in seconds of the epoch; 0 when never."""
        try:
            return self._path(id).stat().st_mtime
        except OSError:
            return 0.0

    def remove(self, id: str) -> None:
        """Forget a sandbox that has ended."""
        self.release(id)
        self._path(id).unlink(missing_ok=True)

    def close(self) -> None:
        for id in list(self._held):
            self.release(id)

    def _locked(self, id: str, how: int) -> int | None:
        fd = os.open(self._path(id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def _path(self, id: str) -> Path:
        return self._folder / f"{id}.lock"
