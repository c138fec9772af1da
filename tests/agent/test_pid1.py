"""The agent as a real process 1, in a pid namespace of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runra.node.agent.link import AgentLink
from runra.node.agent.types import ExecSpec

from .harness import SANITIZED, Agent, can_unshare, children, finish, run, until

pytestmark = pytest.mark.skipif(not can_unshare(), reason="this machine makes no pid namespaces for us")


@pytest.fixture
async def first(binary: Path, home: Path) -> AsyncIterator[tuple[Agent, AgentLink]]:
    agent = Agent(binary, home, ("unshare", "-Urpf", "--kill-child", "--mount-proc"))
    link = await agent.connect()
    yield agent, link
    await link.close()
    agent.stop()


async def test_commands(first: tuple[Agent, AgentLink]) -> None:
    _, link = first
    out, _, end = await run(link, "cat /proc/1/comm; id -u; echo $PPID")
    name, uid, parent = out.split()
    assert (uid, end.code) == (b"0", 0)
    assert name.startswith(b"runra-agent")
    assert int(parent) > 1
    entry = await link.files.stat("/proc/1")
    assert entry.is_directory


async def test_signals_from_inside_do_nothing(first: tuple[Agent, AgentLink]) -> None:
    _, link = first
    signals = "TERM INT HUP KILL STOP QUIT USR1 PIPE ALRM" + (" SEGV" if not SANITIZED else "")  # ASan handles that
    other = await link.exec(ExecSpec(command="trap '' TERM; echo set; sleep 0.3; echo lived"))
    output = other.output()
    assert (await anext(output)).data == b"set\n"
    await run(link, f"for s in {signals}; do kill -$s 1; done; kill -TERM -1")
    await link.ping()
    assert b"lived\n" in [piece.data async for piece in output]  # nor do they end the shims
    assert (await run(link, ["true"]))[2].code == 0


async def test_its_descriptors_are_out_of_reach(first: tuple[Agent, AgentLink]) -> None:
    """Root inside without CAP_SYS_PTRACE, as in a sandbox, sees neither descriptors nor memory of the agent."""
    _, link = first
    out, _, _ = await run(
        link,
        "setpriv --bounding-set -sys_ptrace --inh-caps -sys_ptrace -- sh -c 'readlink -v /proc/1/fd/3 2>&1; cat /proc/1/mem 2>&1'",
    )
    assert out.count(b"ermission denied") == 2


async def test_orphans_are_reaped(first: tuple[Agent, AgentLink]) -> None:
    agent, link = first
    inside = next(pid for pid, _ in children(agent.pid))
    out, _, _ = await run(link, "for i in $(seq 50); do setsid -f true; done; sleep 0.2; ps -e -o stat= | grep -c Z")
    assert out.strip() == b"0"
    await until(lambda: not list(children(inside)))


async def test_fork_bomb_within_limits(first: tuple[Agent, AgentLink]) -> None:
    """A bomb of at most 400 processes, ended by its timeout to the last one."""
    agent, link = first
    inside = next(pid for pid, _ in children(agent.pid))
    bomb = "import os,time\nfor depth in range(8):\n    if os.fork() == 0: os.setsid()\ntime.sleep(60)\n"
    process = await link.exec(ExecSpec(argv=("python3", "-c", bomb), timeout_ms=1500))
    await asyncio.sleep(1.0)
    await link.ping(2.0)
    assert (await process.wait()).timed_out
    await until(lambda: not list(children(inside)))
    assert (await finish(await link.exec(ExecSpec(command="ps -e | wc -l"))))[2].code == 0
