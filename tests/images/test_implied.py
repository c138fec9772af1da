"""Layers that name no parents of their files: the folders are as a lower layer has them."""

from __future__ import annotations

import contextlib
import os
import tarfile
from pathlib import Path

import pytest

from runra.node.images.manifest import MOST_LAYERS
from runra.node.images.store import reference_of
from tests.hosting import Host, hosted, need_wall
from tests.images import oci
from tests.images.conftest import ORGANIZATION, layer_folders, leftovers, pull, refused
from tests.images.oci import Layer, busybox, image, oci_archive
from tests.images.registries import RealRegistry
from tests.images.test_import import put


@pytest.fixture(autouse=True)
def shell_for_images() -> None:
    if not oci.BUSYBOX.exists():
        pytest.skip("no static busybox: apt-get install busybox-static")


async def folders(host: Host, image: str, *paths: str, **how: str) -> list[str]:
    """Mode and owner of each, in a sandbox of the image."""
    sandbox = await host.create(image=image, **how)
    text, end = await host.run(sandbox, f"stat -c '%n %a %u:%g' {' '.join(paths)}")
    assert end.code == 0, text
    await sandbox.terminate()
    return text.splitlines()


@pytest.mark.parametrize("wall", ["bubblewrap", "gvisor"])
async def test_a_folder_is_as_the_layer_below_says(registry: RealRegistry, host: Host, wall: str) -> None:
    need_wall(wall)
    below = Layer().folder("tmp", 0o1777).add("tmp/below", b"1").folder("srv", 0o2750, uid=7, gid=8, mtime=1_000_000)
    below.folder("srv/data", 0o700, uid=9, gid=9, pax_headers={"SCHILY.xattr.user.note": "kept"})
    below.add("srv/data/below", b"2")
    above = Layer().add("tmp/above", b"3").add("srv/data/above", b"4").add("new/deep/file", b"5").add("var/tmp/x", b"")
    name = registry.push(image(busybox(), below, above), f"implied:{wall}")
    made = await pull(host, name)
    assert await folders(host, name, "/tmp", "/srv", "/srv/data", "/new/deep", "/var/tmp", isolation=wall) == [
        *("/tmp 1777 0:0", "/srv 2750 7:8", "/srv/data 700 9:9", "/new/deep 755 0:0", "/var/tmp 1777 0:0")
    ]
    sandbox = await host.create(image=name, isolation=wall)
    text, _ = await host.run(sandbox, "cd /; cat tmp/below srv/data/below tmp/above srv/data/above new/deep/file")
    assert text == "12345"
    assert len(layer_folders(host)) == made.layers == 4
    [seam] = [
        path for path in layer_folders(host) if (path / "srv/data").exists() and not any((path / "srv/data").iterdir())
    ]
    assert (seam / "srv").stat().st_mtime == 1_000_000
    assert os.getxattr(seam / "srv/data", "user.note") == b"kept"
    # What a sandbox makes of it goes on.
    await host.run(sandbox, "chmod 711 /srv/data; touch /tmp/mine")
    await host.node.commit(sandbox.id, "made:1", shared=False, step=False)
    assert await folders(host, "made:1", "/srv/data", "/tmp", "/srv") == [
        *("/srv/data 711 9:9", "/tmp 1777 0:0", "/srv 2750 7:8")
    ]
    assert leftovers(host) == []


async def test_what_is_hidden_says_nothing(host: Host) -> None:
    """Whiteouts, opaque folders and links between a folder and the layer that says what it is."""
    below = Layer()
    for name in ("gone", "again", "opaque", "opaque/in", "link", "said", "later", "kept"):
        below.folder(name, 0o700, uid=5, gid=5)
    between = Layer().add(".wh.gone").add("opaque/.wh..wh..opq").add(".wh.link").link("link", "said")
    between.add("kept/.wh..wh..opq").folder("once", 0o711)
    above = Layer().add("gone/x").add("again/x").add(".wh.again").add("opaque/in/x").add("link/x")
    # In one layer: what it says later of a folder it has things in counts; so does what it says through a link.
    above.add("said/x").folder("said", 0o750, uid=6, gid=6).add("later/in/x").link("short", "later")
    above.folder("short/in", 0o770, uid=4, gid=4).add("kept/x").add("once/x")
    archive = oci_archive(image(busybox(), below, between, above), "hidden:1")
    await put(host, archive)
    names = ("gone", "again", "opaque", "opaque/in", "link", "said", "later", "later/in", "kept", "once")
    assert await folders(host, "hidden:1", *(f"/{name}" for name in names)) == [
        *("/gone 755 0:0", "/again 755 0:0", "/opaque 700 5:5", "/opaque/in 755 0:0", "/link 755 0:0"),
        *("/said 750 6:6", "/later 700 5:5", "/later/in 770 4:4", "/kept 700 5:5", "/once 711 0:0"),
    ]


