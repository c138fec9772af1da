"""Hostile layers, byte for byte, against the unpacking of images: nothing outside the layer's folder changes, nothing
of the host is read, and what a sandbox is made of is what the wall says."""

from __future__ import annotations

import asyncio
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from runra.errors import RunraError
from runra.node.images import unpacker
from runra.node.images.unpack import _links, _needed
from tests.hosting import Host, bubblewrap_only, hosted, start_host, stop_host
from tests.images import oci
from tests.images.conftest import layer_folders, leftovers
from tests.images.oci import Layer, busybox, image, oci_archive

VICTIM = "runra-layer-attack"


async def imported(host: Host, data: bytes, name: str = "evil:1") -> Any:
    async def chunks() -> Any:
        for at in range(0, len(data), 1 << 20):
            yield data[at : at + (1 << 20)]

    return await host.node.images.import_archive(chunks(), name, "org_test", shared=False)


async def refused(host: Host, data: bytes) -> RunraError:
    with pytest.raises(RunraError) as caught:
        await imported(host, data)
    await host.node.images.layers.settled()
    assert leftovers(host) == []
    assert layer_folders(host) == []
    return caught.value


def root_fs(layer: Layer) -> bytes:
    return layer.bytes()


def everywhere(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


async def test_names_that_lead_upwards(host: Host) -> None:
    for name in (
        "../escaped",
        "a/../../escaped",
        "../../../../../../../../tmp/" + VICTIM,
        "/../" + VICTIM,
        "a/b/../../../x",
        "..",
        "x/..",
    ):
        error = await refused(host, root_fs(Layer().add("first", b"").add(name, b"evil")))
        assert "upwards" in error.message
        assert not Path("/tmp", VICTIM).exists()


async def test_absolute_names_and_links_stay_inside(host: Host) -> None:
    """CVE-2026-46703's class: a link first, then a write through it."""
    target = host.node.settings.data_dir / "victim"
    target.mkdir()
    before = everywhere(target)
    layer = busybox()
    layer.add(f"/tmp/{VICTIM}", b"evil")
    layer.link("out", str(target)).add(f"out/{VICTIM}", b"evil")
    layer.link("up", "../../../../../../../.." + str(target)).add(f"up/{VICTIM}", b"evil")
    layer.link("chain", "chain2").link("chain2", str(target)).add(f"chain/deeper/{VICTIM}", b"evil")
    layer.link("file", str(target / "file")).add("file", b"evil")
    layer.link("loop", "loop").add("loop/x", b"evil")
    layer.link("proc", "/proc/self/root").add(f"proc/{VICTIM}", b"evil")
    await _made_or_refused(host, layer)
    assert everywhere(target) == before
    assert not Path("/tmp", VICTIM).exists()
    assert not Path("/", VICTIM).exists()


async def _made_or_refused(host: Host, layer: Layer) -> None:
    outcome = (await asyncio.gather(imported(host, root_fs(layer)), return_exceptions=True))[0]
    assert not isinstance(outcome, BaseException) or getattr(outcome, "code", "") == "INVALID_REQUEST", outcome
    await host.node.images.layers.settled()
    assert leftovers(host) == []


async def test_hard_links_reach_nothing_of_the_host(host: Host) -> None:
    secret = host.node.settings.data_dir / "secret"
    secret.write_text("of the host")
    for target in (str(secret), "/etc/shadow", "../../../../etc/shadow", "/proc/self/exe", "/usr/bin/python3"):
        layer = Layer().link("stolen", target, hard=True)
        assert (await refused(host, root_fs(layer))).code == "INVALID_REQUEST"
    layer = Layer().link("way", str(secret.parent)).link("stolen", "way/secret", hard=True)
    await refused(host, root_fs(layer))
    assert secret.stat().st_nlink == 1
    folder = await refused(host, root_fs(Layer().folder("a").link("b", "a", hard=True)))
    assert "hard link to a folder" in folder.message


async def test_device_nodes_are_left_out(host: Host) -> None:
    layer = busybox().folder("dev")
    for name, major, minor in (("dev/mem", 1, 1), ("disk", 8, 0), ("dev/null", 1, 3), ("whiteout", 0, 0)):
        layer.add(name, kind=tarfile.CHRTYPE, devmajor=major, devminor=minor, mode=0o666)
    layer.add("sda", kind=tarfile.BLKTYPE, devmajor=8, devminor=0, mode=0o666)
    await imported(host, root_fs(layer))
    (folder,) = layer_folders(host)
    assert not [path for path in folder.rglob("*") if path.is_char_device() or path.is_block_device()]
    sandbox = await host.create(image="evil:1")
    assert (await host.run(sandbox, "for f in /disk /sda /dev/mem /whiteout; do test -e $f && echo $f; done"))[0] == ""
    assert (await host.run(sandbox, "test -c /dev/null && cat /dev/null"))[1].code == 0


async def test_mount_points_swapped_for_links(host: Host) -> None:
    """CVE-2026-41579's class: /dev, /proc, /run as links out of the image. Ours are folders whatever it says."""
    layer = busybox("readlink")
    for name in ("dev", "proc", "run", "sys"):
        layer.link(name, f"/oldroot/tmp/{VICTIM}")
    layer.link("etc", "/oldroot/etc").link("workspace", "/oldroot/root").link("tmp", "/proc/1/root")
    await imported(host, root_fs(layer))
    before = (Path("/etc/hostname").read_bytes(), os.stat("/dev/null").st_rdev, os.stat("/etc").st_mtime_ns)
    sandbox = await host.create(image="evil:1")
    out, _ = await host.run(
        sandbox,
        "for d in /dev /proc /run /sys /etc; do readlink $d; done; test -d /proc/1 && echo proc; cat /etc/hostname",
    )
    assert out == f"proc\n{sandbox.id.removeprefix('sb_')}\n"
    assert (Path("/etc/hostname").read_bytes(), os.stat("/dev/null").st_rdev, os.stat("/etc").st_mtime_ns) == before
    assert not Path("/tmp", VICTIM).exists()


@bubblewrap_only("its kernel does not show NoNewPrivs in /proc; the layer is the same")
async def test_attributes_that_steer_an_overlay(host: Host) -> None:
    """`overlay.*` attributes would make a layer show other folders, or hide what lies below; capabilities stay inert."""
    capability = struct.pack("<IIIII", 0x02000001, 1 << 21, 0, 0, 0).decode("latin-1")
    headers = {
        f"SCHILY.xattr.{name}": value
        for name, value in {
            "user.overlay.opaque": "y",
            "user.overlay.redirect": "/../../secret",
            "user.overlay.metacopy": "",
            "trusted.overlay.opaque": "y",
            "trusted.overlay.redirect": "/etc",
            "security.selinux": "system_u",
            "security.capability": capability,
            "system.posix_acl_access": "x",
            "user.kept": "1",
        }.items()
    }
    layer = busybox().folder("evil", pax_headers=headers).add("evil/file", b"", pax_headers=headers, mode=0o4755)
    await imported(host, root_fs(layer))
    (folder,) = layer_folders(host)
    for path in (folder / "evil", folder / "evil/file"):
        assert set(os.listxattr(path)) <= {"user.kept", "security.capability"}
    sandbox = await host.create(image="evil:1")
    assert (
        await host.run(sandbox, "cat /proc/self/status | while read a b; do test $a = NoNewPrivs: && echo $b; done")
    )[0] == "1\n"


async def test_whiteouts_that_are_none(host: Host) -> None:
    for name in (".wh.", "a/.wh.", ".wh...", ".wh.."):
        await _made_or_refused(host, busybox().folder("a").add(name, b""))
    # A whiteout of a folder this very layer has hides what lies below it only.
    layer = busybox().folder("kept").add("kept/file", b"here").add(".wh.kept", b"")
    await imported(host, root_fs(layer))
    sandbox = await host.create(image="evil:1")
    assert (await host.run(sandbox, "cat /kept/file"))[0] == "here"


async def test_bombs_end_at_the_bound(tmp_path: Path) -> None:
    """Gigabytes out of kilobytes, files without end, and holes without bounds."""
    async with hosted(tmp_path / "data", max_image_mb=16, max_image_entries=2000) as host:
        zeros = oci.packed(Layer().add("bomb", b"\0" * (20 << 20)).bytes(), "gzip")[0]
        assert len(zeros) < 1 << 20
        assert "larger than" in (await refused(host, zeros)).message
        nested = oci.packed(b"\0" * (20 << 20), "zstd")[0]
        assert (await refused(host, nested)).code == "INVALID_REQUEST"
        many = Layer()
        for number in range(2100):
            many.folder(f"d{number}")
        assert "entries" in (await refused(host, root_fs(many))).message
        headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.realsize": str(1 << 62),
            "GNU.sparse.name": "s",
        }
        holes = Layer().add("s", b"1\n0\n1\n".ljust(512, b"\0") + b"x", pax_headers=headers)
        await _made_or_refused(host, holes)
        for folder in layer_folders(host):
            assert sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) < 1 << 20


