"""A real node whose process 1 was replaced by a liar: every call ends, memory stays bounded, nobody else notices.

The liar is a small static program put in the agent's place; what it says is appended to its file. tests/agent has the
same for the link alone, frame by frame; here the whole node is in the picture.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from runra.errors import RunraError
from runra.node import Sandbox
from runra.node.agent import files as agent_files
from runra.node.agent.channel import WINDOW
from runra.node.agent.files import AgentFiles
from runra.node.agent.frames import HEADER, Field, Tell, pack, pack_fields
from runra.node.agent.link import AgentLink
from runra.node.agent.types import ExecSpec
from tests.hosting import NOTHING, Host, bubblewrap_only, until

pytestmark = bubblewrap_only("the liar takes the agent's place behind bubblewrap; the server that hears it is the same")

#: Process 1 that plays a script, from the top for every connection. The script stands at the end of its own file.
LIAR = r"""
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int wire;
static uint8_t stream[4], frame[12 + 65536 + 8];

static int say(const uint8_t *p, size_t left) {
    while (left) {
        ssize_t put = send(wire, p, left, MSG_NOSIGNAL);
        if (put <= 0) return -1;
        p += put;
        left -= (size_t)put;
    }
    return 0;
}
static int hear(uint8_t *p, size_t left) {
    while (left) {
        ssize_t got = recv(wire, p, left, 0);
        if (got <= 0) return -1;
        p += got;
        left -= (size_t)got;
    }
    return 0;
}
/* r: hear a frame, keep its stream. w: say bytes. f: say a frame, on that stream. e: the same for ever.
 * o: output for ever, offsets as they should be. b: output whose offsets go backwards. s: silence. c: hang up. x: die. */
static void play(const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        uint8_t op = *at;
        uint32_t length;
        memcpy(&length, at + 1, 4);
        const uint8_t *bytes = at + 5;
        at = bytes + length;
        if (op == 'r') {
            if (hear(frame, 12) < 0) return;
            memcpy(stream, frame + 8, 4);
            memcpy(&length, frame, 4);
            while (length) {
                size_t part = length < 65536 ? length : 65536;
                if (hear(frame, part) < 0) return;
                length -= (uint32_t)part;
            }
        } else if (op == 'w') {
            if (say(bytes, length) < 0) return;
        } else if (op == 'f' || op == 'e') {
            memcpy(frame, bytes, length);
            memcpy(frame + 8, stream, 4);
            do if (say(frame, length) < 0) return;
            while (op == 'e');
        } else if (op == 'o' || op == 'b') {
            uint64_t offset = op == 'o' ? 0 : 1 << 20;
            memset(frame, 'x', sizeof frame);
            uint32_t size = 65536 + 8;
            memcpy(frame, &size, 4);
            memset(frame + 4, 0, 4);
            frame[4] = 68;
            memcpy(frame + 8, stream, 4);
            for (;;) {
                memcpy(frame + 12, &offset, 8);
                if (say(frame, 12 + size) < 0) return;
                offset += op == 'o' ? 65536 : (uint64_t)-65536;
            }
        } else if (op == 's') {
            for (;;) pause();
        } else if (op == 'c') {
            return;
        } else if (op == 'x') {
            _exit(1);
        }
    }
    for (uint8_t drain[4096]; recv(wire, drain, sizeof drain, 0) > 0;) {}
}

