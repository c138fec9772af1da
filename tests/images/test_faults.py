"""Registries that break off, lie, refuse and dawdle; disks that fill up; servers that die. Never half an image."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from runra.errors import RunraError
from runra.node.images import cache, registry
from runra.node.images.store import reference_of
from runra.node.settings import RegistrySettings
from tests import hosting
from tests.hosting import Host, hosted, start_host, stop_host, until
from tests.images.conftest import ORGANIZATION, SlowLayers, layer_folders, leftovers, pull, refused
from tests.images.oci import Layer, Made, busybox, digest, image
from tests.images.registries import OddRegistry, needs


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits between attempts grow as they do, from less."""
    monkeypatch.setattr(registry, "FIRST_WAIT", 0.005)


def big(size: int = 4 << 20) -> Made:
    """An image with a layer that takes many pieces."""
    return image(busybox(), Layer().add("big", os.urandom(size)), how="")


def largest(made: Made) -> tuple[str, bytes]:
    return max(made.blobs.items(), key=lambda item: len(item[1]))


def nothing_stays(host: Host) -> None:
    assert leftovers(host) == []
    assert host.node.images.listed(ORGANIZATION) == []


async def test_a_layer_is_taken_up_where_it_broke_off(odd: OddRegistry, host: Host) -> None:
    made = big()
    name, (blob, data) = odd.push(made, "broken:1"), largest(made)

    def hook(request: web.Request, number: int) -> Any:
        if request.path.endswith(blob) and number <= 3:
            return odd.blob(request, data, stop_at=number << 20)
        return None

    odd.hook = hook
    await pull(host, name)
    asked = [request.headers.get("Range") for request in odd.seen if request.path.endswith(blob)]
    assert asked[0] is None
    assert all(int(one.removeprefix("bytes=").rstrip("-")) > 0 for one in asked[1:] if one)
    assert len(asked) == 4
    sandbox = await host.create(image=name)
    assert (await host.run(sandbox, "stat -c %s /big"))[0] == f"{4 << 20}\n"


async def test_a_registry_without_ranges_sends_all_of_it_again(odd: OddRegistry, host: Host) -> None:
    made = big()
    name, (blob, data) = odd.push(made, "whole:1"), largest(made)

    def hook(request: web.Request, number: int) -> Any:
        if not request.path.endswith(blob):
            return None
        return odd.blob(request, data, stop_at=2 << 20) if number == 1 else web.Response(body=data)

    odd.hook = hook
    await pull(host, name)
    assert leftovers(host) == []


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("digest", "not what its digest says"),
        ("long", "longer than"),
        ("short", "ended after"),
        ("range", "another range"),
    ],
)
async def test_a_layer_that_is_another_is_refused(odd: OddRegistry, host: Host, how: str, says: str) -> None:
    made = big(1 << 20)
    name, (blob, data) = odd.push(made, f"lies:{how}"), largest(made)
    wrong = {"digest": data[:-1] + b"!", "long": data + b"!", "short": data[:-1], "range": data}[how]

    def hook(request: web.Request, number: int) -> Any:
        if not request.path.endswith(blob):
            return None
        if how == "range":
            if "Range" not in request.headers:
                return odd.blob(request, data, stop_at=1 << 19)
            return web.Response(status=206, body=data[5:], headers={"Content-Range": "bytes 5-9/10"})
        return web.Response(body=wrong if "Range" not in request.headers else b"", status=200)

    odd.hook, odd.piece = hook, 1 << 18
    error = await refused(pull(host, name))
    assert says in error.message
    await host.node.images.layers.settled()
    assert host.node.images.listed(ORGANIZATION) == []
    assert not any((host.node.settings.images_dir / "tmp").iterdir())


