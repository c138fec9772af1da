"""One file operation in progress: records, bytes and the error it ends with."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, get_args

from runra.contract import FileEntry, FileType
from runra.errors import RunraError
from runra.node.agent.channel import WINDOW
from runra.node.agent.failures import agent_error, file_error
from runra.node.agent.frames import (
    MAX_DATA,
    Ask,
    Field,
    Fields,
    ProtocolError,
    Stage,
    decode_text,
    pack_fields,
    unpack_fields,
)
from runra.node.agent.types import AgentLost

if TYPE_CHECKING:
    from runra.node.agent.link import AgentLink

#: Seconds without any progress of the agent's, while it could make some, until file work is given up.
STALL_TIMEOUT: Final = 60.0
_MAX_RECORD: Final = 16 << 10
_MAX_MESSAGE: Final = 4 << 10
_TYPES: Final = ("file", "directory", "symlink", "fifo", "socket", "char", "block")
assert set(_TYPES) == set(get_args(FileType))
_LAST_SECOND: Final = 253402300799_000


def file_entry(fields: Fields) -> FileEntry:
    """The contract's entry; built without validation, which would refuse names that are not UTF-8."""
    kind = fields.number(Field.TYPE)
    if kind >= len(_TYPES):
        raise ProtocolError("an unknown type of file")
    mtime = fields.number(Field.MTIME_MS)
    if mtime >= 1 << 63:
        mtime -= 1 << 64
    modified = datetime.fromtimestamp(min(max(mtime, 0), _LAST_SECOND) / 1000, UTC)
    path = fields.text(Field.PATH, None if Field.NAME not in fields.texts else fields.text(Field.NAME))
    return FileEntry.model_construct(
        name=fields.text(Field.NAME),
        path=path,
        is_directory=bool(fields.number(Field.IS_DIRECTORY)),
        size_bytes=fields.number(Field.SIZE),
        modified_at=modified.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        mode=f"{fields.number(Field.MODE) & 0o7777:04o}",
        owner=fields.text(Field.OWNER, ""),
        group=fields.text(Field.GROUP, ""),
        symlink_target=fields.text(Field.TARGET) if Field.TARGET in fields.texts else None,
        type=_TYPES[kind],
    )


