"""The way in, measured: throughput and added latency of a preview beside a direct connection and nginx (when it is there).

One server of ours, one sandbox with a small server inside; the same server again on this machine for the peers. All on
loopback. Figures are for this machine at this moment: read them beside each other.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.run import OUT, Row, row, server
from rich.table import Table

from runra import Runra

#: Answers `GET /N` with N bytes and reads what it is sent; plain sockets, so that it is not what is measured.
INSIDE = r"""
import socket, sys, threading
PIECE = b"x" * (1 << 20)
def serve(sock):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    held = bytearray(1 << 20)
    while True:
        head = b""
        while b"\r\n\r\n" not in head:
            got = sock.recv(65536)
            if not got: return
            head += got
        head, _, body = head.partition(b"\r\n\r\n")
        length = [int(l.split(b":")[1]) for l in head.split(b"\r\n") if l.lower().startswith(b"content-length:")]
        left = (length[0] if length else 0) - len(body)
        while left > 0:
            left -= sock.recv_into(held)
        size = int(head.split(b" ")[1].strip(b"/") or 0)
        close = b"connection: close" in head.lower()
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n" % (size, b"Connection: close\r\n" if close else b""))
        while size > 0:
            size -= sock.send(PIECE[:size])
        if close:
            sock.close()
            return
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=512)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def running(*command: str, port: int) -> Iterator[None]:
    """A program of ours, until its port answers, to its end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


def nginx_settings(folder: Path, port: int, behind: int) -> Path:
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        f"events {{}} http {{ access_log off; client_max_body_size 0; client_body_temp_path {folder}/body;\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{behind}; proxy_buffering off;\n"
        "proxy_request_buffering off; proxy_http_version 1.1; } } }\n"
    )
    return path


class Peer:
    """A way to the server: where to connect, and the name to ask for."""

    def __init__(self, port: int, host: str) -> None:
        self._port, self._host = port, host

    def connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self._port), 10)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def head(self, size: int, body: int = 0) -> bytes:
        more = f"Content-Length: {body}\r\n" if body else ""
        return f"{'POST' if body else 'GET'} /{size} HTTP/1.1\r\nHost: {self._host}\r\n{more}\r\n".encode()

    def latency(self, rounds: int) -> list[float]:
        """ms of one request on a connection that is open."""
        found = []
        with self.connect() as sock:
            for _ in range(rounds):
                began = time.perf_counter()
                sock.sendall(self.head(100))
                _read_answer(sock, 100)
                found.append((time.perf_counter() - began) * 1000)
        return found[rounds // 10 :]

    def download(self, size: int) -> float:
        """MB/s."""
        with self.connect() as sock:
            began = time.perf_counter()
            sock.sendall(self.head(size))
            _read_answer(sock, size)
            return size / 1e6 / (time.perf_counter() - began)

    def upload(self, size: int) -> float:
        """MB/s."""
        piece = b"x" * (1 << 20)
        with self.connect() as sock:
            began = time.perf_counter()
            sock.sendall(self.head(1, size))
            for _ in range(size >> 20):
                sock.sendall(piece)
            _read_answer(sock, 1)
            return size / 1e6 / (time.perf_counter() - began)


def _read_answer(sock: socket.socket, size: int) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        got = sock.recv(65536)
        if not got:
            raise ConnectionError(head)
        head += got
    assert b" 200 " in head.split(b"\r\n", 1)[0], head
    left = size - len(head.partition(b"\r\n\r\n")[2])
    room = bytearray(1 << 20)
    while left > 0:
        got_count = sock.recv_into(room)
        if not got_count:
            raise ConnectionError("cut off")
        left -= got_count


def measure(name: str, peer: Peer, size: int, rounds: int) -> list[Row]:
    return [
        row("one request, connection open", name, peer.latency(rounds)),
        row(f"download {size >> 20} MiB", name, [peer.download(size) for _ in range(3)], "MB/s"),
        row(f"upload {size >> 20} MiB", name, [peer.upload(size) for _ in range(3)], "MB/s"),
    ]


def rows(size: int = 256 << 20, rounds: int = 500) -> list[Row]:
    found: list[Row] = []
    folder = Path(tempfile.mkdtemp(prefix="runra-ingress-bench-"))
    try:
        script = folder / "inside.py"
        script.write_text(INSIDE)
        direct = free_port()
        with running(sys.executable, str(script), str(direct), port=direct):
            found += measure("direct", Peer(direct, "localhost"), size, rounds)
            if nginx := shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin"):
                port = free_port()
                settings = nginx_settings(folder, port, direct)
                with running(nginx, "-c", str(settings), "-p", str(folder), port=port):
                    found += measure("nginx", Peer(port, "localhost"), size, rounds)
        with (
            server(folder) as (url, key, _),
            Runra(api_url=url, api_key=key) as client,
            client.sandboxes.create(image="host") as sandbox,
        ):
            sandbox.files.write("/tmp/inside.py", INSIDE)
            sandbox.exec(["python3", "/tmp/inside.py", "8000"], background=True)
            sandbox.exec("until (exec 3<>/dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep 0.1; done")
            name = sandbox.expose_port(8000).url.partition("://")[2]
            found += measure("runra preview", Peer(int(url.rpartition(":")[2]), name), size, rounds)
    finally:
        shutil.rmtree(folder)
    return found


def main() -> None:
    table = Table(title="The way in: loopback, one client")
    for title in ("what", "peer", "p50", "p95", "unit"):
        table.add_column(title)
    for one in sorted(rows(), key=lambda one: one.what):
        table.add_row(one.what, one.peer, f"{one.p50:.2f}", f"{one.p95:.2f}", one.unit)
    OUT.print(table)


if __name__ == "__main__":
    main()