async def test_what_an_earlier_server_left_may_be_wrong(odd: OddRegistry, host: Host) -> None:
    made = big(1 << 20)
    name, (blob, data) = odd.push(made, "rotten:1"), largest(made)
    odd.hook = lambda request, number: odd.blob(request, data, 1) if request.path.endswith(blob) else None
    odd.piece = 1 << 18
    await refused(pull(host, name))
    [part] = (host.node.settings.images_dir / "parts").iterdir()
    part.write_bytes(b"x" * 1000)
    odd.hook = lambda request, number: None
    await pull(host, name)
    assert leftovers(host) == []
    assert len(data) > 1000


async def test_manifests_and_configs_are_checked(odd: OddRegistry, host: Host) -> None:
    made = image(busybox())
    odd.push(made, "checked:1")
    reference = f"{odd.host}/checked@{digest(b'another')}"
    odd.hook = lambda request, number: (
        web.Response(body=made.manifest, content_type=made.kind) if "/manifests/sha256" in request.path else None
    )
    assert "other content" in (await refused(pull(host, reference))).message
    cases = {
        "an index of nothing": b'{"schemaVersion":2,"manifests":[]}',
        "not JSON": b"<html>",
        "no digest": made.manifest.replace(b"sha256:", b"sha256-"),
        "first format": b'{"schemaVersion":1,"fsLayers":[]}',
        "a path": made.manifest.replace(b"sha256:", b"../../../../"),
        "large": b" " * (5 << 20),
    }
    for tag, body in cases.items():
        odd.hook = lambda request, number, body=body: (
            web.Response(body=body, content_type=made.kind) if "/manifests/" in request.path else None
        )
        error = await refused(pull(host, f"{odd.host}/checked:2"))
        assert error.code == "INVALID_REQUEST", (tag, error)
    nothing_stays(host)


async def test_a_config_that_says_other_layers_is_refused(odd: OddRegistry, host: Host) -> None:
    tar = busybox().bytes()
    wrong = odd.push(image(tar, diff_ids=[digest(b"another layer")]), "diff:1")
    assert "the image's config says" in (await refused(pull(host, wrong))).message
    fewer = odd.push(image(tar, tar, diff_ids=[digest(tar)]), "diff:2")
    assert "its config names 1 layers, its manifest 2" in (await refused(pull(host, fewer))).message
    await host.node.images.layers.settled()
    nothing_stays(host)
    assert layer_folders(host) == []


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (401, "INVALID_REQUEST", False),
        (403, "INVALID_REQUEST", False),
        (404, "INVALID_REQUEST", False),
        (429, "RATE_LIMITED", True),
        (500, "INTERNAL_ERROR", True),
    ],
)
async def test_what_a_registry_answers_is_said(
    odd: OddRegistry, host: Host, status: int, code: str, retryable: bool
) -> None:
    odd.hook = lambda request, number: web.Response(status=status, body=b"SECRET-PAGE", headers={"Retry-After": "0"})
    error = await refused(pull(host, f"{odd.host}/team/app:1"))
    assert (error.code, error.retryable, error.details.get("status")) == (code, retryable, status)
    assert odd.host in error.message
    assert "SECRET-PAGE" not in str(error.to_wire())
    assert len(odd.seen) == (5 if status in (429, 500) else 1)
    told = [event.data for event in host.events if event.type == "image.error"]
    assert [(one["code"], one["reference"]) for one in told] == [(code, f"{odd.host}/team/app:1")]


