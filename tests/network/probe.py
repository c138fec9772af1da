"""Runs inside a sandbox: tries one way out and prints what happened as JSON. Standard library only."""

import json
import socket
import ssl
import struct
import sys
import time

T = 2


def say(**what):
    print(json.dumps(what))


def resolve(name):
    try:
        return sorted({item[4][0] for item in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)})
    except OSError as error:
        return str(error)


def tcp(address, port, send="", read=65536):
    started = time.monotonic()
    try:
        link = socket.create_connection((address, port), timeout=T)
        if send:
            link.sendall(send.encode("latin-1"))
        data = b""
        while len(data) < read:
            more = link.recv(65536)
            if not more:
                break
            data += more
            if not read or (send == "" and data):
                break
        return {"ok": True, "data": data.decode("latin-1")[:20000], "s": time.monotonic() - started}
    except OSError as error:
        return {"ok": False, "error": f"{type(error).__name__}: {error}", "s": time.monotonic() - started}


def http(address, raw, port=80):
    """Send raw bytes, read until the end."""
    return tcp(address, port, raw, 1 << 24)


def pieces(address, port, texts):
    """Send raw bytes one piece after the other, each in a packet of its own."""
    try:
        with socket.create_connection((address, port), timeout=T) as link:
            for text in texts:
                link.sendall(text.encode("latin-1"))
                time.sleep(0.1)
            return {"ok": True, "data": link.recv(65536).decode("latin-1")}
    except OSError as error:
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}


def tls(address, sni, host=None, port=443, path="/", verify=True):
    context = ssl.create_default_context(cafile="/workspace/ca.pem")
    context.check_hostname = False
    if not verify:
        context.verify_mode = ssl.CERT_NONE
    try:
        plain = socket.create_connection((address, port), timeout=T)
        with plain, context.wrap_socket(plain, server_hostname=sni) as secure:
            secure.sendall(f"GET {path} HTTP/1.1\r\nHost: {host or sni}\r\nConnection: close\r\n\r\n".encode())
            data = b""
            while more := secure.recv(65536):
                data += more
            return {"ok": True, "data": data.decode("latin-1")[:2000]}
    except OSError as error:
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}
    except ValueError as error:
        return {"ok": False, "error": f"not sent: {error}"}


def udp(address, port, text="hi"):
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    link.settimeout(1)
    try:
        link.sendto(text.encode(), (address, port))
        return {"ok": True, "data": link.recv(65536).decode("latin-1")}
    except OSError as error:
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}


def dns(server, name, kind=1, over="udp"):
    """A question by hand; the answer's code and how many records it has."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    query = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack(">HH", kind, 1)
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if over == "udp" else socket.SOCK_STREAM)
    link.settimeout(2)
    started = time.monotonic()
    try:
        link.connect((server, 53))
        link.send(query if over == "udp" else struct.pack(">H", len(query)) + query)
        data = link.recv(65536)
        if over == "tcp":
            data = data[2:]
        if not data:
            return {"ok": False, "error": "closed"}
        return {"ok": True, "rcode": data[3] & 15, "answers": int.from_bytes(data[6:8], "big"), "raw": data.hex()}
    except OSError as error:
        return {"ok": False, "error": f"{type(error).__name__}: {error}", "s": time.monotonic() - started}


if __name__ == "__main__":
    code = sys.stdin.read()
    scope = dict(globals())
    exec(code, scope)
    print(json.dumps(scope["out"]))
