"""Archives that hold more than one image, or that no tool would make."""

from __future__ import annotations

import contextlib
import json
import os

from tests.hosting import Host
from tests.images.conftest import ORGANIZATION, leftovers, refused
from tests.images.oci import ARCHITECTURE, Layer, entry, image, oci_archive
from tests.images.test_import import put


async def test_several_images_in_one_layout_are_said(host: Host) -> None:
    """As Docker 25 and later save them: none is lost in silence."""
    one, other = image(Layer().add("is", b"one")), image(Layer().add("is", b"other"))
    mine = {"os": "linux", "architecture": ARCHITECTURE}
    for more in (
        [entry(other, "b:1")],
        [entry(other)],
        [entry(other, "b:1", platform=mine), entry(one, "c:1")],
    ):
        error = await refused(put(host, oci_archive(one, "a:1", beside=more)))
        assert (error.code, "holds 2 images" in error.message) == ("INVALID_REQUEST", True)
    assert host.node.images.listed(ORGANIZATION) == []
    # One image by several names, and what is said of it, are one image.
    signature = {**entry(other), "artifactType": "application/vnd.example.signature"}
    attested = entry(other, platform={"os": "unknown", "architecture": "unknown"})
    elsewhere = entry(other, "a:1", platform={"os": "linux", "architecture": "s390x"})
    data = oci_archive(one, "a:1", beside=[entry(one, "a:2"), signature, attested, elsewhere])
    assert (await put(host, data)).digest == one.digest
    await host.node.images.layers.settled()
    assert leftovers(host) == []


async def test_a_manifest_no_tool_would_write(host: Host) -> None:
    home = host.node.settings.images_dir
    for saved in (
        "[" * 100_000,
        "[]",
        '[{"Config": "c\\u0000", "Layers": []}]',
        '[{"Config": "c\\ud800", "Layers": []}]',
        '[{"Config": "c", "Layers": ["c\\u0000"]}]',
        json.dumps([{"Config": "c" * 300, "Layers": []}]),
        json.dumps([{"Config": "c", "Layers": ["c"] * 128}]),
    ):
        data = Layer().add("manifest.json", saved.encode()).add("c", b"{}").bytes()
        error = await refused(put(host, data, "odd:1"))
        assert error.code == "INVALID_REQUEST", saved[:100]
        await host.node.images.layers.settled()
        assert leftovers(host) == []
        assert [name for name in open_files() if name.startswith(str(home / "tmp"))] == [], saved[:100]


def open_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists them
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found
