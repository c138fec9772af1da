"""A server on a real socket with the fake node, and a client that speaks plain HTTP to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from runra.server.app import create_app, real_node
from runra.server.main import Server, bound
from runra.server.settings import ServerSettings

from . import fake


@dataclass
class Answer:
    status: int
    headers: Any
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def error(self) -> Any:
        return self.json["error"]


@dataclass
class Client:
    """Calls the server with one key; `call` reads the whole answer."""

    url: str
    key: str
    session: aiohttp.ClientSession

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {**options, "headers": {**headers, **options.get("headers", {})}}

    def _target(self, path: str | URL) -> str | URL:
        target = f"{self.url}/v1{path}"
        return URL(target, encoded=True) if isinstance(path, URL) else target

    async def call(self, method: str, path: str | URL, **options: Any) -> Answer:
        async with self.session.request(method, self._target(path), **self._options(options)) as response:
            return Answer(response.status, response.headers, await response.read())

    def open(self, method: str, path: str, **options: Any) -> Any:
        return self.session.request(method, f"{self.url}/v1{path}", **self._options(options))

    def ws(self, path: str, **options: Any) -> Any:
        return self.session.ws_connect(f"{self.url}/v1{path}", **self._options(options))

    def with_key(self, key: str) -> Client:
        return replace(self, key=key)

    async def sandbox(self, **config: Any) -> Any:
        made = await self.call("POST", "/sandboxes", json={"image": "host", **config})
        assert made.status == 201, made.raw
        return made.json

    async def run(self, sandbox_id: str, command: str, **more: Any) -> Any:
        done = await self.call("POST", f"/sandboxes/{sandbox_id}/execute", json={"command": command, **more})
        assert done.status == 200, done.raw
        return done.json

    async def new_key(self, **body: Any) -> Any:
        made = await self.call("POST", "/api-keys", json={"name": "k", **body})
        assert made.status == 201, made.raw
        return made.json


async def sse(response: Any, limit: int | None = None) -> list[dict[str, Any]]:
    """The events of a stream: `event`, `id`, `data` parsed. Stops after `limit`, or at the end."""
    found: list[dict[str, Any]] = []
    item: dict[str, Any] = {}
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line.startswith(":"):
            continue
        if not line:
            if item:
                item["data"] = json.loads(item["data"])
                found.append(item)
                if limit is not None and len(found) >= limit:
                    return found
            item = {}
            continue
        name, _, value = line.partition(": ")
        item[name] = value
    return found


@dataclass
class Running:
    settings: ServerSettings
    app: Any
    node: Any
    client: Client
    server: Any
    world: dict[str, fake.Sandbox] = field(default_factory=dict)

    @property
    def services(self) -> Any:
        return self.app.state.services


@contextlib.asynccontextmanager
async def started(
    settings: ServerSettings, world: dict[str, fake.Sandbox] | None = None, *, real: bool = False
) -> AsyncIterator[Running]:
    """A server, from start to stop. A `world` carries its sandboxes to the next one. `real` takes the real node."""
    keep = world if world is not None else {}
    nodes: list[Any] = []

    def make(given: ServerSettings, events: Any) -> Any:
        nodes.append(real_node(given, events) if real else fake.Node(given.data_dir / "world", events, keep))
        return nodes[0]

    app = create_app(settings, make)
    server = Server(app, replace(settings, shutdown_s=2), loop="none")
    listener = bound("127.0.0.1", 0)
    task = asyncio.create_task(server._serve([listener]))
    while not server.started:
        if task.done():
            task.result()
        await asyncio.sleep(0.005)
    port = listener.getsockname()[1]
    key = (settings.data_dir / "bootstrap-key").read_text().strip()
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        client = Client(f"http://127.0.0.1:{port}", key, session)
        try:
            yield Running(settings, app, nodes[0], client, server, keep)
        except BaseException:
            # A test that fails leaves no sandbox behind either.
            if real:
                for sandbox in list(nodes[0].sandboxes.values()):
                    await sandbox.terminate()
            raise
        finally:
            server.should_exit = True
            await asyncio.wait_for(task, 20)
            if world is None:
                for sandbox in list(keep.values()):
                    await sandbox.link.close()


@pytest.fixture
def data_dir() -> Any:
    folder = Path(tempfile.mkdtemp(prefix="runra-server-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def settings(data_dir: Path) -> ServerSettings:
    return ServerSettings(data_dir=data_dir, client_config=data_dir / "config" / "config.json")


@pytest.fixture
async def run(settings: ServerSettings) -> AsyncIterator[Running]:
    async with started(settings) as running:
        yield running


@pytest.fixture
def client(run: Running) -> Client:
    return run.client
