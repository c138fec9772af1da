"""Files of a sandbox, in constant memory whatever their size."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Literal, Self, overload

from runra.contract import FileEntry, WatchEvent
from runra.errors import RunraError
from runra.sdk._async.api import AsyncApi
from runra.sdk._async.transfer import download, pulled, upload
from runra.sdk.bodies import AsyncContent, no_bytes, whole
from runra.sdk.failures import Failure, invalid, network_error, told_error
from runra.sdk.sse import EventParser
from runra.sdk.transport_async import AsyncIncoming
from runra.sdk.types import RawPage, Transfer, parsed
from runra.sdk.wire import BYTES, sandbox_path

#: Called with the bytes done and the bytes in all, None when that is not known.
Progress = Callable[[int, int | None], Any]
_ABSENT = frozenset(("not_found", "not_a_directory"))


class AsyncFileStream:
    """An open file being read: iterate it for its bytes, close it (or use it in a `with` block) when done.

    `size` is how many bytes there are to come, None when the server cannot say. Raises NETWORK_ERROR when the
    connection breaks: half a file is never taken for a whole one.
    """

    def __init__(
        self, api: AsyncApi, opened: AbstractAsyncContextManager[AsyncIncoming], incoming: AsyncIncoming
    ) -> None:
        length = incoming.headers.get("content-length", "")
        self.size: int | None = int(length) if length.isdigit() else None
        self._api = api
        self._opened: AbstractAsyncContextManager[AsyncIncoming] | None = opened
        self._incoming = incoming
        api.hold(self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._incoming.chunks():
                yield chunk
        except Failure as failure:
            raise network_error(failure, self._api.settings.api_url, "reading a file") from failure
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop reading. Calling it twice does no harm."""
        opened, self._opened = self._opened, None
        self._api.release(self)
        if opened is not None:
            await opened.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncFiles:
    """Files of one sandbox. A relative path starts at the sandbox's workdir.

    A file operation that fails raises INVALID_REQUEST whose `details["reason"]` says why (`not_found`, `exists`,
    `is_a_directory`, `not_a_directory`, `not_empty`, `permission_denied`, …), RESOURCE_EXHAUSTED (`disk_full`).
    """

    def __init__(self, api: AsyncApi, sandbox_id: str) -> None:
        self._api = api
        self._id = sandbox_id

    @overload
    async def read(
        self, path: str, *, format: Literal["text"] = "text", offset: int = 0, length: int | None = None
    ) -> str: ...

    @overload
    async def read(
        self, path: str, *, format: Literal["bytes"], offset: int = 0, length: int | None = None
    ) -> bytes: ...

    @overload
    async def read(
        self, path: str, *, format: Literal["stream"], offset: int = 0, length: int | None = None
    ) -> AsyncFileStream: ...

    async def read(
        self,
        path: str,
        *,
        format: Literal["text", "bytes", "stream"] = "text",
        offset: int = 0,
        length: int | None = None,
    ) -> str | bytes | AsyncFileStream:
        """The content: as `text` (UTF-8), as `bytes`, or as an open `stream` for files of any size.

        `offset` and `length` are bytes; reading past the end gives what is there, as in any file. Raises
        INVALID_REQUEST when text was asked for and the file is none.
        """
        if format not in ("text", "bytes", "stream"):
            raise invalid("format", f"must be 'text', 'bytes' or 'stream', not {format!r}")
        _number("offset", offset)
        if length is not None:
            _number("length", length)
        stream = await self._open(path, offset, length)
        if format == "stream":
            return stream
        parts = []
        async with stream:
            async for chunk in stream:
                parts.append(chunk)
        data = b"".join(parts)
        if format == "bytes":
            return data
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise invalid(
                "format",
                f"{path[:200]!r} is no UTF-8 text (at byte {offset + error.start}); read it with format='bytes'",
            ) from None

    async def _open(self, path: str, offset: int, length: int | None) -> AsyncFileStream:
        headers = {}
        if length == 0:
            # HTTP has no range without bytes: one byte is asked for, and not read.
            headers["Range"] = f"bytes={offset}-{offset}"
        elif offset or length is not None:
            headers["Range"] = f"bytes={offset}-" if length is None else f"bytes={offset}-{offset + length - 1}"
        opened = self._api.stream(
            "GET",
            sandbox_path(self._id, "files"),
            params={"path": _path(path)},
            headers=headers,
            accept=BYTES,
            idle_s=max(self._api.settings.timeout_s, 60.0),
        )
        try:
            incoming = await opened.__aenter__()
        except RunraError as error:
            if error.status != 416:
                raise
            return await self._nothing()
        if length == 0:
            await opened.__aexit__(None, None, None)
            return await self._nothing()
        return AsyncFileStream(self._api, opened, incoming)

    async def _nothing(self) -> AsyncFileStream:
        """What is past the end of a file."""
        empty = _Nothing()
        return AsyncFileStream(self._api, empty, await empty.__aenter__())

    async def write(
        self, path: str, content: AsyncContent, *, mode: int | None = None, fsync: bool = False
    ) -> FileEntry:
        """Write a file, whole or not at all; missing folders are made.

        `content` is text, bytes, a file object, or an iterable of bytes, which may be of any size. `mode` gives the
        permissions (such as 0o755; an existing file keeps its own when unset); `fsync` puts it on the disk before
        the answer. What is read from a file object or an iterable is sent once; text and bytes are sent again when
        the server asks for that.
        """
        params = {"path": _path(path), "mode": None if mode is None else f"{mode & 0o7777:04o}", "fsync": fsync or None}
        target = sandbox_path(self._id, "files")
        data = whole(content)
        if data is not None and len(data) <= _AT_ONCE:
            answer = await self._api.call("PUT", target, params=params, body=data, safe=True)
        else:
            source = data if data is not None else content
            answer = await self._api.call(
                "PUT",
                target,
                params=params,
                body=lambda: pulled([source] if isinstance(source, bytes) else source),
                safe=data is not None,
                replayable=data is not None,
            )
        return parsed(FileEntry, answer.json("PUT files"), "PUT files")

    async def list(self, path: str = ".", *, depth: int = 1) -> list[FileEntry]:
        """What is in a folder, and in folders in it down to `depth`."""
        answer = await self._api.call(
            "GET",
            sandbox_path(self._id, "files", "list"),
            params={"path": _path(path), "depth": depth if depth != 1 else None},
        )
        page = parsed(RawPage, answer.json("list files"), "list files")
        return [parsed(FileEntry, item, "list files") for item in page.data]

    async def stat(self, path: str) -> FileEntry:
        """What a path is: type, size in bytes, times, owner, permissions."""
        answer = await self._api.call("GET", sandbox_path(self._id, "files", "stat"), params={"path": _path(path)})
        return parsed(FileEntry, answer.json("stat"), "stat")

    async def exists(self, path: str) -> bool:
        """Whether there is anything at `path`."""
        try:
            await self.stat(path)
        except RunraError as error:
            if error.code == "INVALID_REQUEST" and error.details.get("reason") in _ABSENT:
                return False
            raise
        return True

    async def delete(self, path: str, *, recursive: bool = False) -> None:
        """Delete a file or an empty folder; a full one with `recursive`. A link is deleted, not what it leads to."""
        params = {"path": _path(path), "recursive": recursive or None}
        await self._api.call("DELETE", sandbox_path(self._id, "files"), params=params)

    async def mkdir(self, path: str, *, recursive: bool = False) -> FileEntry:
        """Make a folder; `recursive` makes those above it too, and does not mind one that is there."""
        content = {"path": _path(path), "recursive": recursive}
        answer = await self._api.call("POST", sandbox_path(self._id, "files", "mkdir"), content=content)
        return parsed(FileEntry, answer.json("mkdir"), "mkdir")

    async def move(self, source: str, target: str) -> FileEntry:
        """Move or rename; a file at `target` is replaced in one step."""
        content = {"from": _path(source), "to": _path(target)}
        answer = await self._api.call("POST", sandbox_path(self._id, "files", "move"), content=content)
        return parsed(FileEntry, answer.json("move"), "move")

    async def upload(self, local: str | os.PathLike[str], remote: str, *, progress: Progress | None = None) -> Transfer:
        """Send a local file to the path `remote`, or what is in a local folder into the folder `remote`.

        A folder that is there already is added to. Links go as links. `progress` is called with the bytes sent and
        the bytes in all (None for a folder). Raises INVALID_REQUEST when there is nothing at `local`, OSError when
        it cannot be read.
        """
        return await upload(self._api, self._id, local, _path(remote), progress)

    async def download(
        self, remote: str, local: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> Transfer:
        """Fetch a file, which replaces a local one when it is whole, or a folder, which must be new here.

        When `local` is a folder, the file or folder goes into it under its own name. What comes from a sandbox is
        not trusted: nothing is written outside the new folder or through a link; devices and links that lead out
        of it are left out and named in the answer's `skipped`. Raises INVALID_REQUEST, OSError from the local disk.
        """
        return await download(self._api, self._id, await self.stat(remote), _path(remote), local, progress)

    async def watch(self, path: str, *, recursive: bool = False) -> AsyncGenerator[WatchEvent, None]:
        """Changes of a file or in a folder (and all below it when `recursive`) from now on: `created`, `modified`,
        `deleted`, `moved`. Ends when the sandbox does; raises NETWORK_ERROR when the connection breaks, since what
        changed meanwhile is not known."""
        params = {"path": _path(path), "recursive": recursive or None}
        target = sandbox_path(self._id, "files", "watch")
        parser = EventParser()
        async with self._api.stream("GET", target, params=params) as incoming:
            async for piece in incoming.chunks():
                for event in parser.feed(piece):
                    if event.name == "error":
                        raise told_error(event.json())
                    yield parsed(WatchEvent, event.json(), "watch")


#: Content up to this size is sent in one piece.
_AT_ONCE = 1 << 20


class _Nothing:
    """An answer without a body, in place of one the server refused because there is nothing in it."""

    status = 206
    deadline: float | None = None

    def __init__(self) -> None:
        self.headers = {"content-length": "0"}

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def chunks(self) -> AsyncIterator[bytes]:
        for nothing in no_bytes():
            yield nothing


def _path(path: str) -> str:
    if not isinstance(path, str) or not path:
        raise invalid("path", f"must be a path, not {path!r}")
    return path


def _number(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise invalid(name, f"must be a number of bytes, not {value!r}")
