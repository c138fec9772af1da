"""Files and folders between this machine and a sandbox."""

# Made from `_async/transfer.py` by scripts/generate_sync.py: change that one.

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runra.contract import FileEntry
from runra.sdk._sync.api import Api
from runra.sdk.bodies import as_bytes, pieces
from runra.sdk.concurrency_sync import call_back, in_thread, to_end
from runra.sdk.failures import invalid
from runra.sdk.pack import Packer
from runra.sdk.places import NewFile, NewFolder, target_of
from runra.sdk.types import Transfer
from runra.sdk.wire import BYTES, TAR, sandbox_path

Progress = Callable[[int, int | None], Any]


def pulled(content: Any) -> Iterator[bytes]:
    """The pieces of a body; what may block is read beside the event loop."""
    if hasattr(content, "__aiter__"):
        for piece in content:
            if data := as_bytes(piece):
                yield data
        return
    source = pieces(content)
    while (chunk := in_thread(next, source, None)) is not None:
        yield chunk


def upload(
    api: Api, sandbox_id: str, local: str | os.PathLike[str], remote: str, progress: Progress | None
) -> Transfer:
    path = Path(local)
    try:
        status = in_thread(os.stat, path)
    except (FileNotFoundError, NotADirectoryError):
        raise invalid("local", f"there is no {str(path)!r}") from None
    if stat.S_ISDIR(status.st_mode):
        packer = Packer(path)
        api.call(
            "PUT",
            sandbox_path(sandbox_id, "files", "archive"),
            params={"path": remote},
            body=lambda: _counted(packer.pieces(), lambda: packer.bytes, None, progress),
            media=TAR,
            replayable=False,
        )
        return Transfer(packer.files, packer.bytes, tuple(packer.skipped))
    if not stat.S_ISREG(status.st_mode):
        raise invalid("local", f"{str(path)!r} is neither a file nor a folder")
    done = _Count()
    api.call(
        "PUT",
        sandbox_path(sandbox_id, "files"),
        params={"path": remote, "mode": f"{stat.S_IMODE(status.st_mode) & 0o777:04o}"},
        body=lambda: _counted(done.of(_read(path)), lambda: done.bytes, status.st_size, progress),
        media=BYTES,
        safe=True,
    )
    return Transfer(1, done.bytes)


def download(
    api: Api,
    sandbox_id: str,
    entry: FileEntry,
    remote: str,
    local: str | os.PathLike[str],
    progress: Progress | None,
) -> Transfer:
    place = in_thread(target_of, local, remote)
    if entry.is_directory:
        return _download_folder(api, sandbox_id, remote, place, progress)
    file = to_end(NewFile, place)
    done = 0
    try:
        with api.stream("GET", sandbox_path(sandbox_id, "files"), params={"path": remote}, accept=BYTES) as incoming:
            length = incoming.headers.get("content-length", "")
            total = int(length) if length.isdigit() else None
            for chunk in incoming.chunks():
                to_end(file.write, chunk)
                done += len(chunk)
                if progress is not None:
                    call_back(progress, done, total)
        to_end(file.keep, _mode(entry))
    finally:
        to_end(file.close)
    return Transfer(1, done)


def _download_folder(api: Api, sandbox_id: str, remote: str, place: Path, progress: Progress | None) -> Transfer:
    folder = to_end(NewFolder, place)
    unpacker = folder.unpacker
    try:
        with api.stream(
            "GET", sandbox_path(sandbox_id, "files", "archive"), params={"path": remote}, accept=TAR
        ) as incoming:
            for chunk in incoming.chunks():
                to_end(unpacker.feed, chunk)
                if progress is not None:
                    call_back(progress, unpacker.bytes, None)
        to_end(folder.keep)
    finally:
        to_end(folder.close)
    return Transfer(unpacker.files, unpacker.bytes, tuple(unpacker.skipped))


class _Count:
    """Counts the bytes of an attempt; another attempt starts anew."""

    def __init__(self) -> None:
        self.bytes = 0

    def of(self, source: Iterator[bytes]) -> Iterator[bytes]:
        self.bytes = 0
        for chunk in source:
            self.bytes += len(chunk)
            yield chunk


def _read(path: Path) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        yield from pieces(file)


def _counted(
    source: Iterator[bytes], done: Callable[[], int], total: int | None, progress: Progress | None
) -> Iterator[bytes]:
    while (chunk := in_thread(next, source, None)) is not None:
        yield chunk
        if progress is not None:
            call_back(progress, done(), total)


def _mode(entry: FileEntry) -> int:
    """Permissions for a file here: the sandbox's, without what a stranger's file should not have."""
    try:
        return int(entry.mode, 8) & 0o755 | 0o600
    except ValueError:
        return 0o644
