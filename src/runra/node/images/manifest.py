"""What a registry or an archive says of an image: indexes, manifests, configs. All of it is hostile input.

Formats: OCI image specification 1.1, Docker image manifest version 2 schema 2.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from runra.errors import RunraError

INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_CONFIGS: Final = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_LAYERS: Final = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
)
#: Bytes of a manifest or an index (the distribution specification asks registries to take 4 MiB), and of a config.
MOST_MANIFEST: Final = 4 << 20
MOST_CONFIG: Final = 8 << 20
#: Bytes of what is kept of a config.
_MOST_KEPT: Final = 256 << 10
#: What Docker allows; an overlay takes more.
MOST_LAYERS: Final = 127
_MOST_BLOB: Final = 1 << 40
_DIGEST: Final = r"^sha256:[0-9a-f]{64}$"

_ARCHITECTURES: Final = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
}


class _Foreign(BaseModel):
    """Somebody else's JSON: what we do not know is none of our business."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


Foreign = TypeVar("Foreign", bound=BaseModel)


class Platform(_Foreign):
    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(_Foreign):
    """Content by its digest, with the size it has."""

    media_type: str = ""
    artifact_type: str = ""
    digest: str = Field(pattern=_DIGEST)
    size: int = Field(ge=0, le=_MOST_BLOB)
    platform: Platform | None = None
    annotations: dict[str, str] = Field(default_factory=dict)

    @field_validator("annotations", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return value or {}


class Index(_Foreign):
    manifests: list[Descriptor] = Field(max_length=1000)


class Manifest(_Foreign):
    config: Descriptor
    layers: list[Descriptor] = Field(max_length=MOST_LAYERS)


class Saved(BaseModel):
    """One image of an archive by `docker save`; Go's names, as they stand in its manifest.json."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    config: str = Field(alias="Config")
    tags: list[str] | None = Field(None, alias="RepoTags")
    layers: list[str] = Field(alias="Layers", max_length=MOST_LAYERS)


class SavedImages(RootModel[list[Saved]]):
    """That manifest.json."""


class _Run(BaseModel):
    """What a container of the image would run; Go's names, as they stand in the file."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    env: list[str] | None = Field(None, alias="Env")
    user: str | None = Field(None, alias="User")
    working_dir: str | None = Field(None, alias="WorkingDir")
    entrypoint: list[str] | None = Field(None, alias="Entrypoint")
    cmd: list[str] | None = Field(None, alias="Cmd")
    labels: dict[str, str] | None = Field(None, alias="Labels")


class _RootFs(BaseModel):
    diff_ids: list[str] = Field(default_factory=list, max_length=MOST_LAYERS)


class Config(_Foreign):
    architecture: str = ""
    variant: str = ""
    os: str = "linux"
    created: str | None = None
    run: _Run = Field(default_factory=_Run, alias="config")
    root_fs: _RootFs = Field(default_factory=_RootFs, alias="rootfs")

    @field_validator("run", mode="before")
    @classmethod
    def _null(cls, value: Any) -> Any:
        return value or {}

    @property
    def env(self) -> dict[str, str]:
        pairs = (line.partition("=") for line in self.run.env or () if "\0" not in line)
        return {name: value for name, equals, value in pairs if name and equals}


def parse(model: type[Foreign], data: bytes, what: str) -> Foreign:
    """Raises INVALID_REQUEST that says what is wrong with `what`."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunraError("INVALID_REQUEST", f"{what} is none: {where[:200]}: {first['msg']}") from None


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def host_platform() -> Platform:
    machine = os.uname().machine
    architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
    return Platform(os="linux", architecture=architecture, variant=variant)


def fitting(index: Index) -> list[Descriptor]:
    """The images in it that may be for this machine."""
    wanted = host_platform()
    return [
        one
        for one in index.manifests
        if one.platform is None or (one.platform.os, one.platform.architecture) == (wanted.os, wanted.architecture)
    ]


def choose(index: Index, what: str) -> Descriptor:
    """The entry for this machine: its exact variant if there is one, else one without or the first."""
    wanted = host_platform()
    found = fitting(index)
    if not found:
        there = ", ".join(sorted({str(one.platform) for one in index.manifests if one.platform}))
        raise RunraError(
            "INVALID_REQUEST",
            f"{what} is not made for this machine ({wanted}); it is for {there[:300] or 'none'}",
            details={"platform": str(wanted)},
        )
    for variant in (wanted.variant, ""):
        for one in found:
            if one.platform is not None and one.platform.variant == variant:
                return one
    return found[0]


def check(manifest: Manifest, config: Config, what: str) -> None:
    """Refuse what is no image for this machine, before anything large is fetched."""
    if manifest.config.media_type not in ("", *_CONFIGS):
        raise RunraError("INVALID_REQUEST", f"{what} is no container image but {manifest.config.media_type[:100]!r}")
    for layer in manifest.layers:
        kind = layer.media_type.split("+")[0].removesuffix(".gzip").removesuffix(".zstd")
        if kind and kind not in _LAYERS:
            raise RunraError(
                "INVALID_REQUEST", f"{what}: layer {layer.digest} is of the type {layer.media_type[:100]!r}"
            )
    kept = len(f"{config.run.model_dump_json()}{config.created}".encode())
    if kept > _MOST_KEPT:
        raise RunraError(
            "INVALID_REQUEST",
            f"{what}: its environment, labels and commands take {kept} bytes, of {_MOST_KEPT} that an image may have",
        )
    wanted = host_platform()
    if (config.os, config.architecture or wanted.architecture) != (wanted.os, wanted.architecture):
        raise RunraError(
            "INVALID_REQUEST",
            f"{what} is made for {config.os[:100]}/{config.architecture[:100]}, not for this machine ({wanted})",
            details={"platform": str(wanted)},
        )
    if config.root_fs.diff_ids and len(config.root_fs.diff_ids) != len(manifest.layers):
        raise RunraError(
            "INVALID_REQUEST",
            f"{what}: its config names {len(config.root_fs.diff_ids)} layers, its manifest {len(manifest.layers)}",
        )