async def test_what_nobody_foresaw_is_told_as_well(
    odd: OddRegistry, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever waits for the event waits for ever."""

    def parse(*_: Any) -> None:
        raise RecursionError("a fault of ours")

    monkeypatch.setattr("runra.node.images.pull.parse", parse)
    error = await refused(pull(host, odd.push(image(busybox()), "odd:1")))
    assert (error.code, "RecursionError" in error.message) == ("INTERNAL_ERROR", True)
    [told] = [event.data for event in host.events if event.type == "image.error"]
    assert (told["code"], told["message"]) == (error.code, error.message)
    assert list(host.node.images.pulls) == []


async def test_trouble_that_passes_is_waited_for(odd: OddRegistry, host: Host) -> None:
    name = odd.push(image(busybox()), "flaky:1")

    def hook(request: web.Request, number: int) -> Any:
        if number == 1:
            return web.Response(status=503)
        return web.Response(status=429, headers={"Retry-After": "0"}) if number == 2 else None

    odd.hook = hook
    await pull(host, name)
    assert leftovers(host) == []


async def test_a_login_goes_where_it_belongs(odd: OddRegistry, host: Host) -> None:
    """Tokens are asked for with the login, and neither follows a redirect to another host."""
    made = image(busybox())
    name = odd.push(made, "team/tokens:1")
    elsewhere: list[web.Request] = []

    async def other(request: web.Request) -> web.StreamResponse:
        elsewhere.append(request)
        return web.Response(body=made.blobs[request.path.lstrip("/")])

    application = web.Application()
    application.router.add_get("/{digest}", other)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    cdn = f"http://127.0.0.1:{runner.addresses[0][1]}"

    def hook(request: web.Request, number: int) -> Any:
        if request.path == "/token":
            assert request.headers["Authorization"].startswith("Basic ")
            assert request.query["scope"] == "repository:team/tokens:pull"
            assert request.query["service"] == "here"
            return web.json_response({"token": "bearer-of-good"})
        if request.headers.get("Authorization") != "Bearer bearer-of-good":
            challenge = f'Bearer realm="http://{odd.host}/token",service="here",scope="repository:team/tokens:pull"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if "/blobs/" in request.path:
            return web.Response(status=307, headers={"Location": f"{cdn}/{request.path.rpartition('/')[2]}"})
        return None

    odd.hook = hook
    try:
        await pull(host, name, login=("me", "my-password"))
    finally:
        await runner.cleanup()
    assert len(elsewhere) == 2
    assert all("Authorization" not in request.headers for request in elsewhere)


async def test_redirects_are_bounded_and_never_leave_http(odd: OddRegistry, host: Host) -> None:
    for target in ("/v2/x/manifests/1", "file:///etc/passwd", "ftp://127.0.0.1/x", ""):
        odd.hook = lambda request, number, target=target: web.Response(status=302, headers={"Location": target})
        assert (await refused(pull(host, f"{odd.host}/x:1"))).code == "INVALID_REQUEST"


async def test_a_create_follows_no_redirect_to_a_private_address(tmp_path: Path, monkeypatch: Any) -> None:
    """A public registry of an attacker's sends the server to addresses of the inside: it does not go."""
    from runra.node.images import addresses

    async with hosted(tmp_path / "data") as host:
        for public in ("8.8.8.8", "2606:4700::1111"):
            assert addresses.is_public(public)
        for inside in (
            *(
                "127.0.0.1",
                "10.1.2.3",
                "169.254.169.254",
                "192.168.0.1",
                "100.100.100.200",
                "0.0.0.0",
                "::1",
                "fd00::1",
            ),
            *(
                "168.63.129.16",
                "192.0.0.192",
                "::8.8.8.8",
                "fec0::1",
                "2001:db8::1",
                "::ffff:10.0.0.1",
                "64:ff9b::a00:1",
                "2002:a00:1::",
                "224.0.0.1",
                "255.255.255.255",
                "fe80::1%eth0",
                "localhost",
            ),
        ):
            assert not addresses.is_public(inside), inside
        error = await refused(host.create(image="169.254.169.254/latest/meta-data:1"))
        assert "no public address" in error.message


def test_this_hosts_own_address_is_not_public() -> None:
    """Whatever it looks like: a create must not reach the services of the host itself. In a network of its own."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace takes root")
    needs("ip", "iproute2")
    script = (
        "ip link set lo up; ip address add 8.8.8.8/32 dev lo; ip -6 address add 2606:4700::1111/128 dev lo nodad\n"
        'exec "$0" -c \'from runra.node.images.addresses import is_public as p; '
        'print(*map(p, ("8.8.8.8", "2606:4700::1111", "8.8.4.4", "2606:4700::1112")))\''
    )
    told = subprocess.run(
        ["unshare", "--net", "sh", "-ec", script, sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert told.stdout.split() == ["False", "False", "True", "True"]


async def test_somebody_elses_layer_is_not_had_by_naming_it(odd: OddRegistry, host: Host) -> None:
    """A manifest that names the digest of another organization's private layer gets nobody that layer."""
    secret = Layer().add("secret", b"only ours").bytes()
    ours = odd.push(image(secret), "ours:1")
    await pull(host, ours, login=("a", "b"), organization="org_ours")
    theft = image(secret)
    (stolen, _) = next((key, data) for key, data in theft.blobs.items() if b"layers" not in data)
    del theft.blobs[stolen]
    odd.images.clear()
    name = odd.push(theft, "theft:1")
    error = await refused(pull(host, name, organization="org_theirs"))
    assert error.details["status"] == 404
    # Who can really fetch it has it; it lies here once all the same.
    theft.blobs.update(image(secret).blobs)
    await pull(host, name, organization="org_theirs")
    assert len(layer_folders(host)) == 1


async def test_nor_is_what_was_made_for_somebody_elses_image(odd: OddRegistry, host: Host) -> None:
    """An image's seam has names of its folders. Whoever knows what it is made of cannot make a blob with its name."""
    below, above = Layer().folder("plans", 0o700), Layer().add("plans/q3/x", b"1")
    ours = odd.push(image(below, above), "ours:1")
    await pull(host, ours, login=("a", "b"), organization="org_ours")
    found = host.node.images.find(reference_of(ours), "org_ours")
    assert found is not None
    *ids, seam = found.layers
    assert (host.node.images.layers.path(seam) / "plans").exists()
    for text in (" ".join(ids), " ".join(["seam", *ids])):
        theft = image(text.encode(), how="", diff_ids=[])
        error = await refused(pull(host, odd.push(theft, "theft:1"), organization="org_theirs"))
        assert error.code == "INVALID_REQUEST"


async def test_the_end_of_somebody_elses_layer_is_not_all_of_it(odd: OddRegistry, host: Host) -> None:
    """What one organization has fetched half does not help another to the whole."""
    made = big(1 << 20)
    name, (blob, data) = odd.push(made, "half:1"), largest(made)
    odd.piece = 1 << 18
    odd.hook = lambda request, number: odd.blob(request, data, 1 << 19) if request.path.endswith(blob) else None
    await refused(pull(host, name, login=("a", "b"), organization="org_ours"))
    assert len(leftovers(host)) == 1
    odd.hook = lambda request, number: None
    odd.seen.clear()
    await pull(host, name, login=("c", "d"), organization="org_theirs")
    assert [request.headers.get("Range") for request in odd.seen if request.path.endswith(blob)] == [None]


async def test_a_slow_registry_meets_the_deadline(odd: OddRegistry, tmp_path: Path) -> None:
    made = big(1 << 20)
    name = odd.push(made, "slow:1")
    odd.piece, odd.pause = 4096, 0.1
    private = {odd.host: RegistrySettings(private=True)}
    async with hosted(tmp_path / "data", pull_timeout=3.0, registries=private) as host:
        error = await refused(host.create(image=name))
        assert (error.code, error.status, error.retryable) == ("INTERNAL_ERROR", 504, True)
        assert "--pull-timeout" in error.message
        assert [event.data["reason"] for event in host.events if event.type == "sandbox.terminated"] == ["image"]
    # What came is kept, and taken up by the next.
    odd.pause, odd.piece = 0.0, 1 << 20
    before = len(odd.seen)
    async with hosted(tmp_path / "data") as host:
        await pull(host, name)
    assert any("Range" in request.headers for request in odd.seen[before:])


async def test_terminated_while_its_image_comes(odd: OddRegistry, tmp_path: Path) -> None:
    name = odd.push(big(), "leaving:1")
    odd.piece, odd.pause = 4096, 0.05
    private = {odd.host: RegistrySettings(private=True)}
    async with hosted(tmp_path / "data", registries=private) as host:
        creating = asyncio.create_task(host.create(image=name))
        await until(lambda: bool(odd.paths("/blobs/")))
        sandbox = next(iter(host.node.sandboxes.values()))
        assert sandbox.info().state == "creating"
        started = time.monotonic()
        await sandbox.terminate()
        error = await refused(creating)
        assert error.code == "INVALID_STATE"
        assert time.monotonic() - started < 5


async def test_too_many_pulls_are_told_to_come_back(odd: OddRegistry, host: Host) -> None:
    forever = asyncio.Event()

    async def hold(request: web.Request) -> web.Response:
        await forever.wait()
        return web.Response(status=404)

    odd.hook = lambda request, number: hold(request)
    tasks = [asyncio.create_task(pull(host, f"{odd.host}/many:{number}")) for number in range(16)]
    await until(lambda: len(odd.seen) >= 16)
    error = await refused(pull(host, f"{odd.host}/many:17"))
    assert error.code == "RESOURCE_EXHAUSTED"
    forever.set()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, RunraError)


