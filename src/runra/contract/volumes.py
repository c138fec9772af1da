"""Volumes: named folders that outlive sandboxes."""

from __future__ import annotations

import posixpath
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from runra.contract.base import AbsolutePath, Kept, Range, Request, Wire

#: The range of a volume's size; the operator may widen it.
VOLUME_MB: Final = Range(16, 1 << 20)
#: The most volumes one sandbox may mount.
MAX_VOLUMES: Final = 16

#: `single-writer`: at most one sandbox at a time mounts it for writing; `many-writers`: any number. Readers are
#: always welcome.
VolumeAccess = Literal["single-writer", "many-writers"]

#: Below these the sandbox's own mounts lie: kernel interfaces, devices, sockets.
_TAKEN: Final = ("/proc", "/sys", "/dev", "/run")
#: These hold what a sandbox needs to run at all; folders below them are fine.
_NEEDED: Final = ("/", "/bin", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr", "/usr/bin", "/usr/lib")


def lies_in(path: str, folder: str) -> bool:
    """Whether a normal absolute path is a folder or below it."""
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _mount_point(value: str) -> str:
    path = "/" + posixpath.normpath(value).lstrip("/")
    for taken in _TAKEN:
        if lies_in(path, taken):
            raise ValueError(f"must not lie in {taken}, which is the sandbox's own")
    if path in _NEEDED:
        raise ValueError(f"must not cover {path}, which the sandbox needs; choose a folder such as /data")
    return path


class VolumeMount(Request):
    """A volume in a sandbox: which one, and where. The path is made if it is missing."""

    name: str = Field(min_length=1, max_length=64, description="name or id of a volume of your organization")
    path: Annotated[AbsolutePath, AfterValidator(_mount_point)] = Field(examples=["/data"])
    read_only: bool = False


def _apart(mounts: list[VolumeMount]) -> list[VolumeMount]:
    for number, one in enumerate(mounts):
        for other in mounts[:number]:
            if lies_in(one.path, other.path) or lies_in(other.path, one.path):
                raise ValueError(f"{one.path} and {other.path}: one volume must not lie in another")
            if one.name == other.name:
                raise ValueError(f"volume {one.name!r} is given twice; mount it once")
    return mounts


VolumeMounts = Annotated[list[VolumeMount], Field(max_length=MAX_VOLUMES), AfterValidator(_apart)]


class VolumeCreate(Request):
    """The body of a volume's create. `name` is unique in the organization."""

    name: Kept
    size_mb: Annotated[int, VOLUME_MB] = Field(10240, description="MB it may hold")
    access: VolumeAccess = "single-writer"


class VolumeInfo(Wire):
    """A volume as the API shows it. `used_bytes` is some seconds old at most; `enforced` says whether `sizeMb` holds
    on this machine; `used_by` names the sandboxes that have it, and whether they may write."""

    id: str
    name: str
    organization_id: str
    size_mb: int
    access: VolumeAccess
    used_bytes: int = 0
    enforced: dict[str, bool] = Field(default_factory=dict)
    used_by: list[dict[str, Any]] = Field(default_factory=list)
    created_at: str
