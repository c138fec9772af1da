"""The host's link to one sandbox's agent: a socket, its streams, and what can be asked over it."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from runra.errors import RunraError
from runra.node.agent.channel import WINDOW, Channel, unpack_exit
from runra.node.agent.failures import agent_error
from runra.node.agent.files import AgentFiles
from runra.node.agent.frames import (
    HEADER,
    MAX_REQUEST,
    MAX_STRINGS,
    Ask,
    Field,
    Frame,
    ProtocolError,
    Tell,
    pack,
    pack_fields,
    unpack_fields,
)
from runra.node.agent.process import AgentProcess
from runra.node.agent.tunnel import EARLY, Tunnel, TunnelChannel
from runra.node.agent.types import AgentLost, ExecSpec, ProcessStatus
from runra.node.agent.wire import Wire, greeted

#: Seconds the agent has to answer a request.
REPLY_TIMEOUT: Final = 10.0
#: Bytes of one answer's frames: a thousand processes take a quarter of it.
_MOST_ANSWER: Final = 4 << 20
_MOST_LEAVING: Final = 65536
#: Bytes written and not yet taken beyond which nothing new is asked.
_MOST_UNSENT: Final = 32 << 20
#: Seconds a closed link waits for the agent to take the last frames.
_LINGER: Final = 2.0
_TITLE: Final = 1000

#: Streams at once unless the owner says otherwise.
_MOST_STREAMS: Final = 2048

T = TypeVar("T")


class _Call:
    """One question that is answered at once: its frames until DONE, PONG or ERROR."""

    def __init__(self, link: AgentLink, stream: int, about: dict[str, Any]) -> None:
        self._link, self.stream, self._about = link, stream, about
        self.done: asyncio.Future[list[bytes]] = link.loop.create_future()
        self._answers: list[bytes] = []
        self._held = 0

    def frame(self, frame: Frame) -> None:
        kind, payload = frame.type, frame.payload
        if kind == Tell.STATUS:
            self._answers.append(payload)
            self._held += HEADER.size + len(payload)
            if self._held > _MOST_ANSWER:
                raise ProtocolError("more processes than an agent keeps")
        elif kind in (Tell.DONE, Tell.PONG):
            self._link.forget(self.stream)
            if not self.done.done():
                self.done.set_result(self._answers)
        elif kind == Tell.ERROR:
            self.fail(agent_error(unpack_fields(payload), **self._about))
        else:
            raise ProtocolError(f"{Tell(kind).name} as the answer to a question")

    def fail(self, error: RunraError) -> None:
        self._link.forget(self.stream)
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()


class AgentLink:
    """A connection to the agent. Several streams run over it at once; none can block another.

    Made by `connect`. When it is lost, everything waiting on it raises AgentLost; the agent and its processes
    live on, and a new link can attach to them.
    """

    def __init__(self, wire: Wire) -> None:
        #: What is to be sent once the agent is back; None while it is there.
        self._held: bytearray | None = None
        self._parting: asyncio.Future[list[bytes]] | None = None
        self._parted = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.files = AgentFiles(self)
        self._streams: dict[int, Channel | _Call] = {}
        self._leaving: set[int] = set()
        self._last_stream = 0
        #: The most streams open at once; one more is RESOURCE_EXHAUSTED.
        self.max_streams = _MOST_STREAMS
        self._gone = asyncio.Event()
        self._why = ""
        self._use(wire)

    def _use(self, wire: Wire, first: bytes = b"") -> None:
        assert wire.transport is not None
        self._transport, self._parts = wire.transport, wire.parts
        wire.on_frame, wire.on_lost = self._frame, self._hung_up
        # no pausing of reads or writes: what may be in flight is bounded by credit, both ways
        self._transport.set_write_buffer_limits(high=64 << 20)
        self.send(first)
        try:
            for frame in wire.early:
                self._frame(frame)
        except ProtocolError as error:
            self._lost(f"the agent broke the protocol: {error}")
            raise AgentLost(self._why) from None

    @classmethod
    async def connect(cls, path: str | Path, *, timeout: float = 5.0) -> AgentLink:
        """Connect and greet within `timeout` seconds; AgentLost when the agent does not answer.

        The newest connection is the agent's only one: an older link is closed by this.
        """
        return cls(await greeted(Path(path), timeout))

    # --- parting, for an agent whose processes are saved ---

    @property
    def apart(self) -> bool:
        """Between `part` and `resume`."""
        return self._held is not None

    async def part(self) -> None:
        """Have the agent let go of this connection and of whatever it gets others from. Everything goes on where it
        was with `resume`; what is asked until then waits. When this raises, the link is lost or stands as before.

        Raises INVALID_STATE where something inside is in the way, or where the agent is too old for it.
        """
        self.check()
        if not self._parts:
            raise RunraError(
                "INVALID_STATE",
                "an earlier version of Runra started this sandbox, and what runs in it cannot be saved; fork it "
                "without processes, or create it anew",
                details={"reason": "too_old"},
            )
        call = _Call(self, self._new_stream(), {})
        self._streams[call.stream] = call
        self.send(pack(Ask.PART, call.stream))
        self._held, self._parting = bytearray(), call.done
        try:
            await self.reply(call.done, lambda: None)
            async with asyncio.timeout(REPLY_TIMEOUT):
                await self._parted.wait()
        except RunraError as error:
            if isinstance(error, AgentLost):
                self._lost(error.message)
            else:  # it said no, and goes on
                held, self._held = self._held, None
                self.send(bytes(held))
            raise
        except TimeoutError:
            self._lost("the agent did not part in time")
            raise AgentLost(self._why) from None
        except BaseException:
            self._lost("it was given up while it parted")
            raise

    async def resume(self, path: str | Path, *, timeout: float = 20.0) -> None:
        """Connect again and go on. AgentLost, and all that waits with it, when that fails."""
        if self.closed:
            raise AgentLost(self._why)
        try:
            wire = await greeted(Path(path), timeout, resume=True)
        except BaseException:
            self._lost("the agent did not come back after it had been saved")
            raise
        if self.closed:  # in the meantime
            if wire.transport is not None:
                wire.transport.abort()
            raise AgentLost(self._why)
        held, self._held = self._held or b"", None
        self._parted.clear()
        self._use(wire, bytes(held))

    async def wait_closed(self) -> None:
        """Until the connection is lost or closed."""
        await self._gone.wait()

    async def close(self) -> None:
        """Close the connection. The agent and its processes live on."""
        if not self.closed and self._transport.get_write_buffer_size():
            self._transport.close()  # what was written goes out first, if the agent still reads
            self.loop.call_later(_LINGER, self._transport.abort)
        self._lost("the link was closed", abort=False)
        await asyncio.sleep(0)

    async def ping(self, timeout: float = 5.0) -> None:
        """See that the agent answers; AgentLost when it does not within `timeout` seconds."""
        await self._call(Ask.PING, b"", {}, timeout)

    async def exec(self, spec: ExecSpec) -> AgentProcess:
        """Start a program.

        Raises INVALID_REQUEST with `details.reason` `bad_cwd`, `unknown_user`, `bad_user`, `no_terminal` or
        `too_long`; RESOURCE_EXHAUSTED when the sandbox has no room for a process; AgentLost when the agent does
        not answer within 10 s (the program may have been started then; a `tag` tells).
        """
        about = {"cwd": spec.cwd, "user": spec.user}
        process = await self._start(Ask.EXEC, _exec_payload(spec), about)
        process._terminal = spec.pty is not None
        return process

    async def attach(self, pid: int, *, offset: int = 0) -> AgentProcess:
        """Listen to a process from `offset` on, or from the oldest byte still kept when that is later.

        Raises INVALID_REQUEST with `details.reason` `no_such_process` for a pid the agent does not remember.
        """
        if not 0 <= offset < 1 << 63 or not 0 < pid < 1 << 31:
            raise RunraError("INVALID_REQUEST", "no such process", details={"reason": "no_such_process", "pid": pid})
        fields: list[tuple[Field, int | str | bytes]]
        fields = [(Field.PID, pid), (Field.OFFSET, offset), (Field.WINDOW, WINDOW)]
        return await self._start(Ask.ATTACH, pack_fields(fields), {"pid": pid})

    async def processes(self) -> list[ProcessStatus]:
        """The processes the agent remembers: those that run, and the latest that ended. Oldest first."""
        found = []
        for payload in await self._call(Ask.LIST, b"", {}):
            try:
                fields = unpack_fields(payload)
                status = ProcessStatus(
                    pid=fields.number(Field.PID),
                    command=fields.text(Field.TITLE, "").encode("utf-8", "replace").decode(),
                    started_at_ms=fields.number(Field.STARTED_AT),
                    exit=unpack_exit(fields) if Field.CODE in fields.numbers else None,
                    tag=fields.text(Field.TAG, "").encode("utf-8", "replace").decode(),
                )
            except ProtocolError as error:
                self._lost(f"the agent broke the protocol: {error}")
                raise AgentLost(self._why) from None
            found.append(status)
        return sorted(found, key=lambda status: (status.started_at_ms, status.pid))

    async def connect_port(self, port: int, first: bytes = b"") -> Tunnel:
        """Connect to a TCP port on the sandbox's own loopback: 127.0.0.1, else ::1. The caller closes it.

        `first` is written to it, without waiting for the connection before.

        Raises INVALID_STATE with `details.reason` `port_closed` when nothing listens there, RESOURCE_EXHAUSTED beyond
        1,024 connections, INVALID_REQUEST outside 1024–65535; AgentLost when the agent does not answer.
        """
        if not 1024 <= port <= 65535:
            raise RunraError("INVALID_REQUEST", f"port {port}: must be between 1024 and 65535")
        payload = pack_fields([(Field.PORT, port), (Field.WINDOW, WINDOW)])
        channel = TunnelChannel(self, self._new_stream(), {"port": port})
        early = first[:EARLY]
        channel.early = len(early)
        self._open(channel, Ask.CONNECT, payload, pack(Ask.DATA, channel.stream, early) if early else b"")
        try:
            await self.reply(channel.started, lambda: None)
            tunnel = Tunnel(channel, port)
            if len(first) > EARLY:
                await tunnel.write(first[EARLY:], REPLY_TIMEOUT)
            return tunnel
        except TimeoutError:
            channel.leave()
            raise AgentLost(f"port {port} took nothing within {REPLY_TIMEOUT:g} s") from None
        except BaseException:
            channel.leave()
            raise

    async def signal(self, pid: int, signum: int) -> None:
        """Send a signal to the whole tree of a process, also when only its background children are left."""
        if not 0 < pid < 1 << 31 or not 0 < signum < 65:
            reason = "no_such_process" if 0 < signum < 65 else "invalid"
            raise RunraError("INVALID_REQUEST", "no such process or signal", details={"reason": reason, "pid": pid})
        await self._call(Ask.SIGNAL, pack_fields([(Field.PID, pid), (Field.SIGNAL, signum)]), {"pid": pid})

    # --- for channels ---

    def send(self, data: bytes) -> None:
        if self._held is not None:
            self._held += data
        elif not self.closed:
            self._transport.write(data)

    def forget(self, stream: int) -> None:
        self._streams.pop(stream, None)

    def leave(self, stream: int) -> None:
        """Give up a stream. Its frames are dropped until the agent confirms: they may be on their way."""
        if self._streams.pop(stream, None) is not None and not self.closed:
            self._leaving.add(stream)
            self.send(pack(Ask.DETACH, stream))
            if len(self._leaving) > _MOST_LEAVING:
                self._lost("the agent does not confirm closed streams")

    def open_channel(self, kind: Ask, payload: bytes, about: dict[str, Any]) -> Channel:
        channel = Channel(self, self._new_stream(), about)
        self._open(channel, kind, payload)
        return channel

    def check(self) -> None:
        """Before anything new is asked: the link stands, and the agent takes what was sent (a frozen one does not)."""
        if self.closed:
            raise AgentLost(self._why)
        unsent = self._transport.get_write_buffer_size() if self._held is None else len(self._held)
        if unsent > _MOST_UNSENT:
            raise RunraError(
                "RESOURCE_EXHAUSTED", "the sandbox does not take its requests", details={"reason": "agent_busy"}
            )

    async def reply(self, future: Awaitable[T], give_up: Callable[[], None], timeout: float = REPLY_TIMEOUT) -> T:
        """Await the agent's answer; whatever ends the wait early gives the stream up."""
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise AgentLost(f"the agent did not answer within {timeout:g} s") from None
        finally:
            give_up()

    # --- inside ---

    def _open(self, channel: Channel, kind: Ask, payload: bytes, also: bytes = b"") -> None:
        self.check()
        self._streams[channel.stream] = channel
        self.send(pack(kind, channel.stream, payload) + also)

    async def _start(self, kind: Ask, payload: bytes, about: dict[str, Any]) -> AgentProcess:
        channel = self.open_channel(kind, payload, about)
        try:
            fields = await self.reply(channel.started, lambda: None)
            return AgentProcess(self, channel, fields)
        except ProtocolError as error:
            self._lost(f"the agent broke the protocol: {error}")
            raise AgentLost(self._why) from None
        except BaseException:
            channel.leave()
            raise

    async def _call(
        self, kind: Ask, payload: bytes, about: dict[str, Any], timeout: float = REPLY_TIMEOUT
    ) -> list[bytes]:
        self.check()
        call = _Call(self, self._new_stream(), about)
        self._streams[call.stream] = call
        self.send(pack(kind, call.stream, payload))
        return await self.reply(call.done, lambda: self.leave(call.stream), timeout)

    def _new_stream(self) -> int:
        if len(self._streams) >= self.max_streams:
            raise RunraError(
                "RESOURCE_EXHAUSTED",
                f"{self.max_streams} streams to this sandbox are open, its most: close some, or try later",
                details={"reason": "stream_limit", "maxStreams": self.max_streams},
            )
        while True:
            self._last_stream = self._last_stream % 0xFFFFFFFF + 1
            if self._last_stream not in self._streams and self._last_stream not in self._leaving:
                return self._last_stream

    def _frame(self, frame: Frame) -> None:
        stream = self._streams.get(frame.stream)
        if stream is not None:
            stream.frame(frame)
        elif frame.stream in self._leaving:
            if frame.type == Tell.CLOSED:
                self._leaving.remove(frame.stream)
        elif not self.closed:
            raise ProtocolError(f"a frame for stream {frame.stream}, which is not open")

    def _hung_up(self, why: str) -> None:
        parting = self._parting
        if self._held is not None and parting is not None and parting.done() and parting.exception() is None:
            self._parted.set()
        else:
            self._lost(why)

    def _lost(self, why: str, *, abort: bool = True) -> None:
        if self.closed:
            return
        self.closed = True
        self._why = why
        if abort or not self._transport.is_closing():
            self._transport.abort()
        self._leaving.clear()
        for stream in list(self._streams.values()):
            stream.fail(AgentLost(why))
        self._gone.set()


