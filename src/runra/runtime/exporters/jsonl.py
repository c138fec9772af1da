"""The exporter `jsonl`: events as JSON lines in a file that is rotated by size."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from runra.events import Event
from runra.runtime.exporters.delivery import Delivery
from runra.runtime.exporters.worker import Worker


class JsonlConfig(Delivery):
    """`path` of the file, made with mode 0600. At `max_bytes` (0: never) it becomes `<path>.1.gz`, the one before that
    `<path>.2.gz` and so on; `keep` of them stay. `gzip` False leaves them plain. `fsync` "batch" waits for the disk
    with every batch: what was exported then survives a power cut."""

    path: str = Field("runra-events.jsonl", min_length=1)
    max_bytes: int = Field(100 << 20, ge=0)
    keep: int = Field(5, ge=0, le=1_000)
    gzip: bool = True
    fsync: Literal["never", "batch"] = "never"
    flush_interval_ms: int = Field(1_000, ge=0, le=3_600_000)


class JsonlExporter:
    """Appends whole lines. A batch is written as a whole or not at all: after a full disk there is no half line."""

    name = "jsonl"
    Config = JsonlConfig

    def __init__(self, config: JsonlConfig) -> None:
        self._config = config
        self._path = Path(config.path).expanduser()
        self._worker = Worker("jsonl")
        self._fd = -1

    async def start(self) -> None:
        await self._worker.run(self._open)

    async def export(self, events: Sequence[Event]) -> None:
        await self._worker.run(self._write, events)

    async def close(self) -> None:
        try:
            await self._worker.run(self._close)
        finally:
            self._worker.stop()

    def _open(self) -> None:
        self._close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":  # the program before us died in the middle of a line
                os.write(fd, b"\n")
        except OSError:
            os.close(fd)
            raise
        self._fd = fd

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _write(self, events: Sequence[Event]) -> None:
        if self._fd < 0 or os.fstat(self._fd).st_nlink == 0:  # somebody deleted it
            self._open()
        lines = "".join(f"{event.model_dump_json(by_alias=True)}\n" for event in events).encode()
        size = os.fstat(self._fd).st_size
        if self._config.max_bytes and size and size + len(lines) > self._config.max_bytes:
            self._rotate()
            size = 0
        left = memoryview(lines)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
            if self._config.fsync == "batch":
                os.fdatasync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):  # the error that counts is the one above
                os.ftruncate(self._fd, size)
            raise

    def _rotate(self) -> None:
        """Move the file out of the way; from the oldest on, so that a crash in between loses none."""
        self._close()
        ending = ".gz" if self._config.gzip else ""
        for number in range(self._config.keep, 0, -1):
            for suffix in ("", ".gz"):  # whatever `gzip` was the last time
                old = Path(f"{self._path}.{number}{suffix}")
                if number == self._config.keep:
                    old.unlink(missing_ok=True)
                elif old.exists():
                    old.rename(f"{self._path}.{number + 1}{suffix}")
        if self._config.keep == 0:
            self._path.unlink(missing_ok=True)
        else:
            first = Path(f"{self._path}.1")
            self._path.rename(first)
            if ending:
                _compress(first, Path(f"{first}.gz"))
        self._open()


def _compress(plain: Path, packed: Path) -> None:
    """Beside it first: a half-written archive must not pass for a whole one."""
    unfinished = packed.with_name(f"{packed.name}.tmp")
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(plain, "rb") as source, os.fdopen(fd, "wb") as raw, gzip.open(raw, "wb", compresslevel=6) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    unfinished.rename(packed)
    plain.unlink()
