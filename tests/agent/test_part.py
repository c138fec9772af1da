"""Parting: an agent that holds nothing of the host's for a while, and goes on when it is brought another socket."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runra.errors import RunraError
from runra.node.agent.frames import VERSION, Ask, Field, Tell, pack, pack_fields
from runra.node.agent.link import AgentLink
from runra.node.agent.types import ExecSpec

from .harness import Agent, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces of its own: root")


class Handed:
    """An agent that connections are handed to, as a wall's keeper does, in namespaces where it may have a name."""

    def __init__(self, binary: Path, home: Path) -> None:
        self.binary, self.path, self.log = binary, home / "agent.sock", home / "agent.log"
        self._ours, theirs = socket.socketpair()
        words = ["unshare", "--net", "--uts", str(binary), "--pass-fd", "0"]
        with theirs, open(self.log, "wb") as log:
            self.popen = subprocess.Popen(words, stdin=theirs, stderr=log)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(os.fspath(self.path))
        self._server.listen(8)
        self._server.setblocking(False)
        self._handing = asyncio.create_task(self._hand_over())

    async def _hand_over(self) -> None:
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(self._server)
            with connection:
                try:
                    socket.send_fds(self._ours, [b"c"], [connection.fileno()])
                except OSError:  # it let go: bring it another
                    self.bring()
                    socket.send_fds(self._ours, [b"c"], [connection.fileno()])

    def bring(self, *, uid: int = 0) -> int:
        """Run the program that brings the agent a socket; its exit status."""
        ours, theirs = socket.socketpair()
        words = ["nsenter", "--target", str(self.popen.pid), "--net", "--uts"]
        words += ["setpriv", f"--reuid={uid}", "--clear-groups", "--inh-caps=+sys_admin", "--ambient-caps=+sys_admin"]
        with theirs:
            status = subprocess.run(
                [*words, str(self.binary), "--join", "brought"], stdin=theirs, check=False
            ).returncode
        if uid == 0:
            self._ours.close()
            self._ours = ours
        else:
            ours.close()
        return status

    def descriptors(self) -> list[str]:
        folder = f"/proc/{self.popen.pid}/fd"
        return [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]

    async def stop(self) -> None:
        self._handing.cancel()
        await asyncio.gather(self._handing, return_exceptions=True)
        self._server.close()
        self._ours.close()
        self.popen.kill()
        self.popen.wait(10)
        log = self.log.read_text(errors="replace")
        assert "Sanitizer" not in log, log
        assert "runtime error" not in log, log


@pytest.fixture
async def handed(binary: Path, home: Path) -> AsyncIterator[Handed]:
    agent = Handed(binary, home)
    yield agent
    await agent.stop()


async def test_everything_goes_on_where_it_was(handed: Handed) -> None:
    link = await AgentLink.connect(handed.path)
    counting = await link.exec(ExecSpec(command="for i in $(seq 200); do echo $i; sleep 0.005; done"))
    writing = await link.exec(ExecSpec(command="cat", stdin=True))
    for _ in range(3):
        await link.part()
        assert link.apart
        sockets = [name for name in handed.descriptors() if name.startswith("socket:")]
        assert len(sockets) == 3, "those of two shims, and where another is brought: none of the host's"
        await writing.write_stdin(b"while it was away\n")
        asking = asyncio.create_task(link.processes())
        await asyncio.sleep(0.05)
        assert not asking.done()
        await link.resume(handed.path)
        assert {one.pid for one in await asking} == {counting.pid, writing.pid}
    await writing.close_stdin()
    assert b"".join([piece.data async for piece in writing.output()]) == b"while it was away\n" * 3
    text = b"".join([piece.data async for piece in counting.output()])
    assert text.split() == [str(number).encode() for number in range(1, 201)]
    assert (await counting.wait()).code == 0
    await link.close()


async def test_a_host_that_does_not_resume_starts_anew(handed: Handed) -> None:
    link = await AgentLink.connect(handed.path)
    process = await link.exec(ExecSpec(command="echo said; sleep 60"))
    assert (await anext(process.output())).data == b"said\n"
    await link.part()
    other = await AgentLink.connect(handed.path, timeout=20)
    again = await other.attach(process.pid, offset=0)
    assert (await anext(again.output())).data == b"said\n"
    await other.signal(process.pid, 9)
    await link.close()
    await other.close()


async def test_only_root_inside_brings_a_socket(handed: Handed) -> None:
    link = await AgentLink.connect(handed.path)
    await link.part()
    handed.bring(uid=1000)
    await link.resume(handed.path)
    await link.ping()
    await link.close()


async def test_a_name_that_is_taken_refuses_and_nothing_changes(handed: Handed) -> None:
    link = await AgentLink.connect(handed.path)
    code = "import socket, time; s = socket.socket(socket.AF_UNIX, 5); s.bind('\\0runra-agent'); print(1, flush=True); time.sleep(60)"
    taker = await link.exec(ExecSpec(argv=("python3", "-c", code)))
    await anext(taker.output())
    with pytest.raises(RunraError) as refused:
        await link.part()
    assert refused.value.code == "INVALID_STATE"
    assert not link.apart
    await link.signal(taker.pid, 9)
    await taker.wait()
    await link.part()
    await link.resume(handed.path)
    await link.ping()
    await link.close()


async def test_an_agent_that_listens_cannot_part(agent: Agent, link: AgentLink) -> None:
    with pytest.raises(RunraError) as refused:
        await link.part()
    assert refused.value.code == "INVALID_STATE"
    await link.ping()


async def test_a_link_whose_agent_dies_apart_is_lost(handed: Handed) -> None:
    link = await AgentLink.connect(handed.path)
    await link.part()
    asking = asyncio.create_task(link.processes())
    handed.popen.kill()
    handed.popen.wait(10)
    with pytest.raises(RunraError):
        await link.resume(handed.path, timeout=5)
    with pytest.raises(RunraError):
        await asking
    await until(lambda: link.closed)


async def test_an_agent_of_before_is_told_apart_and_nothing_is_asked_of_it(home: Path) -> None:
    asked = bytearray()

    async def older(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(pack(Tell.HELLO, 0, pack_fields([(Field.VERSION, VERSION), (Field.PID, 1)])))
        while data := await reader.read(4096):
            asked.extend(data)
        writer.close()

    async with await asyncio.start_unix_server(older, home / "older.sock"):
        link = await AgentLink.connect(home / "older.sock")
        with pytest.raises(RunraError) as refused:
            await link.part()
        assert (refused.value.code, refused.value.details["reason"]) == ("INVALID_STATE", "too_old")
        assert not link.apart
        assert not link.closed
        await link.close()
    assert asked == pack(Ask.HELLO, 0, pack_fields([(Field.VERSION, VERSION)]))
