"""The file API against root in a real sandbox: it prepares the files, the host works on them.

The host's side never opens a path itself, the agent's workers do so inside the walls. So the oracle is a folder of the
host that every attack aims at, the sandbox's own files that no call named, and the clock: each call has a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import struct
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runra.errors import RunraError
from runra.node import Sandbox
from runra.node.agent.files import AgentFiles
from runra.node.agent.types import AgentLost, ExecSpec
from runra.sdk.unpack import Unpacker
from tests.hosting import Host, both_walls, bubblewrap_only, until

SECRET = b"of the host alone"
END = b"\0" * 1024
#: A small disk and small memory: what fills them fills them quickly.
SMALL = {"resources": {"cpu": 1, "memoryMb": 128, "diskMb": 64}}
#: Longest that any one call may take here; the machine may be busy with other tests.
CALL = 20.0


@dataclass
class Target:
    """A folder on the host that nothing inside may read or change."""

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "sub").mkdir(parents=True)
        for name in ("secret", "sub/file"):
            (self.folder / name).write_bytes(SECRET)
        for path in (self.folder, self.folder / "sub"):
            path.chmod(0o777)  # reachable, as far as the host is concerned
        (self.folder / "secret").chmod(0o666)
        self.before = self.state()

    def state(self) -> dict[str, tuple[int, int, int, bytes]]:
        found = {}
        for path in [self.folder, *sorted(self.folder.rglob("*"))]:
            about = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (about.st_mode, about.st_uid, about.st_mtime_ns, content)
        return found

    def untouched(self) -> bool:
        return self.state() == self.before


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path / "target")


@contextlib.asynccontextmanager
async def box(host: Host, **config: Any) -> AsyncIterator[tuple[Sandbox, AgentFiles]]:
    sandbox = await host.create(**config)
    async with sandbox.use() as agent:
        yield sandbox, agent.files


async def prepare(host: Host, sandbox: Sandbox, program: str) -> str:
    """Run a Python program inside to its end."""
    async with sandbox.use() as agent, asyncio.timeout(60):
        process = await agent.exec(ExecSpec(argv=("python3", "-c", program), cwd="/workspace", env=sandbox.env))
        text = b"".join([chunk.data async for chunk in process.output()]).decode(errors="replace")
        assert (await process.wait()).code == 0, text
        return text


@contextlib.asynccontextmanager
async def meanwhile(sandbox: Sandbox, program: str) -> AsyncIterator[None]:
    """A Python program that runs inside for as long as the block does; it must still run at its end."""
    async with sandbox.use() as agent:
        spec = ExecSpec(argv=("python3", "-c", program), cwd="/workspace", env=sandbox.env, timeout_ms=60_000)
        process = await agent.exec(spec)
        output = process.output()
        async with asyncio.timeout(20):
            first = await anext(output, None)
        assert first is not None
        assert first.data.startswith(b"ready"), first.data
        yield
        [mine] = [one for one in await agent.processes() if one.pid == process.pid]
        assert mine.exit is None, "the attacker gave up"
        await agent.signal(process.pid, 9)
        process.detach()


async def outcome(call: Awaitable[Any]) -> Any:
    """What a call gave, or its error; a call that takes longer than its deadline fails the test."""
    try:
        async with asyncio.timeout(CALL):
            return await call
    except AgentLost:
        raise
    except RunraError as error:
        return error


async def collect(stream: AsyncIterator[bytes], limit: int = 64 << 20, into: list[bytes] | None = None) -> bytes:
    parts: list[bytes] = [] if into is None else into
    size = 0
    async for part in stream:
        parts.append(part)
        size += len(part)
        if size > limit:
            break
    if hasattr(stream, "aclose"):
        await stream.aclose()
    return b"".join(parts)


async def content(files: AgentFiles, path: str, limit: int = 64 << 20, **options: Any) -> bytes:
    async with await files.read(path, **options) as stream:
        return await collect(stream, limit)


def every_call(files: AgentFiles, path: str) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Each operation once, on a path as it is."""
    return {
        "stat": lambda: files.stat(path),
        "read": lambda: content(files, f"{path}/secret"),
        "list": lambda: files.list(path, depth=3),
        "archive": lambda: collect(files.read_archive(path)),
        "write": lambda: files.write(f"{path}/secret", b"evil"),
        "write new": lambda: files.write(f"{path}/sub/new/file", b"evil"),
        "mkdir": lambda: files.mkdir(f"{path}/made", recursive=True),
        "unpack": lambda: files.write_archive(path, member("sub/file", data=b"evil") + END),
        "move in": lambda: files.move("/etc/hostname", f"{path}/moved"),
        "move out": lambda: files.move(f"{path}/secret", "/workspace/moved"),
        "delete file": lambda: files.delete(f"{path}/secret"),
        "delete": lambda: files.delete(path, recursive=True),
    }


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **more: object) -> bytes:
    """One member of an archive and its content, with nothing checked."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + data + b"\0" * (-len(data) % 512)


def forged(block: bytes, at: int, field: bytes) -> bytes:
    """A header with a field replaced and its checksum made right again."""
    header = bytearray(block[:512])
    header[at : at + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + block[512:]


# --- paths ---


@both_walls
async def test_no_path_leads_out(host: Host, target: Target) -> None:
    links = f"""
