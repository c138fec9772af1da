"""File operations in the sandbox, done by the agent as the wanted user and streamed under credit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from runra.contract import FileEntry, WatchEvent
from runra.errors import RunraError
from runra.node.agent.frames import Field
from runra.node.agent.work import STALL_TIMEOUT, Work

if TYPE_CHECKING:
    from runra.node.agent.link import AgentLink

#: Seconds for an operation that moves no content, as long as the agent shows no sign of life.
METADATA_TIMEOUT: Final = 30.0
#: Entries that one answer may hold; a listing that is iterated has no such bound.
LISTED: Final = 100_000

_STAT, _READ, _WRITE, _LIST, _MKDIR, _MOVE, _DELETE, _ARCHIVE_OUT, _ARCHIVE_IN, _WATCH = range(1, 11)
_RECURSIVE, _PARENTS, _SYNC = 1, 2, 4
_CHANGES: Final = (None, "created", "modified", "deleted", "moved")

Values = tuple[tuple[Field, int | str], ...]


class FileStream(AsyncIterator[bytes]):
    """A file being read. `size` is that of the whole file, `entry` the file itself. Iterate, or `aclose`."""

    def __init__(self, work: Work, entry: FileEntry) -> None:
        self._work, self.entry = work, entry
        self.size = entry.size_bytes
        self._first = work.rest()

    async def __anext__(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        data = await self._work.data()
        if not data:
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        """Stop reading. Fine at any time, and more than once."""
        self._work.cancel()

    async def __aenter__(self) -> FileStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Listing(AsyncIterator[FileEntry]):
    """A folder's entries: `await` it for all of them as a list sorted by path, or iterate as they come, unsorted."""

    def __init__(self, open_work: Callable[[], Work]) -> None:
        self._open = open_work
        self._entries = self._stream()

    async def _stream(self) -> AsyncGenerator[FileEntry]:
        async with self._open() as work:
            async for fields in work.records():
                yield work.as_entry(fields)

    async def __anext__(self) -> FileEntry:
        return await anext(self._entries)

    async def _all(self) -> list[FileEntry]:
        found: list[FileEntry] = []
        async for entry in self._entries:
            if len(found) == LISTED:
                await self.aclose()
                raise RunraError(
                    "INVALID_REQUEST",
                    f"more than {LISTED} entries: list its subfolders one by one, or take an archive",
                    details={"reason": "too_many_entries", "maximum": LISTED},
                )
            found.append(entry)
        return sorted(found, key=lambda entry: entry.path)

    def __await__(self) -> Generator[Any, None, list[FileEntry]]:
        return self._all().__await__()

    async def aclose(self) -> None:
        """Stop listing."""
        await self._entries.aclose()


