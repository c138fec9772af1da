"""Events of a server or a sandbox: a stream that reconnects, and handlers fed from one."""

# Made from `_async/events.py` by scripts/generate_sync.py: change that one.

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Self

from runra.errors import RunraError
from runra.events import Event, check_pattern, now_iso
from runra.sdk._sync.api import Api
from runra.sdk.concurrency_sync import Signal, Worker, call_back
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
from runra.sdk.transport_sync import Incoming
from runra.sdk.wire import backoff, sandbox_path

_log = logging.getLogger("runra.sdk")

#: How long the end of a handler's work is waited for, in seconds.
_CLOSE_S = 5.0


class EventStream:
    """Events as they come. Iterate it; `close()` ends that from anywhere.

    A broken connection is opened again, with waits that double up to 5 s, and the events missed meanwhile come
    first, as far back as the server keeps them (10,000, none across its restart). Where some are missing `on_gap` is
    called with an `EventGap`; without one it is logged. Raises RunraError when the server refuses: UNAUTHORIZED,
    SANDBOX_NOT_FOUND and the like.
    """

    def __init__(
        self,
        api: Api,
        path: str,
        *,
        after: str | None = None,
        types: Sequence[str] | None = None,
        on_gap: GapHandler | None = None,
    ) -> None:
        #: Set while a connection is open.
        self.connected = Signal()
        self._api = api
        self._path = path
        self._last = after
        self._params = {"types": ",".join(check_pattern(one) for one in types)} if types else {}
        self._on_gap = on_gap
        self._incoming: Incoming | None = None
        self._stop = Signal()

    def __iter__(self) -> Iterator[Event]:
        with closing(self._events()) as events:
            yield from events

    def _events(self) -> Generator[Event, None]:
        attempt = 0
        self._api.hold(self)
        try:
            while not self._stop.is_set():
                try:
                    headers = {"Last-Event-ID": self._last} if self._last else {}
                    with self._api.stream("GET", self._path, params=self._params, headers=headers) as incoming:
                        self._incoming = incoming
                        self.connected.set()
                        parser = EventParser()
                        for piece in incoming.chunks():
                            attempt = 0
                            for raw in parser.feed(piece):
                                event = read_event(raw)
                                if event is None:
                                    self._missed(read_gap(raw))
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
                self._stop.wait(backoff(min(attempt, 5)))
                attempt += 1
        finally:
            self._api.release(self)

    def _missed(self, gap: EventGap | None) -> None:
        if gap is None:
            return
        if self._on_gap is None:
            _log.warning("%s: %s", self._path, gap)
            return
        try:
            call_back(self._on_gap, gap)
        except Exception:  # noqa: BLE001 - the caller's code: logged whole, and the events go on
            _log.exception("%s: the handler of gaps failed", self._path)

    def closing(self) -> bool:
        """Whether `close` was called."""
        return self._stop.is_set()

    def close(self) -> None:
        """End the iteration, also while it waits."""
        self._stop.set()
        if self._incoming is not None:
            self._incoming.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Listener:
    """Calls a sandbox's handlers. The connection is opened with the first of them and ends with the sandbox."""

    def __init__(self, api: Api, sandbox_id: str) -> None:
        self._api = api
        self._sandbox_id = sandbox_id
        self._handlers: dict[LifecycleName, list[Handler]] = {}
        self._stream: EventStream | None = None
        self._worker: Worker | None = None
        self._over = Signal()
        self._announcers: list[Worker] = []

    def add(self, name: LifecycleName, handler: Handler, started_at: str | None) -> Callable[[], None]:
        check_name(name)
        wrapped = taking_one(handler)
        self._handlers.setdefault(name, []).append(wrapped)
        if name == "started" and started_at is not None:
            event = StartedEvent(self._sandbox_id, started_at)

            def announce() -> None:
                self._call(wrapped, name, event)

            self._announcers.append(Worker(f"runra-started-{self._sandbox_id}", announce))
        if self._worker is None or not self._worker.running():
            self._over.clear()
            path = sandbox_path(self._sandbox_id, "events")
            self._stream = EventStream(self._api, path, types=["sandbox.*"])
            self._worker = Worker(f"runra-events-{self._sandbox_id}", self._follow)
            self._api.hold(self)

        def remove() -> None:
            if wrapped in self._handlers.get(name, []):
                self._handlers[name].remove(wrapped)

        return remove

    def ready(self, seconds: float) -> None:
        """Wait for the connection, so that what the caller does next is seen on it."""
        if self._stream is None or self._over.is_set():
            return
        if not self._stream.connected.wait(seconds) and not self._over.is_set():
            _log.warning("sandbox %s: its event stream is not connected; handlers may miss this", self._sandbox_id)

    def finish(self, seconds: float) -> None:
        """Wait for the last event, which ends the work."""
        if self._worker is not None:
            self._over.wait(seconds)

    def close(self) -> None:
        self._api.release(self)
        stream, worker = self._stream, self._worker
        if stream is not None:
            stream.close()
        for one in (*self._announcers, *([worker] if worker is not None else [])):
            one.close(_CLOSE_S)

    def _follow(self) -> None:
        assert self._stream is not None, "add() makes it"
        try:
            with closing(self._stream._events()) as events:
                for event in events:
                    told = lifecycle(event)
                    if told is None:
                        continue
                    self._tell(*told)
                    if told[0] == "terminated":
                        return
        except RunraError as error:
            if self._stream.closing():
                return
            _log.error("sandbox %s: its events can no longer be followed: %s", self._sandbox_id, error)
            self._tell("error", ErrorEvent(self._sandbox_id, now_iso(), error))
        finally:
            self._over.set()
            self._api.release(self)

    def _tell(self, name: LifecycleName, payload: LifecycleEvent) -> None:
        for handler in tuple(self._handlers.get(name, ())):
            self._call(handler, name, payload)

    def _call(self, handler: Handler, name: LifecycleName, payload: LifecycleEvent) -> None:
        try:
            call_back(handler, payload)
        except Exception:  # noqa: BLE001 - the caller's code: logged whole, and the next handler has its turn
            _log.exception("sandbox %s: the handler of %r failed", self._sandbox_id, name)