int main(int argc, char **argv) {
    static uint8_t script[1 << 20];
    uint32_t length = 0;
    int self = open("/run/runra/agent", O_RDONLY), listening = argc >= 3 ? atoi(argv[2]) : -1;
    lseek(self, -4, SEEK_END);
    if (read(self, &length, 4) != 4 || length > sizeof script) return 3;
    lseek(self, -4 - (off_t)length, SEEK_END);
    if (read(self, script, length) != (ssize_t)length) return 3;
    for (;;) {
        wire = accept(listening, NULL, NULL);
        if (wire < 0) return 4;
        play(script, script + length);
        close(wire);
    }
}
"""

HELLO = pack(Tell.HELLO, 0, pack_fields([(Field.VERSION, 1), (Field.PID, 1)]))
STARTED = [(Field.PID, 5), (Field.STARTED_AT, 1), (Field.REUSED, 0), (Field.OFFSET, 0), (Field.TITLE, "x")]
EXIT = [(Field.CODE, 0), (Field.SIGNAL, 0), (Field.TIMED_OUT, 0), (Field.DURATION_MS, 1), (Field.ENDED_AT, 1)]


def step(op: str, data: bytes = b"") -> bytes:
    return op.encode() + struct.pack("<I", len(data)) + data


def frame(op: str, kind: Tell, fields: Any = (), raw: bytes = b"") -> bytes:
    return step(op, pack(kind, 0, raw or pack_fields(fields)))


def output(offset: int, data: bytes, stderr: int = 0) -> bytes:
    return step("f", HEADER.pack(8 + len(data), Tell.OUTPUT, stderr, 0, 0) + struct.pack("<Q", offset) + data)


def record(*fields: Any) -> bytes:
    raw = pack_fields(fields)
    return struct.pack("<I", len(raw)) + raw


GREET = step("r") + step("w", HELLO)
START = GREET + step("r") + frame("f", Tell.STARTED, STARTED)
#: One frame of output full of entries of a listing, or of records that say nothing.
ENTRY = record(
    (Field.NAME, "n" * 200), (Field.TYPE, 0), (Field.IS_DIRECTORY, 0), (Field.SIZE, (1 << 64) - 1), (Field.MTIME_MS, 1),
    (Field.MODE, 0o644), (Field.PATH, "/" + "p" * 200),
)  # fmt: skip

#: What process 1 says instead of the truth, once somebody asks it something.
LIES = {
    "silence": GREET + step("s"),
    "silence after the start": START + step("s"),
    "hangs up at once": step("c"),
    "hangs up at a question": GREET + step("r") + step("c"),
    "dies at a question": GREET + step("r") + step("x"),
    "noise": GREET + step("r") + step("w", os.urandom(4096)),
    "a frame of 4 GiB": START + step("w", HEADER.pack(0xFFFFFFFF, Tell.OUTPUT, 0, 0, 1)),
    "a frame a byte too large": START + step("f", HEADER.pack(65536 + 9, Tell.OUTPUT, 0, 0, 0)),
    "half a frame": START + step("w", HELLO[:7]) + step("s"),
    "a stream nobody opened": GREET + step("r") + step("w", pack(Tell.PONG, 0xFFFFFFF0)),
    "exit before start": GREET + step("r") + frame("f", Tell.EXIT, EXIT),
    "started twice": START + frame("f", Tell.STARTED, STARTED),
    "endless starts": START + frame("e", Tell.STARTED, STARTED),
    "endless processes": GREET + step("r") + frame("e", Tell.STATUS, [*STARTED, (Field.TAG, "t" * 8000)]),
    "a process of another age": GREET
    + step("r")
    + frame("f", Tell.STATUS, [STARTED[0], (Field.STARTED_AT, 1 << 63), *STARTED[2:]])
    + frame("f", Tell.DONE),
    "endless greetings": GREET + step("r") + step("e", HELLO),
    "endless pongs": GREET + step("r") + frame("e", Tell.PONG),
    "endless credit": START + frame("e", Tell.CREDIT, raw=b"\xff\xff\xff\xff"),
    "endless output": START + step("o"),
    "offsets backwards": START + step("b"),
    "offsets with a gap": START + output(0, b"x" * 100) + output(101, b"x"),
    "output over and over": START + output(0, b"x" * 100) * 3,
    "output beyond 2^64": GREET
    + step("r")
    + frame("f", Tell.STARTED, [*STARTED[:3], (Field.OFFSET, (1 << 64) - 1), STARTED[4]])
    + output((1 << 64) - 1, b"x" * 100)
    + output(99, b"x"),
    "a window of 2^64": GREET + step("r") + frame("f", Tell.STARTED, [*STARTED, (Field.WINDOW, (1 << 64) - 1)]),
    "an error without words": GREET + step("r") + frame("f", Tell.ERROR),
    "an error of 2^64": GREET + step("r") + frame("f", Tell.ERROR, [(Field.ERRNO, 1 << 63), (Field.STAGE, 1 << 63)]),
    "started in the year 300 million": GREET
    + step("r")
    + frame("f", Tell.STARTED, [STARTED[0], (Field.STARTED_AT, 1 << 63), *STARTED[2:]]),
    "ended in the year 300 million": START + frame("f", Tell.EXIT, [*EXIT[:4], (Field.ENDED_AT, 1 << 63)]),
    "fields cut off": GREET + step("r") + frame("f", Tell.STARTED, raw=pack_fields(STARTED)[:-3]),
    "an exit code of 2^40": START + frame("f", Tell.EXIT, [(Field.CODE, 1 << 40), *EXIT[1:]]),
    "entries that never end": START + output(0, ENTRY * 100) + step("s"),
    "a record of 4 GiB": START + output(0, b"\xff" * 400),
    "an entry of no type": START + output(0, record((Field.NAME, "n"), (Field.TYPE, 99), *EXIT[:1])),
}


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("liar")
    (folder / "liar.c").write_text(LIAR)
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    subprocess.run([compiler, "-static", "-O1", "-o", folder / "liar", folder / "liar.c"], check=True)
    return folder / "liar"


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same deadlines, only shorter: what the calls below must end within is theirs, not this test's patience."""
    monkeypatch.setattr(AgentLink.reply, "__defaults__", (0.8,))
    monkeypatch.setattr(AgentLink._call, "__defaults__", (0.8,))
    monkeypatch.setattr(AgentLink.ping, "__defaults__", (0.8,))
    monkeypatch.setattr(AgentLink.connect.__func__, "__kwdefaults__", {"timeout": 0.8})
    monkeypatch.setattr(AgentFiles._work, "__kwdefaults__", {"timeout": 0.8})
    monkeypatch.setattr(agent_files, "STALL_TIMEOUT", 0.8)