def memory_bomb() -> bytes:
    """A pax header of 700 MB: it is read whole."""
    header = tarfile.TarInfo("header")
    header.type, header.size = tarfile.XHDTYPE, 700 << 20

    def bomb() -> Any:
        import zlib

        packer = zlib.compressobj(1, wbits=31)
        yield packer.compress(header.tobuf(tarfile.USTAR_FORMAT))
        zeros = b"\0" * (16 << 20)
        for _ in range(44):
            yield packer.compress(zeros)
        yield packer.flush()

    return b"".join(bomb())


async def test_a_layer_that_wants_all_memory(host: Host) -> None:
    """It ends its reader, within its own limit."""
    started = time.monotonic()
    error = await refused(host, memory_bomb())
    assert error.code == "INVALID_REQUEST", error
    assert "memory" in error.message
    assert time.monotonic() - started < 60


def test_memory_is_bounded_where_there_is_no_cgroup(tmp_path: Path) -> None:
    """As on a server that an ordinary user runs: the program bounds itself."""
    bomb = tmp_path / "bomb"
    bomb.write_bytes(memory_bomb())
    words = ["/target", "kind", "one", str(32 << 30), "1000", "0"]
    with bomb.open("rb") as archive, (tmp_path / "told").open("wb") as told:
        process = subprocess.Popen([sys.executable, unpacker.__file__, *words], stdin=archive, stdout=told)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert "memory" in json.loads((tmp_path / "told").read_bytes())["refused"]
    assert used.ru_maxrss < 1 << 20, "kilobytes"


