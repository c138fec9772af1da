"""Files of a sandbox: raw bodies both ways, in constant memory whatever their size."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Annotated, Any, Final

from pydantic import Field, PlainValidator, WithJsonSchema
from starlette.responses import Response

from runra.contract import FileEntry, MkdirRequest, MoveRequest, Page
from runra.errors import RunraError
from runra.events import EventType
from runra.server.answers import answer, dumped, empty, page
from runra.server.calls import Query
from runra.server.faults import ErrorAnswer
from runra.server.nodeport import AgentFiles, FileStream, Sandbox, Watch
from runra.server.patience import lost
from runra.server.routing import Caller, Parameters, Routes
from runra.server.streams import EVENT_HEADERS, Opened, Streamed, event, events

routes: Final = Routes("files")

_BYTES: Final = "application/octet-stream"
_TAR: Final = "application/x-tar"
#: What a path that leads nowhere is refused with.
_ABSENT: Final = ("not_found", "not_a_directory")
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def _path(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 4096:
        raise ValueError("must have 1 to 4096 characters")
    if "\0" in value:
        raise ValueError("must not contain a NUL byte")
    return value


#: As `contract.PathText`, for names of any bytes: pydantic's own strings take no lone surrogates.
AnyPath = Annotated[str, PlainValidator(_path), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 4096})]


class PathQuery(Query):
    path: AnyPath


class WriteQuery(PathQuery):
    #: Octal permissions, such as 0755. An existing file keeps its own when unset.
    mode: Annotated[str, Field(pattern=r"^0?[0-7]{3,4}$")] | None = None
    #: On the disk before the answer, for what must outlive a crash of the host.
    fsync: bool = False


class DeleteQuery(PathQuery):
    recursive: bool = False


class ListQuery(PathQuery):
    depth: Annotated[int, Field(ge=1, le=100)] = 1


class WatchQuery(PathQuery):
    recursive: bool = False


@asynccontextmanager
async def _files(call: Caller, operation: str, path: str) -> AsyncIterator[tuple[AgentFiles, str]]:
    """The sandbox's files and the folder relative paths start at. What fails inside is told as `file.error`."""
    sandbox = call.sandbox
    try:
        async with sandbox.use() as link:
            yield link.files, sandbox.config.workdir
    except RunraError as error:
        found = await lost(sandbox, error)
        # Asking whether something is there is no failure when it is not.
        if operation != "stat" or found.details.get("reason") not in _ABSENT:
            _tell(call, sandbox, "file.error", path, operation=operation, code=found.code)
        raise found from error


def _tell(call: Caller, sandbox: Sandbox, type: EventType, path: str, **data: Any) -> None:
    # A path need not be UTF-8; an event is.
    told = {"path": path.encode(errors="replace").decode(), **data}
    call.services.events.publish(type, sandbox.id, told, organization_id=sandbox.organization_id)


# --- content ---------------------------------------------------------------------------------------------------


@routes.route(
    "GET",
    "/sandboxes/{id}/files",
    scope="sandbox:files",
    content={_BYTES: "the file's bytes"},
    also={
        206: {"description": "the range that was asked for", "content": {_BYTES: {"schema": {"type": "string"}}}},
        416: {"description": "the file has no such range", "model": ErrorAnswer},
    },
    headers={"Range": "one range of bytes, such as `bytes=0-99`, `bytes=100-` or `bytes=-50`"},
)
async def read_file(call: Caller, query: Annotated[PathQuery, Parameters()]) -> Response:
    """Read a file, or a range of it."""
    return Streamed(call, _read(call, query.path))


