"""Runs inside a sandbox: `inside.py HOST PORT`. What it answers depends on the path; /raw/… says any bytes at all."""

import base64
import hashlib
import json
import socket
import struct
import sys
import threading
import time
from urllib.parse import unquote_to_bytes


def head(stream):
    lines = []
    while True:
        line = stream.readline()
        if line in (b"\r\n", b""):
            return lines
        lines.append(line.rstrip(b"\r\n"))


def body(stream, headers, method):
    """Pieces of a request's body."""
    length = headers.get("content-length")
    if headers.get("transfer-encoding") == "chunked":
        while True:
            size = int(stream.readline().split(b";")[0], 16)
            data = stream.read(size)
            stream.readline()
            if not size:
                return
            yield data
    elif length:
        left = int(length)
        while left:
            data = stream.read1(min(left, 1 << 16))
            if not data:
                return
            left -= len(data)
            yield data


def answer(out, status, content, *more):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *more, "", ""]
    out(("\r\n".join(lines)).encode() + content)


def websocket(sock, stream, headers):
    key = headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "X-Runra-Forged: 1",
        f"Sec-WebSocket-Accept: {accept}",
    ]
    if "sec-websocket-protocol" in headers:
        lines.append("Sec-WebSocket-Protocol: " + headers["sec-websocket-protocol"].split(",")[0])
    # The first message comes with the handshake, in one piece.
    sock.sendall(("\r\n".join([*lines, "", ""])).encode() + b"\x81\x05hello")
    while True:
        first = stream.read(2)
        if len(first) < 2:
            return
        length = first[1] & 127
        if length == 126:
            length = struct.unpack(">H", stream.read(2))[0]
        elif length == 127:
            length = struct.unpack(">Q", stream.read(8))[0]
        mask = stream.read(4)
        data = stream.read(length)
        plain = (
            bytes(b ^ mask[i % 4] for i, b in enumerate(data))
            if length < 1 << 16
            else (int.from_bytes(data, "big") ^ int.from_bytes((mask * (length // 4 + 1))[:length], "big")).to_bytes(
                length, "big"
            )
        )
        kind = first[0] & 15
        size = (
            bytes([length])
            if length < 126
            else b"\x7e" + struct.pack(">H", length)
            if length < 1 << 16
            else b"\x7f" + struct.pack(">Q", length)
        )
        sock.sendall(bytes([first[0]]) + size + plain)
        if kind == 8:
            return


def serve(sock):
    out = sock.sendall
    stream = sock.makefile("rb", 1 << 16)
    lines = head(stream)
    if not lines:
        return
    method, target, _ = lines[0].decode("latin-1").split(" ")
    pairs = [line.decode("latin-1").split(":", 1) for line in lines[1:]]
    headers = {name.lower(): value.strip() for name, value in pairs}
    path, _, query = target.partition("?")
    if path == "/ws":
        websocket(sock, stream, headers)
    elif path == "/sha":
        digest, size = hashlib.sha256(), 0
        for piece in body(stream, headers, method):
            digest.update(piece)
            size += len(piece)
        answer(out, "200 OK", json.dumps({"sha": digest.hexdigest(), "size": size}).encode())
    elif path == "/echo":
        out(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in body(stream, headers, method):
            out(b"%x\r\n%s\r\n" % (len(piece), piece))
        out(b"0\r\n\r\n")
    elif path == "/give":
        size = int(query)
        out(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        piece = b"x" * (1 << 18)
        while size:
            out(piece[: min(size, len(piece))])
            size -= min(size, len(piece))
    elif path == "/sse":
        out(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(int(query or 10**9)):
            out(b"data: %d\n\n" % number)
            time.sleep(0.05)
    elif path == "/early":
        answer(out, "413 Too Large", b"no", "Connection: close")
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.5)
    elif path == "/slow":
        time.sleep(float(query))
        answer(out, "200 OK", b"late")
    elif path == "/raw":
        out(unquote_to_bytes(query))
        sock.shutdown(socket.SHUT_WR)
        stream.read()
    elif path == "/flood":
        out(unquote_to_bytes(query))
        while True:
            out(b"y: " + b"z" * 8000 + b"\r\n" if b"\r\n\r\n" not in unquote_to_bytes(query) else b"z" * 65536)
    elif path == "/cookies":
        answer(
            out,
            "200 OK",
            b"set",
            "Set-Cookie: a=1; Domain=localhost; Path=/",
            "Set-Cookie: runra-preview=stolen",
            "Set-Cookie: b=2; domain=.x.localhost; HttpOnly",
            "X-Runra-Reason: forged",
            'Alt-Svc: h2=":1"',
            "Connection: x-secret-hop",
            "X-Secret-Hop: 1",
            "Keep-Alive: timeout=5",
            "Date: Mon, 01 Jan 2001 00:00:00 GMT",
        )
    else:
        seen = [[name, value.strip()] for name, value in pairs]
        got = b"".join(body(stream, headers, method))
        text = json.dumps({"method": method, "target": target, "headers": seen, "body": got.decode("latin-1")}).encode()
        if method == "HEAD":
            text = b""
        answer(out, "200 OK", text, "X-From: inside")


def handle(sock):
    try:
        serve(sock)
    except OSError:
        pass
    finally:
        sock.close()


family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listener = socket.socket(family)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen(512)
while True:
    threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()
