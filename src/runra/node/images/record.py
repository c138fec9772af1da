"""What is kept of an image: its layers and what its config says. One small file each."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Final

from pydantic import BaseModel, Field

from runra.contract import ImageInfo, Reference
from runra.contract.images import ImageSource
from runra.node.images.layers import EVERYBODY
from runra.node.images.manifest import Config, host_platform

#: What an image without a PATH of its own gets, as from any container engine.
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: What so many organizations have asked for is nobody's secret.
_SECRET_OF: Final = 100


class Image(BaseModel):
    """`scope` is the organization it belongs to, or EVERYBODY. `layers` are ids, the lowest first."""

    reference: str
    scope: str
    digest: str
    platform: str
    env: dict[str, str]
    user: str = ""
    workdir: str = ""
    entrypoint: list[str] = Field(default_factory=list)
    cmd: list[str] = Field(default_factory=list)
    labels: dict[str, str] = Field(default_factory=dict)
    layers: list[str]
    bytes: int
    source: ImageSource
    step: bool = False
    #: Whether a create fetched it, and no administrator has since: then it may go when room is needed.
    by_create: bool = False
    #: The organizations whose creates asked for it: a name may say more than others should know.
    asked_by: list[str] = Field(default_factory=list)
    created_at: str | None = None
    added_at: str

    @property
    def file(self) -> str:
        """The name of its record."""
        return hashlib.sha256(f"{self.scope}\0{self.reference}".encode()).hexdigest()[:32] + ".json"

    def shown_to(self, organization_id: str) -> bool:
        """Whether an organization that may use it is also told that it is here."""
        return not self.by_create or organization_id in self.asked_by or len(self.asked_by) >= _SECRET_OF

    @cached_property
    def record_bytes(self) -> int:
        """What its record takes on disk."""
        return max(4096, len(self.model_dump_json().encode()))

    def info(self, last_used_at: str | None) -> ImageInfo:
        return ImageInfo(
            reference=Reference.parse(self.reference).short,
            digest=self.digest,
            platform=self.platform,
            size_bytes=self.bytes,
            layers=len(self.layers),
            env=self.env,
            user=self.user,
            workdir=self.workdir,
            entrypoint=self.entrypoint,
            cmd=self.cmd,
            labels=self.labels,
            source=self.source,
            step=self.step,
            shared=self.scope == EVERYBODY,
            created_at=self.created_at,
            added_at=self.added_at,
            last_used_at=last_used_at,
        )


def image_of(
    config: Config,
    *,
    reference: Reference,
    scope: str,
    digest: str,
    layers: list[str],
    size: int,
    source: ImageSource,
    added_at: str,
    by_create: bool = False,
) -> Image:
    """The record of an image whose layers are here."""
    run = config.run
    return Image(
        reference=str(reference),
        scope=scope,
        digest=digest,
        platform=f"{config.os}/{config.architecture}" if config.architecture else str(host_platform()),
        env={"PATH": _PATH, **config.env},
        user=run.user or "",
        workdir=run.working_dir or "",
        entrypoint=run.entrypoint or [],
        cmd=run.cmd or [],
        labels=run.labels or {},
        layers=layers,
        bytes=size,
        source=source,
        by_create=by_create,
        created_at=config.created,
        added_at=added_at,
    )
