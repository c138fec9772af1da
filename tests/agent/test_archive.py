"""Archives: Python's tarfile as the other side, and archives no honest writer makes."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from pathlib import Path

import pytest

from runra.errors import RunraError
from runra.node.agent.link import AgentLink

from .harness import SANITIZED


@pytest.fixture
def place(home: Path) -> Path:
    folder = home / "work"
    folder.mkdir()
    return folder


async def fetch(link: AgentLink, path: Path) -> bytes:
    return b"".join([chunk async for chunk in link.files.read_archive(str(path))])


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **more: object) -> bytes:
    """One member and its content, with nothing checked."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in more.items():
        setattr(info, key, value)
    pad = b"\0" * (-len(data) % 512)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + data + pad


END = b"\0" * 1024


async def refused(link: AgentLink, place: Path, archive: bytes) -> str:
    with pytest.raises(RunraError) as caught:
        await link.files.write_archive(str(place), archive)
    return str(caught.value.details["reason"])


async def test_round_trip(link: AgentLink, place: Path) -> None:
    source = place / "source"
    (source / "d/e").mkdir(parents=True)
    (source / "empty").mkdir(mode=0o700)
    (source / "d/e/file").write_bytes(os.urandom(100_000))
    (source / "d/e/file").chmod(0o754)
    os.utime(source / "d/e/file", (1_500_000_000, 1_500_000_000))
    (source / "zero").touch()
    (source / "exact").write_bytes(b"x" * 1024)
    (source / ("n" * 200)).write_text("long name")
    (source / "link").symlink_to("t" * 300)
    (source / "ü€").write_text("utf-8")
    (source / os.fsdecode(b"\xff\xfe" * 60)).write_text("neither utf-8 nor short")
    os.mkfifo(source / "fifo")
    archive = await fetch(link, source)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        infos = {info.name: info for info in tar}
        assert set(infos) == {
            "d", "d/e", "d/e/file", "empty", "zero", "exact", "n" * 200, "link", "ü€", os.fsdecode(b"\xff\xfe" * 60)
        }  # fmt: skip
        assert infos["link"].linkname == "t" * 300
        assert infos["d/e/file"].mode == 0o754
        assert infos["empty"].mode == 0o700
        content = tar.extractfile("d/e/file")
        assert content is not None
        assert content.read() == (source / "d/e/file").read_bytes()
    target = place / "target"
    await link.files.write_archive(str(target), archive)
    assert (target / "d/e/file").read_bytes() == (source / "d/e/file").read_bytes()
    assert (target / "d/e/file").stat().st_mode & 0o777 == 0o754
    assert (target / "d/e/file").stat().st_mtime == 1_500_000_000
    assert os.readlink(target / "link") == "t" * 300
    assert sorted(os.listdir(target)) == sorted(name for name in os.listdir(source) if name != "fifo")


async def test_one_file(link: AgentLink, place: Path) -> None:
    (place / "f").write_text("1")
    (place / "l").symlink_to("f")
    for name in ("f", "l"):
        with tarfile.open(fileobj=io.BytesIO(await fetch(link, place / name))) as tar:
            assert [(info.name, info.size) for info in tar] == [(name, 1)]
    with pytest.raises(RunraError) as caught:
        await fetch(link, place / "none")
    assert caught.value.details["reason"] == "not_found"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
