"""Pulls beside each other: nobody's registry, layers or moment holds up, breaks or hides somebody else's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.hosting import Host, until
from tests.images.conftest import layer_folders, pull
from tests.images.oci import Layer, Made, busybox, image
from tests.images.registries import OddRegistry, odd_registry


def base_of(made: Made) -> str:
    """The digest of its lowest layer."""
    return next(digest for digest, data in made.blobs.items() if not data.startswith(b"{"))


async def test_a_registry_that_dawdles_holds_up_nobody_else(odd: OddRegistry, host: Host) -> None:
    """Whoever may create can name any layer in a manifest of his own, and send a byte of it."""
    base = busybox().bytes()
    made, forever = image(base), asyncio.Event()
    name, blob = odd.push(made, "honest:1"), base_of(made)

    async def dawdle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(made.blobs[blob])
        await response.prepare(request)
        await response.write(made.blobs[blob][:1])
        await forever.wait()
        assert request.transport is not None
        request.transport.abort()
        return response

    async with odd_registry() as evil:
        evil.hook = lambda request, number: dawdle(request) if request.path.endswith(blob) else None
        dawdling = asyncio.create_task(pull(host, evil.push(image(base, Layer().add("x")), "evil:1")))
        await until(lambda: bool(evil.paths(blob)))
        await asyncio.wait_for(pull(host, name), 30)
        assert not dawdling.done()
        forever.set()
        evil.hook = lambda request, number: None
        await dawdling
    assert len(layer_folders(host)) == 2


async def test_who_waits_for_a_turn_keeps_nobody_from_a_layer(
    odd: OddRegistry, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slow layers are all that one organization unpacks at once; what it fetched besides is everybody's."""
    layers, forever, slow = host.node.images.layers, asyncio.Event(), 0
    unpack = layers._unpacker.layer

    async def layer(blob: Any, fresh: Path, free: int) -> Any:
        nonlocal slow
        if slow < 2:
            slow += 1
            await forever.wait()
        return await unpack(blob, fresh, free)

    monkeypatch.setattr(layers._unpacker, "layer", layer)
    names = [odd.push(image(Layer().add(f"f{n}", b"x")), f"greedy:{n}") for n in range(2)]
    pulls = [asyncio.create_task(pull(host, name, organization="org_greedy")) for name in names]
    await until(lambda: slow == 2)
    base = busybox().bytes()
    made = image(base)
    async with odd_registry() as other:
        pulls.append(asyncio.create_task(pull(host, other.push(made, "third:1"), organization="org_greedy")))
        await until(lambda: ("unpack", base_of(made)) in host.node.images.puller._busy)
        honest = pull(host, odd.push(image(base, Layer().add("x")), "honest:1"), organization="org_other")
        await asyncio.wait_for(honest, 30)
        forever.set()
        await asyncio.gather(*pulls)
