"""Volumes: named folders that outlive sandboxes, with a quota each, for one writer or many."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from runra.contract import SandboxConfig, VolumeAccess, VolumeCreate, VolumeInfo
from runra.errors import RunraError
from runra.events import now_iso
from runra.node.disk import Disk
from runra.node.shelf import Kept, Shelf


class VolumeRecord(Kept):
    name: str
    size_mb: int
    access: VolumeAccess


class Mounted(BaseModel):
    """A volume a sandbox has, from its making until it is terminated; kept in the sandbox's record."""

    id: str
    name: str
    path: str
    read_only: bool

    def shown(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "path": self.path, "readOnly": self.read_only}


class Volumes:
    """The volumes of this node. `mounted` gives each live sandbox's id with what it has: who holds a volume is read
    from there and nowhere else, so it is right after a restart too."""

    def __init__(
        self, shelf: Shelf[VolumeRecord], disk: Disk, mounted: Callable[[], Iterable[tuple[str, list[Mounted]]]]
    ) -> None:
        self._shelf = shelf
        self._disk = disk
        self._mounted = mounted

    async def make(self, volume_id: str, organization_id: str, wanted: VolumeCreate) -> VolumeInfo:
        """Make an empty volume, owned by root inside."""
        folder = self._shelf.place(volume_id)
        try:
            self._disk.make(folder, wanted.size_mb)
            # Users inside come in as to any other folder; outside nobody reaches it, through its parents.
            folder.chmod(0o755)
            self._shelf.put(
                VolumeRecord(
                    id=volume_id,
                    organization_id=organization_id,
                    name=wanted.name,
                    size_mb=wanted.size_mb,
                    access=wanted.access,
                    created_at=now_iso(),
                )
            )
        except BaseException:
            self._shelf.drop(volume_id)
            self._shelf.throw_away(volume_id)
            raise
        return await self.info(volume_id)

    async def info(self, volume_id: str) -> VolumeInfo:
        record, folder = self._shelf.get(volume_id), self.folder(volume_id)
        return VolumeInfo(
            **record.model_dump(),
            used_bytes=await self._disk.used(folder) if folder.is_dir() else 0,
            enforced={"sizeMb": self._disk.enforced},
            used_by=self._holders(volume_id),
        )

    def delete(self, volume_id: str) -> None:
        """Delete a volume and all in it; the data goes in the background. INVALID_STATE while a sandbox has it."""
        if volume_id in self._shelf:
            record, holders = self._shelf.get(volume_id), self._holders(volume_id)
            if holders:
                raise RunraError(
                    "INVALID_STATE",
                    f"volume {record.name!r} is used by {', '.join(it['sandboxId'] for it in holders)}; terminate that "
                    "first (a paused sandbox holds its volumes as well)",
                    details={"volume": record.name, "usedBy": holders},
                )
        self._shelf.drop(volume_id)
        self._shelf.throw_away(volume_id)

    def folder(self, volume_id: str) -> Path:
        return self._shelf.folder(volume_id)

    @property
    def ids(self) -> set[str]:
        return {record.id for record in self._shelf}

    def claim(self, config: SandboxConfig, organization_id: str) -> list[Mounted]:
        """What a create asks for, checked against what others hold. It is held as soon as a live sandbox's record has
        it: nothing may be awaited in between.

        Raises INVALID_REQUEST for a volume that is not the organization's, INVALID_STATE when it has its writer.
        """
        wanted: list[Mounted] = []
        for asked in config.volumes:
            try:
                record = self._shelf.find(organization_id, asked.name)
            except RunraError as error:  # of a create it is a field that is wrong, not the path
                details = {"field": "volumes", "value": asked.name}
                raise RunraError("INVALID_REQUEST", error.message, details=details) from None
            if any(record.id == other.id for other in wanted):
                raise RunraError(
                    "INVALID_REQUEST",
                    f"volume {record.name!r} is given twice; mount it once",
                    details={"field": "volumes", "value": asked.name},
                )
            if not self.folder(record.id).is_dir():
                raise RunraError("INTERNAL_ERROR", f"the data of volume {record.name!r} is not on this server's disk")
            writer = next((it["sandboxId"] for it in self._holders(record.id) if not it["readOnly"]), None)
            if not asked.read_only and record.access == "single-writer" and writer:
                raise RunraError(
                    "INVALID_STATE",
                    f"volume {record.name!r} has one writer at a time, and sandbox {writer} is it; terminate that, "
                    "mount it readOnly, or make a volume with access many-writers",
                    details={"volume": record.name, "sandboxId": writer},
                )
            wanted.append(Mounted(id=record.id, name=record.name, path=asked.path, read_only=asked.read_only))
        return wanted

    def _holders(self, volume_id: str) -> list[dict[str, Any]]:
        return [
            {"sandboxId": sandbox_id, "readOnly": one.read_only}
            for sandbox_id, mounted in self._mounted()
            for one in mounted
            if one.id == volume_id
        ]