@asynccontextmanager
async def _read(call: Caller, path: str) -> AsyncIterator[Opened]:
    async with _files(call, "read", path) as (files, cwd):
        asked = call.header(b"range")
        span = None
        if asked is not None and (match := _RANGE.fullmatch(asked.strip())) and match[0] != "bytes=-":
            # Opened for its size: `stat` would tell that of a link itself.
            probe = await files.read(path, length=0, cwd=cwd)
            await probe.aclose()
            if call.header(b"if-range") in (None, _etag(probe.entry)):
                span = _span(match[1], match[2], probe.size, path)
        if span is None:
            file = await files.read(path, cwd=cwd)
        else:
            file = await files.read(path, offset=span[0], length=span[1] - span[0] + 1, cwd=cwd)
        try:
            entry = file.entry
            headers = {
                "content-type": _BYTES,
                "accept-ranges": "bytes",
                "etag": _etag(entry),
                "last-modified": _http_date(entry.modified_at),
                # Never rendered as a page, whatever the sandbox put in it.
                "x-content-type-options": "nosniff",
            }
            if span is not None:
                headers["content-range"] = f"bytes {span[0]}-{span[1]}/{file.size}"
                headers["content-length"] = str(span[1] - span[0] + 1)
            elif file.size:
                # A size of 0 may be a file of /proc, which has content all the same: such go out in chunks.
                headers["content-length"] = str(file.size)
            _tell(call, call.sandbox, "file.read", path, sizeBytes=entry.size_bytes)
            # A file that grows meanwhile ends where its length said.
            yield Opened(_content(file, int(headers.get("content-length", 0))), headers, 200 if span is None else 206)
        finally:
            await file.aclose()


async def _content(file: FileStream, length: int) -> AsyncGenerator[bytes]:
    left = length
    async for chunk in file:
        if not length:
            yield chunk
            continue
        if left:
            yield chunk[:left]
        left -= min(left, len(chunk))
        if not left:
            return


def _span(first: str, last: str, size: int, path: str) -> tuple[int, int]:
    """The first and last byte that a Range header asks for (RFC 9110, 14.1.2)."""
    if first:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
        wrong = start >= size or (bool(last) and int(last) < start)
    else:
        start, end = max(0, size - int(last)), size - 1
        wrong = int(last) == 0 or size == 0
    if wrong:
        raise RunraError(
            "INVALID_REQUEST",
            f"Range: {path[:200]!r} has {size} bytes, and no byte of them is in the range asked for",
            details={"field": "Range", "sizeBytes": size},
            status=416,
        )
    return start, end


def _etag(entry: FileEntry) -> str:
    return '"' + re.sub(r"[^0-9A-Za-z]", "", entry.modified_at) + f'-{entry.size_bytes:x}"'


def _http_date(iso: str) -> str:
    return format_datetime(datetime.fromisoformat(iso).astimezone(UTC), usegmt=True)


@routes.route("PUT", "/sandboxes/{id}/files", scope="sandbox:files", answer=FileEntry, raw_body=_BYTES)
async def write_file(call: Caller, query: Annotated[WriteQuery, Parameters()]) -> Response:
    """Write a file from the body: whole or not at all. Missing folders are made."""
    path = query.path
    async with _files(call, "write", path) as (files, cwd):
        existed = await _exists(files, path, cwd)
        entry = await files.write(
            path,
            call.chunks(),
            mode=int(query.mode, 8) if query.mode is not None else None,
            fsync=query.fsync,
            make_parents=True,
            cwd=cwd,
        )
        _tell(call, call.sandbox, "file.modified" if existed else "file.created", path, sizeBytes=entry.size_bytes)
    return answer(entry)


async def _exists(files: AgentFiles, path: str, cwd: str) -> bool:
    """Whether a write will replace something; only the event's name depends on it."""
    try:
        await files.stat(path, cwd=cwd)
    except RunraError:
        return False
    return True


@routes.route("DELETE", "/sandboxes/{id}/files", scope="sandbox:files", status=204)
async def delete_file(call: Caller, query: Annotated[DeleteQuery, Parameters()]) -> Response:
    """Delete a file or an empty folder; a full one with `recursive=true`."""
    async with _files(call, "delete", query.path) as (files, cwd):
        await files.delete(query.path, recursive=query.recursive, cwd=cwd)
        _tell(call, call.sandbox, "file.deleted", query.path)
    return empty()


# --- names -----------------------------------------------------------------------------------------------------


@routes.route("GET", "/sandboxes/{id}/files/list", scope="sandbox:files", answer=Page[FileEntry])
async def list_files(call: Caller, query: Annotated[ListQuery, Parameters()]) -> Response:
    """List a folder, and folders in it down to `depth`."""
    async with _files(call, "list", query.path) as (files, cwd):
        found = await files.list(query.path, depth=query.depth, cwd=cwd)
    return page(found, len(found), len(found), 0)


@routes.route("GET", "/sandboxes/{id}/files/stat", scope="sandbox:files", answer=FileEntry)
async def stat_file(call: Caller, query: Annotated[PathQuery, Parameters()]) -> Response:
    """Tell what a path is."""
    async with _files(call, "stat", query.path) as (files, cwd):
        return answer(await files.stat(query.path, cwd=cwd))


