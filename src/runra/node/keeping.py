"""What outlives sandboxes, volumes and snapshots, taken up at a node's start; and forks, copies of a live sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from runra.contract import SandboxConfig
from runra.node.disk import Disk
from runra.node.images import Resolver, RootFilesystem
from runra.node.isolation import Isolation
from runra.node.sandbox import Sandbox
from runra.node.settings import NodeSettings
from runra.node.shelf import Shelf
from runra.node.snapshots import SEED, SnapshotRecord, Snapshots
from runra.node.volumes import VolumeRecord, Volumes

#: `Node.create`.
Create = Callable[[str, SandboxConfig, str, Resolver], Coroutine[Any, Any, Sandbox]]


def take_up(
    settings: NodeSettings,
    disk: Disk,
    throw_away: Callable[[Path], None],
    sandboxes: Callable[[], Iterable[Sandbox]],
    isolations: Mapping[str, Isolation],
) -> tuple[Volumes, Snapshots, set[Path]]:
    """The volumes and snapshots an earlier server kept, and the copies that forks were being made from when it ended:
    thrown away by now, and so must be the sandboxes that start from them."""
    home = settings.sandboxes_dir
    volumes = Shelf("volume", VolumeRecord, settings.volumes_dir, home / ".volumes", throw_away)
    snapshots = Shelf("snapshot", SnapshotRecord, settings.snapshots_dir, home / ".snapshots", throw_away)
    volumes.load()
    rubbish = snapshots.load()
    unfinished = {folder for folder in rubbish if folder.name.startswith(f"{SEED}_")}
    mounted = Volumes(volumes, disk, lambda: ((one.id, one.record.volumes) for one in sandboxes()))
    return mounted, Snapshots(snapshots, disk, isolations), unfinished


async def fork(
    source: Sandbox, ids: Sequence[str], snapshots: Snapshots, create: Create, *, processes: bool
) -> list[Sandbox]:
    """Make copies of a sandbox, one for each id, behind the same wall, with its files of this moment, and its processes
    if asked for. All of them or none."""
    # What was the default at its create may be another today.
    config = source.config.model_copy(update={"isolation": source.record.isolation})
    async with snapshots.seed(source, processes=processes) as root:

        @asynccontextmanager
        async def resolve(name: str, organization_id: str) -> AsyncIterator[RootFilesystem]:
            yield root

        work = (create(one, config, source.organization_id, resolve) for one in ids)
        made = [asyncio.create_task(each, name="fork") for each in work]
        try:
            return await asyncio.gather(*made)
        except BaseException:
            for task in made:
                task.cancel()
            outcomes = await asyncio.gather(*made, return_exceptions=True)
            await asyncio.gather(*(one.terminate("error") for one in outcomes if isinstance(one, Sandbox)))
            raise