import os
os.symlink({str(target.folder)!r}, "absolute")
os.symlink("../" * 30 + {str(target.folder)!r}, "upwards")
os.symlink("/proc/1/root" + {str(target.folder)!r}, "magic")
os.symlink("/proc/self/root", "own"); os.symlink("/proc/1/cwd", "first"); os.symlink("/proc/self/fd/0", "descriptor")
os.symlink("loop", "loop")
"""
    goal = str(target.folder)
    places = [
        *(f"{start}{goal}" for start in ("", "/..", "/../../../../..", "../../../../../../../..", "/proc/1/root")),
        *(f"{start}{goal}" for start in ("/proc/self/root", "/proc/self/cwd/../../../..", "/proc/1/cwd/../..")),
        *(f"{start}{goal}" for start in ("/proc/thread-self/root/..", "/proc/self/fd/0/../../../..", "//..//./..")),
        *(
            f"{start}{goal}"
            for start in ("/oldroot", "/proc/self/task/1/root", "/workspace/own/..", "/workspace/first")
        ),
        *("/workspace/absolute", "/workspace/upwards", "/workspace/magic", "/workspace/loop", "/workspace/descriptor"),
    ]
    sandbox_files = str(host.node.settings.data_dir)
    async with box(host) as (sandbox, files):
        await prepare(host, sandbox, links)
        ended = 0
        for place in places:
            for name, call in every_call(files, place).items():
                result = await outcome(call())
                ended += isinstance(result, RunraError)
                assert SECRET not in (result if isinstance(result, bytes) else repr(result).encode()), (name, place)
                assert sandbox_files not in repr(result), (name, place)
        assert ended > len(places), "most of these name nothing in the sandbox"
        assert target.untouched()
    await prepare(host, sandbox, "pass")


HOSTILE_NAMES = [
    *(
        b"new\nline",
        b"-rf",
        b"--help",
        b"~",
        b"*",
        b"$(reboot)",
        b"`id`",
        b"a b ",
        b" ",
        b"\x1b[2J\x07",
        b"\xff\xfe\x80",
    ),
    *(
        b"n" * 255,
        b"\xe2\x80\xae" * 85,
        b"...",
        b"..\\..",
        b"%2e%2e",
        b"C:evil",
        b"\x01",
        b"\r",
        b'"',
        b"'",
        b"|",
        b";",
    ),
    *(
        b"\xed\xa0\x80",
        b"\xc0\xae\xc0\xae",
        b"con\0"[:3],
        b".runra-0000000000000000.tmp",
        b"pax_global_header",
        b"@LongLink",
    ),
]


@both_walls
async def test_hostile_names_come_and_go_as_they_are(host: Host, tmp_path: Path) -> None:
    async with box(host) as (sandbox, files):
        program = f"import os; os.mkdir('names'); [open(b'names/' + n, 'wb').write(n) for n in {HOSTILE_NAMES!r}]"
        await prepare(host, sandbox, program)
        listed = await files.list("/workspace/names")
        assert sorted(os.fsencode(entry.name) for entry in listed) == sorted(HOSTILE_NAMES)
        archive = await collect(files.read_archive("/workspace/names"))
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            assert sorted(os.fsencode(info.name) for info in tar) == sorted(HOSTILE_NAMES)
        await files.write_archive("/workspace/copy", archive)
        for name in HOSTILE_NAMES:
            path = f"/workspace/copy/{os.fsdecode(name)}"
            assert await content(files, path) == name
            await files.write(path, b"new")
            await files.move(path, path[:-1] + "x")
            assert (await files.stat(path[:-1] + "x")).size_bytes == 3
            await files.delete(path[:-1] + "x")
        assert await files.list("/workspace/copy") == []
        for path, reason in (("/" + "n" * 256, "name_too_long"), ("/n" * 2500, "name_too_long"), ("a\0b", "invalid")):
            for call in every_call(files, path).values():
                error = await outcome(call())
                assert isinstance(error, RunraError), (path[:20], error)
                assert error.details["reason"] in (reason, "not_found"), error  # a move looks for its source first
        unpacked = tmp_path / "unpacked"
        unpacked.mkdir()
        unpacker = Unpacker(unpacked)
        try:
            unpacker.feed(archive)
            unpacker.finish()
        finally:
            unpacker.close()
        assert {path.parent for path in unpacked.rglob("*")} == {unpacked}
        assert sorted(os.listdir(tmp_path)) == ["data", "unpacked"]


# --- races ---

#: Swaps `spot`, a folder, with a link of the attacker's, as often as it can.
SWAPPER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
os.makedirs("place/spot/deep/er", exist_ok=True); os.makedirs("keep/deep/er", exist_ok=True)
for folder in ("keep", "keep/deep", "keep/deep/er"):
    for name in ("secret", "file"): open(f"{{folder}}/{{name}}", "w").write("kept")
os.symlink({link!r}, "place/link")
print("ready", flush=True)
count = 0
while True:
    libc.renameat2(-100, b"place/link", -100, b"place/spot", 2)  # RENAME_EXCHANGE
    count += 1
    if count % 50 == 0:  # the host deletes it as well
        try: os.makedirs("place/spot/deep/er", exist_ok=True)
        except OSError: pass
        for path in ("place/spot/secret", "place/spot/deep/file"):
            try: open(path, "x").close()
            except OSError: pass
        if not os.path.lexists("place/link"):
            try: os.symlink({link!r}, "place/link")
            except OSError: pass
"""


