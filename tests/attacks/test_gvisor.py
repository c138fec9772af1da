"""What gVisor's wall alone claims: who runs it, what of the host's kernel it reaches, and that it ends as one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runra.errors import RunraError
from runra.node import Sandbox
from runra.node.settings import IDS_PER_SANDBOX
from tests.hosting import NOTHING, Host, hosted, need_wall, start_host, stop_host, until

SMALL = {"resources": {"cpu": 1, "memoryMb": 256, "diskMb": 300}}


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = await start_host(tmp_path / "data", isolation=need_wall("gvisor"), max_pids=100)
    yield host
    await stop_host(host)
    await until(lambda: host.left() == NOTHING)


def processes(sandbox: Sandbox) -> dict[int, dict[str, str]]:
    """Everything in a sandbox's cgroup, with what /proc/PID/status says of it."""
    found = {}
    for pid in map(int, sandbox.cgroup.join_files[0].read_text().split()):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        found[pid] = {key: value.strip() for key, _, value in (line.partition(":") for line in status.splitlines())}
    return found


def part(sandbox: Sandbox, name: str) -> int:
    """The pid of the keeper, of gVisor's kernel ("boot") or of its file server ("gofer")."""
    if name == "keeper":
        return sandbox.record.pid
    for pid in processes(sandbox):
        if f"\0{name}\0" in Path(f"/proc/{pid}/cmdline").read_text():
            return pid
    raise AssertionError(f"no {name} among {processes(sandbox)}")


async def test_nothing_of_it_runs_as_anybody_of_the_host(host: Host) -> None:
    """Each of its processes has ids of the sandbox's own range, no new privileges, and no namespace of the host's."""
    sandbox, other = await host.create(), await host.create()
    assert sandbox.info().isolation == "gvisor"
    first = sandbox.record.first_id
    assert first is not None
    await host.run(sandbox, "id")
    found = processes(sandbox)
    assert len(found) >= 4
    for pid, status in found.items():
        ids = {*map(int, status["Uid"].split()), *map(int, status["Gid"].split())}
        assert all(first <= one < first + IDS_PER_SANDBOX for one in ids), (pid, status)
        assert status["NoNewPrivs"] == "1", (pid, status)
        for kind in ("user", "mnt", "net", "ipc", "uts", "cgroup"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), (pid, kind)
        assert int(status["NSpid"].split()[-1]) < 1000, "a pid namespace of its own"
        if pid != part(sandbox, "keeper"):
            assert status["Seccomp"] == "2", (pid, status)
    assert processes(sandbox).keys().isdisjoint(processes(other))
    assert set(found[part(sandbox, "keeper")]["CapEff"]) == {"0"}


async def test_a_call_inside_is_not_the_hosts_kernels(host: Host) -> None:
    """Namespaces, keys, programs for the kernel: what works inside makes nothing outside."""
    sandbox = await host.create()
    release = os.uname().release
    output, _ = await host.run(sandbox, "uname -r; cat /proc/version; dmesg 2>&1 | head -3; cat /proc/cmdline")
    assert release not in output
    assert Path("/proc/cmdline").read_text().strip() not in output

    def namespaces() -> set[str]:
        return {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in processes(sandbox) for kind in ("user", "net", "mnt")}

    before = namespaces()
    keys = Path("/proc/keys").read_text().count("runra") if Path("/proc/keys").exists() else 0
    await host.run(
        sandbox, "unshare -Urn sleep 0.5 & unshare -Urm true; keyctl add user runra x @u 2>/dev/null; sleep 0.2"
    )
    assert namespaces() <= before
    assert not keys or Path("/proc/keys").read_text().count("runra") == keys


@pytest.mark.parametrize("name", ["keeper", "boot", "gofer"])
async def test_it_ends_as_one(host: Host, name: str) -> None:
    """Whichever of its processes is killed, the sandbox has ended, with everything of it, and its neighbour has not."""
    sandbox, neighbour = await host.create(), await host.create()
    running = asyncio.create_task(host.run(sandbox, "sleep 60"))
    await until(lambda: len(processes(sandbox)) > 4)
    os.kill(part(sandbox, name), signal.SIGKILL)
    async with asyncio.timeout(10):
        assert isinstance((await asyncio.gather(running, return_exceptions=True))[0], RunraError)
    await until(lambda: sandbox.info().state == "terminated" and sandbox.id not in host.node.sandboxes)
    await host.node.settled()
    assert not [line for line in host.left()["processes"] if sandbox.id in line]
    assert (await host.run(neighbour, "echo alive"))[0] == "alive\n"


@pytest.mark.parametrize("after_ms", [5, 40, 80, 120])
async def test_a_start_cut_off_leaves_nothing(host: Host, after_ms: int) -> None:
    """Everything of it is killed at some moment of its start: an error, or a sandbox that is over."""
    creating = asyncio.create_task(host.create())
    await until(lambda: bool(host.node.sandboxes))
    sandbox = next(iter(host.node.sandboxes.values()))
    await asyncio.sleep(after_ms / 1000)
    sandbox.cgroup.kill()
    async with asyncio.timeout(20):
        await asyncio.gather(creating, return_exceptions=True)
    await until(lambda: sandbox.info().state == "terminated" or creating.exception() is None)
    await sandbox.terminate()
    await host.node.settled()
    await until(lambda: host.left() == NOTHING)


