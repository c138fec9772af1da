"""`runra serve`: one process, one data folder, one port."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import uvicorn
from fastapi import FastAPI

from runra.errors import RunraError
from runra.server import descriptors
from runra.server.app import NodeMaker, create_app, real_node
from runra.server.protocol import BoundedProtocol, WebSocketProtocol
from runra.server.services import Services
from runra.server.settings import ServerSettings

_log = logging.getLogger("runra.server")


class Server(uvicorn.Server):
    """uvicorn with our bounds. It ends open streams before it waits for connections: they would never end by
    themselves."""

    def __init__(self, app: FastAPI, settings: ServerSettings, *, loop: Literal["uvloop", "none"] = "uvloop") -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
                loop=loop,
                ws=WebSocketProtocol,
                ws_max_size=1 << 20,
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=max(1, round(settings.shutdown_s)),
            )
        )
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        services: Services = self._app.state.services
        services.closing.set()
        services.ingress.stop()
        await asyncio.sleep(0)
        await super().shutdown(sockets)
        # uvicorn would raise the signal once more when it is done, and end the process before `serve` has returned.
        self._captured_signals.clear()


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold a data folder for this process alone; INVALID_CONFIG when another server has it."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RunraError(
            "INVALID_CONFIG", f"data folder {data_dir}: {error.strerror}; give another one with --data-dir"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip()
            raise RunraError(
                "INVALID_CONFIG",
                f"data folder {data_dir} is in use by another server (process {owner or 'unknown'}); "
                "stop that one, or give another folder with --data-dir",
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # The file stays: removing it would let two servers lock two files of one name.
        os.close(handle)


def bound(host: str, port: int) -> socket.socket:
    """A listening address; INVALID_CONFIG says whether the port is taken or the host is not ours."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise RunraError("INVALID_CONFIG", f"host {host!r}: {error.strerror}; give one with --host") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            cure = "another program listens there; stop it, or give another port with --port"
        else:
            cure = "give another address with --host or --port"
        raise RunraError("INVALID_CONFIG", f"port {port} on {host}: {error.strerror}; {cure}") from error
    return listener


def serve(settings: ServerSettings, make_node: NodeMaker = real_node) -> None:
    """Run the server until SIGINT or SIGTERM; sandboxes live on. Raises RunraError when it cannot start.

    A second server on the same data folder, and a port that is taken, are INVALID_CONFIG. Port 0 takes a free one.
    """
    with locked(settings.data_dir), contextlib.closing(bound(settings.host, settings.port)) as listener:
        descriptors.take_all()
        previews = descriptors.bounded(settings.preview_connections, each=1)
        settings = replace(settings, port=listener.getsockname()[1], preview_connections=previews)
        app = create_app(settings, make_node)
        logging.getLogger("runra.server.access").setLevel(logging.INFO if settings.access_log else logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        server = Server(app, settings)
        _log.info("starting on %s", settings.url)
        server.run(sockets=[listener])
        if not server.started:
            raise RunraError("INTERNAL_ERROR", "the server could not start; its log says why")
