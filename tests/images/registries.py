"""Registries on loopback: Debian's docker-registry, and one that misbehaves on request."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.images.oci import Made


def needs(program: str, package: str) -> None:
    """Skip where a program is missing, and say which package has it."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed: apt-get install {package}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RealRegistry:
    """A docker-registry. `host` is what a reference begins with."""

    host: str
    url: str
    login: tuple[str, str] | None = None
    ca: Path | None = None

    def push(self, made: Made, name: str) -> str:
        """Upload an image; `name` is repository:tag. Returns the full reference."""
        repository, _, tag = name.partition(":")
        for digest, data in made.blobs.items():
            if b'"schemaVersion"' in data[:40]:
                self._call("PUT", f"{repository}/manifests/{digest}", data, _kind(data))
                continue
            started = self._call("POST", f"{repository}/blobs/uploads/", b"")
            where = started.headers["Location"]
            where = where if where.startswith("http") else self.url + where
            self._call("PUT", f"{where}{'&' if '?' in where else '?'}digest={digest}", data)
        self._call("PUT", f"{repository}/manifests/{tag or 'latest'}", made.manifest, made.kind)
        return f"{self.host}/{repository}:{tag or 'latest'}"

    def _call(self, method: str, path: str, data: bytes, kind: str = "application/octet-stream") -> Any:
        import ssl

        url = path if path.startswith("http") else f"{self.url}/v2/{path}"
        request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": kind})
        if self.login:
            secret = base64.b64encode(":".join(self.login).encode()).decode()
            request.add_header("Authorization", f"Basic {secret}")
        context = ssl.create_default_context(cafile=self.ca) if self.ca else None
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            answer.read()
            return answer


def _kind(manifest: bytes) -> str:
    import json

    return str(json.loads(manifest)["mediaType"])


@contextlib.contextmanager
def real_registry(
    folder: Path,
    *,
    login: tuple[str, str] | None = None,
    tls: tuple[Path, Path, Path] | None = None,
    token: tuple[str, Path] | None = None,
) -> Iterator[RealRegistry]:
    """`tls` is (authority, certificate, key), `token` (the address that gives tokens, the certificate of its key)."""
    needs("docker-registry", "docker-registry")
    port = free_port()
    config = f"version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {folder}/data\n"
    config += f"http:\n  addr: 127.0.0.1:{port}\n"
    if tls:
        config += f"  tls:\n    certificate: {tls[1]}\n    key: {tls[2]}\n"
    folder.mkdir(parents=True, exist_ok=True)
    if login:
        (folder / "htpasswd").write_text(f"{login[0]}:{bcrypted(login[1])}\n")
        config += f"auth:\n  htpasswd:\n    realm: test\n    path: {folder}/htpasswd\n"
    if token:
        config += f"auth:\n  token:\n    realm: {token[0]}\n    service: here\n    issuer: test\n"
        config += f"    rootcertbundle: {token[1]}\n"
    (folder / "config.yml").write_text(config)
    log = (folder / "log").open("wb")
    process = subprocess.Popen(["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "the registry did not start"
            time.sleep(0.02)
        scheme = "https" if tls else "http"
        yield RealRegistry(f"127.0.0.1:{port}", f"{scheme}://127.0.0.1:{port}", login, tls[0] if tls else None)
    finally:
        process.kill()
        process.wait(10)
        log.close()


def bcrypted(password: str) -> str:
    """As docker-registry wants it; libcrypt knows how (crypt(3), Debian has had bcrypt since 11)."""
    import ctypes

    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    hashed: bytes = crypt(password.encode(), b"$2b$05$abcdefghijklmnopqrstuu")
    return hashed.decode()


@dataclass
class OddRegistry:
    """A registry that serves images from memory and does what a test's `hook` says first.

    The hook gets (request, number of this request to this path) and returns an answer, or None for the honest one.
    """

    images: dict[str, Made] = field(default_factory=dict)
    hook: Callable[[web.Request, int], Any] = lambda request, number: None
    seen: list[web.Request] = field(default_factory=list)
    host: str = ""
    #: Blobs are sent in pieces of this size, with `pause` seconds between them.
    piece: int = 1 << 20
    pause: float = 0.0

    def push(self, made: Made, name: str) -> str:
        repository, _, tag = name.partition(":")
        self.images[f"{repository}/{tag}"] = made
        return f"{self.host}/{name}"

    def paths(self, part: str) -> list[str]:
        return [request.path for request in self.seen if part in request.path]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        number = sum(1 for one in self.seen if one.path == request.path)
        told = self.hook(request, number)
        if asyncio.iscoroutine(told):
            told = await told
        if told is not None:
            return told
        kind, _, wanted = request.path.removeprefix("/v2/").rpartition("/")
        repository, _, kind = kind.rpartition("/")
        if kind == "manifests":
            made = self.images.get(f"{repository}/{wanted}")
            if made is not None:
                return web.Response(body=made.manifest, content_type=made.kind)
        for made in self.images.values():
            if wanted == made.digest:
                return web.Response(body=made.manifest, content_type=made.kind)
            if wanted in made.blobs:
                if kind == "manifests":
                    return web.Response(body=made.blobs[wanted], content_type=_kind(made.blobs[wanted]))
                return await self.blob(request, made.blobs[wanted])
        return web.Response(status=404)

    async def blob(self, request: web.Request, data: bytes, stop_at: int | None = None) -> web.StreamResponse:
        """Send a blob, from where it was asked for; the connection breaks at `stop_at`."""
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(data) - start
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        await response.prepare(request)
        for at in range(start, len(data), self.piece):
            if stop_at is not None and at >= stop_at:
                assert request.transport is not None
                request.transport.abort()
                return response
            with contextlib.suppress(ConnectionError):
                await response.write(data[at : at + self.piece])
            if self.pause:
                await asyncio.sleep(self.pause)
        return response


@contextlib.asynccontextmanager
async def odd_registry(address: str = "127.0.0.1") -> AsyncIterator[OddRegistry]:
    registry = OddRegistry()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", registry.answer)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, address, 0)
    await site.start()
    registry.host = f"{address}:{runner.addresses[0][1]}"
    try:
        yield registry
    finally:
        await runner.cleanup()


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """(authority, certificate for 127.0.0.1, its key), by openssl."""
    needs("openssl", "openssl")
    folder.mkdir(parents=True, exist_ok=True)

    def run(*words: str) -> None:
        subprocess.run(
            ["openssl", *words],
            cwd=folder,
            check=True,
            capture_output=True,
            env={**os.environ, "RANDFILE": str(folder / "rnd")},
        )

    fresh = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    run("req", "-x509", *fresh, "-subj", "/CN=Test CA", "-keyout", "ca.key", "-out", "ca.pem")
    run("req", *fresh[:4], "-nodes", "-subj", "/CN=registry", "-keyout", "key.pem", "-out", "request.pem")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    run(
        *("x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-days", "2", "-extfile", "names", "-out", "cert.pem"),
    )
    return folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
