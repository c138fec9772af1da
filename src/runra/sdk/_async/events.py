"""Events of a server or a sandbox: a stream that reconnects, and handlers fed from one."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self

from runra.errors import RunraError
from runra.events import Event, check_pattern, now_iso
from runra.sdk._async.api import AsyncApi
from runra.sdk.concurrency_async import AsyncSignal, AsyncWorker, call_back
from runra.sdk.failures import Failure
from runra.sdk.gaps import EventGap, GapHandler, read_gap
from runra.sdk.lifecycle import (
    ErrorEvent,
    Handler,
    LifecycleEvent,
    LifecycleName,
    StartedEvent,
    check_name,
    lifecycle,
    read_event,
    taking_one,
)
from runra.sdk.sse import EventParser
from runra.sdk.transport_async import AsyncIncoming
from runra.sdk.wire import backoff, sandbox_path

_log = logging.getLogger("runra.sdk")

#: How long the end of a handler's work is waited for, in seconds.
_CLOSE_S = 5.0


class AsyncEventStream:
    """Events as they come. Iterate it; `close()` ends that from anywhere.

    A broken connection is opened again, with waits that double up to 5 s, and the events missed meanwhile come
    first, as far back as the server keeps them (10,000, none across its restart). Where some are missing `on_gap` is
    called with an `EventGap`; without one it is logged. Raises RunraError when the server refuses: UNAUTHORIZED,
    SANDBOX_NOT_FOUND and the like.
    """

    def __init__(
        self,
        api: AsyncApi,
        path: str,
        *,
        after: str | None = None,
        types: Sequence[str] | None = None,
        on_gap: GapHandler | None = None,
    ) -> None:
        #: Set while a connection is open.
        self.connected = AsyncSignal()
        self._api = api
        self._path = path
        self._last = after
        self._params = {"types": ",".join(check_pattern(one) for one in types)} if types else {}
        self._on_gap = on_gap
        self._incoming: AsyncIncoming | None = None
        self._stop = AsyncSignal()

    async def __aiter__(self) -> AsyncIterator[Event]:
        async with aclosing(self._events()) as events:
            async for event in events:
                yield event

    async def _events(self) -> AsyncGenerator[Event, None]:
        attempt = 0
        self._api.hold(self)
        try:
            while not self._stop.is_set():
                try:
                    headers = {"Last-Event-ID": self._last} if self._last else {}
                    async with self._api.stream("GET", self._path, params=self._params, headers=headers) as incoming:
                        self._incoming = incoming
                        self.connected.set()
                        parser = EventParser()
                        async for piece in incoming.chunks():
                            attempt = 0
                            for raw in parser.feed(piece):
                                event = read_event(raw)
                                if event is None:
                                    await self._missed(read_gap(raw))
                                    continue
                                self._last = raw.id or event.id
                                yield event
                                if self._stop.is_set():
                                    return
                        raise Failure("closed", True, "the stream ended")
                except RunraError as error:
                    if error.code != "NETWORK_ERROR":
                        raise
                    _log.debug("%s: connecting again: %s", self._path, error)
                finally:
                    self._incoming = None
                    self.connected.clear()
                await self._stop.wait(backoff(min(attempt, 5)))
                attempt += 1
        finally:
            self._api.release(self)

    async def _missed(self, gap: EventGap | None) -> None:
        if gap is None:
            return
        if self._on_gap is None:
            _log.warning("%s: %s", self._path, gap)
            return
        try:
            await call_back(self._on_gap, gap)
        except Exception:  # noqa: BLE001 - the caller's code: logged whole, and the events go on
            _log.exception("%s: the handler of gaps failed", self._path)

    def closing(self) -> bool:
        """Whether `close` was called."""
        return self._stop.is_set()

    async def close(self) -> None:
        """End the iteration, also while it waits."""
        self._stop.set()
        if self._incoming is not None:
            self._incoming.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncListener:
    """Calls a sandbox's handlers. The connection is opened with the first of them and ends with the sandbox."""

    def __init__(self, api: AsyncApi, sandbox_id: str) -> None:
        self._api = api
        self._sandbox_id = sandbox_id
        self._handlers: dict[LifecycleName, list[Handler]] = {}
        self._stream: AsyncEventStream | None = None
        self._worker: AsyncWorker | None = None
        self._over = AsyncSignal()
        self._announcers: list[AsyncWorker] = []

    def add(self, name: LifecycleName, handler: Handler, started_at: str | None) -> Callable[[], None]:
        check_name(name)
        wrapped = taking_one(handler)
        self._handlers.setdefault(name, []).append(wrapped)
        if name == "started" and started_at is not None:
            event = StartedEvent(self._sandbox_id, started_at)

            async def announce() -> None:
                await self._call(wrapped, name, event)

            self._announcers.append(AsyncWorker(f"runra-started-{self._sandbox_id}", announce))
        if self._worker is None or not self._worker.running():
            self._over.clear()
            path = sandbox_path(self._sandbox_id, "events")
            self._stream = AsyncEventStream(self._api, path, types=["sandbox.*"])
            self._worker = AsyncWorker(f"runra-events-{self._sandbox_id}", self._follow)
            self._api.hold(self)

        def remove() -> None:
            if wrapped in self._handlers.get(name, []):
                self._handlers[name].remove(wrapped)

        return remove

    async def ready(self, seconds: float) -> None:
        """Wait for the connection, so that what the caller does next is seen on it."""
        if self._stream is None or self._over.is_set():
            return
        if not await self._stream.connected.wait(seconds) and not self._over.is_set():
            _log.warning("sandbox %s: its event stream is not connected; handlers may miss this", self._sandbox_id)

    async def finish(self, seconds: float) -> None:
        """Wait for the last event, which ends the work."""
        if self._worker is not None:
            await self._over.wait(seconds)

    async def close(self) -> None:
        self._api.release(self)
        stream, worker = self._stream, self._worker
        if stream is not None:
            await stream.close()
        for one in (*self._announcers, *([worker] if worker is not None else [])):
            await one.close(_CLOSE_S)

    async def _follow(self) -> None:
        assert self._stream is not None, "add() makes it"
        try:
            async with aclosing(self._stream._events()) as events:
                async for event in events:
                    told = lifecycle(event)
                    if told is None:
                        continue
                    await self._tell(*told)
                    if told[0] == "terminated":
                        return
        except RunraError as error:
            if self._stream.closing():
                return
            _log.error("sandbox %s: its events can no longer be followed: %s", self._sandbox_id, error)
            await self._tell("error", ErrorEvent(self._sandbox_id, now_iso(), error))
        finally:
            self._over.set()
            self._api.release(self)

    async def _tell(self, name: LifecycleName, payload: LifecycleEvent) -> None:
        for handler in tuple(self._handlers.get(name, ())):
            await self._call(handler, name, payload)

    async def _call(self, handler: Handler, name: LifecycleName, payload: LifecycleEvent) -> None:
        try:
            await call_back(handler, payload)
        except Exception:  # noqa: BLE001 - the caller's code: logged whole, and the next handler has its turn
            _log.exception("sandbox %s: the handler of %r failed", self._sandbox_id, name)
