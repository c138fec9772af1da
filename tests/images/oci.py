"""Writes image layers, manifests and archives byte by byte: what honest tools make, and what they never would."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
#: Debian's package busybox-static.
BUSYBOX = Path("/bin/busybox")


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Layer:
    """A tar in the making. Every name and type is taken as it is."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, **fields: Any) -> Layer:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.mode = kind, len(data), 0o644
        for key, value in fields.items():
            setattr(info, key, value)
        self._tar.addfile(info, io.BytesIO(data))
        return self

    def folder(self, name: str, mode: int = 0o755, **fields: Any) -> Layer:
        return self.add(name, kind=tarfile.DIRTYPE, mode=mode, **fields)

    def link(self, name: str, target: str, *, hard: bool = False, **fields: Any) -> Layer:
        return self.add(name, kind=tarfile.LNKTYPE if hard else tarfile.SYMTYPE, linkname=target, **fields)

    def raw(self, data: bytes) -> Layer:
        """Bytes between entries, for headers tarfile would not write."""
        self._buffer.write(data)
        self._tar.offset += len(data)
        return self

    def bytes(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()


def busybox(*programs: str) -> Layer:
    """A layer with a shell and little else, from one static program."""
    layer = Layer().folder("bin").add("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
    for program in ("sh", "cat", "ls", "id", "stat", "echo", "mount", "rm", "mkdir", "touch", "test", *programs):
        layer.link(f"bin/{program}", "busybox")
    return layer


@dataclass
class Made:
    """An image as blobs by digest, and its manifest."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifest: bytes = b""
    kind: str = MANIFEST

    @property
    def digest(self) -> str:
        return digest(self.manifest)

    def put(self, data: bytes) -> str:
        self.blobs[digest(data)] = data
        return digest(data)


def packed(data: bytes, how: str) -> tuple[bytes, str]:
    if how == "gzip":
        return gzip.compress(data, 1, mtime=0), f"{LAYER}+gzip"
    if how == "zstd":
        return zstandard.compress(data), f"{LAYER}+zstd"
    return data, LAYER


def image(
    *layers: Layer | bytes,
    config: dict[str, Any] | None = None,
    how: str = "gzip",
    architecture: str = ARCHITECTURE,
    diff_ids: list[str] | None = None,
    **run: Any,
) -> Made:
    """An image of layers, the lowest first. `run` are the config's own names: Env, User, WorkingDir…"""
    made = Made()
    tars = [layer if isinstance(layer, bytes) else layer.bytes() for layer in layers]
    descriptors = []
    for tar in tars:
        blob, kind = packed(tar, how)
        descriptors.append({"mediaType": kind, "digest": made.put(blob), "size": len(blob)})
    described = {
        "architecture": architecture,
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": diff_ids if diff_ids is not None else [digest(tar) for tar in tars]},
        **(config or {}),
    }
    data = json.dumps(described).encode()
    made.manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": made.put(data), "size": len(data)},
            "layers": descriptors,
        }
    ).encode()
    return made


def index(**by_architecture: Made) -> Made:
    """One name for several machines."""
    made = Made(kind=INDEX)
    entries = []
    for architecture, one in by_architecture.items():
        made.blobs.update(one.blobs)
        made.put(one.manifest)
        entries.append(
            {
                "mediaType": one.kind,
                "digest": one.digest,
                "size": len(one.manifest),
                "platform": {"os": "linux", "architecture": architecture},
            }
        )
    made.manifest = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    return made


def _tar(files: dict[str, bytes]) -> bytes:
    layer = Layer()
    for name, data in files.items():
        layer.add(name, data)
    return layer.bytes()


def entry(made: Made, name: str = "", **more: Any) -> dict[str, Any]:
    """Its line in an index."""
    found: dict[str, Any] = {"mediaType": made.kind, "digest": made.digest, "size": len(made.manifest), **more}
    if name:
        found["annotations"] = {"org.opencontainers.image.ref.name": name}
    return found


def oci_archive(made: Made, name: str = "", *, beside: list[dict[str, Any]] | None = None) -> bytes:
    """A tar of an OCI image layout; `beside` are further lines of its index."""
    files = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry(made, name), *(beside or [])]}).encode(),
    }
    blobs = {**made.blobs, made.digest: made.manifest}
    files.update({f"blobs/sha256/{key.removeprefix('sha256:')}": data for key, data in blobs.items()})
    return _tar(files)


def docker_archive(*layers: Layer, name: str, **run: Any) -> bytes:
    """What `docker save` wrote before it wrote OCI layouts."""
    tars = [layer.bytes() for layer in layers]
    config = json.dumps(
        {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in tars]},
        }
    ).encode()
    files = {f"{number}/layer.tar": tar for number, tar in enumerate(tars)}
    files["config.json"] = config
    listed = [{"Config": "config.json", "RepoTags": [name], "Layers": [f"{n}/layer.tar" for n in range(len(tars))]}]
    files["manifest.json"] = json.dumps(listed).encode()
    return _tar(files)
