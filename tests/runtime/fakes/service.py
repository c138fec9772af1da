"""What both fake services share: sandboxes by id, a port, and a thread to serve from."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from runra.ids import new_id
from tests.runtime.fakes.box import Box
from tests.runtime.fakes.envd import Envd, Faults


@dataclass
class Kept:
    """A sandbox as the service knows it."""

    id: str
    template: str
    envd: Envd
    timeout_s: float
    metadata: dict[str, str] = field(default_factory=dict)
    state: str = "running"
    started: float = field(default_factory=time.time)
    ends: float = 0.0
    asked: dict[str, Any] = field(default_factory=dict)


class Service:
    """A service on a port of its own, in a thread with a loop of its own: the client under test has its own, too."""

    templates = frozenset(("base", "tpl-1"))

    def __init__(self) -> None:
        self.sandboxes: dict[str, Kept] = {}
        self.faults = Faults()
        self.calls: list[tuple[str, str]] = []
        self.keys: set[str] = set()
        self.snapshots: set[str] = set()
        self._folder = tempfile.TemporaryDirectory(prefix="runra-kept-")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-service", daemon=True)
        self._thread.start()
        self.port = 0
        self.run(self._open())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _open(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._dispatch)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        self.calls.append((request.method, request.path))
        for one in list(self.sandboxes.values()):
            if one.ends and one.state == "running" and time.time() > one.ends:
                await self._over(one)
        return await self.answer(request)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError

    async def _over(self, one: Kept) -> None:
        """Its time is over."""
        await self.drop(one)

    async def make(self, body: dict[str, Any], timeout_s: float) -> Kept:
        template = body["templateID"]
        like = self._kept(template) if template in self.snapshots else None
        envd = Envd(await Box.start(like), body.get("envVars") or {}, self.faults)
        one = Kept(
            new_id("x", 20)[2:], body["templateID"], envd, timeout_s, dict(body.get("metadata") or {}), asked=body
        )
        self.sandboxes[one.id] = one
        return one

    def knows(self, template: str) -> bool:
        return template in self.templates or template in self.snapshots

    async def snapshot(self, one: Kept) -> str:
        """Keep its files: a template from now on."""
        id = new_id("s", 12)[2:]
        await one.envd.box.keep(self._kept(id))
        self.snapshots.add(id)
        return id

    def _kept(self, id: str) -> Path:
        return Path(self._folder.name, id)

    async def drop(self, one: Kept) -> None:
        self.sandboxes.pop(one.id, None)
        await one.envd.box.end()

    def close(self) -> None:
        async def end() -> None:
            for one in list(self.sandboxes.values()):
                await self.drop(one)
            await self._runner.cleanup()

        self.run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._folder.cleanup()
