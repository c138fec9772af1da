"""One blob on its way to disk: resumed where it broke off, bounded, and checked while it comes."""

from __future__ import annotations

import asyncio
import errno
import functools
import hashlib
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Final

from runra.errors import RunraError
from runra.node.images.answers import TryAgain
from runra.node.images.manifest import Descriptor
from runra.node.images.registry import Endpoint, Registry
from runra.node.images.unpack import disk_full

#: Bytes between two looks at what the disk has left.
_LOOK_EVERY: Final = 32 << 20


class _Wrong(Exception):
    """What came is not the blob."""

    def __init__(self, error: RunraError) -> None:
        super().__init__(str(error))
        self.error = error


class Download:
    """A blob of a known digest and size, at `path` as far as it has come; an earlier server may have begun it.

    `on_bytes` hears how many are there, from any thread.
    """

    def __init__(self, path: Path, blob: Descriptor, min_free_mb: int, on_bytes: Callable[[int], None]) -> None:
        self._path = path
        self._blob = blob
        self._min_free_mb = min_free_mb
        self._on_bytes = on_bytes
        self._have = 0
        self._looked = -_LOOK_EVERY
        self._hash = hashlib.sha256()
        #: Whose bytes they are, but for those an earlier server left.
        self._senders: set[Endpoint] = set()

    async def fetch(self, registry: Registry) -> FileIO:
        """The whole blob, open for reading; its digest is right. The caller closes it and removes the file.

        Raises INVALID_REQUEST when the registry sends something else, RESOURCE_EXHAUSTED when the disk is full.
        """
        file = FileIO(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "r+")
        try:
            await asyncio.to_thread(self._take_up, file)
            begun = self._have > 0
            take = functools.partial(self._take, file)

            async def once() -> None:
                nonlocal begun
                try:
                    if self._have < self._blob.size:
                        await registry.blob(self._blob.digest, self._have, take, self._senders)
                    if self._have < self._blob.size:
                        registry.blame(self._senders)
                        short = f"ended after {self._have} of {self._blob.size} bytes"
                        raise TryAgain(self._wrong(short, retryable=True))
                    if f"sha256:{self._hash.hexdigest()}" != self._blob.digest:
                        raise _Wrong(self._wrong("is not what its digest says"))
                except _Wrong as wrong:
                    self._restart(file)
                    # What an earlier server left may have been the wrong part, or a mirror lies.
                    again = registry.blame(self._senders) or begun
                    begun = False
                    self._senders.clear()
                    raise TryAgain(wrong.error, 0.0) if again else wrong.error from None

            await registry.retried(once, lambda: self._have)
        except OSError as error:
            file.close()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._path.unlink(missing_ok=True)
                raise disk_full(self._min_free_mb) from None
            raise
        except BaseException:
            file.close()
            raise
        return file

    def _take_up(self, file: FileIO) -> None:
        while data := file.read(1 << 20):
            self._hash.update(data)
            self._have += len(data)
        if self._have > self._blob.size:
            self._restart(file)
        self._on_bytes(self._have)

    def _restart(self, file: FileIO) -> None:
        file.truncate(0)
        self._have, self._hash = 0, hashlib.sha256()

    def _take(self, file: FileIO, data: bytes, offset: int) -> None:
        if offset != self._have:  # it sends all of it again
            self._restart(file)
        if self._have + len(data) > self._blob.size:
            raise _Wrong(self._wrong(f"is longer than the {self._blob.size} bytes its manifest says"))
        if self._have - self._looked >= _LOOK_EVERY:
            self._looked = self._have
            about = os.fstatvfs(file.fileno())
            if about.f_bavail * about.f_frsize - (self._blob.size - self._have) < self._min_free_mb << 20:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left = memoryview(data)
        while left:
            left = left[os.pwrite(file.fileno(), left, self._have + len(data) - len(left)) :]
        self._hash.update(data)
        self._have += len(data)
        self._on_bytes(self._have)

    def _wrong(self, what: str, *, retryable: bool = False) -> RunraError:
        return RunraError(
            "INTERNAL_ERROR" if retryable else "INVALID_REQUEST",
            f"layer {self._blob.digest[:19]}… from the registry {what}",
            details={"digest": self._blob.digest},
            status=502 if retryable else None,
            retryable=retryable,
        )
