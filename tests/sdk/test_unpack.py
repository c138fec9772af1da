"""Archives from a sandbox are hostile: whatever is in them, nothing outside the folder is touched."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runra import RunraError
from runra.sdk.pack import Packer
from runra.sdk.unpack import Unpacker


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", link: str = "", mode: int = 0o644) -> Any:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, len(data)
    return info, data


def archive(*members: Any, form: int = tarfile.PAX_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if data else None)
    return target.getvalue()


def unpack(data: bytes, root: Path, step: int = 1000, **limits: int) -> Unpacker:
    unpacker = Unpacker(root, **limits)
    try:
        for start in range(0, len(data), step):
            unpacker.feed(data[start : start + step])
        unpacker.finish()
    finally:
        unpacker.close()
    return unpacker


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_text("untouched")
    (tmp_path / "secret").mkdir()
    inside = tmp_path / "inside"
    inside.mkdir()
    return inside


def untouched(root: Path) -> bool:
    home = root.parent
    return sorted(os.listdir(home)) == ["inside", "outside", "secret"] and (
        (home / "outside").read_text() == "untouched" and os.listdir(home / "secret") == []
    )


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("step", [1, 511, 512, 100_000])
def test_ordinary_archives(root: Path, form: int, step: int) -> None:
    deep = "d" * 90 + "/" + "é" * 60 + "/" + "f" * 120
    data = archive(
        member("d/", tarfile.DIRTYPE, mode=0o700), member("d/a", data=b"x" * 700, mode=0o755), member("d/empty"),
        member("d/link", tarfile.SYMTYPE, link="../top"), member("top", data=b"top"), member(deep, data=b"deep"),
        member("hard", tarfile.LNKTYPE, link="d/a"), member("./dot", data=b"."), member("no/folder/before", data=b"1"),
        form=form,
    )  # fmt: skip
    done = unpack(data, root, step)
    assert done.skipped == []
    assert (root / "d/a").read_bytes() == b"x" * 700
    assert stat.S_IMODE((root / "d/a").stat().st_mode) == 0o755
    assert (root / "d/empty").read_bytes() == b""
    assert (root / "d/link").read_text() == "top"
    assert (root / deep).read_text() == "deep"
    assert (root / "hard").samefile(root / "d/a")
    assert (root / "dot").read_text() == "."
    assert (done.files, done.bytes) == (8, 700 + 3 + 4 + 1 + 1)


@pytest.mark.parametrize(
    "members",
    [
        [member("../outside", data=b"evil")],
        [member("a/../../outside", data=b"evil")],
        [member("/tmp/runra-evil", data=b"evil")],
        [member("..", tarfile.DIRTYPE)],
        [member("l", tarfile.SYMTYPE, link="../outside"), member("l", data=b"evil")],
        [member("l", tarfile.SYMTYPE, link=".."), member("l/outside", data=b"evil")],
        [member("l", tarfile.SYMTYPE, link="../secret"), member("l/new", data=b"evil")],
        [member("l", tarfile.SYMTYPE, link="/etc/passwd")],
        [member("h", tarfile.LNKTYPE, link="../outside"), member("h", data=b"evil")],
        [member("h", tarfile.LNKTYPE, link="/etc/passwd")],
        # The ways around checks that only look at the text of a link (CVE-2025-4138, CVE-2025-4517).
        [member("s", tarfile.SYMTYPE, link="."), member("e", tarfile.SYMTYPE, link="s/s/s/../../../outside")],
        [member("a/b/", tarfile.DIRTYPE), member("a/b/up", tarfile.SYMTYPE, link="../.."),
         member("e", tarfile.SYMTYPE, link="a/b/up/../outside")],
        [member("d", tarfile.DIRTYPE), member("d/l", tarfile.SYMTYPE, link="../../outside")],
        [member("dev", tarfile.CHRTYPE), member("pipe", tarfile.FIFOTYPE), member("disk", tarfile.BLKTYPE)],
        [member("odd", b"Z", data=b"x" * 600)],
    ],
)  # fmt: skip
def test_nothing_leads_out(root: Path, members: Any) -> None:
    done = unpack(archive(*members, member("last", data=b"still comes")), root)
    assert untouched(root)
    assert done.skipped
    assert (root / "last").read_bytes() == b"still comes"
    for path in root.rglob("*"):
        assert path.resolve().is_relative_to(root), path
        kind = path.lstat().st_mode
        assert stat.S_ISREG(kind) or stat.S_ISDIR(kind) or stat.S_ISLNK(kind)


def test_files_are_never_replaced(root: Path) -> None:
    done = unpack(archive(member("a", data=b"first"), member("a", data=b"second"), member("a/b", data=b"x")), root)
    assert (root / "a").read_bytes() == b"first"
    assert len(done.skipped) == 2


def test_set_id_and_foreign_writing_are_taken_off(root: Path) -> None:
    unpack(
        archive(member("a", data=b"x", mode=0o6777), member("b", mode=0), member("d", tarfile.DIRTYPE, mode=0)), root
    )
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in root.iterdir()}
    assert modes == {"a": 0o755, "b": 0o600, "d": 0o700}


def test_bounds(root: Path) -> None:
    many = archive(*[member(str(n)) for n in range(10)])
    with pytest.raises(RunraError, match="more than 5 members"):
        unpack(many, root, max_entries=5)
    with pytest.raises(RunraError, match="more than 100 bytes"):
        unpack(archive(member("big", data=b"x" * 101)), root, max_bytes=100)
    with pytest.raises(RunraError, match="impossible length"):
        unpack(archive(member("x", data=b"")).replace(b"\0", b"\0") and _extra(2 << 20), root)
    deep = unpack(archive(member("/".join("d" * 300), data=b"x")), root)
    assert deep.skipped


def _extra(size: int) -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf()


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 512, b"x" * 100, archive(member("a", data=b"x" * 600))[:700], archive(member("a"))[:300],
     _extra(10) + b"not pax..." + bytes(502) + archive(member("a"))],
)  # fmt: skip
def test_what_is_no_archive_is_refused(root: Path, data: bytes) -> None:
    with pytest.raises(RunraError, match="cannot be unpacked") as caught:
        unpack(data, root)
    assert caught.value.details == {"reason": "bad_archive"}


names = st.lists(st.sampled_from(["a", "b", "..", ".", "", "l"]), min_size=1, max_size=5).map("/".join)
kinds = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(names, kinds, names), max_size=8))
def test_no_archive_leads_out(tmp_path_factory: pytest.TempPathFactory, wanted: list[tuple[str, bytes, str]]) -> None:
    home = tmp_path_factory.mktemp("h")
    root = home / "x" / "y"
    root.mkdir(parents=True)
    members = [
        member(name or "n", kind, b"data" if kind == tarfile.REGTYPE else b"", link) for name, kind, link in wanted
    ]
    unpack(archive(*members, member("end")), root)
    assert os.listdir(home) == ["x"]
    assert os.listdir(home / "x") == ["y"]
    for path in root.rglob("*"):
        try:  # the kernel's word, not a calculation: realpath loses its way in a ring of links
            there = os.open(path, os.O_PATH)
        except OSError:
            continue  # it leads nowhere
        assert Path(os.readlink(f"/proc/self/fd/{there}")).is_relative_to(root)
        os.close(there)


@settings(deadline=None)
@given(st.binary(max_size=2000), st.integers(0, 3000), st.integers(0, 255))
def test_damage_is_an_error_and_nothing_worse(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int, byte: int
) -> None:
    data = bytearray(archive(member("a", data=b"x" * 600), member("é" * 70, data=b"y")))
    data[at % len(data)] = byte
    for content in (bytes(data), noise, bytes(data[:at]) + noise):
        home = tmp_path_factory.mktemp("d")
        root = home / "in"
        root.mkdir()
        with contextlib.suppress(RunraError):
            unpack(content, root)
        assert os.listdir(home) == ["in"]


def test_a_packed_folder_comes_back(tmp_path: Path, root: Path) -> None:
    source = tmp_path / "secret"
    (source / "d").mkdir()
    (source / "d" / ("f" * 200)).write_bytes(b"x" * 1_000_000)
    (source / "ünï").write_text("u")
    (source / "run").write_text("#!")
    (source / "run").chmod(0o755)
    (source / "link").symlink_to("d")
    os.mkfifo(source / "pipe")
    packer = Packer(source)
    stream: Iterator[bytes] = packer.pieces()
    done = unpack(b"".join(stream), root)
    assert (done.files, done.bytes, done.skipped) == (packer.files, packer.bytes, [])
    assert packer.skipped == ["pipe: neither a file, a folder nor a link"]
    assert (root / "d" / ("f" * 200)).stat().st_size == 1_000_000
    assert (root / "ünï").read_text() == "u"
    assert os.access(root / "run", os.X_OK)
    assert os.readlink(root / "link") == "d"
