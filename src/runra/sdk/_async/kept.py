"""What outlives sandboxes: snapshots of their files, and volumes."""

from __future__ import annotations

from urllib.parse import quote

from runra.contract import SnapshotInfo, VolumeAccess, VolumeCreate, VolumeInfo
from runra.errors import RunraError
from runra.sdk._async.admin import every
from runra.sdk._async.api import AsyncApi
from runra.sdk.types import checked, merged, parsed


def _path(collection: str, reference: str) -> str:
    if not isinstance(reference, str) or not reference or reference in (".", ".."):
        raise RunraError("INVALID_REQUEST", f"{reference!r} is no id or name", details={"value": str(reference)[:80]})
    return f"/{collection}/{quote(reference, safe='')}"


class AsyncSnapshots:
    """Snapshots of this key's organization. `sandbox.snapshot(name)` takes one, and
    `sandboxes.create(image="snapshot:<name or id>")` makes a sandbox of it."""

    def __init__(self, api: AsyncApi) -> None:
        self._api = api

    async def list(self) -> list[SnapshotInfo]:
        """All of them, newest first."""
        return await every(self._api, "/snapshots", SnapshotInfo)

    async def get(self, reference: str) -> SnapshotInfo:
        """The snapshot with this id or name. Raises INVALID_REQUEST (status 404) when there is none."""
        answer = await self._api.call("GET", _path("snapshots", reference))
        return parsed(SnapshotInfo, answer.json("GET /snapshots"), "GET /snapshots")

    async def delete(self, reference: str) -> None:
        """Delete a snapshot by id or name. Sandboxes made from it lose nothing."""
        await self._api.call("DELETE", _path("snapshots", reference))


class AsyncVolumes:
    """Volumes of this key's organization: named folders that outlive sandboxes. Mount one with
    `sandboxes.create(volumes=[{"name": …, "path": …}])`."""

    def __init__(self, api: AsyncApi) -> None:
        self._api = api

    async def create(self, name: str, *, size_mb: int | None = None, access: VolumeAccess | None = None) -> VolumeInfo:
        """Make an empty volume of at most `size_mb` MB (10,240 when unset).

        `access`: `single-writer` (when unset) lets one sandbox at a time mount it for writing, `many-writers` any
        number; readers are always welcome. Raises INVALID_STATE when the name is taken.
        """
        request = checked(VolumeCreate, merged(None, {"name": name, "size_mb": size_mb, "access": access}, "create"))
        answer = await self._api.call("POST", "/volumes", content=request.to_wire())
        return parsed(VolumeInfo, answer.json("POST /volumes"), "POST /volumes")

    async def list(self) -> list[VolumeInfo]:
        """All of them, newest first, with what they hold and which sandboxes have them."""
        return await every(self._api, "/volumes", VolumeInfo)

    async def get(self, reference: str) -> VolumeInfo:
        """The volume with this id or name. Raises INVALID_REQUEST (status 404) when there is none."""
        answer = await self._api.call("GET", _path("volumes", reference))
        return parsed(VolumeInfo, answer.json("GET /volumes"), "GET /volumes")

    async def delete(self, reference: str) -> None:
        """Delete a volume by id or name, and all in it. Raises INVALID_STATE while a sandbox has it."""
        await self._api.call("DELETE", _path("volumes", reference))