async def test_what_is_no_tar_is_refused(host: Host) -> None:
    for data in (
        b"\x1f\x8b" + os.urandom(4000),
        b"\x28\xb5\x2f\xfd" + os.urandom(4000),
        b"BZh9" + os.urandom(4000),
        b"\xfd7zXZ\0" + os.urandom(4000),
        os.urandom(10_240),
        b"x",
        Layer().add("cut", b"x" * 5000).bytes()[:3000],
        Layer().add("cut", b"x" * 5000).bytes()[: 512 + 4990],
        Layer().add("a", b"").bytes()[:512] + b"\xff" * 1024,
        Layer().raw(b"\x80" * 512).bytes(),
    ):
        assert (await refused(host, data)).code == "INVALID_REQUEST"


async def test_names_at_the_edge(host: Host) -> None:
    layer = busybox().add("n" * 255, b"").add("new\nline", b"").add("\x1b[31mred", b"").add("bad\udcff\udcfe", b"")
    layer.add("d/" * 100 + "deep", b"")
    await imported(host, root_fs(layer))
    sandbox = await host.create(image="evil:1")
    assert (await host.run(sandbox, "ls / | wc -l"))[1].code is not None
    assert (await refused_only(host, root_fs(Layer().add("n" * 256, b"")))).code == "INVALID_REQUEST"
    assert (await refused_only(host, root_fs(Layer().add("d/" * 3000 + "deep", b"")))).code == "INVALID_REQUEST"


