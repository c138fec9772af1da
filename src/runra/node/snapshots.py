"""Snapshots: a sandbox's files as they were at one moment, to make others from.

What is kept are the sandbox's private layers, in a copy that shares everything with the original on a file system
that can (btrfs; elsewhere reflinks, else a real copy), and the names of the read-only layers below them. A sandbox made
from a snapshot starts with a copy of that copy as its own layers: however long the chain of ancestors, a sandbox has
no more layers than its image, and every copy can be deleted at any time.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from runra.contract import SNAPSHOT_IMAGE, SnapshotInfo
from runra.errors import RunraError
from runra.events import now_iso
from runra.ids import new_id
from runra.node.agent.types import ExecSpec
from runra.node.disk import LAYERS, Disk
from runra.node.id_ranges import shift_owners
from runra.node.images import RootFilesystem
from runra.node.isolation import Isolation
from runra.node.isolation.staging import AGENT
from runra.node.record import Record
from runra.node.sandbox import Sandbox
from runra.node.shelf import Kept, Shelf
from runra.node.waiting import to_its_end

#: How long a wall that keeps writes to itself may take to write them out, in ms.
_SYNC_MS: Final = 60_000


#: What forks are made from: never on record, and unfinished when a server finds it at its start.
SEED: Final = "seed"


class SnapshotRecord(Kept):
    sandbox_id: str
    image: str
    size_bytes: int
    #: What its sandbox's layers lay on, and the environment that came with it.
    root: RootFilesystem


class Snapshots:
    """The snapshots of this node."""

    def __init__(self, shelf: Shelf[SnapshotRecord], disk: Disk, isolations: Mapping[str, Isolation]) -> None:
        self._shelf = shelf
        self._disk = disk
        self._isolations = isolations
        #: How many sandboxes are being made from each at this moment.
        self._held: Counter[str] = Counter()
        #: Roots of copies that no record names yet, while their source may end at any moment.
        self._passing: dict[str, RootFilesystem] = {}

    async def take(self, sandbox: Sandbox, snapshot_id: str, name: str | None) -> SnapshotInfo:
        """Keep a sandbox's files as they are now. It stands still meanwhile and goes on as it was, running or paused.

        Raises INVALID_STATE when it is neither, RESOURCE_EXHAUSTED when the disk is full.
        """
        await write_out(sandbox, self._isolations[sandbox.record.isolation])
        folder = self._shelf.place(snapshot_id)
        self._passing[snapshot_id] = sandbox.record.root
        try:
            size = await self._copy(sandbox, folder)
            record = SnapshotRecord(
                id=snapshot_id,
                organization_id=sandbox.organization_id,
                name=name,
                created_at=now_iso(),
                sandbox_id=sandbox.id,
                image=sandbox.config.image,
                size_bytes=size,
                root=replace(sandbox.record.root, start_from=None, memory=None),
            )
            self._shelf.put(record)
        except BaseException:
            self._shelf.drop(snapshot_id)
            self._shelf.throw_away(snapshot_id)
            raise
        finally:
            del self._passing[snapshot_id]
        return self.info(snapshot_id)

    async def _copy(self, sandbox: Sandbox, target: Path) -> int:
        """Copy a sandbox's private layers in one moment of its life; returns the bytes they hold."""
        async with sandbox.still():
            await self._disk.clone(sandbox.folder, target, None)
            size = sandbox.record.inherited_bytes + await self._disk.used(sandbox.folder)
        await to_its_end(asyncio.to_thread(_settle, target, sandbox.record))
        return size

    async def _copy_running(self, sandbox: Sandbox, target: Path, memory: Path) -> int:
        """The same, and what runs in it at that moment into the folder `memory`."""
        wall = self._isolations.get(sandbox.record.isolation)  # None: offered no more since the server's last start
        checkpoints = wall.checkpoints if wall is not None else None
        if checkpoints is None:
            raise RunraError(
                "INVALID_CONFIG",
                f"sandbox {sandbox.id} is behind {sandbox.record.isolation}, which cannot save processes here: that "
                "takes isolation gvisor and a runsc of July 2024 or later (Debian 13's). Fork without processes",
                details={"field": "processes"},
            )
        await sandbox.wake()
        checkpoints.check(sandbox.folder.parent, sandbox.cgroup, sandbox.config.resources.memory_mb)
        async with (
            sandbox.apart(checkpoints) as standing,
            checkpoints.saved(standing, self._disk, memory),
            sandbox.frozen(),
        ):
            await self._disk.clone(sandbox.folder, target, None)
            size = sandbox.record.inherited_bytes + await self._disk.used(sandbox.folder)
        await to_its_end(asyncio.to_thread(_settle, target, sandbox.record))
        return size

    @asynccontextmanager
    async def seed(self, sandbox: Sandbox, *, processes: bool = False) -> AsyncIterator[RootFilesystem]:
        """A copy for as long as it is entered, for forks. Not on record: a crash leaves rubbish, no snapshot."""
        passing, running = new_id(SEED), new_id(SEED)
        folder, memory = self._shelf.place(passing), self._shelf.place(running)
        self._passing[passing] = sandbox.record.root
        try:
            if processes:
                size = await to_its_end(self._copy_running(sandbox, folder, memory))
            else:
                await write_out(sandbox, self._isolations[sandbox.record.isolation])
                size = await self._copy(sandbox, folder)
            kept = memory if processes else None
            yield replace(sandbox.record.root, start_from=folder, start_bytes=size, memory=kept)
        finally:
            del self._passing[passing]
            self._shelf.throw_away(passing)
            self._shelf.throw_away(running)

    @asynccontextmanager
    async def resolve(self, image: str, organization_id: str) -> AsyncIterator[RootFilesystem]:
        """The root that `snapshot:<name or id>` stands for. Its files stay while this is entered."""
        reference = image.removeprefix(SNAPSHOT_IMAGE)
        try:
            record = self._shelf.find(organization_id, reference)
        except RunraError as error:  # of a create it is a field that is wrong, not the path
            raise RunraError("INVALID_REQUEST", error.message, details={"field": "image", "value": image}) from None
        folder = self._shelf.folder(record.id)
        if not folder.is_dir():
            raise RunraError("INTERNAL_ERROR", f"the data of snapshot {reference!r} is not on this server's disk")
        self._held[record.id] += 1
        try:
            yield replace(record.root, start_from=folder, start_bytes=record.size_bytes)
        finally:
            self._held[record.id] -= 1
            if record.id not in self._shelf:  # deleted meanwhile
                self._finish(record.id)

    def size_mb(self, image: str, organization_id: str) -> int:
        """MB that a sandbox of this image begins with: what the snapshot holds; 0 where it is none."""
        if not image.startswith(SNAPSHOT_IMAGE):
            return 0
        try:
            found = self._shelf.find(organization_id, image.removeprefix(SNAPSHOT_IMAGE))
        except RunraError:  # the create will say so
            return 0
        return -(-found.size_bytes >> 20)

    def info(self, snapshot_id: str) -> SnapshotInfo:
        return SnapshotInfo.model_validate(self._shelf.get(snapshot_id).model_dump(exclude={"root"}))

    def delete(self, snapshot_id: str) -> None:
        """Delete a snapshot; sandboxes made from it have what they need. The data goes in the background."""
        self._shelf.drop(snapshot_id)
        self._finish(snapshot_id)

    def _finish(self, snapshot_id: str) -> None:
        if not self._held[snapshot_id]:
            del self._held[snapshot_id]
            self._shelf.throw_away(snapshot_id)

    @property
    def ids(self) -> set[str]:
        return {record.id for record in self._shelf}

    @property
    def layers(self) -> list[set[Path]]:
        """The read-only layers of each snapshot: none of them may be deleted."""
        return [root.layers for root in (*(record.root for record in self._shelf), *self._passing.values())]


