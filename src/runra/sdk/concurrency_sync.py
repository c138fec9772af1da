"""What the sync form needs of threads; `concurrency_async` is the same for asyncio."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from runra.sdk.bodies import cut

T = TypeVar("T")
_log = logging.getLogger("runra.sdk")


def sleep(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run what may block: here, simply."""
    return function(*arguments)


def to_end(function: Callable[..., T], *arguments: Any) -> T:
    """Run what works on the local disk: here, simply."""
    return function(*arguments)


def call_back(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a caller's function."""
    function(*arguments)


def undo(work: Callable[[], None]) -> None:
    """Finish `work` although the call is being interrupted."""
    try:
        work()
    except Exception:  # noqa: BLE001 - logged whole
        _log.exception("an interrupted call could not be taken back")


def settle(seconds: float) -> None:
    """Wait for what is being undone: here, `undo` has done it."""


class Signal:
    """A flag one can wait for."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def clear(self) -> None:
        self._event.clear()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Whether it was set within `seconds`."""
        return self._event.wait(seconds)


class Buffer:
    """Bytes from those who put them to the one who takes them: `limit` of them, and the piece that went beyond."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: deque[memoryview] = deque()
        self._held = 0
        self._ended = False
        self._changed = threading.Condition()

    def put(self, data: bytes, seconds: float) -> bool:
        """Whether it was taken within `seconds`, as a whole; after `end` nothing is."""
        with self._changed:
            room = self._changed.wait_for(lambda: self._held < self._limit or self._ended, seconds)
            if not room or self._ended:
                return False
            self._pieces.append(memoryview(data))
            self._held += len(data)
            self._changed.notify_all()
            return True

    def take(self, most: int, seconds: float | None) -> bytes:
        """What there is, at most `most` bytes. None of them: nothing came within `seconds`, or `end` was called."""
        with self._changed:
            self._changed.wait_for(lambda: self._held or self._ended, seconds)
            taken = cut(self._pieces, most)
            self._held -= len(taken)
            self._changed.notify_all()
            return taken

    def end(self, *, drop: bool = False) -> None:
        """Take no more; with `drop` also forget what there is."""
        with self._changed:
            self._ended = True
            if drop:
                self._pieces.clear()
                self._held = 0
            self._changed.notify_all()


class Worker:
    """One piece of work on a daemon thread, owned by whoever closes it. Its work must end when told to elsewhere."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        #: What it sends on, to be cut where it waits for that.
        self.live: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        _here.worker = self
        try:
            work()
        except Exception:  # noqa: BLE001 - logged whole
            _log.exception("%s failed", threading.current_thread().name)

    def running(self) -> bool:
        return self._thread.is_alive()

    def close(self, seconds: float) -> None:
        """Wait for its end, and after `seconds` cut what it sends a body on. Called by the work itself, it only stops
        once that returns."""
        if self._thread is threading.current_thread():
            return
        self._thread.join(seconds)
        if self._thread.is_alive() and self.live is not None:
            with contextlib.suppress(OSError):  # it had ended by itself
                self.live.shutdown(socket.SHUT_RDWR)
            self._thread.join(seconds)


_here = threading.local()


def sending_on(live: socket.socket | None) -> None:
    """Tell the worker that runs this, if one does, what it sends a body on; None when it is done with that."""
    worker: Worker | None = getattr(_here, "worker", None)
    if worker is not None:
        worker.live = live
