"""A server that does on the wire exactly what a test says, faults included."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


#: Answers one request; False closes the connection.
Step = Callable[[socket.socket, Request], bool]


class Wire:
    """Takes connections on a free port and answers each request by the next step of its script."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self._steps: queue.Queue[Step] = queue.Queue()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def script(self, *steps: Step) -> None:
        for step in steps:
            self._steps.put(step)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            connection.close()
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as source:
                while (request := _read(source)) is not None:
                    self.requests.append(request)
                    if not self._steps.get(timeout=10)(connection, request):
                        connection.shutdown(socket.SHUT_RDWR)
                        return
        except (OSError, ValueError, queue.Empty):
            return
        finally:
            self._open.discard(connection)


def _read(source: Any) -> Request | None:
    line = source.readline().decode()
    if not line.strip():
        return None
    method, path, _ = line.split(" ", 2)
    headers = {}
    while (field := source.readline().decode().strip()) != "":
        name, _, value = field.partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(source.readline(), 16):
            body += source.read(size)
            source.readline()
        source.readline()
    else:
        body = source.read(int(headers.get("content-length", 0)))
    return Request(method, path, headers, body)


# --- steps -----------------------------------------------------------------------------------------------------


def answer(status: int, content: Any, **headers: str) -> Step:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()

    def step(connection: socket.socket, _: Request) -> bool:
        fields = {"content-type": "application/json", "content-length": str(len(body)), "x-request-id": "req_t"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        connection.sendall(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body)
        return True

    return step


def failing(status: int, code: str, *, retryable: bool = False, **headers: str) -> Step:
    error = {"code": code, "message": "said so", "details": {}, "retryable": retryable, "requestId": "req_e"}
    return answer(status, {"error": error}, **headers)


def cut(connection: socket.socket, _: Request) -> bool:
    """Read the request, then close without a word."""
    return False


def raw(data: bytes) -> Step:
    def step(connection: socket.socket, _: Request) -> bool:
        connection.sendall(data)
        return False

    return step


def silent(stop: threading.Event) -> Step:
    def step(connection: socket.socket, _: Request) -> bool:
        stop.wait(20)
        return False

    return step


def events(items: Iterable[tuple[str, Any] | tuple[str, Any, int | str]], *, end: str = "whole") -> Step:
    """An event stream. `end`: `whole` ends the body, `cut` breaks it off, `open` leaves it to the client to go."""

    def step(connection: socket.socket, _: Request) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for name, data, *rest in items:
            mark = f"id: {rest[0]}\n" if rest else ""
            piece = f"{mark}event: {name}\ndata: {json.dumps(data)}\n\n".encode()
            connection.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if end == "whole":
            connection.sendall(b"0\r\n\r\n")
            return True
        if end == "open":
            connection.settimeout(20)
            connection.recv(1)
        return False

    return step


SANDBOX_ID = "sb_0123456789abcdef"


def sandbox(**changes: Any) -> dict[str, Any]:
    """A sandbox as the API shows it."""
    return {
        "id": SANDBOX_ID,
        "organizationId": "org_1",
        "state": "running",
        "image": "host",
        "resources": {"cpu": 2, "memoryMb": 4096, "diskMb": 10240},
        "env": {},
        "workdir": "/workspace",
        "timeoutMs": 300_000,
        "idleTimeoutMs": 120_000,
        "metadata": {},
        "network": {},
        "createdAt": "2026-01-01T00:00:00.000Z",
        "startedAt": "2026-01-01T00:00:00.100Z",
        **changes,
    }


def result(**changes: Any) -> dict[str, Any]:
    return {"stdout": "", "stderr": "", "exitCode": 0, "durationMs": 1, "signal": None, "oom": False, **changes}
