"""One sandbox takes all it can get; its limits hold, its neighbour and the host do not feel it.

Every bomb here is inside a sandbox's own cgroup and disk quota, with small limits, and ends by itself or with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from runra.errors import RunraError
from runra.node import Sandbox
from runra.node.agent.types import ExecSpec, Exit
from tests.hosting import NOTHING, Host, bubblewrap_only, start_host, stop_host, until

#: Small limits, so that a test fills them quickly: 256 MB of memory, 300 MB of disk.
SMALL = {"resources": {"cpu": 1, "memoryMb": 256, "diskMb": 300}}


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Host]:
    host = await start_host(tmp_path / "data", max_pids=200)
    yield host
    await stop_host(host)
    await until(lambda: host.left() == NOTHING)


async def latencies(host: Host, neighbour: Sandbox, seconds: float) -> list[float]:
    """What `true` costs in another sandbox meanwhile, in ms."""
    found = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        started = time.perf_counter()
        _, exit = await host.run(neighbour, "true")
        assert exit.code == 0
        found.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(0.02)
    return found


async def beside(host: Host, neighbour: Sandbox, flood: Coroutine[Any, Any, tuple[str, Exit]]) -> str:
    """What a flood printed; until it ended its neighbour was served. A bound against starvation, not a benchmark."""
    flooding = asyncio.create_task(flood)
    measured = []
    while not flooding.done():
        measured += await latencies(host, neighbour, 0.1)
    output, _ = await flooding
    assert statistics.median(measured) < 100, sorted(measured)[-5:]
    return output


BOMBS = {
    "fork bomb": ":(){ :|:& };:; sleep 3",
    "memory": "python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))'; true",
    "tmpfs": "head -c 1G /dev/zero > /dev/shm/fill; sleep 1",
    "processor": "for i in 1 2 3 4 5 6; do (while :; do :; done) & done; sleep 3; kill 0",
    "output": "timeout 3 yes",
    "descriptors": "python3 -c 'import os\nwhile True: os.dup(0)' 2>/dev/null; sleep 1",
    "threads": "python3 -c 'import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()' 2>/dev/null; true",
    "inodes of memory": "cd /dev/shm && python3 -c 'import os\nfor i in range(10**7): os.mknod(str(i))' 2>/dev/null; true",
    "zombies": "python3 -c 'import os, time\nfor i in range(150):\n  if not os.fork(): os._exit(0)\ntime.sleep(2)'",
}


#: Opens files in forty processes, which hold them, until there are no more to be had.
OPEN_FILES = """
import os, resource, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
for _ in range(40):
    if not os.fork():
        try:
            while True:
                os.open("/dev/null", os.O_RDONLY)
        except OSError:
            time.sleep(60)
os.wait()
time.sleep(60)
"""


@bubblewrap_only("gVisor's memory is one: when it is gone the sandbox ends (attacks/test_gvisor.py has its bombs)")
async def test_open_files_end_with_the_sandboxs_memory(small: Host) -> None:
    """800,000 files are asked for, of a sandbox with the memory of fewer: some of who asks is killed for it, the
    machine's table of open files is far from full, and the neighbour opens files as before, also as nobody."""
    assert small.node.enforced["openFiles"]
    bomber, neighbour = await small.create(resources={"cpu": 1, "memoryMb": 128, "diskMb": 300}), await small.create(**SMALL)
    async with bomber.use() as agent:
        await agent.files.write("/workspace/open.py", OPEN_FILES.encode())
        process = await agent.exec(ExecSpec(argv=("python3", "/workspace/open.py"), env=bomber.env, timeout_ms=40_000))
        measured, most, table = [], 0, Path("/proc/sys/fs/file-nr")
        async with asyncio.timeout(50):
            while not bomber.oom_kills():
                measured += await latencies(small, neighbour, 0.1)
                used, _, size = map(int, table.read_text().split())
                most = max(most, used)
            await agent.signal(process.pid, signal.SIGKILL)
            await process.wait()
        assert 100_000 < most < size / 10
        assert statistics.median(measured) < 100, sorted(measured)[-5:]
    said, _ = await small.run(neighbour, "setpriv --reuid 1000 --clear-groups python3 -c 'print(len([open(\"/\" + \"dev/null\") for _ in range(500)]))'")
    assert said == "500\n"
    assert (await small.run(bomber, "echo alive"))[0] == "alive\n"


@bubblewrap_only("it counts processes of the host, and gVisor needs many for one inside (attacks/test_gvisor.py has its bombs)")
@pytest.mark.parametrize("bomb", list(BOMBS))
async def test_a_bomb_stays_inside(small: Host, bomb: str) -> None:
    bomber, neighbour = await small.create(**SMALL), await small.create(**SMALL)
    async with bomber.use() as agent:
        process = await agent.exec(ExecSpec(command=BOMBS[bomb], env=bomber.env, timeout_ms=6000))
        measured = await latencies(small, neighbour, 2.5)
        assert (bomber.cgroup.usage())["processes"] <= 200
        assert (bomber.cgroup.usage())["memoryBytes"] <= 256 << 20
        # Two cores serve bomber, neighbour and this test: a bound against starvation, not a benchmark.
        assert statistics.median(measured) < 100, sorted(measured)[-5:]
        async with asyncio.timeout(15):
            await process.wait()
        # The command is over, what it left in the background is not: its owner can still end all of it.
        with contextlib.suppress(RunraError):  # nothing left is fine, too
            await agent.signal(process.pid, signal.SIGKILL)
        await until(lambda: bomber.cgroup.usage()["processes"] < 20)
    assert bomber.info().state == "running"
    output, _ = await small.run(bomber, "echo alive")
    assert output == "alive\n"


