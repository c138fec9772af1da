"""A terminal in a sandbox, over a WebSocket."""

# Made from `_async/terminal.py` by scripts/generate_sync.py: change that one.

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from runra.errors import RunraError
from runra.sdk._sync.api import Api
from runra.sdk.bodies import as_data
from runra.sdk.failures import Failure, network_error, told_error
from runra.sdk.transport_sync import Socket
from runra.sdk.types import TerminalExit, parsed
from runra.sdk.wire import sandbox_path


def open_terminal(
    api: Api,
    sandbox_id: str,
    cols: int,
    rows: int,
    *,
    command: str | None,
    cwd: str | None,
    user: str | None,
    pid: int | None,
    offset: int,
) -> Terminal:
    params: dict[str, str | int | bool | None] = {"cols": cols, "rows": rows, "command": command}
    params |= {"cwd": cwd, "user": user, "pid": pid, "offset": offset or None}
    path = sandbox_path(sandbox_id, "pty")
    socket = api.websocket(path, params)
    terminal = Terminal(api, socket, pid, offset)
    api.hold(terminal)
    try:
        terminal.begin()
    except BaseException:
        terminal.close()
        raise
    return terminal


class Terminal:
    """An open terminal: send keys, read what it shows. Closing it only detaches; its command runs on, and
    `sandbox.terminal(pid=terminal.pid, offset=terminal.offset)` attaches again where this one stopped."""

    def __init__(self, api: Api, socket: Socket, pid: int | None, offset: int) -> None:
        #: The process behind it.
        self.pid = pid
        #: How many bytes of its output have been read.
        self.offset = offset
        #: How its command ended; None while it runs.
        self.exit: TerminalExit | None = None
        self._api = api
        self._socket = socket
        self._early: bytes | None = None
        self._ended = False

    def begin(self) -> None:
        """Take the server's first message, which says the pid. Done before anybody else sees this terminal."""
        try:
            message = self._socket.recv(self._api.settings.timeout_s)
        except Failure as failure:
            raise self._error(failure) from failure
        if isinstance(message, bytes):
            self._early = message
        elif message is not None:
            self._told(message)

    def send(self, data: str | bytes) -> None:
        """Type `data`."""
        self._send(as_data(data))

    def resize(self, rows: int, cols: int) -> None:
        """Tell it the size of its window, in characters."""
        self._send(json.dumps({"resize": {"rows": rows, "cols": cols}}))

    def recv(self, timeout_ms: int | None = None) -> bytes | None:
        """The next output, or None once its command has ended.

        Raises NETWORK_ERROR, with `details["reason"]` `timeout` when nothing came in time, `closed` when the
        connection was lost; then attach again by `pid`.
        """
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        if self._early is not None:
            early, self._early = self._early, None
            self.offset += len(early)
            return early
        while not self._ended:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                message = self._socket.recv(left)
            except Failure as failure:
                raise self._error(failure) from failure
            if message is None:
                self._ended = True
            elif isinstance(message, bytes):
                self.offset += len(message)
                return message
            else:
                self._told(message)
        return None

    def wait(self, timeout_ms: int | None = None) -> TerminalExit:
        """Wait for its command to end; what it shows meanwhile is dropped. Raises NETWORK_ERROR as `recv` does."""
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        while True:
            left = None if deadline is None else int(max(0.0, deadline - time.monotonic()) * 1000)
            if self.recv(left) is None:
                break
        if self.exit is None:
            raise self._error(Failure("closed", True, "the terminal was closed before its command ended"))
        return self.exit

    def close(self) -> None:
        """Detach. The command runs on."""
        self._api.release(self)
        self._ended = True
        self._socket.close()

    def __iter__(self) -> Iterator[bytes]:
        while (data := self.recv()) is not None:
            yield data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, message: str | bytes) -> None:
        try:
            self._socket.send(message)
        except Failure as failure:
            raise self._error(failure) from failure

    def _told(self, text: str) -> None:
        try:
            message: Any = json.loads(text)
        except ValueError:
            return
        if not isinstance(message, dict):
            return
        start = message.get("start")
        if isinstance(start, dict) and isinstance(start.get("pid"), int):
            self.pid = start["pid"]
        if isinstance(message.get("exit"), dict):
            self.exit = parsed(TerminalExit, message["exit"], "the end of a terminal")
            self._ended = True
        if isinstance(message.get("error"), dict):
            self._ended = True
            raise told_error(message)

    def _error(self, failure: Failure) -> RunraError:
        return network_error(failure, self._api.settings.api_url, "terminal")
