"""Pulls beside each other: nobody's registry, layers or moment holds up, breaks or hides somebody else's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from runra import AsyncRunra
from runra.errors import RunraError
from runra.node.images.pull import Wanted
from runra.node.images.store import reference_of
from runra.node.settings import RegistrySettings
from tests.hosting import Host, hosted, until
from tests.images.conftest import ORGANIZATION, SlowLayers, layer_folders, pull
from tests.images.oci import Layer, Made, busybox, image
from tests.images.registries import OddRegistry, odd_registry
from tests.images.test_import import real
from tests.server.conftest import Running


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
    slow = SlowLayers(host, monkeypatch, 2)
    names = [odd.push(image(Layer().add(f"f{n}", b"x")), f"greedy:{n}") for n in range(2)]
    pulls = [asyncio.create_task(pull(host, name, organization="org_greedy")) for name in names]
    await until(lambda: slow.begun == 2)
    base = busybox().bytes()
    made = image(base)
    async with odd_registry() as other:
        pulls.append(asyncio.create_task(pull(host, other.push(made, "third:1"), organization="org_greedy")))
        await until(lambda: ("unpack", base_of(made)) in host.node.images.puller._busy)
        honest = pull(host, odd.push(image(base, Layer().add("x")), "honest:1"), organization="org_other")
        await asyncio.wait_for(honest, 30)
        slow.go.set()
        await asyncio.gather(*pulls)


class Held:
    """Manifests stay away until `go`; `asked` counts who asked for one."""

    def __init__(self, odd: OddRegistry, *numbers: int) -> None:
        """Only those of these numbers, in the order they come; all without any."""
        self.go = asyncio.Event()
        self.asked = 0
        self._numbers = numbers
        odd.hook = self._hook

    def _hook(self, request: web.Request, number: int) -> Any:
        if "/manifests/" not in request.path:
            return None
        self.asked += 1
        return self._wait() if not self._numbers or self.asked in self._numbers else None

    async def _wait(self) -> None:
        await self.go.wait()


def told(host: Host, kind: str) -> list[dict[str, Any]]:
    return [event.data for event in host.events if event.type == kind]


async def test_a_create_joins_an_administrators_pull(odd: OddRegistry, real: Running) -> None:
    """Which goes where the create alone would not: both have the image, and it is fetched once."""
    name, held = odd.push(image(busybox()), "internal/app:1"), Held(odd)
    async with AsyncRunra(api_key=real.client.key, api_url=real.client.url) as client:
        pulling = asyncio.create_task(client.images.pull(name))
        await until(lambda: held.asked == 1)
        creating = asyncio.create_task(client.sandboxes.create(image=name))
        await until(lambda: len(real.node.sandboxes) == 1)
        held.go.set()
        assert (await pulling).state == "ready"
        async with await creating as box:
            assert (await box.exec("echo hi")).stdout == "hi\n"
    assert held.asked == 1


async def test_each_waits_for_its_own_pull_of_a_name(odd: OddRegistry, real: Running) -> None:
    """Two logins of one organization: the one that is refused says nothing of the other."""
    name, held = odd.push(image(busybox()), "team/app:1"), Held(odd, 1)
    hook = odd.hook

    def login(request: web.Request, number: int) -> Any:
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        return hook(request, number) if held.asked == 0 else web.Response(status=403)

    odd.hook = login
    async with AsyncRunra(api_key=real.client.key, api_url=real.client.url) as client:
        right = asyncio.create_task(client.images.pull(name, username="right", password="x"))
        await until(lambda: held.asked == 1)
        with pytest.raises(RunraError, match="403"):
            await client.images.pull(name, username="wrong", password="x")
        odd.hook = lambda request, number: None
        held.go.set()
        assert (await right).state == "ready"


async def test_what_an_administrator_brought_stays_his(odd: OddRegistry, tmp_path: Path) -> None:
    """Also when a create's pull of the same name, begun before, ends after it."""
    name, held = odd.push(image(busybox()), "both:1"), Held(odd, 1)
    async with hosted(tmp_path / "data", registries={odd.host: RegistrySettings(private=True)}) as host:

        async def create() -> None:
            async with host.node.images.root(name, "org_tenant"):
                pass

        creating = asyncio.create_task(create())
        await until(lambda: held.asked == 1)
        await pull(host, name)
        held.go.set()
        await creating
        found = host.node.images.find(reference_of(name), "org_tenant")
        assert found is not None
        assert not found.by_create
        assert len({one["pullId"] for one in told(host, "image.ready")}) == 2


async def test_a_prune_as_a_pull_ends(odd: OddRegistry, tmp_path: Path) -> None:
    """The pull ends as it should, and a create that waited for it has its image."""
    name, over = odd.push(image(busybox()), "pruned:1"), False
    async with hosted(tmp_path / "data", registries={odd.host: RegistrySettings(private=True)}) as host:
        images = host.node.images

        async def prune() -> None:
            while not over:
                await images.prune(ORGANIZATION, 0)
                await asyncio.sleep(0)

        pruning = asyncio.create_task(prune())
        try:
            async with images.root(name, ORGANIZATION):
                pass
            await images.pulls.begin(Wanted(reference_of(name), "", None, private=True), ORGANIZATION).task
        finally:
            over = True
            await pruning
        assert len(told(host, "image.ready")) == 2
        assert images.listed(ORGANIZATION) == []


async def test_who_did_not_ask_is_not_told_what_creates_fetched(odd: OddRegistry, real: Running) -> None:
    """Names, environments and times of others: an organization sees what its own creates asked for."""
    name = odd.push(image(busybox()), "acme-merger/bot:1")
    client, images = real.client, real.node.images
    assert isinstance(images.settings.registries, dict)
    images.settings.registries[odd.host] = RegistrySettings(private=True)
    user = client.with_key((await client.new_key(profile="sandbox-user"))["key"])
    organization = (await client.call("POST", "/organizations", json={"name": "other"})).json["id"]
    wanted = {"profile": "sandbox-user", "organizationId": organization}
    other = client.with_key((await client.new_key(**wanted))["key"])

    async def seen_by(who: Any) -> tuple[list[str], int]:
        listed = (await who.call("GET", "/images")).json["data"]
        return [one["reference"] for one in listed], (await who.call("GET", f"/images/{name}")).status

    await user.sandbox(image=name)
    assert [await seen_by(who) for who in (user, other, client)] == [([name], 200), ([], 404), ([name], 200)]
    await other.sandbox(image=name)
    assert await seen_by(other) == ([name], 200)


__all__ = ["real"]
