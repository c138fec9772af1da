"""The model gateway of a runtime, and the doors its runs get: made with the first run that needs one."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from runra.runtime.forward import forwarded
from runra.runtime.gateway import Gateway, GatewayServer, RunLimits
from runra.runtime.gateway.runs import Totals

if TYPE_CHECKING:
    from runra.errors import RunraError
    from runra.runtime.llms import Target
    from runra.runtime.run import AgentRun


@dataclass
class Door:
    """How one run's agent reaches its model: `url` and `token` instead of the provider's. `totals` is what it has used
    so far, and stays after the door is closed."""

    url: str
    token: str = field(repr=False)
    target: Target
    totals: Totals
    #: Ends when the way from the sandbox is lost, with the reason; None where there is no such way.
    lost: asyncio.Future[RunraError] | None = None


class ModelAccess:
    """Opens doors. `close` ends them all."""

    def __init__(self) -> None:
        self._gateway: Gateway | None = None
        self._servers: dict[str, GatewayServer] = {}
        self._folder: Path | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def open(
        self, run: AgentRun, target: Target, limits: RunLimits, where: Literal["sandbox", "host"]
    ) -> AsyncIterator[Door]:
        """A door for a run. In the sandbox it is a port of the sandbox's own loopback. Raises INVALID_CONFIG where the
        provider cannot forward one, or a budget is set on a model of unknown price."""
        gateway, server, socket = await self._serve(where)
        async with AsyncExitStack() as stack:
            admitted = await gateway.admit(run.run.id, target, emit=run.emit, limits=limits)
            stack.push_async_callback(gateway.revoke, run.run.id)
            door = Door(server.url, admitted.token, target, gateway.totals(run.run.id))
            if socket is not None:
                forward = await stack.enter_async_context(forwarded(run.sandbox, socket))
                door.url, door.lost = forward.url, forward.lost
            yield door

    async def close(self) -> None:
        if self._gateway is not None:
            await self._gateway.close()
        for server in self._servers.values():
            await server.stop()
        self._servers.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _serve(self, where: Literal["sandbox", "host"]) -> tuple[Gateway, GatewayServer, Path | None]:
        async with self._opening:
            if self._gateway is None:
                self._gateway = Gateway()
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="runra-gateway-"))  # 0700: it holds the socket
            socket = self._folder / "gateway.sock" if where == "sandbox" else None
            server = self._servers.get(where)
            if server is None:
                server = GatewayServer(self._gateway)
                await server.start(socket=socket)
                self._servers[where] = server
            return self._gateway, server, socket