def _exec_payload(spec: ExecSpec) -> bytes:
    if (spec.command is None) == (not spec.argv):
        raise RunraError("INVALID_REQUEST", "give exactly one of 'command' and 'argv'", details={"reason": "invalid"})
    title = spec.command if spec.command is not None else shlex.join(arg[:_TITLE] for arg in spec.argv[:100])
    fields: list[tuple[Field, int | str | bytes]] = [
        (Field.CWD, spec.cwd),
        (Field.USER, spec.user),
        (Field.WINDOW, WINDOW),
        (Field.TITLE, _shortened(title)),
        (Field.TAG, spec.tag),
        (Field.STDIN, int(spec.stdin)),
    ]
    if spec.command is not None:
        fields.append((Field.COMMAND, spec.command))
    fields += ((Field.ARG, arg) for arg in spec.argv)
    fields += ((Field.ENV, f"{name}={value}") for name, value in spec.env.items())
    if spec.timeout_ms is not None:
        fields.append((Field.TIMEOUT_MS, min(max(1, spec.timeout_ms), (1 << 31) - 1)))
    if spec.pty is not None:
        rows, cols = spec.pty
        fields += ((Field.ROWS, min(max(1, rows), 65535)), (Field.COLS, min(max(1, cols), 65535)))
    try:
        payload = pack_fields(fields)
    except ValueError as error:
        raise RunraError("INVALID_REQUEST", f"the command has {error}", details={"reason": "invalid"}) from None
    if len(payload) > MAX_REQUEST or max(len(spec.argv), len(spec.env)) > MAX_STRINGS or len(spec.tag) > 64:
        raise RunraError(
            "INVALID_REQUEST",
            f"command and environment take {len(payload)} bytes; at most {MAX_REQUEST}, {MAX_STRINGS} strings "
            "of each kind and 64 characters of tag fit",
            details={"reason": "too_long"},
        )
    return payload


def _shortened(title: str) -> bytes:
    raw = title[:_TITLE].encode("utf-8", "replace")
    return raw.decode("utf-8", "ignore").encode()[:_TITLE]