@both_walls
@pytest.mark.parametrize("link", ["host", "keep"])
async def test_folders_swapped_with_links_under_the_hosts_hands(host: Host, target: Target, link: str) -> None:
    """Whatever the race, the host stays as it is, and a deletion or an archive never goes through a link."""
    async with box(host) as (sandbox, files):
        leads = f"/proc/1/root{target.folder}" if link == "host" else "/workspace/keep"
        archived: list[bytes] = []
        calls = {
            "stat": lambda: files.stat("/workspace/place/spot/secret"),
            "read": lambda: content(files, "/workspace/place/spot/secret"),
            "list": lambda: files.list("/workspace/place", depth=9),
            "archive": lambda: collect(files.read_archive("/workspace/place"), into=archived),
            "delete": lambda: files.delete("/workspace/place/spot", recursive=True),
            "delete all": lambda: files.delete("/workspace/place", recursive=True),
            "unpack": lambda: files.write_archive("/workspace/place", member("spot/deep/er/evil", data=b"evil") + END),
        }
        if link == "host":  # following a link inside the sandbox is right for these
            calls |= every_call(files, "/workspace/place/spot")
        done = dict.fromkeys(calls, 0)
        async with meanwhile(sandbox, SWAPPER.format(link=leads)):
            deadline = time.monotonic() + 2.5
            while time.monotonic() < deadline or min(done.values()) < 4:
                for name, call in calls.items():
                    result = await outcome(call())
                    done[name] += 1
                    assert SECRET not in (result if isinstance(result, bytes) else b"")
                    if link == "keep":  # also in what came before an error
                        assert b"kept" not in b"".join(archived), "an archive went through a link"
                    archived.clear()
        assert target.untouched()
        kept = await prepare(host, sandbox, "import os\nfor f in os.walk('keep'): print(f[0], sorted(f[2]))")
        assert kept.splitlines() == [f"{name} ['file', 'secret']" for name in ("keep", "keep/deep", "keep/deep/er")]


