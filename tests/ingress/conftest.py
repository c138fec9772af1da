"""A real server with real sandboxes, servers inside them, and clients that say exactly the bytes they mean."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from runra.server.app import create_app, real_node
from runra.server.main import Server, bound
from runra.server.settings import ServerSettings
from tests.server.conftest import Client

#: A server for every purpose, run inside: small, threaded, and honest about what it got.
APP = (Path(__file__).parent / "inside.py").read_text()


@dataclass
class World:
    """One server, one client of its API, and what goes to previews."""

    settings: ServerSettings
    api: Client
    app: Any
    session: aiohttp.ClientSession
    server: Any

    def stop(self) -> None:
        """As a signal does."""
        self.server.should_exit = True

    @property
    def port(self) -> int:
        return self.settings.port

    async def sandbox(self, **config: Any) -> Any:
        return await self.api.sandbox(**config)

    async def serve(self, sandbox_id: str, port: int = 3000, host: str = "127.0.0.1") -> None:
        """Start the app inside, and wait until it answers there."""
        await self.api.call(
            "PUT", f"/sandboxes/{sandbox_id}/files", params={"path": "/tmp/inside.py"}, data=APP.encode()
        )
        command = {"argv": ["python3", "/tmp/inside.py", host, str(port)], "background": True}
        assert (await self.api.call("POST", f"/sandboxes/{sandbox_id}/execute", json=command)).status == 202
        wait = f"for i in $(seq 200); do python3 -c 'import socket; socket.create_connection((\"{host}\", {port}))' && exit; sleep 0.1; done 2>/dev/null"
        await self.api.run(sandbox_id, wait)

    async def expose(self, sandbox_id: str, port: int = 3000, **more: Any) -> Any:
        made = await self.api.call("POST", f"/sandboxes/{sandbox_id}/ports", json={"port": port, **more})
        assert made.status == 201, made.raw
        return made.json

    async def app_sandbox(self, **config: Any) -> Preview:
        """A sandbox with the app inside and its port exposed."""
        sandbox = await self.sandbox(**config)
        await self.serve(sandbox["id"])
        return Preview(self, sandbox["id"], await self.expose(sandbox["id"]))


@dataclass
class Preview:
    world: World
    id: str
    exposed: Any

    @property
    def host(self) -> str:
        return str(self.exposed["url"]).partition("://")[2]

    def open(self, method: str, path: str = "/", **options: Any) -> Any:
        """A request to the preview, by its name, wherever that resolves to."""
        headers = {"Host": self.host, **options.pop("headers", {})}
        url = URL(f"http://127.0.0.1:{self.world.port}{path}", encoded=True)
        options.setdefault("allow_redirects", False)
        return self.world.session.request(method, url, headers=headers, **options)

    async def get(self, path: str = "/", method: str = "GET", **options: Any) -> tuple[int, Any, bytes]:
        async with self.open(method, path, **options) as answer:
            return answer.status, answer.headers, await answer.read()

    async def seen(self, path: str = "/seen", **options: Any) -> Any:
        """What the server inside got."""
        status, _, body = await self.get(path, **options)
        assert status == 200, body
        return json.loads(body)

    async def raw(self, data: bytes, seconds: float = 10) -> bytes:
        """Bytes as they are; everything that comes back until the connection ends, or until nothing comes any more."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.world.port)
        try:
            writer.write(data.replace(b"HOST", self.host.encode()))
            parts = []
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(seconds):
                    while part := await reader.read(1 << 16):
                        parts.append(part)
            return b"".join(parts)
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def started(settings: ServerSettings, *, leave: bool = False) -> AsyncIterator[World]:
    """A server from start to stop. With `leave` its sandboxes live on for the next one."""
    listener = bound("127.0.0.1", settings.port)
    settings = replace(settings, port=listener.getsockname()[1], shutdown_s=2)
    nodes: list[Any] = []

    def make(given: ServerSettings, events: Any) -> Any:
        nodes.append(real_node(given, events))
        return nodes[0]

    app = create_app(settings, make)
    server = Server(app, settings, loop="none")
    task = asyncio.create_task(server._serve([listener]))
    while not server.started:
        if task.done():
            task.result()
        await asyncio.sleep(0.005)
    key = (settings.data_dir / "bootstrap-key").read_text().strip()
    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=connector, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        try:
            yield World(settings, Client(settings.url, key, session), app, session, server)
        finally:
            if not leave:
                for sandbox in list(nodes[0].sandboxes.values()):
                    await sandbox.terminate()
            server.should_exit = True
            await asyncio.wait_for(task, 30)


@pytest.fixture(scope="module")
def data_dir() -> Any:
    folder = Path(tempfile.mkdtemp(prefix="runra-ingress-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def settings(data_dir: Path) -> ServerSettings:
    return ServerSettings(port=0, data_dir=data_dir, client_config=None)


@pytest.fixture
async def world(settings: ServerSettings) -> AsyncIterator[World]:
    async with started(settings) as world:
        yield world


@pytest.fixture
async def preview(world: World) -> Preview:
    return await world.app_sandbox()
