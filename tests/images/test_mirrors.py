"""Mirrors that lie or break: the next in the row has the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from runra.node.images import registry
from runra.node.settings import RegistrySettings
from tests.hosting import hosted
from tests.images.conftest import leftovers, pull
from tests.images.oci import ARCHITECTURE, busybox, image, index
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
