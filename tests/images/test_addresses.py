"""Where an administrator's pull may be sent on to: from a public registry to public addresses only."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from runra.node.images import addresses
from runra.node.settings import RegistrySettings
from tests.hosting import Host, hosted
from tests.images.conftest import pull, refused
from tests.images.oci import Made, busybox, image
from tests.images.registries import OddRegistry, odd_registry

#: What these tests take for a public address: this machine has no other that is reached without the internet.
PUBLIC = "127.0.0.2"
#: Stands for a name of a registry's, which is at PUBLIC.
NAME = "registry.example"


@pytest.fixture
async def public(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OddRegistry]:
    resolve = socket.getaddrinfo

    def resolved(host: Any, *how: Any, **more: Any) -> Any:
        return resolve(PUBLIC if host == NAME else host, *how, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    monkeypatch.setattr(addresses, "is_public", lambda text: text == PUBLIC)
    async with odd_registry(PUBLIC) as running:
        yield running


@contextlib.asynccontextmanager
async def at(folder: Path, registry: str, **more: Any) -> AsyncIterator[Host]:
    async with hosted(folder, registries={registry: RegistrySettings(insecure=True, **more)}) as host:
        yield host


def sent_on(made: Made, way: str, inside: OddRegistry) -> Any:
    """A hook that sends to `inside` for blobs or a token, and that of `inside`."""

    def there(request: web.Request, number: int) -> Any:
        if request.path == "/token":
            return web.json_response({"token": "good"})
        return web.Response(body=made.blobs[request.path.lstrip("/")])

    def here(request: web.Request, number: int) -> Any:
        if way == "token" and request.headers.get("Authorization") != "Bearer good":
            return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="http://{inside.host}/token"'})
        if way == "blob" and "/blobs/" in request.path:
            where = f"http://{inside.host}/{request.path.rpartition('/')[2]}"
            return web.Response(status=307, headers={"Location": where})
        return None

    inside.hook = there
    return here


@pytest.mark.parametrize("way", ["blob", "token"])
@pytest.mark.parametrize("named", ["address", "name"])
async def test_a_public_registry_sends_nobody_inside(
    odd: OddRegistry, public: OddRegistry, tmp_path: Path, way: str, named: str
) -> None:
    made = image(busybox())
    registry = public.host if named == "address" else public.host.replace(PUBLIC, NAME)
    name = public.push(made, "sent:1").replace(public.host, registry)
    public.hook = sent_on(made, way, odd)
    inside = odd.host.replace("127.0.0.1", "localhost") if named == "name" else odd.host
    odd.host = inside
    async with at(tmp_path / "data", registry) as host:
        error = await refused(pull(host, name))
        assert (error.code, error.details["host"]) == ("INVALID_REQUEST", inside.partition(":")[0])
        assert "the operator allows that with private" in error.message
        assert odd.seen == []
    # The operator's word.
    async with at(tmp_path / "data", registry, private=True) as host:
        await pull(host, name)
        assert odd.seen


async def test_one_that_is_inside_itself_does(
    odd: OddRegistry, public: OddRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registries of one's own network keep blobs and logins there as well."""
    monkeypatch.setattr(addresses, "is_public", lambda text: False)
    registry = public.host.replace(PUBLIC, NAME)
    for way in ("blob", "token"):
        made = image(busybox().add("way", way.encode()))
        name = public.push(made, f"inside:{way}").replace(public.host, registry)
        public.hook = sent_on(made, way, odd)
        async with at(tmp_path / way, registry) as host:
            await pull(host, name)
    assert odd.seen