async def test_killing_process_1_from_inside_ends_only_itself(host: Host) -> None:
    sandbox, neighbour = await host.create(), await host.create()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
        await host.run(sandbox, f"kill -{number} 1")
    assert (await host.run(sandbox, "echo alive"))[0] == "alive\n"
    with pytest.raises(RunraError):
        await host.run(sandbox, "kill -9 1; sleep 5")
    await until(lambda: sandbox.info().state == "terminated")
    assert (await host.run(neighbour, "echo alive"))[0] == "alive\n"


BOMBS = {
    "fork bomb": (":(){ :|:& };:; sleep 2", None),
    "threads": ("python3 -c 'import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(3,)).start()'", None),
    "tmpfs": ("head -c 1G /dev/zero > /dev/shm/fill; sleep 1", None),
    "open files": ("for i in $(seq 50); do python3 -c 'x = []\nwhile True: x.append(open(\"/dev/null\"))' & done; wait", "oom"),
    "memory": ("python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))'", "oom"),
}  # fmt: skip


@pytest.mark.parametrize("bomb", list(BOMBS))
async def test_a_bomb_stays_inside(host: Host, bomb: str) -> None:
    """Memory belongs to gVisor's kernel as a whole: when it is gone the sandbox ends, with its reason."""
    command, reason = BOMBS[bomb]
    bomber, neighbour = await host.create(**SMALL), await host.create(**SMALL)
    running = asyncio.create_task(host.run(bomber, command))
    while not running.done():
        assert (await host.run(neighbour, "echo alive"))[0] == "alive\n"
        if bomber.info().state == "running":
            assert bomber.cgroup.usage().get("memoryBytes", 0) <= 256 << 20
        await asyncio.sleep(0.1)
    await asyncio.gather(running, return_exceptions=True)
    if reason is None:
        assert bomber.info().state == "running"
    else:
        await until(lambda: bomber.info().state == "terminated")
        assert bomber.info().termination_reason == reason


@pytest.mark.parametrize("victim", ["keeper", "boot", "gofer", "agent"])
async def test_whatever_the_kernel_kills_for_memory_it_ends_as_one(host: Host, victim: str) -> None:
    """What a program inside has for memory is a process of the host's; builds of 2024 stand still without the agent's."""
    sandbox = await host.create(**SMALL)
    parts = {name: part(sandbox, name) for name in ("keeper", "boot", "gofer")}
    for pid in [parts[victim]] if victim in parts else processes(sandbox).keys() - set(parts.values()):
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
    running = asyncio.create_task(host.run(sandbox, BOMBS["memory"][0]))
    await until(lambda: sandbox.info().state == "terminated", 20)
    assert sandbox.info().termination_reason == "oom"
    await asyncio.gather(running, return_exceptions=True)
    await host.node.settled()
    assert not [line for line in host.left()["processes"] if sandbox.id in line]


async def test_the_hosts_process_numbers_do_not_end_with_one_sandbox(tmp_path: Path) -> None:
    """gVisor needs several of the host's processes for one inside; its room for them is no room for all there are."""
    async with hosted(tmp_path / "data", isolation=need_wall("gvisor"), max_pids=1_000_000) as host:
        sandbox = await host.create(**SMALL)
        limits = [file.with_name("pids.max") for file in sandbox.cgroup.join_files]
        limit = next(int(file.read_text()) for file in limits if file.exists())
        assert limit <= int(Path("/proc/sys/kernel/pid_max").read_text()) // 4


async def test_a_full_disk_is_the_sandboxs_own(host: Host) -> None:
    bomber, neighbour = await host.create(**SMALL), await host.create(**SMALL)
    output, _ = await host.run(bomber, "head -c 1G /dev/zero > /workspace/fill; sync; du -m /workspace/fill | cut -f1")
    assert "No space left" in output or "quota exceeded" in output
    assert int(output.split()[-1]) <= 300
    output, _ = await host.run(bomber, "head -c 50M /dev/zero > /tmp/more; stat -c %s /tmp/more || echo 0")
    assert int(output.split()[-1]) < 50 << 20, "/tmp lies on the same disk"
    assert (await host.run(neighbour, "head -c 20M /dev/zero > /workspace/fine && echo fine"))[0] == "fine\n"


async def test_nothing_takes_the_place_of_the_hosts_programs_inside(host: Host) -> None:
    """The host runs the agent in there with a capability that nobody inside has."""
    sandbox = await host.create(**SMALL)
    tries = (
        "mv /run/runra /run/x",
        "mv /run/runra/agent /run/y",
        "rm /run/runra/agent",
        "ln -f /bin/true /run/runra/agent",
        "cp /bin/true /run/runra/agent",
        "umount -l /run/runra/agent",
        "mount -t tmpfs none /run/runra",
    )
    for each in tries:
        said = (await host.run(sandbox, f"({each}) 2>/dev/null && echo done; ls /run/runra"))[0].split()
        assert "agent" in said, each
        assert "done" not in said, each
    assert (await host.run(sandbox, "touch /run/runra/mine 2>/dev/null && echo done", user="user"))[0] == ""
