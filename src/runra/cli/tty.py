"""This program's own terminal while a remote one is shown in it: raw mode, its size, and how it is given back."""

from __future__ import annotations

import os
import selectors
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_CHUNK: Final = 64 << 10


def window() -> tuple[int, int]:
    """Rows and columns."""
    try:
        size = os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return 24, 80
    # A terminal that does not know its size says 0.
    return size.lines or 24, size.columns or 80


@contextmanager
def raw_mode() -> Iterator[None]:
    """Hand every key on as it is, Ctrl-C included. The terminal is as before on every way out, SIGTERM too."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handlers = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Keyboard:
    """Passes on what is typed and tells of a new window size, in `run`, until `stop` is called from anywhere.

    Only the thread in `run` calls back, so that whatever it calls is never entered twice.
    """

    def __init__(self, typed: Callable[[bytes], None], resized: Callable[[int, int], None]) -> None:
        self._typed = typed
        self._resized = resized
        self._bell, self._ring = os.pipe()
        os.set_blocking(self._ring, False)
        self._stopped = False
        # A signal's number lands in the pipe; the handler itself has nothing to do.
        self._handler = signal.signal(signal.SIGWINCH, lambda number, frame: None)
        self._wakeup = signal.set_wakeup_fd(self._ring, warn_on_full_buffer=False)

    def run(self) -> None:
        stdin = sys.stdin.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(stdin, selectors.EVENT_READ)
            selector.register(self._bell, selectors.EVENT_READ)
            while not self._stopped:
                for key, _ in selector.select():
                    if key.fd == self._bell:
                        os.read(self._bell, _CHUNK)
                        if not self._stopped:
                            self._resized(*window())
                    elif data := os.read(stdin, _CHUNK):
                        self._typed(data)
                    else:
                        selector.unregister(stdin)

    def stop(self) -> None:
        self._stopped = True
        os.write(self._ring, b"\0")

    def close(self) -> None:
        """Give the signals back; `run` must have returned."""
        signal.set_wakeup_fd(self._wakeup)
        signal.signal(signal.SIGWINCH, self._handler)
        os.close(self._bell)
        os.close(self._ring)
