"""The connection below an agent's link: frames as they come in, and the greeting that both sides begin with."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from runra.node.agent.frames import (
    VERSION,
    Ask,
    Decoder,
    Field,
    Frame,
    ProtocolError,
    Tell,
    pack,
    pack_fields,
    unpack_fields,
)
from runra.node.agent.types import AgentLost

#: Longest path a Unix socket address holds, its NUL included.
_SUN_PATH: Final = 108


class Wire(asyncio.BufferedProtocol):
    """Reads straight into the decoder's buffer, and hands whole frames to the link."""

    def __init__(self) -> None:
        self.decoder = Decoder()
        self.greeting: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self.on_frame: Callable[[Frame], None] | None = None
        #: What came with the greeting: an agent that goes on where it parted has more to say at once.
        self.early: list[Frame] = []
        self.on_lost: Callable[[str], None] | None = None
        #: Whether the agent knows PART, see docs/agent-protocol.md; one that an earlier Runra started may not.
        self.parts = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of it.
        transport = cast(asyncio.Transport, transport)
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.decoder.writable()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            frames = self.decoder.written(nbytes)
            on_frame = self.on_frame
            if on_frame is None:
                on_frame = self._greet
            for frame in frames:
                on_frame(frame)
        except ProtocolError as error:
            self._fail(f"the agent broke the protocol: {error}")

    def _greet(self, frame: Frame) -> None:
        if self.greeting.done():
            self.early.append(frame)  # no more than the streams' windows hold
        elif frame.type != Tell.HELLO:
            raise ProtocolError("no greeting first")
        else:
            self.greeting.set_result(frame)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"the connection to the sandbox's agent ended{f': {error}' if error else ''}")

    def _fail(self, why: str) -> None:
        if not self.greeting.done():
            self.greeting.set_exception(AgentLost(why))
            self.greeting.exception()
        if self.transport is not None:
            self.transport.abort()
        if self.on_lost is not None:
            self.on_lost(why)


async def greeted(path: Path, timeout: float, *, resume: bool = False) -> Wire:
    """A connection that both have greeted on; AgentLost when that does not come about within `timeout` seconds."""
    fields: list[tuple[Field, int | str | bytes]] = [(Field.VERSION, VERSION)]
    if resume:
        fields.append((Field.RESUME, 1))
    try:
        async with asyncio.timeout(timeout):
            wire = await _dial(path)
            try:
                assert wire.transport is not None
                wire.transport.write(pack(Ask.HELLO, 0, pack_fields(fields)))
                said = unpack_fields((await wire.greeting).payload)
                version = said.number(Field.VERSION)
                wire.parts = said.number(Field.RESUME, 0) == 1
                if version != VERSION:
                    raise AgentLost(f"the agent speaks version {version}, not {VERSION}; make the sandbox anew")
                return wire
            except BaseException:
                if wire.transport is not None:
                    wire.transport.abort()
                raise
    except TimeoutError:
        raise AgentLost(f"the agent did not answer within {timeout:g} s") from None
    except (OSError, ProtocolError) as error:
        raise AgentLost(f"cannot reach the agent: {error}") from error


async def _dial(path: Path) -> Wire:
    loop = asyncio.get_running_loop()
    if len(os.fsencode(path)) < _SUN_PATH:
        _, wire = await loop.create_unix_connection(Wire, str(path))
        return wire
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _, wire = await loop.create_unix_connection(Wire, f"/proc/self/fd/{folder}/{path.name}")
        return wire
    finally:
        os.close(folder)
