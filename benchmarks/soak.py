"""Soak: thousands of sandboxes' lives at mixed concurrency on a real node; afterwards nothing may be left of them.

`make soak MINUTES=10`, or `python benchmarks/soak.py MINUTES`. Counts before and after what a server could leak: its
own descriptors, threads, tasks and memory, and on the machine processes, mounts, cgroups, namespaces, loop devices,
interfaces, elements of firewall rules and files. Every difference must be zero, that of the memory within its tolerance. Exit code 1 when something leaked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from runra.contract import Network, SandboxConfig
from runra.errors import RunraError
from runra.events import EventLog
from runra.ids import new_id
from runra.node import Node, NodeSettings, Sandbox
from runra.node.agent.types import ExecSpec
from runra.node.network.nft import Nft

#: What memory may grow by after the warm-up: Python's allocator keeps some.
RSS_TOLERANCE_MB = 16
WARM_UP_LIVES = 60
CONCURRENCY = (1, 4, 12)
SMALL = {"cpu": 1, "memoryMb": 64, "diskMb": 64}
#: gVisor's kernel counts against the memory as well.
BEHIND_GVISOR = {**SMALL, "memoryMb": 256}
#: What a life changes its network to: each takes other elements of the rules.
NETWORKS = ({"egress": {"default": "deny"}}, {"egress": {"allow": ["example.com", "192.0.2.1:80"]}}, {})
#: Sets of rules that forget by themselves, after a minute.
FORGETFUL = ("told", "sent", "received")

console = Console()


@dataclass
class Tally:
    """What was done, and what failed."""

    done: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


def rules(node: Node) -> int:
    """Elements of the sets and maps in this node's table that do not forget by themselves."""
    nft = Nft()
    try:
        listed = nft.run(f"list table inet runra_{node.settings.instance}")
    finally:
        nft.close()
    found = re.findall(r"(?:set|map) (\w+) {[^{}]*elements = {([^}]*)}", listed)
    return sum(elements.count(",") + 1 for name, elements in found if name not in FORGETFUL)