class Stage:
    """Makes sandboxes with a liar for process 1, and honest ones."""

    def __init__(self, host: Host, program: Path, folder: Path) -> None:
        self.host, self._program, self._folder = host, program, folder
        self._wall: Any = host.node._isolations["bubblewrap"]
        self._honest = self._wall._agent
        self._turn = asyncio.Lock()
        folder.mkdir()
        folder.chmod(0o755)

    async def liar(self, script: bytes) -> Sandbox:
        path = self._folder / f"liar{len(os.listdir(self._folder))}"
        path.write_bytes(self._program.read_bytes() + script + struct.pack("<I", len(script)))
        path.chmod(0o755)
        async with self._turn:  # the wall has one agent for all
            self._wall._agent = path
            try:
                return await self.host.create()
            finally:
                self._wall._agent = self._honest


@pytest.fixture
def stage(host: Host, program: Path, tmp_path: Path) -> Stage:
    return Stage(host, program, tmp_path / "liars")


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


async def run(agent: AgentLink) -> object:
    async with await agent.exec(ExecSpec(command="true", stdin=True)) as process:
        # A command may take as long as it likes: its reader's patience is the caller's, and so it is here.
        async with asyncio.timeout(1.2):
            async for _ in process.output():
                pass
            return await process.wait()


async def drain(stream: AsyncIterator[Any]) -> None:
    async with asyncio.timeout(1.2):
        async for _ in stream:
            pass


async def read(agent: AgentLink) -> None:
    async with await agent.files.read("/etc/passwd") as stream:
        await drain(stream)


async def write_stdin(agent: AgentLink) -> None:
    async with await agent.exec(ExecSpec(command="cat", stdin=True)) as process:
        async with asyncio.timeout(1.2):
            await process.write_stdin(b"x" * (32 << 20))


CALLS: dict[str, Callable[[AgentLink], Awaitable[object]]] = {
    "exec": run,
    "stdin": write_stdin,
    "attach": lambda agent: agent.attach(5),
    "processes": lambda agent: agent.processes(),
    "signal": lambda agent: agent.signal(5, 9),
    "ping": lambda agent: agent.ping(),
    "stat": lambda agent: agent.files.stat("/etc/passwd"),
    "read": read,
    "list": lambda agent: drain(agent.files.list("/etc")),
    "write": lambda agent: agent.files.write("/workspace/x", b"x" * (4 << 20)),
    "mkdir": lambda agent: agent.files.mkdir("/workspace/x"),
    "archive": lambda agent: drain(agent.files.read_archive("/etc")),
    "unpack": lambda agent: agent.files.write_archive("/workspace", b"\0" * 1024),
    "watch": lambda agent: drain(agent.files.watch("/workspace")),
}
#: A lie may be all the truth that a call needs; all others must fail.
BELIEVED = {"signal", "ping", "exec", "attach", "processes", "stdin", "watch", "stat"}