class Work:
    """A worker of the agent's. `async with` cancels it when it has not ended by itself."""

    def __init__(
        self,
        link: AgentLink,
        values: list[tuple[Field, int | str | bytes]],
        path: str,
        user: str,
        timeout: float | None,
    ) -> None:
        try:
            payload = pack_fields([*values, (Field.WINDOW, WINDOW)])
        except ValueError as error:
            raise RunraError(
                "INVALID_REQUEST",
                f"the path has {error}",
                details={"reason": "invalid", "path": path.replace("\0", "?")},
            ) from None
        if len(payload) > MAX_DATA:
            raise RunraError(
                "INVALID_REQUEST", "the path is too long", details={"reason": "name_too_long", "path": path[:256]}
            )
        self._link, self._path, self._user, self._timeout = link, path, user, timeout
        self._channel = link.open_channel(Ask.FILE, payload, {"user": user})
        self._rest = b""
        self._message = b""

    async def __aenter__(self) -> Work:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End it; a file half written is removed. Fine when it has ended."""
        self._channel.leave()

    async def _changed(self) -> None:
        try:
            await self._channel.changed(self._timeout)
        except TimeoutError:
            self.cancel()
            raise AgentLost(f"the sandbox made no progress on {self._path} for {self._timeout:g} s") from None

    async def data(self) -> bytes:
        """The next bytes of its answer; none at its good end. A failure raises, once all before it was taken."""
        channel = self._channel
        while True:
            while channel.chunks:
                stderr, _, data = channel.take()
                if not stderr:
                    return data
                self._message = (self._message + data)[:_MAX_MESSAGE]
            if channel.error is not None:
                raise channel.error
            if channel.exit is not None:
                if channel.exit.code == 0:
                    return b""
                raise self._failure()
            if channel.left:
                raise RunraError("INVALID_STATE", f"the work on {self._path} was cancelled")
            await self._changed()

    def _failure(self) -> RunraError:
        assert self._channel.exit is not None
        if len(self._message) < 8:
            name = self._channel.exit.signal
            what = f"was ended by {name} from inside the sandbox" if name else "failed without saying why"
            return RunraError("INTERNAL_ERROR", f"the work on {self._path} {what}", details={"path": self._path})
        code, stage = struct.unpack_from("<II", self._message)
        message = decode_text(self._message[8:]).encode("utf-8", "replace").decode()
        if stage == Stage.USER:
            fields = Fields({Field.ERRNO: code, Field.STAGE: stage}, {Field.MESSAGE: message.encode()})
            return agent_error(fields, user=self._user)
        return file_error(code, message, self._path)

    async def _exactly(self, count: int) -> bytes | None:
        """`count` bytes; None at the end, which must not come in the middle."""
        parts = [self._rest]
        have = len(self._rest)
        while have < count:
            data = await self.data()
            if not data:
                if have:
                    raise self._broken("a record is cut off")
                return None
            parts.append(data)
            have += len(data)
        whole = b"".join(parts)
        self._rest = whole[count:]
        return whole[:count]

    def _broken(self, why: str) -> AgentLost:
        self.cancel()
        return AgentLost(f"the sandbox's answer about {self._path} makes no sense: {why}")

    async def record(self) -> Fields | None:
        """The next record; None at the end. Empty ones only say that the work goes on."""
        while True:
            head = await self._exactly(4)
            if head is None:
                return None
            length = int.from_bytes(head, "little")
            if length > _MAX_RECORD:
                raise self._broken("a record too long")
            if not length:
                continue
            raw = await self._exactly(length)
            if raw is None:
                raise self._broken("a record is cut off")
            try:
                return unpack_fields(raw)
            except ProtocolError as error:
                raise self._broken(str(error)) from None

    async def records(self) -> AsyncIterator[Fields]:
        """All records. Whole runs of them are cut from one buffer: a folder may have 100,000 names."""
        rest = self._rest
        self._rest = b""
        while True:
            at, end = 0, len(rest)
            while end - at >= 4:
                length = int.from_bytes(rest[at : at + 4], "little")
                if length > _MAX_RECORD:
                    raise self._broken("a record too long")
                if end - at - 4 < length:
                    break
                if length:
                    try:
                        fields = unpack_fields(rest[at + 4 : at + 4 + length])
                    except ProtocolError as error:
                        raise self._broken(str(error)) from None
                    yield fields
                at += 4 + length
            data = await self.data()
            rest = rest[at:] + data
            if not data:
                if rest:
                    raise self._broken("a record is cut off")
                return

    async def entry(self) -> FileEntry:
        fields = await self.record()
        if fields is None:
            raise self._broken("no entry")
        return self.as_entry(fields)

    def as_entry(self, fields: Fields) -> FileEntry:
        try:
            return file_entry(fields)
        except ProtocolError as error:
            raise self._broken(str(error)) from None

    def rest(self) -> bytes:
        """Bytes that came with the last record but do not belong to it."""
        rest, self._rest = self._rest, b""
        return rest

    async def end(self) -> None:
        """Wait for the good end; whatever it still says is dropped."""
        while await self.data():
            pass

    async def feed(self, data: bytes | memoryview) -> None:
        """Send input. Work that failed meanwhile raises its failure."""
        try:
            await self._started()
            await self._channel.write(data, self._timeout)
        except TimeoutError:
            self.cancel()
            raise AgentLost(f"the sandbox took nothing for {self._path} for {self._timeout:g} s") from None
        except RunraError as error:
            if error.code == "INVALID_STATE" and not self._channel.left:
                await self.end()
            raise

    async def feed_end(self) -> None:
        await self._started()
        self._channel.close_stdin()

    async def _started(self) -> None:
        while not self._channel.started.done():
            await self._changed()
        if self._channel.error is not None:
            raise self._channel.error
