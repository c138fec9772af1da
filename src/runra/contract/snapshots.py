"""Snapshots of a sandbox's files, and forks."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from runra.contract.base import Kept, Request, Wire

#: What an image's name begins with when it is a snapshot: `snapshot:<name or id>`.
SNAPSHOT_IMAGE: Final = "snapshot:"
#: The most copies one fork makes.
MAX_FORKS: Final = 32


class SnapshotCreate(Request):
    """The body of a snapshot. Without a name it is known by its id; a name is unique in the organization."""

    name: Kept | None = None


class SnapshotInfo(Wire):
    """A snapshot as the API shows it. `image` is what its sandbox was made from; `size_bytes` what its own layers
    held when it was taken, shared with others or not."""

    id: str
    name: str | None = None
    organization_id: str
    sandbox_id: str
    image: str
    size_bytes: int
    created_at: str


class ForkRequest(Request):
    """The body of a fork. `processes`: what runs in the sandbox goes on in each copy."""

    count: Annotated[int, Field(ge=1, le=MAX_FORKS)] = 1
    processes: bool = False
