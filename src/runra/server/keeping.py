"""Snapshots and volumes: names and owners in the store, files on the node, and both of one mind after a crash."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar, get_args

from runra.contract import SnapshotCreate, SnapshotInfo, VolumeCreate, VolumeInfo
from runra.contract.base import Wire
from runra.errors import RunraError, no_such
from runra.events import now_iso
from runra.ids import new_id
from runra.server.access import Access, Key
from runra.server.nodeport import Node, Sandbox
from runra.server.quotas import Quotas
from runra.server.store import Store
from runra.server.store.kept import Kind, NameTaken, TooManyKept, begin, ending, find, finish, forget, listed, states

_log = logging.getLogger("runra.server")
InfoT = TypeVar("InfoT", bound=Wire)


class Keeping:
    """Makes and deletes what an organization keeps. `most` is how many of each kind it may have."""

    def __init__(self, store: Store, node: Node, quotas: Quotas, most: int) -> None:
        self._store = store
        self._node = node
        self._quotas = quotas
        self._most = most

    # --- snapshots ---

    async def take_snapshot(self, key: Key, sandbox: Sandbox, wanted: SnapshotCreate) -> SnapshotInfo:
        snapshot_id = new_id("snap")
        # What it will hold is known when it is taken. Where nothing is left, nothing is taken.
        async with self._quotas.disk(key.organization_id, 1):
            return await self._make(
                "snapshot",
                snapshot_id,
                key.organization_id,
                wanted.name,
                lambda: self._node.snapshot(sandbox.id, snapshot_id, wanted.name),
                self._node.snapshots.delete,
            )

    async def snapshot(self, key: Key, reference: str) -> SnapshotInfo:
        return SnapshotInfo.model_validate(await self._find("snapshot", key, reference))

    async def list_snapshots(self, key: Key, limit: int, offset: int) -> tuple[list[SnapshotInfo], int]:
        rows, total = await listed(self._store, "snapshot", key.organization_id, limit, offset)
        return [SnapshotInfo.model_validate(row) for row in rows], total

    async def delete_snapshot(self, key: Key, reference: str) -> SnapshotInfo:
        info = await self.snapshot(key, reference)
        await ending(self._store, "snapshot", info.id)
        self._node.snapshots.delete(info.id)
        await forget(self._store, "snapshot", info.id)
        return info

    # --- volumes ---

    async def make_volume(self, key: Key, wanted: VolumeCreate) -> VolumeInfo:
        Access.require_volume(key, wanted.size_mb)
        volume_id = new_id("vol")
        async with self._quotas.disk(key.organization_id, wanted.size_mb):
            return await self._make(
                "volume",
                volume_id,
                key.organization_id,
                wanted.name,
                lambda: self._node.volumes.make(volume_id, key.organization_id, wanted),
                self._node.volumes.delete,
            )

    async def volume(self, key: Key, reference: str) -> VolumeInfo:
        return await self._as_it_is(VolumeInfo.model_validate(await self._find("volume", key, reference)))

    async def list_volumes(self, key: Key, limit: int, offset: int) -> tuple[list[VolumeInfo], int]:
        rows, total = await listed(self._store, "volume", key.organization_id, limit, offset)
        return [await self._as_it_is(VolumeInfo.model_validate(row)) for row in rows], total

    async def delete_volume(self, key: Key, reference: str) -> VolumeInfo:
        """INVALID_STATE while a sandbox has it."""
        info = await self.volume(key, reference)
        await ending(self._store, "volume", info.id)
        try:
            # It refuses and forgets in one breath: no sandbox can take the volume in between.
            self._node.volumes.delete(info.id)
        except BaseException:
            await finish(self._store, "volume", info.id, info.to_wire())
            raise
        await forget(self._store, "volume", info.id)
        return info

    async def _as_it_is(self, info: VolumeInfo) -> VolumeInfo:
        """What was stored, with its use as of now."""
        return await self._node.volumes.info(info.id) if info.id in self._node.volumes.ids else info

    # --- both ---

    async def _make(
        self,
        kind: Kind,
        kept_id: str,
        organization_id: str,
        name: str | None,
        make: Callable[[], Awaitable[InfoT]],
        delete: Callable[[str], None],
    ) -> InfoT:
        try:
            await begin(self._store, kind, kept_id, organization_id, name, now_iso(), self._most)
        except NameTaken:
            raise RunraError(
                "INVALID_STATE",
                f"your organization has a {kind} named {name!r}; delete that one, or choose another name",
                details={"field": "name", "value": name},
            ) from None
        except TooManyKept:
            raise RunraError(
                "RESOURCE_EXHAUSTED",
                f"your organization keeps {self._most} {kind}s, its most; delete some",
                details={"limit": self._most},
                retryable=False,
            ) from None
        made = None
        try:
            made = await make()
            await finish(self._store, kind, kept_id, made.to_wire())
        except BaseException:
            if made is not None:
                delete(kept_id)
            await forget(self._store, kind, kept_id)
            raise
        return made

    async def _find(self, kind: Kind, key: Key, reference: str) -> dict[str, object]:
        known = len(reference) <= 64 and reference.isprintable()
        found = await find(self._store, kind, key.organization_id, reference) if known else None
        if found is None:
            raise no_such(kind, reference)
        return found

    async def reconcile(self) -> None:
        """At the start: end what a crash left half made or half deleted. What is whole is never deleted here, whatever
        the other side says: a missing disk or a restored store must not cost anybody's data."""
        for kind in get_args(Kind):
            there = self._node.volumes if kind == "volume" else self._node.snapshots
            rows = await states(self._store, kind)
            for kept_id, state in rows.items():
                if state != "ready":
                    await self._end(kind, kept_id)
                elif kept_id not in there.ids:
                    _log.error("%s %s is in the store, but not on this server's disk", kind, kept_id)
            for kept_id in there.ids - rows.keys():
                _log.error("%s %s is on this server's disk, but belongs to nobody the store knows", kind, kept_id)

    async def _end(self, kind: Kind, kept_id: str) -> None:
        if kind == "snapshot":
            self._node.snapshots.delete(kept_id)
        else:
            try:
                self._node.volumes.delete(kept_id)
            except RunraError as error:  # a sandbox took it in the moment before the crash, and lives: so it stays
                _log.warning("volume %s stays: %s", kept_id, error)
                await finish(self._store, kind, kept_id, (await self._node.volumes.info(kept_id)).to_wire())
                return
        await forget(self._store, kind, kept_id)