@both_walls
async def test_an_unprivileged_user_gains_nothing_by_a_race(host: Host) -> None:
    """The worker has the asking user's rights throughout, so a swapped folder opens nothing that was closed."""
    async with box(host) as (sandbox, files):
        setup = "import os; os.mkdir('/root/private', 0o700); open('/root/private/secret', 'w').write('private'); os.chmod('.', 0o777)"
        await prepare(host, sandbox, setup)
        calls = every_call(files, "/workspace/place/spot")
        async with meanwhile(sandbox, SWAPPER.format(link="/root/private")):
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline:
                for path in ("/workspace/place/spot/secret", "/workspace/place/link/secret"):
                    assert b"private" not in repr(await outcome(content(files, path, user="nobody"))).encode()
                    await outcome(files.write(path, b"evil", user="nobody"))
                    await outcome(files.delete(path, user="nobody"))
                archive = await outcome(collect(files.read_archive("/workspace/place/link", user="nobody")))
                assert b"private" not in repr(archive).encode()
        assert calls
        assert await content(files, "/root/private/secret") == b"private"
        assert [entry.name for entry in await files.list("/root/private")] == ["secret"]


# --- what is no ordinary file ---


@bubblewrap_only("/proc/1 can be read inside; there is nothing in it but HOME")
async def test_pipes_sockets_devices_and_endless_files(host: Host) -> None:
    program = """
import os, socket
os.mkdir("odd"); os.chdir("odd")
os.mkfifo("pipe"); os.mkfifo("to delete")
s = socket.socket(socket.AF_UNIX); s.bind("socket")
for name, path in (("zero", "/dev/zero"), ("tty", "/dev/tty"), ("ptmx", "/dev/pts/ptmx"), ("random", "/dev/random")):
    os.symlink(path, name)
os.symlink("/proc/self/fd/1", "output")
open("plain", "w").write("plain")
"""
    async with box(host) as (sandbox, files):
        await prepare(host, sandbox, program)
        odd = ["pipe", "socket", "zero", "tty", "ptmx", "random", "output"]
        for path in [*(f"/workspace/odd/{name}" for name in odd), "/dev/zero", "/dev/tty", "/dev/full", "/dev/ptmx"]:
            for result in (await outcome(files.read(path)), await outcome(files.write(path, b"x"))):
                assert isinstance(result, RunraError), path
                assert result.details["reason"] in ("not_a_regular_file", "not_found", "permission_denied"), (
                    path,
                    result,
                )
        archive = await outcome(collect(files.read_archive("/workspace/odd")))
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            assert sorted(info.name for info in tar) == ["output", "plain", "ptmx", "random", "tty", "zero"]
        assert isinstance(await outcome(collect(files.read_archive("/workspace/odd/pipe"))), RunraError)
        # Files of /proc have no size, some no end, and reading some is an act; all of it ends, and soon.
        for name in ("kmsg", "1/mem", "self/mem", "kcore", "sysrq-trigger", "self/clear_refs", "1/fd/0", "1/environ"):
            result = await outcome(content(files, f"/proc/{name}", limit=1 << 20))
            assert isinstance(result, RunraError), (name, result[:100])
        assert len(await outcome(content(files, "/proc/self/pagemap", length=1 << 20))) == 1 << 20
        endless = await outcome(content(files, "/proc/self/pagemap", limit=8 << 20))
        assert 8 << 20 <= len(endless) < 10 << 20
        assert await outcome(content(files, "/proc/version"))
        assert isinstance(await outcome(files.write("/proc/sys/kernel/core_pattern", b"|/x")), RunraError)
        await outcome(collect(files.read_archive("/proc/self/attr")))
        await files.delete("/workspace/odd", recursive=True)
        # Nothing hangs on inside, and no worker is left behind by the readers that stopped early.
        await until(lambda: sandbox.cgroup.usage()["processes"] <= 3)


