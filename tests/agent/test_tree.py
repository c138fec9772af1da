"""Process trees: timeouts, signals, background children, zombies, and a shim killed from inside."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from runra.errors import RunraError
from runra.node.agent.link import AgentLink
from runra.node.agent.types import ExecSpec

from .harness import Agent, alive, children, finish, run, until

#: A grandchild that left session, parent and terminal behind, as daemons do; prints its pid.
DAEMON = "python3 -c 'import os,time\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n{}'"
STUBBORN = DAEMON.format(
    "import signal\nfor s in (1,2,15): signal.signal(s, 1)\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
)
PLAIN = DAEMON.format("print(os.getpid(), flush=True)\ntime.sleep(60)")


async def test_timeout_kills_the_whole_tree(link: AgentLink) -> None:
    begin = time.monotonic()
    out, _, end = await run(link, f"{STUBBORN}; sleep 61 & echo $!; sleep 62", timeout_ms=700)
    assert (end.code, end.signal, end.timed_out) == (137, "SIGKILL", True)
    assert 0.6 < time.monotonic() - begin < 3
    pids = [int(pid) for pid in out.split()]
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


async def test_timeout_of_a_tree_that_forks_all_the_time(link: AgentLink, agent: Agent) -> None:
    # three lines of children that each replace themselves; bounded by their number of steps
    racer = "import os,time\nfor i in range(3000):\n p=os.fork()\n if p: os._exit(0)\n time.sleep(0.0005)"
    command = f"for i in 1 2 3; do python3 -c '{racer}' & done; sleep 60"
    _, _, end = await run(link, command, timeout_ms=500)
    assert end.timed_out
    await until(lambda: not list(children(agent.pid)))


async def test_no_timeout_when_it_ends_in_time(link: AgentLink) -> None:
    _, _, end = await run(link, ["true"], timeout_ms=300)
    assert not end.timed_out
    process = await link.exec(ExecSpec(command="sleep 0.6 & exit 5", timeout_ms=300))
    assert (await process.wait()).code == 5
    await asyncio.sleep(0.5)
    assert (await link.processes())[-1].exit is not None


async def test_frozen_time_does_not_count(link: AgentLink, agent: Agent) -> None:
    process = await link.exec(ExecSpec(argv=("sleep", "60"), timeout_ms=1500))
    await asyncio.sleep(0.1)
    os.kill(agent.pid, signal.SIGSTOP)  # to the agent, the same as the freezer
    await asyncio.sleep(2.5)
    os.kill(agent.pid, signal.SIGCONT)
    thawed = time.monotonic()
    end = await process.wait()
    assert end.timed_out
    assert time.monotonic() - thawed > 0.8


async def test_background_child_does_not_hold_the_command(link: AgentLink, agent: Agent) -> None:
    begin = time.monotonic()
    marker = agent.home / "went-on"
    out, _, end = await run(link, f"(sleep 0.5; echo late; echo late; touch {marker}) & echo early")
    assert (out, end.code) == (b"early\n", 0)
    assert time.monotonic() - begin < 0.45
    await until(marker.exists)  # its writes did not fail: nobody reads them, but the pipe is open


async def test_background_child_that_never_stops_writing(link: AgentLink) -> None:
    process = await link.exec(ExecSpec(command="yes & sleep 0.1; echo end"))
    async with asyncio.timeout(10):
        _, _, end = await finish(process)
    assert end.code == 0
    await link.signal(process.pid, signal.SIGKILL)


async def test_signal_reaches_the_tree(link: AgentLink) -> None:
    process = await link.exec(ExecSpec(command=f"{PLAIN}; sleep 61 & echo $!; wait"))
    pids: list[int] = []
    async for piece in process.output():
        pids += [int(line) for line in piece.data.split()]
        if len(pids) == 2:
            break
    await link.signal(process.pid, signal.SIGTERM)
    assert (await process.wait()).signal == "SIGTERM"
    await until(lambda: not any(alive(pid) for pid in pids))


async def test_signal_after_the_command_ended(link: AgentLink, agent: Agent) -> None:
    process = await link.exec(ExecSpec(command=f"{PLAIN} > {agent.home}/pid"))
    assert (await process.wait()).code == 0
    await until(lambda: (agent.home / "pid").read_text().endswith("\n"))
    daemon = int((agent.home / "pid").read_text())
    assert alive(daemon)
    await link.signal(process.pid, signal.SIGKILL)
    await until(lambda: not alive(daemon) and not list(children(agent.pid)))
    with pytest.raises(RunraError) as caught:
        await link.signal(process.pid, signal.SIGTERM)
    assert caught.value.details["reason"] == "no_such_process"


@pytest.mark.parametrize(("pid", "signum"), [(999_999, 15), (0, 15), (-1, 9), (1, 9)])
async def test_signal_to_a_stranger(link: AgentLink, pid: int, signum: int) -> None:
    with pytest.raises(RunraError) as caught:
        await link.signal(pid, signum)
    assert caught.value.details["reason"] == "no_such_process"


async def test_zombies_are_reaped(link: AgentLink, agent: Agent) -> None:
    process = await link.exec(ExecSpec(command="for i in $(seq 200); do (sleep 0 &) ; done; sleep 30"))
    shim = next(pid for pid, _ in children(agent.pid))
    await until(lambda: [state for _, state in children(shim)] in (["S"], ["S", "S"]))
    await link.signal(process.pid, signal.SIGKILL)
    await process.wait()
    await until(lambda: not list(children(agent.pid)))


async def test_killed_shim(link: AgentLink, agent: Agent) -> None:
    """Root inside can kill the shim. The exit is told, and nothing of the tree stays behind."""
    process = await link.exec(ExecSpec(command=f"{STUBBORN}; sleep 60"))
    daemon = int((await anext(process.output())).data)
    other = await link.exec(ExecSpec(argv=("sleep", "60")))
    os.kill(int(Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[1]), signal.SIGKILL)
    async with asyncio.timeout(5):
        assert (await process.wait()).signal == "SIGKILL"
    await until(lambda: not alive(daemon) and not alive(process.pid))
    assert alive(other.pid)
    await link.signal(other.pid, signal.SIGKILL)
    await other.wait()


async def test_stopped_shim_cannot_hold_off_a_timeout(link: AgentLink, agent: Agent) -> None:
    process = await link.exec(ExecSpec(command="sleep 60", timeout_ms=300))
    shim = int(Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(shim, signal.SIGSTOP)
    async with asyncio.timeout(8):
        assert (await process.wait()).timed_out
    await until(lambda: not alive(process.pid) and not list(children(agent.pid)))


async def test_the_trees_go_with_the_agent(link: AgentLink, agent: Agent) -> None:
    process = await link.exec(ExecSpec(command=f"{STUBBORN}; sleep 60"))
    daemon = int((await anext(process.output())).data)
    agent.popen.kill()
    await until(lambda: not alive(daemon) and not alive(process.pid))
