"""Mirrors that lie or break: the next in the row has the image."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from runra.node.images import registry
from runra.node.settings import RegistrySettings
from tests.hosting import hosted
from tests.images.conftest import leftovers, pull
from tests.images.oci import ARCHITECTURE, Layer, busybox, image, index
from tests.images.registries import OddRegistry, odd_registry
from tests.images.test_faults import big, largest


@pytest.mark.parametrize(
    "how", ["digest", "long", "short", "range", "breaks", "lies and breaks", "config", "large config", "manifest"]
)
async def test_the_next_is_asked(odd: OddRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(registry, "FIRST_WAIT", 0.005)
    made = big(1 << 20)
    if how == "manifest":
        made = index(**{ARCHITECTURE: image(busybox())})
    wrong_part = "/manifests/sha256" if how == "manifest" else "/blobs/"
    blob, data = largest(made)
    lie = b"!" + data[1:]

    async with odd_registry() as mirror:
        name = odd.push(made, "mirrored:1")
        mirror.push(made, "mirrored:1")
        asked: list[str] = []

        def hook(request: web.Request, number: int) -> Any:
            config = "config" in how and "/blobs/" in request.path and not request.path.endswith(blob)
            if not (wrong_part in request.path and (config or how == "manifest" or request.path.endswith(blob))):
                return None
            asked.append(request.path)
            if how == "range" and "Range" in request.headers:
                return web.Response(status=206, body=data[5:], headers={"Content-Range": "bytes 5-9/10"})
            if how == "breaks":
                return mirror.blob(request, data, stop_at=1 << 19)
            if how in ("range", "lies and breaks"):
                return mirror.blob(request, lie if "lies" in how else data, stop_at=1 << 19)
            body = {"long": data + b"!", "short": data[:-1], "large config": b" " * (9 << 20)}.get(how, lie)
            return web.Response(body=body)

        mirror.hook, mirror.piece = hook, 1 << 18
        mirrors = {odd.host: RegistrySettings(mirrors=(f"http://{mirror.host}",))}
        async with hosted(tmp_path / "data", registries=mirrors) as host:
            await pull(host, name)
            assert leftovers(host) == []
        assert len(asked) == 1, "asked again, although it had sent something wrong"
        assert odd.seen, "the registry was never asked"


async def test_a_mirror_that_is_gone_is_waited_for_once(
    odd: OddRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its packets go nowhere: whoever connects waits until he gives up."""
    monkeypatch.setattr(registry, "_CONNECT", 0.2)
    name = odd.push(image(*(Layer().add(f"f{n}", b"x") for n in range(3))), "mirrored:1")
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        where = full.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        try:
            for one in waiting:  # a full queue answers no more
                one.setblocking(False)
                one.connect_ex(where)
            tried = 0
            ask = registry.Registry._send

            async def counted(self: registry.Registry, endpoint: registry.Endpoint, *how: Any) -> Any:
                nonlocal tried
                tried += not endpoint.upstream
                return await ask(self, endpoint, *how)

            monkeypatch.setattr(registry.Registry, "_send", counted)
            mirrors = {odd.host: RegistrySettings(mirrors=(f"http://127.0.0.1:{where[1]}",))}
            async with hosted(tmp_path / "data", registries=mirrors) as host:
                assert (await pull(host, name)).layers == 3
            assert tried == 1
        finally:
            for one in waiting:
                one.close()
