"""File operations, against a real file system and the real agent."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runra.errors import RunraError
from runra.node.agent.files import FileStream
from runra.node.agent.link import AgentLink
from runra.node.agent.types import AgentLost

from .harness import SANITIZED, Agent, can_unshare, children, until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")


@pytest.fixture
def place(home: Path) -> Path:
    home.chmod(0o755)
    folder = home / "work"
    folder.mkdir()
    return folder


async def content(stream: FileStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def reason(awaitable: object) -> str:
    with pytest.raises(RunraError) as caught:
        await awaitable  # type: ignore[misc]
    assert caught.value.code == "INVALID_REQUEST"
    return str(caught.value.details["reason"])


async def test_write_read_stat(link: AgentLink, place: Path) -> None:
    path = f"{place}/a/b/file.txt"
    entry = await link.files.write(path, b"hello")
    assert (entry.name, entry.path, entry.size_bytes, entry.mode, entry.type) == ("file.txt", path, 5, "0644", "file")
    stream = await link.files.read(path)
    assert stream.size == 5
    assert stream.entry == entry
    assert await content(stream) == b"hello"
    assert await link.files.stat(path) == entry
    assert entry.modified_at.endswith("Z")
    assert os.listdir(place / "a/b") == ["file.txt"]


async def test_ranges(link: AgentLink, place: Path) -> None:
    data = os.urandom(300_000)
    (place / "f").write_bytes(data)
    for offset, length in [(0, 0), (0, 10), (5, None), (299_999, 5), (300_000, 5), (10**12, None), (65_536, 131_072)]:
        got = await content(await link.files.read("f", offset=offset, length=length, cwd=str(place)))
        assert got == data[offset : None if length is None else offset + length]
    assert await reason(link.files.read("f", offset=-1)) == "invalid"
    (place / "empty").touch()
    assert await content(await link.files.read(f"{place}/empty")) == b""
    assert b"Linux" in await content(await link.files.read("/proc/version"))


async def test_relative_and_untidy_paths(link: AgentLink, place: Path) -> None:
    await link.files.write("./x//y/./z", b"1", cwd=f"{place}/")
    assert (place / "x/y/z").read_bytes() == b"1"
    assert (await link.files.stat("x/y/z", cwd=str(place))).path == f"{place}/x/y/z"
    assert (await link.files.stat("/")).type == "directory"
    assert await reason(link.files.stat("")) == "not_found"
    assert await reason(link.files.stat("a\0b")) == "invalid"
    assert await reason(link.files.stat("a" * 70_000)) == "name_too_long"
    assert await reason(link.files.stat("/" + "a" * 300)) == "name_too_long"


async def test_modes_and_links_on_writing(link: AgentLink, place: Path) -> None:
    target = place / "target"
    target.write_text("old")
    target.chmod(0o751)
    (place / "sub").mkdir()
    (place / "sub/one").symlink_to("../two")
    (place / "two").symlink_to(target)
    entry = await link.files.write(f"{place}/sub/one", b"new")
    assert target.read_text() == "new"
    assert (place / "sub/one").is_symlink()
    assert (place / "two").is_symlink()
    assert (entry.mode, entry.name) == ("0751", "one")
    assert (await link.files.write(f"{place}/two", b"x", mode=0o600)).mode == "0600"
    (place / "nowhere").symlink_to("new-one")
    await link.files.write(f"{place}/nowhere", b"made", fsync=True)
    assert (place / "new-one").read_text() == "made"
    (place / "loop").symlink_to("loop")
    assert await reason(link.files.write(f"{place}/loop", b"")) == "too_many_links"


async def test_refusals(link: AgentLink, place: Path) -> None:
    (place / "folder").mkdir()
    (place / "file").touch()
    assert await reason(link.files.read(f"{place}/none")) == "not_found"
    assert await reason(link.files.read(f"{place}/folder")) == "is_a_directory"
    assert await reason(link.files.read(f"{place}/file/x")) == "not_a_directory"
    assert await reason(link.files.write(f"{place}/folder", b"")) == "is_a_directory"
    assert await reason(link.files.write(f"{place}/none/x", b"", make_parents=False)) == "not_found"
    assert await reason(link.files.write(f"{place}/file/x", b"")) == "not_a_directory"
    assert await reason(link.files.mkdir(f"{place}/folder")) == "exists"
    assert await reason(link.files.mkdir(f"{place}/file", recursive=True)) == "not_a_directory"
    assert await reason(link.files.mkdir(f"{place}/a/b")) == "not_found"
    assert await reason(link.files.list(f"{place}/file")) == "not_a_directory"
    assert await reason(link.files.delete(f"{place}/none")) == "not_found"
    assert await reason(link.files.move(f"{place}/none", f"{place}/x")) == "not_found"
    assert await reason(link.files.move(f"{place}/folder", f"{place}/folder/x")) == "invalid"
    assert await reason(link.files.delete("/", recursive=True)) == "busy"
    with pytest.raises(RunraError) as caught:
        await link.files.stat("/", user="nobody-here")
    assert caught.value.details["reason"] == "unknown_user"


async def test_a_failed_write_of_much_data_tells_why(link: AgentLink, place: Path) -> None:
    (place / "folder").mkdir()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x" * 50_000
            await asyncio.sleep(0)

    assert await reason(link.files.write(f"{place}/folder", chunks())) == "is_a_directory"


async def test_irregular_files_never_block(link: AgentLink, place: Path) -> None:
    os.mkfifo(place / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(place / "socket"))
    async with asyncio.timeout(5):
        for name in (f"{place}/fifo", f"{place}/socket", "/dev/null", "/dev/tty"):
            assert await reason(link.files.read(name)) == "not_a_regular_file"
            assert await reason(link.files.write(name, b"x")) == "not_a_regular_file"
    kinds = {entry.name: entry.type for entry in await link.files.list(str(place))}
    assert kinds == {"fifo": "fifo", "socket": "socket"}
    assert (await link.files.stat("/dev/null")).type == "char"


async def test_list(link: AgentLink, place: Path) -> None:
    (place / "d/e/f").mkdir(parents=True)
    (place / "d/e/deep").write_text("1234")
    (place / "to-d").symlink_to("d")
    (place / "broken").symlink_to("nowhere")
    entries = await link.files.list(str(place))
    assert [(e.name, e.type, e.is_directory, e.symlink_target) for e in entries] == [
        ("broken", "symlink", False, "nowhere"),
        ("d", "directory", True, None),
        ("to-d", "symlink", True, "d"),
    ]
    below = [e.path.removeprefix(f"{place}/") for e in await link.files.list(str(place), depth=3)]
    assert below == ["broken", "d", "d/e", "d/e/deep", "d/e/f", "to-d"]
    assert [e.name for e in await link.files.list(f"{place}/to-d")] == ["e"]
    assert await reason_of_depth(link) == "invalid"
    assert await link.files.list(f"{place}/d/e/f") == []
    assert {e.name for e in await link.files.list("/")} >= {"proc", "usr"}


async def reason_of_depth(link: AgentLink) -> str:
    with pytest.raises(RunraError) as caught:
        link.files.list("/", depth=0)
    return str(caught.value.details["reason"])


async def test_names_that_are_not_utf8(link: AgentLink, place: Path) -> None:
    raw = b"caf\xe9 \xff\n\x01"
    name = raw.decode("utf-8", "surrogateescape")
    await link.files.write(f"{place}/{name}", b"1")
    assert os.listdir(os.fsencode(place)) == [raw]
    (entry,) = await link.files.list(str(place))
    assert entry.name == name
    assert (await link.files.stat(entry.path)).name == name
    (place / "link").symlink_to(name)
    assert (await link.files.stat(f"{place}/link")).symlink_target == name
    await link.files.move(entry.path, f"{place}/plain")
    assert sorted(os.listdir(place)) == ["link", "plain"]


async def test_a_hundred_thousand_names_stream(link: AgentLink, place: Path, agent: Agent) -> None:
    count = 10_000 if SANITIZED else 100_000
    for number in range(count):
        os.close(os.open(place / f"{number:06}-a-name-of-some-length", os.O_CREAT | os.O_WRONLY))
    seen = 0
    async for entry in link.files.list(str(place)):
        assert entry.size_bytes == 0
        seen += 1
        if seen == 1 and not SANITIZED:
            assert agent.memory() < 2 << 20
    assert seen == count
    await link.files.delete(str(place), recursive=True)
    assert not place.exists()


async def test_an_abandoned_listing_ends_its_worker(link: AgentLink, agent: Agent, place: Path) -> None:
    for number in range(20_000):
        os.close(os.open(place / f"{number:0200}", os.O_CREAT | os.O_WRONLY))
    listing = link.files.list(str(place))
    await anext(listing)
    await listing.aclose()
    await until(lambda: not list(children(agent.pid)))
    await link.ping()


async def test_mkdir_move_delete(link: AgentLink, place: Path) -> None:
    await link.files.mkdir("a/b/c", recursive=True, cwd=str(place))
    await link.files.mkdir("a/b/c", recursive=True, cwd=str(place))
    assert stat.S_IMODE((place / "a/b").stat().st_mode) == 0o755
    await link.files.write("a/b/file", b"1", cwd=str(place))
    await link.files.move("a/b", "moved", cwd=str(place))
    assert (place / "moved/file").exists()
    assert await reason(link.files.delete("moved", cwd=str(place))) == "not_empty"
    outside = place / "outside"
    outside.mkdir()
    (outside / "keep").touch()
    (place / "moved/link").symlink_to(outside)
    await link.files.delete("moved", recursive=True, cwd=str(place))
    assert not (place / "moved").exists()
    assert (outside / "keep").exists()
    (place / "to-outside").symlink_to(outside)
    await link.files.delete("to-outside/", recursive=True, cwd=str(place))
    assert (outside / "keep").exists()
    assert not (place / "to-outside").is_symlink()
    await link.files.delete(f"{outside}/keep")
    await link.files.delete(str(outside))


async def test_deep_trees(link: AgentLink, place: Path) -> None:
    """Deeper than PATH_MAX and than any number of descriptors."""
    depth = 3000
    fd = os.open(place, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deep", dir_fd=fd)
        down = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = down
    os.close(fd)
    seen = 0
    async for _ in link.files.list(str(place), depth=1 << 20):
        seen += 1
    assert seen == depth
    size = sum([len(chunk) async for chunk in link.files.read_archive(str(place))])
    assert size > depth * 1024
    await link.files.delete(f"{place}/deep", recursive=True)
    assert os.listdir(place) == []


async def test_move_to_another_file_system(link: AgentLink, place: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == place.stat().st_dev:
        pytest.skip("needs a second file system")
    (place / "f").write_bytes(b"data" * 100_000)
    (place / "f").chmod(0o640)
    os.utime(place / "f", (1_000_000, 1_000_000))
    (place / "l").symlink_to("f")
    far = other / place.parent.name
    far.mkdir()
    try:
        await link.files.move(f"{place}/f", f"{far}/g")
        assert (far / "g").read_bytes() == b"data" * 100_000
        assert (far / "g").stat().st_mode & 0o777 == 0o640
        assert (far / "g").stat().st_mtime == 1_000_000
        await link.files.move(f"{place}/l", f"{far}/l")
        assert os.readlink(far / "l") == "f"
        assert os.listdir(place) == []
        assert sorted(os.listdir(far)) == ["g", "l"]
        (place / "d").mkdir()
        assert await reason(link.files.move(f"{place}/d", f"{far}/d")) == "cross_device"
    finally:
        for name in os.listdir(far):
            (far / name).unlink()
        far.rmdir()


async def test_a_cancelled_write_leaves_nothing(link: AgentLink, place: Path, agent: Agent) -> None:
    (place / "f").write_text("old")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 100_000
            await asyncio.sleep(0)

    task = asyncio.ensure_future(link.files.write(f"{place}/f", endless()))
    await until(lambda: len(os.listdir(place)) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: os.listdir(place) == ["f"] and not list(children(agent.pid)))
    assert (place / "f").read_text() == "old"
    task = asyncio.ensure_future(link.files.write(f"{place}/f", endless()))
    await until(lambda: len(os.listdir(place)) == 2)
    await link.close()  # or the host dies
    with pytest.raises(AgentLost):
        await task
    await until(lambda: os.listdir(place) == ["f"])
    assert (place / "f").read_text() == "old"


async def test_the_source_fails_in_the_middle(link: AgentLink, place: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("the client went away")

    with pytest.raises(RuntimeError):
        await link.files.write(f"{place}/f", broken())
    await until(lambda: os.listdir(place) == [])


async def test_two_gigabytes_sparse(link: AgentLink, place: Path) -> None:
    """A big size, little content: the offsets are what is tested. The whole way is walked in test_volume."""
    size = 2 << 30
    with open(place / "sparse", "wb") as file:
        file.truncate(size)
        file.seek(size - 3)
        file.write(b"end")
    stream = await link.files.read(f"{place}/sparse", offset=size - 10)
    assert stream.size == size
    assert await content(stream) == b"\0" * 7 + b"end"
    stream = await link.files.read(f"{place}/sparse")
    assert len(await anext(stream)) > 0
    await stream.aclose()
    await stream.aclose()


async def test_volume(link: AgentLink, place: Path, agent: Agent) -> None:
    size = (32 if SANITIZED else 192) << 20
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size >> 20):
            digest.update(block)
            yield block

    entry = await link.files.write(f"{place}/big", chunks())
    assert entry.size_bytes == size
    back = hashlib.sha256()
    pieces = 0
    async for piece in await link.files.read(f"{place}/big"):
        back.update(piece)
        pieces += 1
        if pieces % 400 == 0:
            await asyncio.sleep(0.01)
            if not SANITIZED:
                assert agent.memory() < 3 << 20
    assert back.digest() == digest.digest()


@pytest.mark.skipif(not can_unshare(), reason="this machine makes no mount namespaces for us")
async def test_full_disk_and_a_file_that_is_a_mount(binary: Path, home: Path) -> None:
    for name in ("small", "mounted"):
        (home / name).mkdir()
    (home / "mounted/file").write_text("old")
    setup = (
        f"mount -t tmpfs -o size=1m none {home}/small && echo kept > {home}/small/f && "
        f'mount --bind {home}/small/f {home}/mounted/file && exec "$@"'
    )
    agent = Agent(binary, home, ("unshare", "-Urm", "sh", "-c", setup, "sh"))
    try:
        link = await agent.connect()
        with pytest.raises(RunraError) as caught:
            await link.files.write(f"{home}/small/f", b"x" * (8 << 20))
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        assert caught.value.details["reason"] == "disk_full"
        assert not caught.value.retryable
        assert [entry.name for entry in await link.files.list(f"{home}/small")] == ["f"]
        assert await content(await link.files.read(f"{home}/small/f")) == b"kept\n"
        await link.files.write(f"{home}/mounted/file", b"through the mount", mode=0o600)
        assert await content(await link.files.read(f"{home}/small/f")) == b"through the mount"
        assert (await link.files.stat(f"{home}/small/f")).mode == "0600"
        assert [entry.name for entry in await link.files.list(f"{home}/mounted")] == ["file"]
        await link.close()
    finally:
        agent.stop()


@as_root
async def test_as_another_user(link: AgentLink, place: Path) -> None:
    place.chmod(0o777)
    (place / "secret").write_text("root's")
    (place / "secret").chmod(0o600)
    assert await reason(link.files.read(f"{place}/secret", user="nobody")) == "permission_denied"
    assert await reason(link.files.write(f"{place}/secret", b"", user="nobody")) == "permission_denied"
    entry = await link.files.write(f"{place}/mine", b"1", user="nobody")
    assert (entry.owner, entry.group) == ("nobody", "nogroup")
    await link.files.write(f"{place}/mine", b"2")  # root keeps the owner, as an editor does
    assert (await link.files.stat(f"{place}/mine")).owner == "nobody"
    (place / "closed").mkdir(mode=0o700)
    assert await reason(link.files.list(f"{place}/closed", user="nobody")) == "permission_denied"
    listed = await link.files.list(str(place), depth=5, user="nobody")
    assert [entry.name for entry in listed] == ["closed", "mine", "secret"]


async def test_killed_worker_is_an_error(link: AgentLink, place: Path, agent: Agent) -> None:
    with open(place / "f", "wb") as file:
        file.truncate(1 << 30)
    stream = await link.files.read(f"{place}/f")
    await anext(stream)
    os.kill(next(pid for pid, _ in children(agent.pid)), 9)
    with pytest.raises(RunraError, match="SIGKILL"):
        await content(stream)


async def test_many_at_once(link: AgentLink, place: Path) -> None:
    async def one(number: int) -> None:
        path = f"{place}/{number % 7}/{number}"
        await link.files.write(path, str(number).encode() * 1000)
        assert await content(await link.files.read(path)) == str(number).encode() * 1000
        await link.files.delete(path)

    await asyncio.gather(*(one(n) for n in range(60)))