@both_walls
async def test_a_terabyte_of_nothing(host: Host) -> None:
    async with box(host, **SMALL) as (sandbox, files):
        await prepare(
            host, sandbox, "f = open('huge', 'wb'); f.truncate(1 << 40); f.seek((1 << 40) - 4); f.write(b'tail')"
        )
        before = resident("self")
        assert (await files.stat("/workspace/huge")).size_bytes == 1 << 40
        assert await content(files, "/workspace/huge", offset=(1 << 40) - 4) == b"tail"
        assert await content(files, "/workspace/huge", offset=(1 << 40) - 2, length=1 << 50) == b"il"
        assert await content(files, "/workspace/huge", offset=(1 << 62)) == b""
        stream = await files.read("/workspace/huge")
        seen = 0
        async for part in stream:
            seen += len(part)
            if seen > 128 << 20:
                break
        await stream.aclose()
        assert len(await collect(files.read_archive("/workspace/huge"), limit=16 << 20)) > 16 << 20
        error = await outcome(files.move("/workspace/huge", "/dev/shm/huge"))  # a copy: it must stop where memory does
        assert isinstance(error, RunraError)
        assert error.details["reason"] == "disk_full", error
        assert await files.list("/dev/shm") == [], "the half copy is gone"
        assert resident("self") - before < 48 << 20
        assert resident(str(sandbox.record.pid)) < 16 << 20, "the agent holds none of it"


