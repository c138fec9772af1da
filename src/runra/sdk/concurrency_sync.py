"""What the sync form needs of threads; `concurrency_async` is the same for asyncio."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

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


class Worker:
    """One piece of work on a daemon thread, owned by whoever closes it. Its work must end when told to elsewhere."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # noqa: BLE001 - logged whole
            _log.exception("%s failed", threading.current_thread().name)

    def running(self) -> bool:
        return self._thread.is_alive()

    def close(self, seconds: float) -> None:
        """Wait for its end. Called by the work itself, it only stops once that returns."""
        if self._thread is not threading.current_thread():
            self._thread.join(seconds)
