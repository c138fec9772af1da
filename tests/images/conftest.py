"""A node, and registries it can pull from."""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from runra.cli.images import _sources
from runra.contract import Credentials, ImageInfo
from runra.errors import RunraError
from runra.node.images.pull import Wanted
from runra.node.images.store import reference_of
from tests.hosting import Host
from tests.images.oci import BUSYBOX
from tests.images.registries import OddRegistry, RealRegistry, odd_registry, real_registry

ORGANIZATION = "org_test"


class SlowLayers:
    """The first `count` layers to be unpacked take until `go`; `begun` of them have come."""

    def __init__(self, host: Host, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.go, self.begun = asyncio.Event(), 0
        unpacker = host.node.images.layers._unpacker
        unpack = unpacker.layer

        async def layer(blob: Any, fresh: Path, free: int) -> Any:
            if self.begun < count:
                self.begun += 1
                await self.go.wait()
            return await unpack(blob, fresh, free)

        monkeypatch.setattr(unpacker, "layer", layer)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    """Debian's docker-registry, on loopback, one for the whole session."""
    if not BUSYBOX.exists():
        pytest.skip("no static busybox: apt-get install busybox-static")
    with real_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def debian_root(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A tar of Debian's bash, coreutils, Python and pip as their packages have them, from this machine's sources. Made
    once for all workers of a run."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("no mmdebstrap: apt-get install mmdebstrap")
    release = Path("/etc/os-release").read_text().splitlines()
    if "ID=debian" not in release:
        pytest.skip("this machine is no Debian, and its package sources have none")
    suite = next(line.partition("=")[2] for line in release if line.startswith("VERSION_CODENAME="))
    folder = tmp_path_factory.getbasetemp()
    folder = folder if worker_id == "master" else folder.parent
    made = folder / "debian-root.tar"
    with (folder / "debian-root.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            fresh = made.with_suffix(".new.tar")
            words = ["--variant=extract", "--include=bash,coreutils,python3,python3-pip", suite, str(fresh)]
            subprocess.run(["mmdebstrap", "--quiet", *words, *_sources(suite)], check=True, timeout=110)
            fresh.rename(made)
    return made


@pytest.fixture
async def odd() -> AsyncIterator[OddRegistry]:
    if not BUSYBOX.exists():
        pytest.skip("no static busybox: apt-get install busybox-static")
    async with odd_registry() as running:
        yield running


async def pull(
    host: Host,
    name: str,
    *,
    organization: str = ORGANIZATION,
    login: tuple[str, str] | None = None,
    private: bool = True,
    shared: bool | None = None,
) -> ImageInfo:
    """Pull as an administrator does, to the end."""
    images = host.node.images
    credentials = Credentials(username=login[0], password=login[1]) if login else None  # type: ignore[arg-type]
    everybody = login is None if shared is None else shared
    wanted = Wanted(reference_of(name), "" if everybody else organization, credentials, private)
    try:
        await images.pulls.begin(wanted, organization).task
    finally:
        await images.layers.settled()
    return images.info(name, organization)


async def refused(work: Any) -> RunraError:
    """The error that must come."""
    with pytest.raises(RunraError) as caught:
        await work
    return caught.value


def layer_folders(host: Host) -> list[Path]:
    home = host.node.settings.images_dir / "layers"
    return sorted(path for path in home.iterdir() if path.is_dir())


def leftovers(host: Host) -> list[str]:
    """What unfinished work left: nothing must."""
    home = host.node.settings.images_dir
    return [str(path) for name in ("tmp", "parts") if (home / name).exists() for path in (home / name).iterdir()]
