"""What stands between a registry and us, and answers that are none: each is said, nothing is left to chance."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from aiohttp import web

from runra.node.images import registry
from tests.hosting import Host
from tests.images.conftest import pull
from tests.images.oci import busybox, image
from tests.images.registries import OddRegistry


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FIRST_WAIT", 0.005)


async def test_behind_a_proxy_that_compresses_what_may_be(odd: OddRegistry, host: Host) -> None:
    """nginx with gzip on does so, with JSON of registries and of what gives tokens."""
    made = image(busybox())
    name = odd.push(made, "packed:1")

    def sent(request: web.Request, body: bytes, kind: str) -> web.Response:
        if "gzip" not in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=body, content_type=kind)
        return web.Response(body=gzip.compress(body), headers={"Content-Encoding": "gzip", "Content-Type": kind})

    def hook(request: web.Request, number: int) -> Any:
        if request.path == "/token":
            return sent(request, b'{"token":"good"}', "application/json")
        if request.headers.get("Authorization") != "Bearer good":
            challenge = f'Bearer realm="http://{odd.host}/token"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if "/manifests/" in request.path:
            return sent(request, made.manifest, made.kind)
        blob = made.blobs[request.path.rpartition("/")[2]]
        return sent(request, blob, "application/json" if blob.startswith(b"{") else "application/octet-stream")

    odd.hook = hook
    assert (await pull(host, name)).layers == 1
