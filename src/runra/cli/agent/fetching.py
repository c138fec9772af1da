"""`--out`: what an agent created and modified, out of its sandbox into a folder here. Names and files are hostile."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from runra.errors import RunraError
from runra.sdk.unpack import Unpacker

if TYPE_CHECKING:
    from runra.runtime.sandbox import Sandbox
    from runra.runtime.types import ChangedFiles

#: Names on one command line, in bytes: far below what a kernel takes.
_NAMES: Final = 64 << 10
_TIMEOUT_S: Final = 600.0
_STDERR: Final = 2_000


def check_target(folder: Path) -> None:
    """Before the run: the folder is new or empty, so that nothing of the caller's is overwritten. Makes it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = next(folder.iterdir(), None)
    except OSError as error:
        raise RunraError("INVALID_REQUEST", f"--out: {folder}: {error.strerror}") from None
    if used is not None:
        raise RunraError(
            "INVALID_REQUEST",
            f"--out: {folder} is not empty, and what comes out of a sandbox overwrites nothing; give a new folder",
        )


class Fetched:
    """How many files came, and what was left out and why."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0
        self.skipped: list[str] = []


async def fetch(sandbox: Sandbox, workdir: str, changed: ChangedFiles, target: Path) -> Fetched:
    """Copy the changed files below `workdir` into `target`, under the same names.

    They come as a tar made in the sandbox, and are unpacked like any of a sandbox's: no name leads out of `target`, no
    link is followed, links that lead out are left out. Raises INVALID_REQUEST for what is no archive.
    """
    done = Fetched()
    if not posixpath.isabs(workdir):
        raise RunraError("INVALID_REQUEST", f"--out: {workdir!r} is no absolute path")
    for names in _batches([*changed.created, *changed.modified]):
        unpacker = Unpacker(target)
        try:
            await _unpack(sandbox, workdir, names, unpacker)
        finally:
            unpacker.close()
        done.files += unpacker.files
        done.bytes += unpacker.bytes
        done.skipped += unpacker.skipped
    return done


async def _unpack(sandbox: Sandbox, workdir: str, names: Sequence[str], unpacker: Unpacker) -> None:
    # "./" before each: none is taken for an option. A file that has gone meanwhile is told of on stderr.
    command = ["tar", "-C", workdir, "-cf", "-", *(f"./{name}" for name in names)]
    process = await sandbox.exec(command, background=True)
    told = ""
    try:
        async with asyncio.timeout(_TIMEOUT_S), aclosing(cast(Any, process.output())) as chunks:
            async for chunk in chunks:
                if chunk.stream == "stdout":
                    unpacker.feed(chunk.data)
                else:
                    told = (told + chunk.text)[-_STDERR:]
            ended = await process.wait()
    except TimeoutError:
        raise RunraError("EXECUTION_TIMEOUT", f"--out: the files were not here within {_TIMEOUT_S:g} s") from None
    finally:
        await process.kill()
    if ended.exit_code not in (0, 1, 2):  # 1 and 2: a file changed under it, or has gone
        raise RunraError(
            "INVALID_REQUEST",
            f"--out: tar in the sandbox ended with {ended.exit_code}: {told.strip() or 'without words'}",
            details={"exitCode": ended.exit_code},
        )
    unpacker.finish()
    unpacker.skipped += [line for line in told.splitlines()[-20:] if line.strip()]


def _batches(names: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for name in names:
        length = len(name.encode(errors="surrogateescape")) + 3
        if batch and size + length > _NAMES:
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += length
    if batch:
        yield batch