async def write_out(sandbox: Sandbox, isolation: Isolation) -> None:
    """Where the wall keeps writes to itself, have them written before the layers are copied.

    Raises INVALID_STATE for a paused sandbox behind such a wall, which cannot.
    """
    if not isolation.keeps_writes:
        return
    await sandbox.wake()
    if sandbox.record.state == "paused":
        raise RunraError(
            "INVALID_STATE",
            f"sandbox {sandbox.id} is paused behind {isolation.name}, which still holds what was written last; "
            "resume it first",
            details={"sandboxId": sandbox.id, "state": "paused"},
        )
    spec = ExecSpec(argv=(AGENT, "--sync"), timeout_ms=_SYNC_MS)
    async with sandbox.use() as agent, await agent.exec(spec) as sync:
        ended = await sync.wait()
    if ended.code != 0:
        raise RunraError("INTERNAL_ERROR", f"sandbox {sandbox.id} could not write its files out: {ended}")


def _settle(folder: Path, source: Record) -> None:
    """From a copy of a sandbox's folder leave its layers alone, with the owners they have inside."""
    for entry in os.scandir(folder):
        if Path(entry.name).match(LAYERS):
            _unshift(folder / entry.name, source.first_id)
        elif entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)  # overlayfs' own working folder
        else:
            Path(entry.path).unlink()


def _unshift(layer: Path, first_id: int | None) -> None:
    """Where the disk has no id-mapped mounts, a sandbox's layers belong to its ids outside: give them back."""
    if first_id is None or layer.stat().st_uid < first_id:
        return
    shift_owners(layer, -first_id)