async def test_one_layer_on_two_bases(host: Host) -> None:
    """Layers are shared by digest, and what lies below one differs; what is made for an image goes with it."""
    shared = Layer().add("data/x", b"").bytes()
    for number, mode in enumerate((0o700, 0o1777)):
        made = image(busybox(), Layer().folder("data", mode, uid=number, gid=number), shared)
        await put(host, oci_archive(made, f"on:{number}"))
        await put(host, oci_archive(made, f"again:{number}"))
    assert await folders(host, "on:0", "/data") == ["/data 700 0:0"]
    assert await folders(host, "on:1", "/data") == ["/data 1777 1:1"]
    assert len(layer_folders(host)) == 1 + 2 + 1 + 2  # busybox, two bases, the shared one, two seams
    for name in ("on:0", "again:0"):
        await host.node.images.delete(name, ORGANIZATION)
    await host.node.images.layers.settled()
    assert len(layer_folders(host)) == 4
    await host.node.images.prune(ORGANIZATION, 0)
    await host.node.images.layers.settled()
    assert layer_folders(host) == []


async def test_as_many_layers_as_an_image_may_have(host: Host) -> None:
    base = await put(host, oci_archive(image(busybox().folder("way", 0o711)), "many:1"))
    images = host.node.images
    record = images.find(reference_of(base.reference), ORGANIZATION)
    assert record is not None
    async with contextlib.AsyncExitStack() as held:
        ids = [*record.layers, *(f"{number:032x}" for number in range(1, MOST_LAYERS))]
        held.enter_context(images.layers.pinned(ids))
        for name in ids[1:]:  # what unpacking would make, a wall for each of them spared
            fresh = await held.enter_async_context(images.layers.scratch()) / "layer"
            (fresh / "way" / name).mkdir(parents=True)
            fresh.chmod(0o755)
            os.setxattr(fresh / "way", "user.overlay.runra.implied", b"y")
            images.layers.keep(fresh, name, f"sha256:{name}", 0, ORGANIZATION, implied=1)
        layers = [layer for name in ids if (layer := images.layers.get(name))]
        joined = await held.enter_async_context(images.layers.joined(layers, ORGANIZATION, ORGANIZATION))
        assert len(joined) == MOST_LAYERS + 1
        await images.keep(record.model_copy(update={"layers": [layer.id for layer in joined]}))
    assert await folders(host, "many:1", "/way") == ["/way 711 0:0"]
    sandbox = await host.create(image="many:1")
    assert (await host.run(sandbox, "ls /way"))[0].split() == ids[1:]


async def test_layers_that_would_lead_the_seam_astray(host: Host, tmp_path: Path) -> None:
    """Links to the host, pipes, names no shell likes, and a layer that claims the marks for itself."""
    target = tmp_path / "host"
    (target / "in").mkdir(parents=True)
    (target / "in").chmod(0o4711)
    below = Layer().link("away", str(target)).link("up", "../../../../../..").add("pipe", kind=tarfile.FIFOTYPE)
    below.folder("new\nline", 0o711).folder("bad\udcff", 0o711).folder("-rf", 0o711).folder("d", 0o711)
    below.folder("deep", 0o711)
    marks = {"SCHILY.xattr.user.overlay.runra.implied": "y", "SCHILY.xattr.user.overlay.opaque": "y"}
    above = Layer().add("away/in/x").add("up/in/x").add("pipe/in/x").add("new\nline/x").add("bad\udcff/x").add("-rf/x")
    above.folder("d", 0o770, pax_headers=marks).add("d/x").add("deep/" + "d/" * 500 + "x")
    await put(host, oci_archive(image(busybox(), below, above), "astray:1"))
    sandbox = await host.create(image="astray:1")
    text, _ = await host.run(sandbox, "cd /; stat -c '%a %F' away/in up/in pipe/in new*line bad* ./-rf d deep deep/d")
    folder = "directory\n"
    assert text == f"755 {folder}" * 3 + f"711 {folder}" * 3 + f"770 {folder}711 {folder}755 {folder}"
    assert [path.name for path in target.rglob("*")] == ["in"]
    assert (target / "in").stat().st_mode & 0o7777 == 0o4711


async def test_folders_that_nobody_named_count_too(tmp_path: Path) -> None:
    async with hosted(tmp_path / "data", max_image_entries=1000) as host:
        error = await refused(put(host, Layer().add("d/" * 1200 + "x").bytes(), "deep:1"))
        assert "entries" in error.message
        wide = Layer()
        for number in range(400):
            wide.add(f"{number}/a/b")
        assert "entries" in (await refused(put(host, wide.bytes(), "wide:1"))).message
        await host.node.images.layers.settled()
        assert leftovers(host) == []
