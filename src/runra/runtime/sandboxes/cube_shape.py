"""What CubeSandbox tells and is told, from our types and back: pure functions, its answers read as hostile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from runra.contract import SNAPSHOT_IMAGE, FileEntry
from runra.contract.network import Egress
from runra.errors import RunraError
from runra.runtime.sandboxes.cube_client import CubeConfig
from runra.runtime.types import SandboxHandle
from runra.sdk.types import SandboxConfig

#: Where a command starts unless a create says otherwise.
HOME: Final = "/root"
_ID: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def is_id(id: object) -> TypeGuard[str]:
    """Whether it has the letters of an id, and so can be a part of a path."""
    return isinstance(id, str) and set(id) <= _ID


def wanted(ours: CubeConfig, config: SandboxConfig) -> dict[str, Any]:
    """The body of a create."""
    body: dict[str, Any] = {
        "templateID": ours.templates.get(config.image, config.image.removeprefix(SNAPSHOT_IMAGE)),
        "timeout": -(-config.timeout_ms // 1000) + 60,  # should the next call never come
        "envVars": config.env,
        "metadata": config.metadata,
        "lifecycle": {"onTimeout": "kill", "autoResume": False},
    }
    if ours.node_selector is not None:
        body["nodeSelector"] = ours.node_selector
    if config.network is not None and config.network.egress is not None:
        body |= egress_body(config.network.egress)
    return body


def created(ours: CubeConfig, told: Any) -> tuple[str, str]:
    """The id and the domain in the answer to a create. Raises INTERNAL_ERROR for another answer."""
    id = told.get("sandboxID") if isinstance(told, dict) else None
    if not is_id(id) or not id:
        raise RunraError("INTERNAL_ERROR", "cubesandbox: its create answered no sandboxID; is this its API?")
    domain = told.get("domain")
    return id, domain if isinstance(domain, str) and domain else ours.domain


def handle(id: str, state: str, note: Mapping[str, Any], told: Mapping[str, Any]) -> SandboxHandle:
    """A sandbox, from what we noted of it and what it tells."""
    resources = {
        name: told[theirs] for name, theirs in (("cpu", "cpuCount"), ("memoryMb", "memoryMB"))
        if isinstance(told.get(theirs), int)
    }  # fmt: skip
    metadata = note.get("metadata", told.get("metadata")) or {}
    created = note.get("createdAt") or told.get("startedAt") or ""
    return SandboxHandle(
        id=id,
        state="paused" if state in ("paused", "pausing") else "running",
        image=note.get("image") or str(told.get("templateID") or ""),
        resources=resources,
        env=note.get("env") or {},
        metadata={str(name): str(value) for name, value in metadata.items()},
        workdir=note.get("workdir") or HOME,
        timeout_ms=note.get("timeoutMs"),
        idle_timeout_ms=note.get("idleTimeoutMs"),
        network=note.get("network") or {},
        created_at=created,
        started_at=created or None,
    )


def egress_body(egress: Egress) -> dict[str, Any]:
    """Its form of an egress policy: names are only held when everything else is denied."""
    if egress.default == "allow" or (egress.default is None and not egress.allow):
        return {"network": {}}
    denied = {"allowOut": list(egress.allow), "denyOut": ["0.0.0.0/0"]}
    return {"network": denied} if egress.allow else {"network": denied, "allow_internet_access": False}


def entry(told: Any) -> FileEntry | None:
    """An entry as it tells it; None for what is none."""
    if not isinstance(told, dict) or not isinstance(told.get("name"), str):
        return None
    kind = str(told.get("type", ""))
    size = str(told.get("size", "0"))
    return FileEntry(
        name=told["name"],
        path=str(told.get("path", told["name"])),
        is_directory=kind.endswith("DIRECTORY"),
        size_bytes=int(size) if size.isdigit() else 0,
        modified_at=str(told.get("modifiedTime", "")),
        mode=f"{told['mode'] & 0o7777:04o}" if isinstance(told.get("mode"), int) else "",
        owner=str(told.get("owner", "")),
        group=str(told.get("group", "")),
        symlink_target=told.get("symlinkTarget") if isinstance(told.get("symlinkTarget"), str) else None,
        type="directory" if kind.endswith("DIRECTORY") else "symlink" if kind.endswith("SYMLINK") else "file",
    )