async def test_one_organization_leaves_pulls_to_others(odd: OddRegistry, tmp_path: Path) -> None:
    forever = asyncio.Event()

    async def hold(request: web.Request) -> web.Response:
        await forever.wait()
        return web.Response(status=404)

    private = {odd.host: RegistrySettings(private=True)}
    async with hosted(tmp_path / "data", registries=private) as host:
        fine = odd.push(image(busybox()), "others:1")
        odd.hook = lambda request, number: (
            None if "/others/" in request.path or "/blobs/" in request.path else hold(request)
        )
        creating = [asyncio.create_task(host.create(image=f"{odd.host}/greedy:{number}")) for number in range(4)]
        await until(lambda: len(odd.seen) >= 4)
        error = await refused(host.create(image=f"{odd.host}/greedy:5"))
        assert (error.code, error.retryable) == ("RESOURCE_EXHAUSTED", True)
        async with host.node.images.root(fine, "org_other"):
            pass
        forever.set()
        assert all(isinstance(one, RunraError) for one in await asyncio.gather(*creating, return_exceptions=True))


async def test_one_organization_leaves_unpacking_to_others(
    odd: OddRegistry, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that take as long as they may hold up nobody else."""
    slow = SlowLayers(host, monkeypatch, 2)
    greedy = [odd.push(image(Layer().add(f"f{n}", b"x")), f"greedy:{n}") for n in range(4)]
    pulls = [asyncio.create_task(pull(host, name)) for name in greedy]
    await until(lambda: slow.begun == 2)
    await asyncio.wait_for(pull(host, odd.push(image(busybox()), "others:1"), organization="org_other"), 30)
    slow.go.set()
    await asyncio.gather(*pulls)


async def test_a_full_disk_leaves_nothing_half_made(odd: OddRegistry, tmp_path: Path) -> None:
    """The images' folder is a small disk of its own: once the blob does not fit, once what is in it."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    home = tmp_path / "data/images"
    home.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=0700", "tmpfs", home], check=True)
    try:
        host = await start_host(tmp_path / "data", disk="none", min_free_mb=4)
        try:
            blob = odd.push(image(busybox(), Layer().add("big", os.urandom(60 << 20)), how=""), "full:blob")
            error = await refused(pull(host, blob))
            assert (error.code, "runra image prune" in error.message) == ("RESOURCE_EXHAUSTED", True)
            inside = odd.push(image(busybox(), Layer().add("zeros", b"0" * (200 << 20))), "full:inside")
            error = await refused(pull(host, inside))
            assert error.code == "RESOURCE_EXHAUSTED"
            assert host.node.images.listed(ORGANIZATION) == []
            assert layer_folders(host) == []
            # What broken pulls left makes room for one that comes.
            (home / "parts").mkdir(exist_ok=True)
            with (home / "parts/left").open("wb") as left:
                os.posix_fallocate(left.fileno(), 0, 43 << 20)
            await pull(host, odd.push(image(busybox()), "full:fits"))
            assert leftovers(host) == []
        finally:
            await stop_host(host)
    finally:
        subprocess.run(["umount", "-l", home], check=True)


async def test_a_create_leaves_what_the_sandboxes_disk_may_take(odd: OddRegistry, tmp_path: Path) -> None:
    """Else whoever pulls enough breaks every sandbox's disk, which is a sparse file beside the images."""
    private = {odd.host: RegistrySettings(private=True)}
    name = odd.push(image(busybox()), "greedy:1")
    async with hosted(tmp_path / "data", registries=private) as host:
        disk = tmp_path / "data/disk.img"
        if not disk.exists():
            pytest.skip("no disk image here: run as root, apt-get install btrfs-progs")
        about = os.statvfs(tmp_path)
        os.truncate(disk, about.f_blocks * about.f_frsize)  # the mount goes on with the size it has read
        assert (await refused(host.create(image=name))).code == "RESOURCE_EXHAUSTED"
        await pull(host, name)
        assert await host.create(image=name)


async def test_what_broken_pulls_leave_is_bounded(odd: OddRegistry, tmp_path: Path) -> None:
    """Like the images that creates fetch: whoever may create could else fill the disk."""
    private = {odd.host: RegistrySettings(private=True)}
    odd.piece = 1 << 18
    async with hosted(tmp_path / "data", registries=private, max_images_mb=3) as host:
        parts = host.node.settings.images_dir / "parts"
        for number in range(5):
            made = image(Layer().add("big", os.urandom(2 << 20)), how="")
            name, (blob, data) = odd.push(made, f"broken:{number}"), largest(made)
            odd.hook = lambda request, number, blob=blob, data=data: (
                odd.blob(request, data, stop_at=1 << 20) if request.path.endswith(blob) else None
            )
            await refused(host.create(image=name))
            assert list(parts.glob(f"*-{blob.removeprefix('sha256:')}")), "the latest goes last"
            assert sum(path.stat().st_size for path in parts.iterdir()) <= 3 << 20
        pruned = await host.node.images.prune(ORGANIZATION, 0)
        assert (pruned.references, pruned.freed_bytes > 0) == ([], True)
        assert leftovers(host) == []


async def test_images_of_creates_make_room_for_others(odd: OddRegistry, tmp_path: Path) -> None:
    names = [odd.push(image(busybox(), Layer().add("of", b"%d" % n * (2 << 20))), f"cached:{n}") for n in range(4)]
    private = {odd.host: RegistrySettings(private=True)}
    async with hosted(tmp_path / "data", registries=private, max_images_mb=5) as host:
        images = host.node.images
        await pull(host, names[0])  # an administrator's stays
        sandbox = await host.create(image=names[1])  # in use, it stays
        for name in (names[2], names[3]):
            async with images.root(name, ORGANIZATION):
                pass
        assert {one.reference for one in images.listed(ORGANIZATION)} == {names[0], names[1], names[3]}
        assert (await host.run(sandbox, "head -c 3 /of"))[0] == "111"


async def test_a_create_fetches_nothing_larger_than_the_room_of_all(odd: OddRegistry, tmp_path: Path) -> None:
    """It would make all others go, and still be too large."""
    private = {odd.host: RegistrySettings(private=True)}
    small = odd.push(image(busybox()), "small:1")
    packed = odd.push(image(busybox(), Layer().add("zeros", bytes(6 << 20))), "packed:1")
    large = odd.push(image(Layer().add("big", os.urandom(6 << 20)), how=""), "large:1")
    async with hosted(tmp_path / "data", registries=private, max_images_mb=5) as host:
        async with host.node.images.root(small, ORGANIZATION):
            pass
        for name in (packed, large):
            odd.seen.clear()
            error = await refused(host.create(image=name))
            assert (error.code, error.retryable) == ("RESOURCE_EXHAUSTED", False)
            assert "--max-images-mb" in error.message
            assert [one.reference for one in host.node.images.listed(ORGANIZATION)] == [small]
        assert len(odd.paths("/blobs/")) == 1, "the config alone says enough"
        await host.node.images.layers.settled()
        assert len(layer_folders(host)) == 1
        await pull(host, packed)


async def test_images_without_layers_take_room_as_well(
    odd: OddRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their records do: on disk, in memory, and in every organization's list."""
    private = {odd.host: RegistrySettings(private=True)}
    async with hosted(tmp_path / "data", registries=private, max_images_mb=1) as host:
        images = host.node.images

        async def names(count: int, label: int) -> list[str]:
            for number in range(count):
                name = odd.push(image(Labels={"of": f"{number}".rjust(label)}), f"labels:{label}-{number}")
                async with images.root(name, ORGANIZATION):
                    pass
            return [one.reference.partition("-")[2] for one in images.listed(ORGANIZATION)]

        assert await names(7, 200_000) == ["6", "5", "4", "3", "2"]
        error = await refused(names(1, 300_000))
        assert (error.code, "labels" in error.message) == ("INVALID_REQUEST", True)
        monkeypatch.setattr(cache, "MOST_IMAGES", 3)
        assert await names(5, 10) == ["4", "3", "2"]


def test_a_server_killed_in_mid_pull(tmp_path: Path) -> None:
    """kill -9 while layers come and are unpacked; the next server has no half image, and finishes the pull."""

    async def serve_slowly() -> None:
        from tests.images.registries import odd_registry

        async with odd_registry() as odd:
            made = big()
            name, (blob, _) = odd.push(made, "killed:1"), largest(made)
            odd.piece, odd.pause = 64 << 10, 0.02
            program = f"""
import asyncio, sys
from pathlib import Path
from tests import hosting
from tests.hosting import start_host
from tests.images.conftest import pull
hosting.host_image_folder = Path({str(hosting.host_image_folder)!r})
async def main():
    host = await start_host(Path({str(tmp_path / "data")!r}))
    await pull(host, {name!r})
asyncio.run(main())
"""
            for _ in range(2):
                process = subprocess.Popen([sys.executable, "-c", program])
                seen = len(odd.paths(blob))
                await until(lambda seen=seen: len(odd.paths(blob)) > seen, 30)
                await asyncio.sleep(0.2)  # some of it must have come; how much does not matter
                process.send_signal(signal.SIGKILL)
                await asyncio.to_thread(process.wait)
            host = await start_host(tmp_path / "data")
            try:
                assert host.node.images.listed(ORGANIZATION) == []
                await host.node.images.layers.settled()
                assert not any((host.node.settings.images_dir / "tmp").iterdir())
                odd.pause = 0.0
                await pull(host, name)
                asked = [request.headers.get("Range") for request in odd.seen if request.path.endswith(blob)]
                assert asked[-1] is not None, "the parts of earlier servers were not taken up"
                sandbox = await host.create(image=name)
                assert (await host.run(sandbox, "stat -c %s /big"))[0] == f"{4 << 20}\n"
            finally:
                await stop_host(host)

    asyncio.run(serve_slowly())


async def test_records_that_lost_their_layers_are_dropped(odd: OddRegistry, tmp_path: Path) -> None:
    import shutil

    name = odd.push(image(busybox()), "lost:1")
    async with hosted(tmp_path / "data") as host:
        await pull(host, name)
        (folder,) = layer_folders(host)
    shutil.rmtree(folder)
    (tmp_path / "data/images/names/broken.json").write_text("{")
    (tmp_path / "data/images/layers/unfinished").mkdir()
    async with hosted(tmp_path / "data") as host:
        assert host.node.images.listed(ORGANIZATION) == []
        await host.node.images.layers.settled()
        assert layer_folders(host) == []
        await pull(host, name)


async def test_a_host_that_hangs_up_at_once(host: Host) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        error = await refused(pull(host, f"127.0.0.1:{port}/x:1"))  # bound, and not listening
        assert (error.status, error.retryable) == (502, True)
        assert "--registries" in error.message
        assert "runra image import" in error.message
