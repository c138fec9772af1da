"""A sandbox: what a create asks for, and how the API shows it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from runra.contract.base import (
    CPU,
    DISK_MB,
    IDLE_TIMEOUT_MS,
    MEMORY_MB,
    TIMEOUT_MS,
    AbsolutePath,
    Env,
    ImageName,
    Metadata,
    Request,
    Wire,
)
from runra.contract.network import Network
from runra.contract.volumes import VolumeMounts

SandboxState = Literal["creating", "running", "paused", "terminated"]
TerminationReason = Literal["user", "timeout", "oom", "disk", "node_lost", "image", "error"]


class Resources(Request):
    """Hard limits of a sandbox: ceilings, not reservations."""

    cpu: Annotated[int, CPU] = Field(2, description="cores")
    memory_mb: Annotated[int, MEMORY_MB] = Field(4096, description="MB, tmpfs and page cache included")
    disk_mb: Annotated[int, DISK_MB] = Field(10240, description="MB it may write")


class SandboxConfig(Request):
    """The body of a create."""

    image: ImageName = Field(examples=["host"])
    resources: Resources = Field(default_factory=Resources)
    env: Env = Field(default_factory=dict)
    workdir: AbsolutePath = "/workspace"
    timeout_ms: Annotated[int, TIMEOUT_MS] = Field(300_000, description="longest time running, in ms")
    idle_timeout_ms: Annotated[int, IDLE_TIMEOUT_MS] = Field(120_000, description="pause after so long idle, in ms")
    metadata: Metadata = Field(default_factory=dict)
    network: Network | None = None
    auto_resume: bool = Field(False, description="calls and preview traffic resume the sandbox when it is paused")
    isolation: str | None = Field(None, description="a wall the operator allows; the server's own when unset")
    volumes: VolumeMounts = Field(default_factory=list, description="folders that outlive the sandbox")


class SandboxPatch(Request):
    timeout_ms: Annotated[int, TIMEOUT_MS] | None = None
    idle_timeout_ms: Annotated[int, IDLE_TIMEOUT_MS] | None = None
    metadata: Metadata | None = None

    @model_validator(mode="after")
    def _something(self) -> SandboxPatch:
        if not self.model_fields_set:
            raise ValueError("give at least one of timeoutMs, idleTimeoutMs, metadata")
        for name in self.model_fields_set:
            if getattr(self, name) is None:
                raise ValueError(f"{to_camel(name)} must not be null")
        return self


class SandboxInfo(Wire):
    """A sandbox as the API shows it. `enforced` says of each limit whether this server holds it."""

    id: str
    organization_id: str = ""
    state: SandboxState
    image: str
    resources: dict[str, int]
    env: dict[str, str]
    workdir: str
    timeout_ms: int
    idle_timeout_ms: int
    metadata: dict[str, str]
    network: dict[str, Any] = Field(default_factory=dict)
    auto_resume: bool = False
    isolation: str = ""
    enforced: dict[str, bool] = Field(default_factory=dict)
    volumes: list[dict[str, Any]] = Field(default_factory=list)
    created_at: str
    started_at: str | None = None
    paused_at: str | None = None
    terminated_at: str | None = None
    termination_reason: TerminationReason | None = None
