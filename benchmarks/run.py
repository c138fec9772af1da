"""Benchmarks: what a sandbox costs, beside the peers this machine has. `make bench` runs it; nothing here is a test.

Starts a server of its own on a free port and a temporary data folder, measures through the SDK as a user would,
and stops everything it started. Figures are medians with p95 and p99 in ms unless the row says otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from runra import AsyncRunra, Runra
from runra.node.images import host as host_image
from runra.node.isolation.bubblewrap import find_bwrap

console = Console(stderr=True)
#: Wide enough for the table also when it goes to a file.
OUT = Console(width=None if sys.stdout.isatty() else 150)


@dataclass
class Row:
    what: str
    peer: str
    p50: float
    p95: float
    p99: float
    unit: str = "ms"
    note: str = ""


def row(what: str, peer: str, samples: list[float], unit: str = "ms", note: str = "") -> Row:
    ordered = sorted(samples)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Row(what, peer, statistics.median(ordered), at(0.95), at(0.99), unit, note)


def timed(work: Callable[[], object], rounds: int, title: str, warm: int = 3) -> list[float]:
    for _ in range(warm):
        work()
    found = []
    for _ in track(range(rounds), title, console=console, transient=True):
        started = time.perf_counter()
        work()
        found.append((time.perf_counter() - started) * 1000)
    return found


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[str, str, int]]:
    """A server on a free port: its URL, key and pid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "HOME": str(folder / "home")}
    (folder / "home").mkdir()
    command = [sys.executable, "-m", "runra.cli", "serve", "--port", str(port), "--data-dir", str(folder / "data")]
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        key_file = folder / "data/bootstrap-key"
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                if key_file.exists():
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start:\n{(folder / 'server.log').read_text()}")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}", key_file.read_text().strip(), process.pid
    finally:
        process.terminate()
        process.wait(30)


def bare_peers(folder: Path, rounds: int) -> list[Row]:
    """No isolation, and bwrap alone with the same overlay root and the same namespaces."""
    rows = [
        row(
            "start → output",
            "sh -c, no isolation",
            timed(lambda: subprocess.check_output(["/bin/sh", "-c", "echo hi"]), rounds, "sh"),
        )
    ]
    image = host_image.prepare(folder / "bare-image")
    boxes = iter(range(10_000))

    def start() -> None:
        box = folder / f"bare{next(boxes)}"
        arguments = [
            str(find_bwrap()),
            *(f"--unshare-{kind}" for kind in ("user", "pid", "ipc", "uts", "net", "cgroup")),
        ]
        for number, overlay in enumerate(image.overlays):
            for kind in ("u", "w"):
                (box / f"{kind}{number}").mkdir(parents=True)
            arguments += ["--overlay-src", str(overlay.lower[0])]
            arguments += ["--overlay", str(box / f"u{number}"), str(box / f"w{number}"), overlay.target]
        arguments += ["--proc", "/proc", "--dev", "/dev", "--as-pid-1", "/bin/echo", "hi"]
        assert subprocess.check_output(arguments) == b"hi\n"

    rows.append(row("start → output", "bwrap, same root", timed(start, rounds, "bwrap")))
    return rows