class Watch(AsyncIterator[WatchEvent]):
    """Changes below a path, until `aclose`. `ready` returns once every change from then on will be seen.

    A rename shows as `moved` with the old path, and `created` with the new one. Ends after the path itself was
    deleted or moved. Raises RESOURCE_EXHAUSTED with reason `watch_overflow` when changes came faster than they were
    taken and some were lost, `too_many_watches` when the kernel allows no more folders to be watched.
    """

    def __init__(self, open_work: Callable[[], Work]) -> None:
        self._open = open_work
        self._work: Work | None = None
        self._ready = False

    async def ready(self) -> None:
        """Return once the watch is set up; called by the first step of the iteration if not before."""
        if self._work is None:
            self._work = self._open()
        if not self._ready:
            await self._work.record()
            self._ready = True

    async def __anext__(self) -> WatchEvent:
        await self.ready()
        assert self._work is not None
        fields = await self._work.record()
        if fields is None:
            raise StopAsyncIteration
        change = fields.number(Field.TYPE, 0)
        if not 0 < change < len(_CHANGES):
            self._work.cancel()
            raise RunraError("INTERNAL_ERROR", "the sandbox reported a change that is none")
        kind = cast(Literal["created", "modified", "deleted", "moved"], _CHANGES[change])
        return WatchEvent.model_construct(type=kind, path=fields.text(Field.PATH, ""))

    async def aclose(self) -> None:
        """Stop watching. Fine at any time, and more than once."""
        if self._work is not None:
            self._work.cancel()

    async def __aenter__(self) -> Watch:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AgentFiles:
    """The sandbox's files. A relative path starts at `cwd`; `user` is as in ExecSpec, empty for root.

    Failures are INVALID_REQUEST with `details.reason` (`not_found`, `exists`, `not_a_directory`, `is_a_directory`,
    `not_empty`, `permission_denied`, `not_a_regular_file`, `too_many_links`, `cross_device`, `bad_archive`, …) and
    `details.path`, or RESOURCE_EXHAUSTED (`disk_full`, `process_limit`). Names that are not UTF-8 come and go with
    `surrogateescape`. Operations on names wait up to 30 s for a sign of life, streams up to 60 s without progress
    of the agent's; a slow consumer on this side counts for nothing.
    """

    def __init__(self, link: AgentLink) -> None:
        self._link = link

    def _work(
        self,
        op: int,
        path: str,
        cwd: str,
        user: str,
        *values: tuple[Field, int | str],
        timeout: float | None = METADATA_TIMEOUT,
    ) -> Work:
        base: list[tuple[Field, int | str | bytes]] = [
            (Field.OP, op), (Field.PATH, path), (Field.CWD, cwd), (Field.USER, user), *values
        ]  # fmt: skip
        return Work(self._link, base, path, user, timeout)

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None, cwd: str = "/", user: str = ""
    ) -> FileStream:
        """Open a regular file for reading, from byte `offset`, at most `length` bytes (to its end when None)."""
        if offset < 0 or (length is not None and length < 0):
            raise RunraError("INVALID_REQUEST", "offset and length must not be negative", details={"reason": "invalid"})
        values: Values = ((Field.OFFSET, min(offset, (1 << 63) - 1)),)
        if length is not None:
            values += ((Field.LENGTH, min(length, (1 << 63) - 1)),)
        work = self._work(_READ, path, cwd, user, *values, timeout=STALL_TIMEOUT)
        try:
            return FileStream(work, await work.entry())
        except BaseException:
            work.cancel()
            raise

    async def write(
        self,
        path: str,
        chunks: AsyncIterable[bytes] | bytes,
        *,
        mode: int | None = None,
        fsync: bool = False,
        make_parents: bool = True,
        cwd: str = "/",
        user: str = "",
    ) -> FileEntry:
        """Write a file in one step: it has the old content or all of the new, whatever happens.

        `mode` is set when given; else an existing file keeps its own and a new one gets 0644. A link is followed.
        `fsync` returns only when the content is on the disk.
        """
        values: Values = ((Field.FLAGS, _PARENTS * make_parents | _SYNC * fsync),)
        if mode is not None:
            values += ((Field.MODE, mode & 0o7777),)
        async with self._work(_WRITE, path, cwd, user, *values, timeout=STALL_TIMEOUT) as work:
            await _feed(work, chunks)
            entry = await work.entry()
            await work.end()
            return entry

    def list(self, path: str, *, depth: int = 1, cwd: str = "/", user: str = "") -> Listing:
        """A folder's entries, `depth` levels of them: `await` for a sorted list, `async for` for a stream."""
        if depth < 1:
            raise RunraError("INVALID_REQUEST", "depth must be at least 1", details={"reason": "invalid"})
        value = (Field.DEPTH, min(depth, 1 << 31))
        return Listing(lambda: self._work(_LIST, path, cwd, user, value, timeout=STALL_TIMEOUT))

    async def stat(self, path: str, *, cwd: str = "/", user: str = "") -> FileEntry:
        """The entry of a name; a link is described, not followed."""
        async with self._work(_STAT, path, cwd, user) as work:
            entry = await work.entry()
            await work.end()
            return entry

    async def mkdir(self, path: str, *, recursive: bool = False, cwd: str = "/", user: str = "") -> None:
        """Make a folder; `recursive` makes those above it too and is content with one that exists."""
        async with self._work(_MKDIR, path, cwd, user, (Field.FLAGS, _RECURSIVE * recursive)) as work:
            await work.end()

    async def move(self, source: str, target: str, *, cwd: str = "/", user: str = "") -> None:
        """Rename; a file or link may go to another file system, a folder may not (`cross_device`)."""
        async with self._work(_MOVE, source, cwd, user, (Field.TARGET, target)) as work:
            await work.end()

    async def delete(self, path: str, *, recursive: bool = False, cwd: str = "/", user: str = "") -> None:
        """Delete a name; a folder must be empty unless `recursive`. Links are deleted, never followed."""
        async with self._work(_DELETE, path, cwd, user, (Field.FLAGS, _RECURSIVE * recursive)) as work:
            await work.end()

    async def read_archive(self, path: str, *, cwd: str = "/", user: str = "") -> AsyncIterator[bytes]:
        """A tar stream of a file, or of what is in a folder, with names relative to it."""
        async with self._work(_ARCHIVE_OUT, path, cwd, user, timeout=STALL_TIMEOUT) as work:
            while data := await work.data():
                yield data

    async def write_archive(
        self, path: str, chunks: AsyncIterable[bytes] | bytes, *, cwd: str = "/", user: str = ""
    ) -> None:
        """Unpack a tar stream (ustar, pax, GNU long names) into a folder, which is made when it is missing.

        Names that lead out of the folder, ways through links, devices and sparse members are refused
        (`bad_archive`, `not_a_directory`); what was unpacked before them stays.
        """
        async with self._work(_ARCHIVE_IN, path, cwd, user, timeout=STALL_TIMEOUT) as work:
            await _feed(work, chunks)
            await work.end()

    def watch(self, path: str, *, recursive: bool = False, cwd: str = "/", user: str = "") -> Watch:
        """Changes of a file, or in a folder, or in all folders below it when `recursive`."""
        value = (Field.FLAGS, _RECURSIVE * recursive)
        return Watch(lambda: self._work(_WATCH, path, cwd, user, value, timeout=None))


async def _feed(work: Work, chunks: AsyncIterable[bytes] | bytes) -> None:
    if isinstance(chunks, bytes):
        await work.feed(chunks)
    else:
        async for chunk in chunks:
            await work.feed(chunk)
    await work.feed_end()
