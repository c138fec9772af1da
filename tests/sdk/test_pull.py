"""A pull whose server goes away in the middle of it."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from runra import AsyncRunra, Runra
from tests.hosting import until
from tests.images.oci import Layer, image
from tests.images.registries import odd_registry
from tests.sdk.both import Threaded
from tests.sdk.conftest import RealServer


async def test_a_pull_outlives_a_killed_server(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next server knows nothing of it, and is asked again; by both forms, for one start of a server is slow."""
    server = RealServer(tmp_path_factory.mktemp("killed"))
    async with odd_registry() as odd:
        names = [odd.push(image(Layer().add("x", form)), f"{form.decode()}:1") for form in (b"sync", b"async")]
        go_on = asyncio.Event()

        async def hold(request: Any, number: int) -> None:
            if "/blobs/" in request.path:
                await go_on.wait()

        odd.hook = hold
        await asyncio.to_thread(server.start)
        try:
            monkeypatch.setenv("RUNRA_CONFIG_PATH", str(server.config))
            async with Threaded(Runra()) as one, AsyncRunra() as other:
                clients: list[Any] = [one, other]
                pulls = [
                    asyncio.ensure_future(client.images.pull(name, timeout_ms=60_000))
                    for client, name in zip(clients, names, strict=True)
                ]
                await until(lambda: len({path.partition("/blobs/")[0] for path in odd.paths("/blobs/")}) == 2, 30)
                await asyncio.to_thread(server.stop, signal.SIGKILL)
                go_on.set()
                await asyncio.to_thread(server.start)
                made = await asyncio.gather(*pulls)
                assert [(one.reference, one.state, one.layers) for one in made] == [(name, "ready", 1) for name in names]
        finally:
            go_on.set()
            await asyncio.to_thread(server.stop)