def count(node: Node) -> dict[str, int]:
    """Everything that a sandbox could leave behind."""
    gc.collect()
    name = f"runra-{node.settings.instance}/"
    data = str(node.settings.data_dir)
    groups = [path for root in Path("/sys/fs/cgroup").glob(f"*/{name}*") for path in (root,) if path.is_dir()]
    groups += [path for path in Path("/sys/fs/cgroup").glob(f"{name}*") if path.is_dir()]
    processes, namespaces = 0, set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # By group, and by parent: the launcher's own children are in no group before they join one.
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            if name in (entry / "cgroup").read_text() or parent in (str(os.getpid()), str(node._launcher._pid)):
                processes += 1
                for kind in ("user", "mnt", "net", "pid", "ipc", "uts", "cgroup"):
                    namespaces.add(str((entry / "ns" / kind).readlink()))
    loops = 0
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            loops += data in backing.read_text()
    files = [path for folder in ("records", "sandboxes", "sandboxes/.trash") for path in Path(data, folder).iterdir()]
    with Path("/proc/self/statm").open() as statm:
        rss = int(statm.read().split()[1]) * resource.getpagesize() >> 20
    return {
        "processes": processes,
        "namespaces": len(namespaces),
        "cgroups": len(groups),
        "mounts": sum(data in line for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        "loop devices": loops,
        "interfaces": sum(1 for _ in Path("/sys/class/net").glob(f"rn{node.settings.instance[:6]}*")),
        "elements of rules": rules(node) if node._network is not None else 0,
        "files": len(files),
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
        "sandboxes": len(node.sandboxes),
        "user id ranges": len(node._ids),
        "RSS MB": rss,
    }


async def run(sandbox: Sandbox, command: str, expected: bytes | None = None) -> None:
    async with sandbox.use() as agent:
        spec = ExecSpec(command=command, env=sandbox.env, timeout_ms=30_000)
        async with await agent.exec(spec) as process:
            output = b"".join([chunk.data async for chunk in process.output()])
            await process.wait()
    if expected is not None and output != expected:
        raise AssertionError(f"{command!r} said {output[:100]!r}")


async def preview(sandbox: Sandbox) -> None:
    """What a visit of a preview does on the node: a connection to the sandbox's loopback, answered from inside."""
    serve = 'python3 -c \'import socket; s = socket.create_server(("127.0.0.1", 3000)); print(1, flush=True); s.accept()[0].sendall(b"hello")\''
    async with sandbox.use() as agent:
        spec = ExecSpec(command=serve, env=sandbox.env, timeout_ms=30_000)
        async with await agent.exec(spec) as process:
            async for _ in process.output():
                break
            async with await agent.connect_port(3000) as tunnel:
                if (said := await tunnel.read(10)) != b"hello":
                    raise AssertionError(f"the preview said {said[:100]!r}")
            await process.wait()


def forgive(task: asyncio.Task[None]) -> None:
    """A command that is cut off fails, as it should."""
    if not task.cancelled():
        task.exception()


async def life(node: Node, tally: Tally, dice: random.Random) -> None:
    """One sandbox from create to terminate, by a way of its own."""
    strong = shutil.which("runsc") is not None and dice.random() < 0.05
    wall = {"isolation": "gvisor", "resources": BEHIND_GVISOR} if strong else {"resources": SMALL}
    config = SandboxConfig.model_validate({"image": "host", **wall}, context={"client": True})
    sandbox = await node.create(new_id("sb"), config, "org_soak")
    tally.done["create"] += 1
    tally.done["behind gVisor"] += strong
    background: list[asyncio.Task[None]] = []
    try:
        for _ in range(dice.randrange(6)):
            match dice.randrange(9):
                case 0 | 1:
                    await run(sandbox, "echo $((6*7))", b"42\n")
                    tally.done["exec"] += 1
                case 2:
                    await asyncio.gather(*(run(sandbox, f"echo {number}", b"%d\n" % number) for number in range(5)))
                    tally.done["exec"] += 5
                case 3:
                    await sandbox.pause()
                    await sandbox.resume()
                    tally.done["pause/resume"] += 1
                case 4:
                    async with sandbox.use() as agent:
                        await agent.files.write("/workspace/file", os.urandom(dice.randrange(200_000)))
                        async with await agent.files.read("/workspace/file") as stream:
                            await anext(stream, b"")
                        await agent.files.list("/usr/bin")
                    tally.done["file call"] += 3
                case 5:  # a caller that goes away
                    task = asyncio.create_task(run(sandbox, "sleep 5"))
                    task.add_done_callback(forgive)
                    await asyncio.sleep(dice.random() * 0.05)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    tally.done["exec cancelled"] += 1
                case 6:  # work that is under way at the end
                    background.append(asyncio.create_task(run(sandbox, "yes | head -c 5M; sleep 9")))
                    background[-1].add_done_callback(forgive)
                    tally.done["exec cut off"] += 1
                case 7:
                    await preview(sandbox)
                    tally.done["preview"] += 1
                case 8:
                    wanted = dice.choice(NETWORKS) if node._network is not None else {"egress": {"default": "deny"}}
                    await sandbox.update_network(Network.model_validate(wanted, context={"client": True}))
                    tally.done["network changed"] += 1
        if dice.random() < 0.2:
            await sandbox.pause()
        if dice.random() < 0.1:  # process 1 dies by itself
            os.kill(sandbox.record.pid, 9)
            tally.done["agent killed"] += 1
    finally:
        async with asyncio.timeout(30):
            await sandbox.terminate()
        tally.done["terminate"] += 1
        await asyncio.gather(*background, return_exceptions=True)


async def cancelled_create(node: Node, tally: Tally, dice: random.Random) -> None:
    """A create whose caller goes away at any moment of it."""
    task = asyncio.create_task(life(node, Tally(), random.Random(dice.random())))
    await asyncio.sleep(dice.random() * 0.08)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    tally.done["create cancelled"] += 1


async def worker(node: Node, tally: Tally, until: float, seed: int, most: int | None = None) -> None:
    dice = random.Random(seed)
    lives = 0
    while time.monotonic() < until and (most is None or lives < most):
        lives += 1
        try:
            async with asyncio.timeout(120):
                await (cancelled_create if dice.random() < 0.1 else life)(node, tally, dice)
        except RunraError as error:
            tally.errors[f"{error.code}: {str(error)[:80]}"] += 1
        except TimeoutError:
            tally.errors["a life took two minutes"] += 1


async def settle(node: Node) -> None:
    """Everything terminated and cleaned away; what is still going a moment later is a leak."""
    await node.settled()
    await asyncio.sleep(1.0)
    await node.settled()


async def soak(minutes: float) -> bool:
    with tempfile.TemporaryDirectory(prefix="runra-soak-") as folder:
        # A short log: ten thousand events kept for replay are memory, too, and would hide a leak.
        node = Node(NodeSettings(data_dir=Path(folder) / "data"), EventLog(kept=200))
        await node.start()
        try:
            started = time.monotonic()
            tally = Tally()
            # Warm-up: caches, threads of the pool, and the launcher have their final number after it.
            crowd = max(CONCURRENCY)
            each = WARM_UP_LIVES // crowd
            await asyncio.gather(*(worker(node, tally, started + 120, seed, each) for seed in range(crowd)))
            # Python's pool of threads grows with what happens to be asked of it at once, up to its size.
            await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.05) for _ in range(64)))
            await settle(node)
            before = count(node)
            tally = Tally()
            started = time.monotonic()
            end = started + minutes * 60
            seed = 1000
            while time.monotonic() < end:
                for concurrency in CONCURRENCY:
                    slice_end = min(end, time.monotonic() + 10)
                    seed += concurrency
                    await asyncio.gather(*(worker(node, tally, slice_end, seed + n) for n in range(concurrency)))
            took = time.monotonic() - started
            await settle(node)
            after = count(node)
        finally:
            for sandbox in list(node.sandboxes.values()):
                await sandbox.terminate()
            await node.settled()
            await node.close()
        left = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if folder in line]
    return report(tally, before, after, took, left)


def report(tally: Tally, before: dict[str, int], after: dict[str, int], took: float, left: list[str]) -> bool:
    table = Table(title=f"Soak: {tally.done['create']} sandboxes in {took:.0f} s")
    for title in ("what", "before", "after", "difference", ""):
        table.add_column(title, justify="left" if title in ("what", "") else "right")
    fine = not left
    for name, value in before.items():
        difference = after[name] - value
        held = difference <= (RSS_TOLERANCE_MB if name == "RSS MB" else 0)
        fine &= held
        table.add_row(name, str(value), str(after[name]), f"{difference:+d}", "" if held else "[red]leaked")
    console.print(table)
    console.print("done: " + ", ".join(f"{number} {what}" for what, number in tally.done.most_common()))
    for what, number in tally.errors.most_common():
        fine = False
        console.print(f"[red]{number} × {what}")
    if left:
        console.print(f"[red]mounts left after the node was closed: {left}")
    console.print(f"memory may grow by {RSS_TOLERANCE_MB} MB after the warm-up; everything else by nothing")
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=2.0)
    sys.exit(0 if asyncio.run(soak(parser.parse_args().minutes)) else 1)


if __name__ == "__main__":
    main()