@bubblewrap_only("a neighbour behind gVisor is slower than its bound of 100 ms (attacks/test_gvisor.py fills a disk as well)")
async def test_a_full_disk_is_the_sandboxs_own(small: Host) -> None:
    if not small.node.enforced["disk"]:
        pytest.fail("no disk quota on this machine: apt-get install btrfs-progs")
    bomber, neighbour = await small.create(**SMALL), await small.create(**SMALL)
    before = os.statvfs(small.node.settings.data_dir)
    fill = "head -c 2G /dev/zero > /workspace/fill; sync; du -m /workspace/fill | cut -f1"
    output = await beside(small, neighbour, small.run(bomber, fill))
    assert "No space left" in output or "quota exceeded" in output
    assert int(output.split()[-1]) <= 300
    for place in ("/tmp/more", "/usr/more", "/root/more"):
        output, _ = await small.run(bomber, f"head -c 50M /dev/zero > {place} 2>&1; stat -c %s {place} || echo 0")
        assert int(output.split()[-1]) < 50 << 20, place
    output, exit = await small.run(neighbour, "head -c 50M /dev/zero > /workspace/fine && echo fine")
    assert (output, exit.code) == ("fine\n", 0)
    async with bomber.use() as agent:
        await bomber.pause()
        await bomber.resume()
        with pytest.raises(RunraError) as caught:
            await agent.files.write("/workspace/file", b"x" * (8 << 20))
        assert caught.value.details.get("reason") == "disk_full", caught.value
        await agent.files.delete("/workspace/fill")
        await agent.files.write("/workspace/file", b"room again")
    after = os.statvfs(small.node.settings.data_dir)
    assert (before.f_bavail - after.f_bavail) * before.f_frsize < 500 << 20
    await bomber.terminate()
    output, _ = await small.run(neighbour, "echo alive")
    assert output == "alive\n"


@bubblewrap_only("a sync behind gVisor commits nothing on the host: space comes back with its next commit, within a minute")
async def test_churn_does_not_outgrow_the_quota_on_the_host(tmp_path: Path) -> None:
    """Files made and deleted again and again: what the host gives for them comes back, while the sandbox lives."""
    host = await start_host(tmp_path / "data", trim_every=0.2)
    image = host.node.settings.sandboxes_dir.with_name("disk.img")
    if not image.exists():
        pytest.skip("the data folder is on btrfs itself, or there are no btrfs-progs")
    churn = (
        "import os\nos.makedirs('/workspace/many')\nfor i in range(8000): open(f'/workspace/many/{i:0150d}', 'w').write('x')\n"
        "os.system('sync; rm -rf /workspace/many; head -c 120M /dev/urandom > /workspace/f; sync; rm /workspace/f; sync')\n"
    )
    bomber = await host.create(**SMALL)
    for _ in range(2):
        async with (
            bomber.use() as agent,
            await agent.exec(ExecSpec(argv=("python3", "-c", churn), env=bomber.env)) as process,
        ):
            assert (await process.wait()).code == 0
    await until(lambda: image.stat().st_blocks * 512 < 100 << 20, 20)
    await stop_host(host)
    await until(lambda: host.left() == NOTHING)


async def test_there_is_no_swap_to_use(small: Host) -> None:
    """A limit of memory alone would let a sandbox fill the host's swap: read back from the kernel, whichever cgroups."""
    sandbox = await small.create(**SMALL)
    folders = [path.parent for path in sandbox.cgroup.join_files]
    memory = next(folder for folder in folders if list(folder.glob("memory.*")))
    both = memory / "memory.memsw.limit_in_bytes"
    if (memory / "memory.max").exists():  # v2; without the file this kernel has no swap at all
        none = memory / "memory.swap.max"
        assert not none.exists() or none.read_text() == "0\n"
    elif both.exists():
        assert both.read_text() == (memory / "memory.limit_in_bytes").read_text() == f"{256 << 20}\n"
    else:
        assert (memory / "memory.swappiness").read_text() == "0\n"


async def test_cores_are_not_exceeded(small: Host) -> None:
    """Four loops in a sandbox of one core: processor time by the host's own count, at most that of one core."""
    bomber = await small.create(**SMALL)
    async with bomber.use() as agent:
        command = "for i in 1 2 3 4; do (while :; do :; done) & done; wait"
        process = await agent.exec(ExecSpec(command=command, env=bomber.env, timeout_ms=8000))
        before, started = bomber.cgroup.usage()["cpuMs"], time.monotonic()
        await asyncio.sleep(2)
        used, passed = bomber.cgroup.usage()["cpuMs"] - before, (time.monotonic() - started) * 1000
        assert used <= passed + 300  # a period's quota may fall on either side
        assert used >= passed * 0.2, "it did compute"
        await agent.signal(process.pid, signal.SIGKILL)


async def test_a_million_files_stop_at_the_quota(small: Host) -> None:
    """Inodes are disk, too: their metadata counts against the same quota."""
    bomber, neighbour = (
        await small.create(resources={"cpu": 1, "memoryMb": 256, "diskMb": 32}),
        await small.create(**SMALL),
    )
    script = (
        "import os\nos.mkdir('/workspace/many')\n"
        "try:\n  for i in range(1_000_000): os.mknod(f'/workspace/many/{i:0200d}')\n"
        "except OSError as error: print(i, error.strerror)\n"
    )
    command = f"cat > /tmp/a.py <<'END'\n{script}\nEND\npython3 /tmp/a.py"
    output = await beside(small, neighbour, small.run(bomber, command))
    assert "exceeded" in output or "No space" in output, output
    assert 1000 < int(output.split()[0]) < (32 << 20) // 256, "each costs more than its name"
    assert (await bomber.metrics())["diskBytes"] < 64 << 20
