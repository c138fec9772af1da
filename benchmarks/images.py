"""Images: pull and unpack beside skopeo + umoci and podman, and a create from a cold and from a warm image.

Everything is on this machine: Debian's docker-registry on loopback, and an image of 6,000 files and 120 MB in three
layers, made here. Needs the packages docker-registry and busybox-static; peers are measured where they are installed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.hosting import Host, start_host, stop_host
from tests.images.conftest import pull
from tests.images.oci import Layer, busybox, image
from tests.images.registries import RealRegistry, real_registry

_REPOSITORY = "bench/app"


def push(registry: RealRegistry) -> str:
    """Half of each file is noise and half is text, which compresses as programs do."""
    layers = [busybox()]
    for number in range(2):
        layer = Layer().folder(f"data{number}")
        for file in range(3000):
            size = 20_000
            layer.add(f"data{number}/{file}", os.urandom(size // 2) + b"some text " * (size // 20))
        layers.append(layer)
    return registry.push(image(*layers), f"{_REPOSITORY}:1")


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


async def seconds_of(work: Awaitable[Any]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=120)


def skopeo_umoci(reference: str, folder: Path) -> None:
    layout = folder / "layout"
    run("skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{reference}", f"oci:{layout}:1")
    run("umoci", "unpack", "--image", f"{layout}:1", str(folder / "bundle"))


def podman(driver: str, reference: str, folder: Path) -> None:
    root = folder / "root"
    words = ["--root", str(root), "--runroot", str(folder / "run"), "--storage-driver", driver]
    words += ["--runtime", "runc", "--cgroup-manager", "cgroupfs"]
    try:
        run("podman", *words, "pull", "--quiet", "--tls-verify=false", reference)
    finally:
        if (root / driver).is_mount():  # podman leaves its storage mounted on itself
            run("umount", str(root / driver))


async def forget(host: Host, name: str) -> None:
    await host.node.images.delete(name, "org_test")
    await host.node.images.layers.settled()


async def measure(rounds: int) -> list[tuple[str, str, list[float]]]:
    rows: list[tuple[str, str, list[float]]] = []
    with tempfile.TemporaryDirectory(prefix="runra-bench-") as scratch, real_registry(Path(scratch, "reg")) as registry:
        name = push(registry)
        host = await start_host(Path(scratch, "data"))
        try:
            pulls, warm, again = [], [], []
            for _ in range(rounds):
                pulls.append(await seconds_of(pull(host, name)))
                again.append(await seconds_of(pull(host, name)))
                await forget(host, name)
            cold = []
            for _ in range(rounds):

                async def first() -> None:
                    await pull(host, name)
                    sandbox = await host.create(image=name)
                    await host.run(sandbox, "true")

                cold.append(await seconds_of(first()))
                for sandbox in list(host.node.sandboxes.values()):
                    await sandbox.terminate()
                await host.node.settled()
                await forget(host, name)
            await pull(host, name)
            for _ in range(rounds * 5):
                warm.append(await seconds_of(host.create(image=name)))
            host_image = [await seconds_of(host.create()) for _ in range(rounds * 5)]
        finally:
            await stop_host(host)
        rows += [
            ("pull and unpack", "Runra", pulls),
            ("pull again, unchanged", "Runra", again),
            ("pull, create, first command", "Runra", cold),
            ("create, image here", "Runra", warm),
            ("create, image `host`", "Runra", host_image),
        ]
        peers: list[tuple[str, tuple[str, ...], Callable[[str, Path], None]]] = [
            ("skopeo + umoci", ("skopeo", "umoci"), skopeo_umoci),
            ("podman pull (overlay)", ("podman",), partial(podman, "overlay")),
            ("podman pull (vfs)", ("podman",), partial(podman, "vfs")),
        ]
        for peer, programs, work in peers:
            if not all(shutil.which(program) for program in programs):
                continue
            samples = []
            for number in range(rounds):
                folder = Path(scratch, f"{programs[0]}{number}")
                folder.mkdir()
                samples.append(seconds(lambda work=work, folder=folder: work(name, folder)))
                shutil.rmtree(folder, ignore_errors=True)
            rows.append(("pull and unpack", peer, samples))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rows = asyncio.run(measure(parser.parse_args().rounds))
    table = Table("what", "peer", "median", "least", "most", title="images: 6,000 files, 120 MB, 3 layers (ms)")
    for what, peer, samples in rows:
        table.add_row(
            what, peer, *(f"{value * 1000:.0f}" for value in (statistics.median(samples), min(samples), max(samples)))
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