async def tell(stage: Stage, lie: str) -> list[str]:
    """Every call to one liar; what was wrong with how they ended."""
    wrong = []
    try:
        liar = await stage.liar(LIES[lie])
    except RunraError as error:
        return [] if lie == "hangs up at once" else [f"create: {error}"]
    for name, call in CALLS.items():
        started = time.monotonic()
        try:
            async with asyncio.timeout(15), liar.use() as agent:
                await call(agent)
            if name not in BELIEVED:
                wrong.append(f"{name} believed it")
        except (RunraError, TimeoutError):
            pass
        except Exception as error:  # noqa: BLE001 - any other is what this looks for
            wrong.append(f"{name}: {error!r}")
        if time.monotonic() - started > 10:
            wrong.append(f"{name} took {time.monotonic() - started:.1f} s")
    async with asyncio.timeout(15):
        await liar.terminate()
    if liar.info().state != "terminated":
        wrong.append("not terminated")
    return wrong


async def test_lies_cost_their_own_sandboxes_only(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """All liars at once, each asked everything, while an honest sandbox is at work beside them."""
    host = stage.host
    honest = await host.create()
    gc.collect()
    before, worst = resident(), [0.0]

    async def neighbour() -> None:
        while True:
            started = time.perf_counter()
            assert (await host.run(honest, "echo fine"))[0] == "fine\n"
            worst.append(time.perf_counter() - started)
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(neighbour())
    found = dict(zip(LIES, await asyncio.gather(*(tell(stage, lie) for lie in LIES)), strict=True))
    assert not watching.done(), watching.result()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert {lie: wrong for lie, wrong in found.items() if wrong} == {}
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
    gc.collect()
    assert resident() - before < 64 << 20, "lies take memory"
    assert len(worst) > 10
    assert max(worst) < 3, "the neighbour waits for liars"
    assert (await host.run(honest, "echo fine"))[0] == "fine\n"
    await honest.terminate()
    await host.node.settled()
    await until(lambda: host.left() == NOTHING)


@pytest.mark.parametrize(
    "greeting",
    {
        "silence": step("s"),
        "noise": step("w", os.urandom(200)),
        "another version": step("w", pack(Tell.HELLO, 0, pack_fields([(Field.VERSION, 2)]))),
        "a greeting of 4 GiB": step("w", HEADER.pack(0xFFFFFFFF, Tell.HELLO, 0, 0, 0)),
        "endless": step("e", HELLO),
        "dies": step("x"),
    }.items(),
    ids=lambda pair: pair[0],
)
async def test_a_create_with_a_liar_fails_and_leaves_nothing(stage: Stage, greeting: tuple[str, bytes]) -> None:
    started = time.monotonic()
    script = greeting[1]
    try:
        sandbox = await stage.liar(script)
    except RunraError as error:
        assert error.status == 500, error  # noqa: PT017
    else:  # the first greeting was a good one: the lie shows at the first question
        assert greeting[0] == "endless"
        with pytest.raises(RunraError):
            await stage.host.run(sandbox, "true")
        await sandbox.terminate()
    assert time.monotonic() - started < 5
    await stage.host.node.settled()
    await until(lambda: stage.host.left() == NOTHING)


async def test_pids_of_the_host_are_only_numbers(stage: Stage) -> None:
    """A liar names a process of this machine as its command: what the caller then does stays in the sandbox."""
    with subprocess.Popen(["sleep", "60"]) as victim:
        for pid in (victim.pid, 1, 0, (1 << 64) - 1, 1 << 31):
            fields = [(Field.PID, pid), *STARTED[1:]]
            liar = await stage.liar(
                GREET + step("r") + frame("f", Tell.STARTED, fields) + step("r") + frame("f", Tell.DONE)
            )
            async with liar.use() as agent:
                process = await agent.exec(ExecSpec(command="true"))
                assert process.pid == pid
                process.detach()
                try:
                    await agent.signal(pid, 9)
                except RunraError as error:
                    assert pid in (0, (1 << 64) - 1, 1 << 31) or error.code == "INTERNAL_ERROR"  # noqa: PT017
            await liar.pause()
            await liar.resume()
            await liar.terminate()
        assert victim.poll() is None
        victim.kill()


async def test_an_endless_answer_is_streamed_in_constant_memory(stage: Stage) -> None:
    """A liar that keeps to its credit may go on for ever; whoever streams it holds a window's worth, no more."""
    frames = step("e", HEADER.pack(8 + 4, Tell.OUTPUT, 0, 0, 0) + bytes(12))
    liar = await stage.liar(START + frames)
    gc.collect()
    before = resident()
    for call in (CALLS["read"], CALLS["archive"], CALLS["list"]):
        async with asyncio.timeout(8):
            with pytest.raises((RunraError, TimeoutError)):
                async with liar.use() as agent:
                    await call(agent)
    assert resident() - before < 4 * WINDOW + (8 << 20)