def resident(pid: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(pid)


# --- archives ---

HUGE_PAX = b"".join(b"%d %s\n" % (len(b"path=" + b"a/" * 2000) + 6, b"path=" + b"a/" * 2000) for _ in range(2))
HOSTILE = {
    "..": member("../evil", data=b"evil"),
    ".. within": member("a/../../evil", data=b"evil"),
    ".. folder": member("../evil/", tarfile.DIRTYPE),
    "absolute": member("/evil", data=b"evil"),
    "absolute by pax": member("pax", b"x", b"14 path=/evil\n"[:14]) + member("x", data=b"evil"),
    "link, then through it": member("l", tarfile.SYMTYPE, linkname="/") + member("l/evil", data=b"evil"),
    "magic link": member("l", tarfile.SYMTYPE, linkname="/proc/1/root") + member("l/evil", data=b"evil"),
    "folder over a link": member("l", tarfile.SYMTYPE, linkname="..")
    + member("l/", tarfile.DIRTYPE)
    + member("l/evil"),
    "hard link out": member("h", tarfile.LNKTYPE, linkname="../victim") + member("h", data=b"evil"),
    "hard link absolute": member("h", tarfile.LNKTYPE, linkname="/etc/passwd"),
    "hard link by link": member("l", tarfile.SYMTYPE, linkname="..")
    + member("h", tarfile.LNKTYPE, linkname="l/victim"),
    "device": member("d", tarfile.CHRTYPE, devmajor=1, devminor=3),
    "disk": member("d", tarfile.BLKTYPE, devmajor=8),
    "pipe": member("p", tarfile.FIFOTYPE),
    "negative size": forged(member("x"), 124, b"\xff" * 12),
    "negative size in octal": forged(member("x"), 124, b"-0000000001\0"),
    "8 EiB": forged(member("x"), 124, b"\x80\0\0\0\x7f" + b"\xff" * 7),
    "size that is none": forged(member("x"), 124, b"0000000009z\0"),
    "negative time": forged(member("x"), 136, b"\xff" * 12) + b"\xff" * 512,
    "a name without an end": member("././@LongLink", b"L", b"n" * 70_000),
    "a name of 4 KiB": member("././@LongLink", b"L", b"n/" * 2100 + b"\0") + member("x"),
    "a step of 300 bytes": member("././@LongLink", b"L", b"n" * 300 + b"\0") + member("x"),
    "two huge pax names": member("pax", b"x", HUGE_PAX) + member("x", data=b"evil")[:700],
    "pax size": member("pax", b"x", b"28 size=9223372036854775807\n") + member("x"),
    "cut off in a header": member("x", data=b"y" * 600)[:300],
    "cut off in content": member("x", data=b"y" * 600)[:900],
    "wrong checksum": b"z" + member("x")[1:],
    "gzip": gzip.compress(member("x", data=b"evil") + END),
    "garbage": bytes(range(256)) * 64,
    "nothing": b"",
}


@both_walls
async def test_hostile_archives(host: Host, target: Target) -> None:
    async with box(host) as (sandbox, files):
        await prepare(host, sandbox, "import os; open('victim', 'w').write('safe'); os.mkdir('in')")
        passwd = await content(files, "/etc/passwd")
        roots = sorted(entry.name for entry in await files.list("/"))
        for name, archive in HOSTILE.items():
            error = await outcome(files.write_archive("/workspace/in", archive))
            assert isinstance(error, RunraError), name
            assert error.details["reason"] in (
                *("bad_archive", "not_a_directory", "too_many_links", "name_too_long", "is_a_directory"),
            ), (name, error)
            assert sorted(entry.name for entry in await files.list("/workspace")) == ["in", "victim"], name
            await files.delete("/workspace/in", recursive=True)
            await files.mkdir("/workspace/in")
        assert await content(files, "/workspace/victim") == b"safe"
        assert await content(files, "/etc/passwd") == passwd
        assert sorted(entry.name for entry in await files.list("/")) == roots
        for path in (f"/proc/1/root{target.folder}", str(target.folder)):
            archive = member("l", tarfile.SYMTYPE, linkname=path) + member("l/secret", data=b"evil") + END
            assert isinstance(await outcome(files.write_archive("/workspace/in", archive)), RunraError)
        assert target.untouched()


async def test_archive_bombs_stop_at_the_quota(host: Host) -> None:
    """Content and names without end: the sandbox's disk is full then, and nobody else's; its API says so."""
    if not host.node.enforced["disk"]:
        pytest.fail("no disk quota on this machine: apt-get install btrfs-progs")
    sent = 0

    async def content_bomb() -> AsyncIterator[bytes]:
        nonlocal sent
        yield forged(member("bomb"), 124, b"\x80" + struct.pack(">3xQ", 1 << 40))
        chunk = os.urandom(1 << 20)
        while sent < 1 << 30:
            sent += len(chunk)
            yield chunk

    async def names_bomb() -> AsyncIterator[bytes]:
        for number in range(100_000):
            yield member(f"{number}/{'n' * 80}", data=b"x" * 1900)

    tiny = {"resources": {"cpu": 1, "memoryMb": 128, "diskMb": 16}}
    async with box(host, **tiny) as (_, files):
        neighbour = await host.create(**tiny)
        for bomb in (content_bomb, names_bomb):
            try:
                async with asyncio.timeout(60):
                    await files.write_archive("/workspace/in", bomb())
                pytest.fail("the bomb fit")
            except RunraError as error:
                assert error.details.get("reason") == "disk_full", error  # noqa: PT017
            output, _ = await host.run(neighbour, "head -c 1M /dev/urandom > /workspace/fine && echo fine")
            assert output == "fine\n"
            await files.delete("/workspace/in", recursive=True)
        assert sent < 64 << 20
        await files.write("/workspace/after", b"room again")


@both_walls
async def test_an_archive_of_what_changes_meanwhile(host: Host) -> None:
    """Files that grow, shrink, vanish and turn into something else: a whole archive, or an error that says so."""
    program = """
import os, random, shutil
for d in range(4): os.makedirs(f"live/{d}", exist_ok=True)
print("ready", flush=True)
while True:
    with open("live/big", "ab") as big: big.truncate(random.choice((0, 1000, 4 << 20)))
    path = f"live/{random.randrange(4)}/{random.randrange(8)}"
    act = random.randrange(7)
    try:
        if act == 0: open(path, "ab").write(os.urandom(random.randrange(300_000)))
        elif act == 1: os.truncate(path, random.randrange(1000))
        elif act == 2: os.unlink(path)
        elif act == 3: os.rename(path, f"live/{random.randrange(4)}/{random.randrange(8)}")
        elif act == 4: os.symlink("/proc/1/root/etc", path)
        elif act == 5: os.mkfifo(path)
        elif act == 6: os.mkdir(path) if random.random() < 0.5 else shutil.rmtree(path)
    except OSError: pass
"""
    whole = 0
    async with box(host) as (sandbox, files), meanwhile(sandbox, program):
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            archive = await outcome(collect(files.read_archive("/workspace/live")))
            await outcome(files.list("/workspace/live", depth=9))
            if isinstance(archive, RunraError):
                continue
            whole += 1
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                for info in tar:
                    assert info.type in (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE)
                    file = tar.extractfile(info) if info.isreg() else None
                    assert file is None or len(file.read()) == info.size
            assert archive.endswith(END)
    assert whole > 2


@both_walls
async def test_what_comes_out_unpacks_without_leaving_its_folder(host: Host, target: Target, tmp_path: Path) -> None:
    program = f"""
import os
os.makedirs("out/d"); os.chdir("out")
for number, path in enumerate(("/", "..", "../../..", {str(target.folder)!r}, "/proc/self/root", "d/../../..")):
    os.symlink(path, f"link{{number}}"); os.symlink(path, f"d/link{{number}}")
open("plain", "w").write("plain"); os.link("plain", "hard")
os.mknod("set-id", 0o106755)
"""
    place = tmp_path / "unpacked"
    place.mkdir()
    async with box(host) as (sandbox, files):
        await prepare(host, sandbox, program)
        unpacker = Unpacker(place)
        try:
            async for chunk in files.read_archive("/workspace/out"):
                unpacker.feed(chunk)
            unpacker.finish()
        finally:
            unpacker.close()
    assert (place / "plain").read_text() == "plain"
    for path in place.rglob("*"):
        assert path.resolve().is_relative_to(place.resolve()), path
        assert not path.lstat().st_mode & 0o6000
    assert target.untouched()


# --- links, depth and number ---


@both_walls
async def test_hard_links_reach_nothing_below(host: Host) -> None:
    """A second name of a file of the image: writing to it changes the sandbox's copy, never the image's file."""
    program = Path("/usr/bin/env")
    before = (program.stat().st_ino, program.stat().st_mtime_ns, program.read_bytes())
    async with box(host) as (sandbox, files):
        await prepare(
            host, sandbox, "import os; os.link('/usr/bin/env', '/usr/bin/other'); os.link('/etc/passwd', '/etc/two')"
        )
        for path in ("/usr/bin/other", "/usr/bin/env", "/etc/two"):
            await files.write(path, b"evil")
        await files.write_archive("/usr/bin", member("env", data=b"evil again") + END)
        assert await content(files, "/usr/bin/env") == b"evil again"
        output, _ = await host.run(await host.create(), "/usr/bin/env -i /bin/echo fine; head -c4 /etc/passwd")
        assert output == "fine\nroot"
    assert (program.stat().st_ino, program.stat().st_mtime_ns, program.read_bytes()) == before


@both_walls
async def test_three_thousand_levels(host: Host) -> None:
    program = "import os\nfor i in range(3000): os.mkdir('deep'); os.chdir('deep')\nopen('bottom', 'w').write('x')"
    async with box(host) as (sandbox, files):
        await prepare(host, sandbox, program)
        async with asyncio.timeout(CALL):
            levels = 0
            async for entry in files.list("/workspace/deep", depth=10_000):
                levels += entry.is_directory
            assert levels == 2999
            size = 0
            async for chunk in files.read_archive("/workspace/deep"):
                size += len(chunk)
            assert size > 3000 * 512
            await files.delete("/workspace/deep", recursive=True)
        assert await files.list("/workspace") == []
        error = await outcome(files.mkdir("/workspace" + "/d" * 3000, recursive=True))
        assert isinstance(error, RunraError)
        # Two copies of a tree that the host itself could not name by path: the sandbox's end deletes it.
        await prepare(host, sandbox, program)
    async with asyncio.timeout(CALL):
        await sandbox.terminate()
        await host.node.settled()


async def test_twenty_thousand_names(host: Host) -> None:
    program = "import os\nos.mkdir('many')\nfor i in range(20_000): os.mknod(f'many/{i:05d}')"
    async with box(host) as (sandbox, files):
        await prepare(host, sandbox, program)
        before = resident("self")
        async with asyncio.timeout(2 * CALL):
            count = 0
            async for _ in files.list("/workspace/many"):
                count += 1
            assert count == 20_000
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("runra.node.agent.files.LISTED", 10_000)
                with pytest.raises(RunraError, match="more than 10000 entries"):
                    await files.list("/workspace/many")
            members = size = 0
            async for chunk in files.read_archive("/workspace/many"):
                size += len(chunk)
            members = size // 512
            assert members >= 20_000
            await files.delete("/workspace/many", recursive=True)
        assert resident("self") - before < 32 << 20
        assert await files.list("/workspace") == []