async def test_what_others_write(link: AgentLink, place: Path, form: int) -> None:
    long = "/".join(["folder" * 10] * (3 if form == tarfile.USTAR_FORMAT else 8)) + "/file"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in ((long, b"long"), ("./a", b"dot"), ("b//c", b"slashes")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o4755
            tar.addfile(info, io.BytesIO(data))
        hard = tarfile.TarInfo("hard")
        hard.type, hard.linkname = tarfile.LNKTYPE, "a"
        tar.addfile(hard)
    await link.files.write_archive(str(place), buffer.getvalue())
    assert (place / long).read_bytes() == b"long"
    assert (place / "a").stat().st_mode & 0o7777 == 0o755  # no set-id
    assert (place / "a").stat().st_ino == (place / "hard").stat().st_ino
    assert (place / "b/c").read_bytes() == b"slashes"


@pytest.mark.parametrize(
    "archive",
    [
        member("../out", data=b"x"),
        member("/abs", data=b"x"),
        member("a/../../out", data=b"x"),
        member("..", tarfile.DIRTYPE),
        member("dev", tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("dev", tarfile.BLKTYPE),
        member("pipe", tarfile.FIFOTYPE),
        member("odd", b"Z"),
        member("x", tarfile.LNKTYPE, linkname="../outside"),
        member("x", tarfile.LNKTYPE, linkname="/etc/passwd"),
        member("x", tarfile.SYMTYPE),
        member(".", data=b"x"),
        member("x", data=b"y" * 600)[:900],
        member("x", data=b"y")[:300],
        b"",
        b"not a tar",
        b"x" * 512,
        bytes(range(256)) * 20,
        member("x", data=b"", pax_headers={"GNU.sparse.map": "0,1"}),
        member("pax", b"x", b"99 path=a\n"),
        member("pax", b"x", b"1 \n"),
        member("pax", b"x", b"2 \n\n"),
        member("pax", b"x", b"7 path\n"),
        member("pax", b"x", b"30 path=" + b"a\0b" + b"c" * 18 + b"\n"),
        member("pax", b"x", b"9999999999999999999999 path=a\n"),
        member("pax", b"x", b"14 size=abcde\n"),
        member("pax", b"x", b"x" * 70_000),
        member("././@LongLink", b"L", b"a" * 5000),
    ],
    ids=lambda raw: f"{zlib.crc32(raw):08x}",
)
async def test_hostile_archives(link: AgentLink, place: Path, archive: bytes) -> None:
    inside = place / "in"
    assert await refused(link, inside, archive + (END if len(archive) > 1000 else b"")) == "bad_archive"
    assert [name for name in os.listdir(place) if name != "in"] == []


async def test_links_are_never_written_through(link: AgentLink, place: Path) -> None:
    outside = place / "outside"
    outside.mkdir()
    (outside / "file").write_text("safe")
    for number, attack in enumerate(
        (
            member("l", tarfile.SYMTYPE, linkname="../outside") + member("l/file", data=b"evil"),
            member("l", tarfile.SYMTYPE, linkname=str(outside)) + member("l/sub/file", data=b"evil"),
            member("l", tarfile.SYMTYPE, linkname="../outside") + member("l", tarfile.DIRTYPE, mode=0o777),
            member("l", tarfile.SYMTYPE, linkname="../outside") + member("h", tarfile.LNKTYPE, linkname="l/file"),
        )
    ):
        assert await refused(link, place / f"in{number}", attack + END) in ("not_a_directory", "too_many_links")
    # a file in the place of a link replaces the link
    archive = member("l", tarfile.SYMTYPE, linkname="../outside/file") + member("l", data=b"evil") + END
    await link.files.write_archive(f"{place}/in", archive)
    assert (place / "in/l").read_text() == "evil"
    assert not (place / "in/l").is_symlink()
    assert (outside / "file").read_text() == "safe"
    assert os.listdir(outside) == ["file"]


async def test_over_what_is_there(link: AgentLink, place: Path) -> None:
    (place / "file").write_text("old")
    (place / "folder").mkdir()
    await link.files.write_archive(str(place), member("file", data=b"new") + member("folder/x", data=b"1") + END)
    assert (place / "file").read_text() == "new"
    assert await refused(link, place, member("folder", data=b"1") + END) == "is_a_directory"
    assert await refused(link, place, member("file/x", data=b"1") + END) == "not_a_directory"


async def test_a_big_archive_in_constant_memory(link: AgentLink, place: Path) -> None:
    size = (20 if SANITIZED else 100) << 20
    (place / "big").write_bytes(os.urandom(1 << 20) * (size >> 20))
    (place / "into").mkdir()

    await link.files.write_archive(f"{place}/into", link.files.read_archive(f"{place}/big"))
    assert (place / "into/big").stat().st_size == size
    with open(place / "big", "rb") as one, open(place / "into/big", "rb") as two:
        while block := one.read(1 << 20):
            assert two.read(1 << 20) == block


async def test_sizes_beyond_octal(link: AgentLink, place: Path) -> None:
    with open(place / "huge", "wb") as file:
        file.truncate(9 << 30)  # sparse: only its header is read
    stream = link.files.read_archive(f"{place}/huge")
    head = await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    info = tarfile.TarInfo.frombuf(head[1024:1536], "utf-8", "surrogateescape")
    assert b"size=%d\n" % (9 << 30) in head[512:1024]
    assert info.name == "huge"
