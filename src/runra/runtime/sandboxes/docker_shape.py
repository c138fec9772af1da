"""A sandbox as a container: what is asked of the engine, and what its answer means."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from pydantic import Field

from runra.contract import Request
from runra.errors import RunraError
from runra.ids import SANDBOX_ID
from runra.runtime.types import ResourceUse, SandboxHandle
from runra.sdk.types import SandboxConfig

LABEL: Final = "dev.runra"
#: What a container's root keeps: enough to install packages and change users, nothing that reaches the kernel.
_CAPABILITIES: Final = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "KILL"]
#: Process 1 below the engine's init: waits, and goes when it is told to.
_WAIT: Final = 'trap "exit 0" TERM INT; while :; do sleep 3600 & wait $!; done'
_STATES: Final[dict[str, Any]] = {
    "created": "creating",
    "running": "running",
    "restarting": "running",
    "paused": "paused",
}


class DockerConfig(Request):
    """Options of the provider. `url`: the engine, such as `unix:///run/docker.sock` (DOCKER_HOST and Docker's own
    settings when unset). `network`: what a sandbox without a network policy gets, `none` unless set; a Docker network
    such as `bridge` is not filtered: it reaches whatever the engine's host reaches. `pull`: `missing` or `never`.
    `runtime`: another OCI runtime of the engine, such as `runsc`. `namespace`: only sandboxes made under the same name
    are seen. `state_dir`: where running times are noted."""

    url: str | None = None
    api_url: str | None = None
    namespace: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    network: str = "none"
    pull: str = Field("missing", pattern="^(missing|never)$")
    runtime: str | None = None
    pids_limit: int = Field(1024, ge=16)
    timeout_ms: int = Field(30_000, ge=1)
    state_dir: str | None = None


def container(id: str, config: SandboxConfig, settings: DockerConfig, cpus: int) -> dict[str, Any]:
    """The body of the engine's create. Raises INVALID_CONFIG for a network that is not configured."""
    network = _network(config, settings)
    memory = config.resources.memory_mb << 20
    labels = {
        LABEL: settings.namespace,
        f"{LABEL}.id": id,
        f"{LABEL}.config": json.dumps(config.model_dump(mode="json", by_alias=True), separators=(",", ":")),
        **{f"{LABEL}.metadata.{name}": value for name, value in config.metadata.items()},
    }
    host = {
        "NetworkMode": network,
        # The engine refuses a ceiling above what it has; such a one holds by itself.
        "NanoCpus": min(config.resources.cpu, cpus) * 1_000_000_000,
        "Memory": memory,
        "MemorySwap": memory,
        "PidsLimit": settings.pids_limit,
        "Init": True,
        "CapDrop": ["ALL"],
        "CapAdd": _CAPABILITIES,
        "SecurityOpt": ["no-new-privileges"],
        "IpcMode": "private",
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {"Type": "none"},
    }
    if settings.runtime is not None:
        host["Runtime"] = settings.runtime
    return {
        "Image": config.image,
        "Entrypoint": ["/bin/sh", "-c", _WAIT],
        "Cmd": [],
        "Hostname": "sandbox",
        "Env": [f"{name}={value}" for name, value in config.env.items()],
        "WorkingDir": config.workdir,
        "Labels": labels,
        "StopSignal": "SIGKILL",
        "HostConfig": host,
    }


def _network(config: SandboxConfig, settings: DockerConfig) -> str:
    egress = config.network.egress if config.network is not None else None
    if egress is None or egress.default is None:
        return settings.network
    if egress.default == "deny":
        return "none"
    if settings.network == "none":
        raise RunraError(
            "INVALID_CONFIG",
            "network.egress.default is 'allow', but the provider 'docker' has no network to give: name one of the "
            "engine's in sandbox.config.network, such as 'bridge'. It is not filtered",
            details={"provider": "docker", "field": "sandbox.config.network"},
        )
    return settings.network


def handle(shown: dict[str, Any]) -> SandboxHandle:
    """A sandbox from the engine's description of its container."""
    labels, state = shown["Config"]["Labels"], shown["State"]
    config = asked(labels)
    ended = not state["Running"] and not state["Paused"] and state["Status"] != "created"
    mode = shown["HostConfig"]["NetworkMode"]
    return SandboxHandle(
        id=labels[f"{LABEL}.id"],
        state="terminated" if ended else _STATES.get(state["Status"], "running"),
        image=config.image,
        resources={
            "cpu": config.resources.cpu,
            "memoryMb": config.resources.memory_mb,
        },
        env=config.env,
        metadata=config.metadata,
        workdir=config.workdir,
        timeout_ms=config.timeout_ms,
        idle_timeout_ms=config.idle_timeout_ms,
        network={"egress": {"default": "deny" if mode == "none" else "allow", "allow": []}},
        created_at=_iso(shown["Created"]) or "",
        started_at=_iso(state.get("StartedAt")),
        terminated_at=_iso(state.get("FinishedAt")) if ended else None,
        termination_reason=("oom" if state.get("OOMKilled") else "error") if ended else None,
    )


def name_of(id: str) -> str:
    """The container of a sandbox."""
    return f"runra-{id}"


def asked(labels: Mapping[str, str]) -> SandboxConfig:
    """What the create asked for. Raises INTERNAL_ERROR when the label is not ours."""
    try:
        return SandboxConfig(**json.loads(labels[f"{LABEL}.config"]))
    except (KeyError, ValueError, TypeError, RunraError):
        raise RunraError(
            "INTERNAL_ERROR", f"the container of {labels.get(f'{LABEL}.id')!r} carries labels Runra did not write"
        ) from None


def is_ours(shown: Mapping[str, Any]) -> bool:
    """Whether Runra made this container. An image may carry our labels, and hands them to every container of it."""
    labels = shown["Config"].get("Labels") or {}
    id = labels.get(f"{LABEL}.id", "")
    if not SANDBOX_ID.fullmatch(id) or shown.get("Name", "").lstrip("/") != name_of(id):
        return False
    try:
        asked(labels)
    except RunraError:
        return False
    return True


def _iso(time: str | None) -> str | None:
    """The engine's time with our precision; its zero time is none."""
    if not time or time.startswith("0001-"):
        return None
    return f"{time[:19]}.{(time[20:23] if time[19:20] == '.' else '').rstrip('Z').ljust(3, '0')}Z"


def epoch(time_text: str) -> float:
    """The engine's time in seconds; now, when it tells none."""
    at = _iso(time_text)
    return datetime.fromisoformat(at).timestamp() if at is not None else time.time()


def used(shown: Mapping[str, Any], stats: Mapping[str, Any]) -> ResourceUse:
    """What a container uses, as the engine measured it. It is not told of one that has ended meanwhile."""
    nanoseconds = ((stats.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage")
    memory = (stats.get("memory_stats") or {}).get("usage")
    cores = shown["HostConfig"].get("NanoCpus") or None
    return ResourceUse(
        cpu_ms=nanoseconds // 1_000_000 if isinstance(nanoseconds, int) and nanoseconds else None,
        cpu_limit=cores / 1e9 if cores else None,
        memory_bytes=memory if isinstance(memory, int) else None,
        memory_limit_bytes=shown["HostConfig"].get("Memory") or None,
    )