async def refused_only(host: Host, data: bytes) -> RunraError:
    with pytest.raises(RunraError) as caught:
        await imported(host, data, "evil:2")
    return caught.value


async def test_archives_whose_names_lead_elsewhere(host: Host) -> None:
    """What an archive's index names is looked for in the archive, and nowhere else."""
    shadow = host.node.settings.data_dir / "secret"
    shadow.write_text("{}")
    for name in (str(shadow), "../../../../etc/passwd", "/etc/passwd", "link", "."):
        archive = Layer().link("link", str(shadow))
        archive.add("manifest.json", b'[{"Config":"%s","RepoTags":["x:1"],"Layers":[]}]' % name.encode())
        error = await refused(host, archive.bytes())
        assert error.code == "INVALID_REQUEST"
        assert "root:" not in error.message
    made = image(busybox())
    blob, data = max(made.blobs.items(), key=lambda item: len(item[1]))
    made.blobs[blob] = data[:-1] + b"!"
    assert "digest" in (await refused(host, oci_archive(made))).message


async def test_an_unpacker_sees_nothing_of_the_host(tmp_path: Path) -> None:
    """Behind the wall of unpacking itself: no network, no processes, no files but /usr, and nobody outside."""
    host = await start_host(tmp_path / "data")
    probe = """
import json, os, socket, sys
shown, seen = set(sys.argv[1:]), []
def look(folder):  # down to what is shown on purpose, so that nothing beside it is missed
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        seen.append(path)
        if path not in shown and os.path.isdir(path) and not os.path.islink(path): look(path)
look("/")
found = {"seen": sorted(seen), "uid": os.getuid(), "pid": os.getpid(), "fds": sorted(os.listdir("/proc/self/fd")) if os.path.exists("/proc") else []}
def tried(what, function):
    try: function(); found[what] = "worked"
    except OSError as error: found[what] = error.errno
tried("write", lambda: open("/usr/evil", "w"))
tried("root write", lambda: open("/evil", "w"))
tried("device", lambda: os.mknod("/target/null", 0o020666, os.makedev(1, 3)))
tried("network", lambda: socket.create_connection(("127.0.0.1", 22), 1))
tried("kill", lambda: os.kill(int(os.environ.get("VICTIM", "1")) + 1, 0))
tried("shadow", lambda: open("/etc/shadow"))
print(json.dumps(found))
"""
    target = tmp_path / "target"
    target.mkdir()
    try:
        with io.FileIO(os.devnull) as nothing:
            python = f"{sys.base_prefix}/bin/python3"
            said, status, complained = await host.node.images.unpacker._behind_wall(
                nothing, target, [python, "-I", "-S", "-c", probe, "/target", *map(str, _needed())]
            )
        assert status == 0, complained
        found = json.loads(said)
        shown = [Path("/target"), *_needed(), *map(Path, _links())]
        assert found["seen"] == sorted({str(part) for path in shown for part in (path, *path.parents[:-1])})
        assert found["uid"] == 0
        assert not [name for name in ("write", "root write", "device", "network", "shadow") if found[name] == "worked"]
        assert sorted(os.listdir(target)) == []
    finally:
        await stop_host(host)


async def test_imports_at_once_do_not_meet(host: Host) -> None:
    """Many at a time, good and evil: each ends as it would alone."""
    good = [imported(host, root_fs(busybox().add(f"n{number}", b"")), f"good:{number}") for number in range(4)]
    evil = [imported(host, root_fs(Layer().add("../x", b"")), f"evil:{number}") for number in range(4)]
    outcomes = await asyncio.gather(*good, *evil, return_exceptions=True)
    assert [isinstance(outcome, RunraError) for outcome in outcomes] == [False] * 4 + [True] * 4
    await host.node.images.layers.settled()
    assert len(layer_folders(host)) == 4
