"""Files of a sandbox, as the runtime gives them: of any provider, with their events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, overload

from runra.contract import FileEntry
from runra.errors import RunraError
from runra.runtime.session import Session
from runra.sdk.failures import invalid


class SandboxFiles:
    """Files of one sandbox. A relative path starts at the sandbox's workdir.

    What fails raises INVALID_REQUEST whose `details["reason"]` says why (`not_found`, `not_empty`, …).
    """

    def __init__(self, session: Session, sandbox_id: str) -> None:
        self._session = session
        self._provider = session.provider
        self._id = sandbox_id

    @overload
    async def read(self, path: str, *, format: Literal["text"] = "text") -> str: ...

    @overload
    async def read(self, path: str, *, format: Literal["bytes"]) -> bytes: ...

    async def read(self, path: str, *, format: Literal["text", "bytes"] = "text") -> str | bytes:
        """A file's content, as text (UTF-8) or as bytes."""
        if format not in ("text", "bytes"):
            raise invalid("format", f"must be 'text' or 'bytes', not {format!r}")
        async with self._telling("read", path):
            content: str | bytes
            if format == "text":
                content = await self._provider.read_file(self._id, path)
            else:
                content = await self._provider.read_bytes(self._id, path)
        size = len(content.encode(errors="replace")) if isinstance(content, str) else len(content)
        self._session.tell("file.read", self._id, {"path": path, "sizeBytes": size})
        return content

    async def write(self, path: str, content: str | bytes) -> None:
        """Write a file, whole or not at all; missing folders are made."""
        data = content.encode() if isinstance(content, str) else bytes(content)
        async with self._telling("write", path):
            existed = self._session.telling and await self._provider.file_exists(self._id, path)
            await self._provider.write_file(self._id, path, data)
        self._session.tell(
            "file.modified" if existed else "file.created", self._id, {"path": path, "sizeBytes": len(data)}
        )

    async def exists(self, path: str) -> bool:
        """Whether there is anything at `path`."""
        return await self._provider.file_exists(self._id, path)

    async def delete(self, path: str, *, recursive: bool = False) -> None:
        """Delete a file or an empty folder; a full one with `recursive`. A link is deleted, not what it leads to."""
        async with self._telling("delete", path):
            await self._provider.delete_file(self._id, path, recursive=recursive)
        self._session.tell("file.deleted", self._id, {"path": path})

    async def mkdir(self, path: str, *, recursive: bool = False) -> None:
        """Make a folder; `recursive` makes those above it too, and does not mind one that is there."""
        async with self._telling("mkdir", path):
            await self._provider.make_dir(self._id, path, recursive=recursive)
        self._session.tell("file.created", self._id, {"path": path, "isDirectory": True})

    async def list(self, path: str = ".") -> list[FileEntry]:
        """What is in a folder."""
        async with self._telling("list", path):
            return await self._provider.list_files(self._id, path)

    @asynccontextmanager
    async def _telling(self, operation: str, path: str) -> AsyncIterator[None]:
        await self._session.ready(self._id)
        try:
            yield
        except RunraError as error:
            self._session.tell("file.error", self._id, {"path": path, "operation": operation, "code": error.code})
            raise
