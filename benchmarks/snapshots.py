"""Benchmarks of snapshots, forks and volumes, against the size of what is copied. `make bench` runs it.

A server of its own, through the SDK as a user would. The peer is `cp -a` of the same files on the same disk: what a copy
costs that shares nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.table import Table
from run import OUT, Row, console, row, server

from runra import Runra, RunraError, Sandbox

ROUNDS = 20
#: What a sandbox holds: its name, and the command that makes it.
SIZES = {
    "nothing": "true",
    "100 MB in one file": "head -c 100M /dev/urandom > big",
    "1 GB in one file": "head -c 1000M /dev/urandom > big",
    "10,000 files": "mkdir many && cd many && seq 10000 | xargs -n 1 -P 2 -I N sh -c 'echo N > N'",
}


def timed(work: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        found.append((time.perf_counter() - started) * 1000)
    return found


def of_one(client: Runra, sandbox: Sandbox, what: str, layer: Path) -> list[Row]:
    snapshots: list[str] = []
    first = timed(lambda: snapshots.append(sandbox.snapshot().id), 1)
    rows = [
        row(
            f"snapshot, {what}",
            "Runra over REST",
            timed(lambda: snapshots.append(sandbox.snapshot().id)),
            note=f"first {first[0]:.0f} ms",
        ),
    ]
    made: list[Sandbox] = []
    image = f"snapshot:{snapshots[0]}"
    rows.append(
        row(
            f"create from it, {what}",
            "Runra over REST",
            timed(lambda: made.append(client.sandboxes.create(image=image))),
        )
    )
    rows.append(row(f"fork into 4, {what}", "Runra over REST", timed(lambda: made.extend(sandbox.fork(4)), 5)))
    copies = iter(layer.parents[1] / f"bench-copy{number}" for number in range(10))
    rows.append(
        row(
            f"copy, {what}",
            "cp -a, sharing nothing",
            timed(lambda: subprocess.check_call(["cp", "-a", "--reflink=never", layer, next(copies)]), 2),
        )
    )
    for copy in layer.parents[1].glob("bench-copy*"):
        shutil.rmtree(copy)
    for one in made:
        one.terminate()
    rows.append(
        row(
            f"delete a snapshot, {what}",
            "Runra over REST",
            timed(lambda: client.snapshots.delete(snapshots.pop()), len(snapshots)),
        )
    )
    return rows


#: What the processes of a sandbox that is forked with them hold in memory, MB.
HELD_MB = (0, 100, 1000)
HOLD = "x = bytearray(__import__('os').urandom({} << 20)); print('held', flush=True); __import__('time').sleep(3600)"


def of_running(client: Runra) -> list[Row]:
    """Forks with processes; none where no wall can save what runs."""
    rows: list[Row] = []
    for held in HELD_MB:
        what = f"{held} MB held by a process"
        console.print(f"[dim]{what}")
        try:
            sandbox = client.sandboxes.create(image="host", isolation="gvisor", resources={"memoryMb": 2048})
        except RunraError as error:
            console.print(f"[dim]no forks with processes: {error.message}")
            return rows
        with sandbox:
            process = sandbox.exec(["python3", "-c", HOLD.format(held)], background=True)
            next(iter(process.logs()))
            made: list[Sandbox] = []
            try:
                found = timed(lambda box=sandbox, made=made: made.extend(box.fork(1, processes=True)), 5)
            except RunraError as error:
                console.print(f"[dim]no forks with processes: {error.message}")
                return rows
            rows.append(row(f"fork with processes, {what}", "Runra over REST", found))
            for one in made:
                one.terminate()
    return rows


def measure(client: Runra, data: Path) -> list[Row]:
    made: list[Sandbox] = []
    rows = [
        row(
            "create from the image host",
            "Runra over REST",
            timed(lambda: made.append(client.sandboxes.create(image="host"))),
        )
    ]
    for what, command in SIZES.items():
        console.print(f"[dim]{what}")
        with client.sandboxes.create(image="host", timeout_ms=3_600_000) as sandbox:
            sandbox.exec(f"{command}; sync", check=True, timeout_ms=300_000)
            rows += of_one(client, sandbox, what, data / "node/sandboxes" / sandbox.id / "upper0")
    rows += of_running(client)
    client.volumes.create("bench", size_mb=64, access="many-writers")
    mounted = [{"name": "bench", "path": "/data"}]
    rows.append(
        row(
            "create with a volume",
            "Runra over REST",
            timed(lambda: made.append(client.sandboxes.create(image="host", volumes=mounted))),
        )
    )
    for one in made:
        one.terminate()
    client.volumes.delete("bench")
    return rows


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="runra-bench-"))
    try:
        with server(folder) as (url, key, _), Runra(api_url=url, api_key=key) as client:
            rows = measure(client, folder / "data")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table("what", "who", "p50", "p95", "unit", "note")
    for one in rows:
        table.add_row(one.what, one.peer, f"{one.p50:.1f}", f"{one.p95:.1f}", one.unit, one.note)
    OUT.print(table)


if __name__ == "__main__":
    main()
