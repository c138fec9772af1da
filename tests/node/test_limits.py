"""Limits an operator sets, and limits a machine cannot hold."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runra.errors import RunraError
from runra.node.agent.types import ExecSpec
from runra.node.cgroups import Cgroup, Hierarchies, Limits
from tests.hosting import bubblewrap_only, hosted, need_wall, start_host


@pytest.mark.parametrize("wall", ["bubblewrap", "gvisor"])
async def test_commands_streams_and_open_files(tmp_path: Path, wall: str) -> None:
    limits = {"max_commands": 4, "max_streams": 8, "max_open_files": 200}
    async with hosted(tmp_path / "data", isolation=need_wall(wall), **limits) as host:
        sandbox = await host.create()
        output, _ = await host.run(sandbox, "ulimit -Sn; ulimit -Hn")
        assert output.split() == ["200", "200"]
        async with sandbox.use() as agent:
            spec = ExecSpec(command="sleep 60", env=sandbox.env)
            running = [await agent.exec(spec) for _ in range(4)]
            with pytest.raises(RunraError, match="4 commands") as caught:
                await agent.exec(spec)
            assert (caught.value.code, caught.value.details["reason"]) == ("RESOURCE_EXHAUSTED", "process_limit")
            for process in running:
                await agent.signal(process.pid, 9)
            asked = [asyncio.create_task(agent.processes()) for _ in range(12)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            refused = [answer for answer in answers if isinstance(answer, RunraError)]
            assert refused
            assert "8 streams" in refused[0].message
            assert len(refused) < 12


async def test_a_limit_that_cannot_be_held_is_refused(tmp_path: Path) -> None:
    """A disk without a quota, as on a machine without btrfs."""
    async with hosted(tmp_path / "strict", disk="none") as strict:
        with pytest.raises(RunraError, match="--allow-unenforced disk") as caught:
            await strict.create()
        assert (caught.value.code, caught.value.details["unenforced"]) == ("INVALID_CONFIG", ["disk"])
    async with hosted(tmp_path / "lenient", disk="none", allow_unenforced=frozenset({"disk"})) as lenient:
        sandbox = await lenient.create()
        assert sandbox.info().enforced["disk"] is False
        assert (await lenient.run(sandbox, "echo fine"))[0] == "fine\n"
    with pytest.raises(RunraError, match="no limit speed"):
        await start_host(tmp_path / "wrong", allow_unenforced=frozenset({"speed"}))
    assert str(tmp_path / "wrong") not in Path("/proc/self/mountinfo").read_text(), "nothing was mounted for it"


def test_no_swap_where_the_kernel_does_not_count_it(tmp_path: Path) -> None:
    """A stand-in for cgroup v1 without memory.memsw.*: how a kernel was built cannot be changed for a test."""
    group = Cgroup(Hierarchies({"memory": tmp_path}), "sb_test")
    group.create(Limits(cpu=1, memory_mb=64, pids=10))
    assert (tmp_path / "sb_test/memory.limit_in_bytes").read_text() == str(64 << 20)
    assert (tmp_path / "sb_test/memory.swappiness").read_text() == "0"


async def test_the_stronger_wall_for_everyone(tmp_path: Path) -> None:
    async with hosted(tmp_path / "data", allowed_isolation=frozenset([need_wall("gvisor")])) as host:
        assert (await host.create()).info().isolation == "gvisor"
        with pytest.raises(RunraError, match="there is gvisor") as caught:
            await host.create(isolation="bubblewrap")
        assert caught.value.code == "INVALID_CONFIG"


@bubblewrap_only("it expects bubblewrap as the default")
async def test_a_wall_chosen_per_sandbox(tmp_path: Path) -> None:
    need_wall("gvisor")
    async with hosted(tmp_path / "data") as host:
        weak, strong = await host.create(), await host.create(isolation="gvisor")
        assert (weak.info().isolation, strong.info().isolation) == ("bubblewrap", "gvisor")
    with pytest.raises(RunraError, match="not among those allowed"):
        await start_host(tmp_path / "wrong", isolation="gvisor", allowed_isolation=frozenset({"bubblewrap"}))
    assert str(tmp_path / "wrong") not in Path("/proc/self/mountinfo").read_text(), "nothing was mounted for it"
