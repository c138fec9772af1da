"""HTTP and WebSockets for the sync form, on urllib3 and websockets. `transport_async` has the same shape."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from typing import Any, Final

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util.wait import wait_for_read

from runra.sdk.concurrency_sync import sending_on
from runra.sdk.failures import Failure
from runra.sdk.wire import CHUNK, CONNECT_S, MAX_ANSWER_BYTES, Answer

#: Connections kept for reuse; more calls at once open more, which are closed after use.
_CONNECTIONS: Final = 256
#: A write during which the server takes nothing for so long has failed.
_WRITE_S: Final = 60.0


class _Watched:
    """A connection whose writes have their own deadline (urllib3 would give them the one for connecting), and which
    remembers its socket: http.client forgets it once an answer says `Connection: close`."""

    live: socket.socket | None = None
    #: Half a body was sent on it: what followed would be read as the rest.
    _spoiled = False

    def request(self, *arguments: Any, **named: Any) -> None:
        connection: Any = self
        if self._spoiled:
            connection.close()
        if connection.sock is None:
            connection.connect()
        self.live = connection.sock
        connection.sock.settimeout(_WRITE_S)
        if isinstance(body := named.get("body"), _Feed):
            body.socket = connection.sock
            sending_on(connection.sock)
        self._spoiled = True
        super().request(*arguments, **named)  # type: ignore[misc]  # a mix-in: HTTPConnection comes after it
        self._spoiled = False


class _Plain(_Watched, HTTPConnection):
    pass


class _Secure(_Watched, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


class Transport:
    """Connections to one server, shared by any number of threads."""

    def __init__(self) -> None:
        self._pool = urllib3.PoolManager(num_pools=2, maxsize=_CONNECTIONS, retries=False)
        self._pool.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None,
        timeout_s: float,
    ) -> Answer:
        """A whole answer. A `bytes` body has `timeout_s` for everything, another one for each step."""
        if body is None or isinstance(body, bytes):
            return self._request(method, url, headers, body, timeout_s)
        try:
            return self._request(method, url, headers, _Feed(body), timeout_s)
        finally:
            sending_on(None)

    def _request(
        self, method: str, url: str, headers: Mapping[str, str], feed: bytes | _Feed | None, timeout_s: float
    ) -> Answer:
        deadline = time.monotonic() + timeout_s
        response = self._send(method, url, headers, feed, timeout_s)
        incoming = Incoming(response, timeout_s)
        # A streamed body has taken its own time; what is left is the answer's.
        incoming.deadline = deadline if not isinstance(feed, _Feed) else time.monotonic() + timeout_s
        try:
            answer = Answer(incoming.status, incoming.headers, incoming.read())
        except BaseException:
            incoming.close()
            raise
        response.release_conn()
        return answer

    def open(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float, idle_s: float
    ) -> Incoming:
        """An answer whose body is read as it comes; it must begin within `timeout_s`. The caller closes it."""
        return Incoming(self._send(method, url, headers, body, timeout_s), idle_s)

    def websocket(self, url: str, headers: Mapping[str, str], timeout_s: float) -> Socket | Answer:
        """An open WebSocket, or the answer that refused it."""
        from websockets.exceptions import InvalidHandshake, InvalidStatus
        from websockets.sync.client import connect

        connection = ExitStack()
        try:
            opened = connection.enter_context(
                connect(
                    "ws" + url.removeprefix("http"),
                    additional_headers=dict(headers),
                    user_agent_header=None,
                    compression=None,
                    proxy=None,
                    open_timeout=timeout_s,
                    close_timeout=5,
                )
            )
        except InvalidStatus as refusal:
            response = refusal.response
            return Answer(
                response.status_code,
                {k.lower(): v for k, v in response.headers.raw_items()},
                bytes(response.body or b""),
            )
        except InvalidHandshake as error:
            raise Failure("protocol", True, str(error)) from error
        except ssl.SSLError as error:
            raise Failure("tls", False, str(error)) from error
        except TimeoutError as error:
            raise Failure("timeout", False, "the WebSocket did not open") from error
        except OSError as error:
            raise Failure("connect", False, error.strerror or str(error)) from error
        return Socket(opened, connection)

    def close(self) -> None:
        self._pool.clear()

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | _Feed | None, timeout_s: float
    ) -> urllib3.BaseHTTPResponse:
        limit = urllib3.Timeout(connect=min(CONNECT_S, timeout_s), read=timeout_s)
        try:
            return self._pool.request(
                method,
                url,
                headers=headers,
                body=body,
                timeout=limit,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except Exception as error:
            if isinstance(body, _Feed) and body.error is not None:
                raise body.error from None
            raise _failure(error) from error


class Incoming:
    """An open answer. Each read ends within `idle_s`, and none outlasts `deadline` (by `time.monotonic`)."""

    def __init__(self, response: urllib3.BaseHTTPResponse, idle_s: float) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.headers.items()}
        self.deadline: float | None = None
        self._response = response
        self._socket = getattr(response.connection, "live", None)
        self._idle_s = idle_s

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces as they come. Raises Failure when it breaks off."""
        while True:
            wait = self._idle_s if self.deadline is None else min(self._idle_s, self.deadline - time.monotonic())
            if wait <= 0:
                raise Failure("timeout", True, "no answer in time")
            try:
                if self._socket is not None and self._socket.fileno() >= 0:
                    self._socket.settimeout(wait)
                chunk = self._response.read1(CHUNK)
            except Exception as error:
                raise _failure(error) from error
            if not chunk:
                return
            yield chunk

    def read(self) -> bytes:
        """The rest of a body that fits into memory."""
        parts, size = [], 0
        for part in self.chunks():
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise Failure("protocol", True, f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB")
            parts.append(part)
        return b"".join(parts)

    def abort(self) -> None:
        """End a read that another thread waits in."""
        try:
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it had ended by itself

    def close(self) -> None:
        """Give the connection back if everything was read, else close it."""
        if self._response.closed:
            self._response.release_conn()
        else:
            self._response.close()


class Socket:
    """An open WebSocket."""

    def __init__(self, opened: Any, connection: ExitStack) -> None:
        self._socket = opened
        self._connection = connection

    def send(self, message: bytes | str) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            self._socket.send(message)
        except ConnectionClosed as error:
            raise Failure("closed", True, "the terminal's connection has ended") from error

    def recv(self, timeout_s: float | None) -> bytes | str | None:
        """The next message, or None when the server closed the connection in good order."""
        from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

        try:
            message: bytes | str = self._socket.recv(timeout_s)
        except ConnectionClosedOK:
            return None
        except ConnectionClosedError as error:
            raise Failure("closed", True, str(error)) from error
        except TimeoutError as error:
            raise Failure("timeout", True, "nothing came") from error
        return message

    def close(self) -> None:
        self._connection.close()


class _Feed:
    """A body sent as it is made; an error in making it is the caller's own. An answer that comes before its end ends
    it."""

    def __init__(self, body: Iterable[bytes]) -> None:
        self.error: BaseException | None = None
        #: What it is sent on.
        self.socket: socket.socket | None = None
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        source = iter(self._body)
        while True:
            try:
                piece = next(source, None)
            except Exception as error:
                self.error = error
                raise
            if piece is None:
                return
            # TLS says things of its own: there an early answer is seen when the body has ended.
            live = None if isinstance(self.socket, ssl.SSLSocket) else self.socket
            if live is not None and wait_for_read(live, 0):
                raise BrokenPipeError  # what makes urllib3 read the answer
            yield piece


def _failure(error: Exception) -> Exception:
    """What a failure of the transport means; anything else stays what it is."""
    match error:
        case Failure():
            return error
        case NewConnectionError():
            cause = error.__cause__
            return Failure("connect", False, getattr(cause, "strerror", None) or str(cause or error))
        case ConnectTimeoutError():
            return Failure("timeout", False, "connecting took too long")
        case SSLError():
            return Failure("tls", False, str(error))
        case ReadTimeoutError() | TimeoutError():
            return Failure("timeout", True, "no answer in time")
        case ProtocolError() if isinstance(error.__cause__, HTTPException) and not isinstance(
            error.__cause__, RemoteDisconnected | IncompleteRead
        ):
            return Failure("protocol", True, str(error.__cause__)[:200] or type(error.__cause__).__name__)
        case ProtocolError() if isinstance(error.__cause__, TimeoutError):
            return Failure("timeout", True, "the server took nothing in time")
        case HTTPError() | OSError() | HTTPException():
            return Failure("closed", True, str(error).split("\n")[0][:200])
    return error