def ours(client: Runra, rounds: int) -> list[Row]:
    rows = []
    waiting = []

    def start() -> None:
        sandbox = client.sandboxes.create(image="host")
        waiting.append(sandbox)
        assert sandbox.exec("echo hi").stdout == "hi\n"

    samples = timed(start, rounds, "create → output")
    rows.append(row("start → output", "runra, over REST", samples))
    rows.append(row("terminate", "runra, over REST", timed(lambda: waiting.pop().terminate(), rounds, "terminate")))
    while waiting:
        waiting.pop().terminate()
    rows.append(
        row(
            "create",
            "runra, over REST",
            timed(lambda: waiting.append(client.sandboxes.create(image="host")), rounds, "create"),
        )
    )
    while waiting:
        waiting.pop().terminate()
    with client.sandboxes.create(image="host") as sandbox:
        rows.append(row("exec true", "runra, over REST", timed(lambda: sandbox.exec(["true"]), rounds * 5, "exec")))
        rows.append(row("exec true", "runra, through bash", timed(lambda: sandbox.exec("true"), rounds * 5, "exec")))
        rows.append(
            row(
                "exec true",
                "sh -c, no isolation",
                timed(lambda: subprocess.run(["/bin/true"], check=True), rounds * 5, "exec"),
            )
        )
        rows.append(
            row(
                "pause",
                "runra, over REST",
                timed(lambda: (sandbox.pause(), sandbox.resume()), rounds, "pause"),
                note="pause and resume",
            )
        )
        rows.append(
            row(
                "write 1 KiB",
                "runra, over REST",
                timed(lambda: sandbox.files.write("/workspace/a", "x" * 1024), rounds, "write"),
            )
        )
        rows.append(
            row("read 1 KiB", "runra, over REST", timed(lambda: sandbox.files.read("/workspace/a"), rounds, "read"))
        )

        def stream() -> float:
            started, size = time.perf_counter(), 0

            def count(line: str) -> None:
                nonlocal size
                size += len(line) + 1

            sandbox.exec(
                "head -c 100000000 /dev/zero | tr '\\0' x | fold -w 65535", on_stdout=count, timeout_ms=120_000
            )
            return size / (time.perf_counter() - started) / 1e6

        rows.append(row("100 MB stdout", "runra, SSE", [stream() for _ in range(3)], "MB/s"))

        def download() -> float:
            started, size = time.perf_counter(), 0
            for part in sandbox.files.read("/workspace/big", format="stream"):
                size += len(part)
            return size / (time.perf_counter() - started) / 1e6

        sandbox.exec("head -c 500000000 /dev/zero > /workspace/big", timeout_ms=120_000)
        rows.append(row("500 MB file read", "runra, over REST", [download() for _ in range(3)], "MB/s"))
    return rows


async def burst(url: str, key: str, count: int) -> Row:
    async with AsyncRunra(api_url=url, api_key=key) as client:
        started = time.perf_counter()
        sandboxes = await asyncio.gather(*(client.sandboxes.create(image="host") for _ in range(count)))
        took = time.perf_counter() - started
        await asyncio.gather(*(sandbox.terminate() for sandbox in sandboxes))
    return row(f"burst of {count}", "runra, over REST", [count / took], "creates/s")


def memory_kb(pids: list[int]) -> int:
    """Proportional set size: what these processes cost together, shared pages counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total


def descendants_and_sandboxes(server_pid: int) -> list[int]:
    """The server and every process that runs in one of its sandboxes' cgroups."""
    mine = [server_pid]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                text = (entry / "cmdline").read_bytes().split(b"\0", 1)[0]
                if text.endswith((b"runra-agent", b"/agent", b"bwrap", b"runra-launcher")):
                    mine.append(int(entry.name))
    return mine


def idle_memory(client: Runra, server_pid: int, count: int) -> list[Row]:
    before = memory_kb(descendants_and_sandboxes(server_pid))
    sandboxes = [
        client.sandboxes.create(image="host", timeout_ms=600_000, idle_timeout_ms=600_000) for _ in range(count)
    ]
    time.sleep(2)
    after = memory_kb(descendants_and_sandboxes(server_pid))
    for sandbox in sandboxes:
        sandbox.terminate()
    return [
        row(
            f"{count} idle sandboxes",
            "runra, all processes",
            [after / 1024],
            "MB",
            f"PSS, server included; server alone {before / 1024:.0f} MB",
        ),
    ]


def imports() -> list[Row]:
    def run(code: str) -> list[float]:
        return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True), 10, "import")

    base = statistics.median(run("pass"))
    return [
        row(name, "python", [sample - base for sample in run(code)], note="beyond a bare interpreter")
        for name, code in (("import runra", "import runra"), ("import Runra", "from runra import Runra"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="runra-bench-"))
    try:
        rows = imports() + bare_peers(folder, options.rounds)
        with server(folder) as (url, key, pid):
            client = Runra(api_url=url, api_key=key)
            rows += ours(client, options.rounds)
            rows += [asyncio.run(burst(url, key, 50))]
            rows += idle_memory(client, pid, 100)
            client.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table(
        title=f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    )
    for heading in ("what", "who", "p50", "p95", "p99", "", ""):
        table.add_column(heading, justify="right" if heading.startswith("p") else "left")
    for one in sorted(rows, key=lambda one: one.what):
        table.add_row(one.what, one.peer, f"{one.p50:.2f}", f"{one.p95:.2f}", f"{one.p99:.2f}", one.unit, one.note)
    OUT.print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in rows], indent=1))


if __name__ == "__main__":
    main()