@routes.route("POST", "/sandboxes/{id}/files/mkdir", scope="sandbox:files", answer=FileEntry, status=201)
async def make_folder(call: Caller, body: MkdirRequest) -> Response:
    """Make a folder; `recursive` makes missing ones above it, and does not mind one that is there."""
    async with _files(call, "mkdir", body.path) as (files, cwd):
        await files.mkdir(body.path, recursive=body.recursive, cwd=cwd)
        entry = await files.stat(body.path, cwd=cwd)
        _tell(call, call.sandbox, "file.created", body.path, isDirectory=True)
    return answer(entry, 201)


@routes.route("POST", "/sandboxes/{id}/files/move", scope="sandbox:files", answer=FileEntry)
async def move_file(call: Caller, body: MoveRequest) -> Response:
    """Move or rename. A file that is at the target already is replaced in one step."""
    async with _files(call, "move", body.from_) as (files, cwd):
        await files.move(body.from_, body.to, cwd=cwd)
        entry = await files.stat(body.to, cwd=cwd)
        _tell(call, call.sandbox, "file.deleted", body.from_, movedTo=body.to)
        _tell(call, call.sandbox, "file.created", body.to, movedFrom=body.from_)
    return answer(entry)


# --- archives and watching -------------------------------------------------------------------------------------


@routes.route("GET", "/sandboxes/{id}/files/archive", scope="sandbox:files", content={_TAR: "a tar archive"})
async def read_archive(call: Caller, query: Annotated[PathQuery, Parameters()]) -> Response:
    """Read a file or a folder as a tar archive."""
    return Streamed(call, _archive(call, query.path))


@asynccontextmanager
async def _archive(call: Caller, path: str) -> AsyncIterator[Opened]:
    async with _files(call, "read", path) as (files, cwd), aclosing(_chunks(files, path, cwd)) as chunks:
        # The first chunk is awaited before the status goes out: a path that is not there is still an error answer.
        first = await anext(chunks, b"")
        _tell(call, call.sandbox, "file.read", path, archive=True)
        yield Opened(_after(first, chunks), {"content-type": _TAR, "x-content-type-options": "nosniff"})


async def _chunks(files: AgentFiles, path: str, cwd: str) -> AsyncGenerator[bytes]:
    async for chunk in files.read_archive(path, cwd=cwd):
        yield chunk


async def _after(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    if first:
        yield first
    async for chunk in rest:
        yield chunk


@routes.route("PUT", "/sandboxes/{id}/files/archive", scope="sandbox:files", status=204, raw_body=_TAR)
async def write_archive(call: Caller, query: Annotated[PathQuery, Parameters()]) -> Response:
    """Unpack a tar archive under a folder, inside the sandbox's walls. The folder is made when missing."""
    async with _files(call, "write", query.path) as (files, cwd):
        await files.write_archive(query.path, call.chunks(), cwd=cwd)
        _tell(call, call.sandbox, "file.created", query.path, archive=True)
    return empty()


@routes.route(
    "GET",
    "/sandboxes/{id}/files/watch",
    scope="sandbox:files",
    content={"text/event-stream": 'event: created\ndata: {"type":"created","path":"/workspace/a.txt"}\n\n'},
)
async def watch_files(call: Caller, query: Annotated[WatchQuery, Parameters()]) -> Response:
    """Stream changes under a path: events created, modified, deleted, moved."""
    return events(call, _watch(call, query.path, recursive=query.recursive))


@asynccontextmanager
async def _watch(call: Caller, path: str, *, recursive: bool) -> AsyncIterator[Opened]:
    async with _files(call, "watch", path) as (files, cwd):
        watch = files.watch(path, recursive=recursive, cwd=cwd)
        try:
            # Before the status goes out: a path that is not there is an error answer, and what a client does once it
            # has the answer is seen.
            await watch.ready()
            yield Opened(_changes(call, watch), EVENT_HEADERS)
        finally:
            await watch.aclose()


async def _changes(call: Caller, watch: Watch) -> AsyncGenerator[bytes]:
    try:
        async for change in watch:
            yield event(change.type, dumped(change))
    except RunraError as error:
        yield event("error", (await lost(call.sandbox, error)).to_wire(call.request_id))
