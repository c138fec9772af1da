"""Keys, scopes and organizations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from runra.contract.base import Request, Wire, no_nul

Scope = Literal[
    "sandbox:create",
    "sandbox:read",
    "sandbox:delete",
    "sandbox:pause",
    "sandbox:execute",
    "sandbox:files",
    "sandbox:ports",
    "sandbox:*",
    "billing:read",
    "billing:manage",
    "webhooks:manage",
    "admin:*",
]
Profile = Literal["read-only", "sandbox-user", "full"]


class KeyLimits(Request):
    """What sandboxes made with a key may ask for. Unset means no bound beyond the organization's."""

    images: list[str] | None = None
    cpu: int | None = Field(None, ge=1)
    memory_mb: int | None = Field(None, ge=1)
    disk_mb: int | None = Field(None, ge=1)
    max_sandboxes: int | None = Field(None, ge=0)


Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(no_nul)]


class KeyCreate(Request):
    name: Name
    scopes: list[Scope] | None = Field(None, min_length=1)
    profile: Profile | None = None
    organization_id: str | None = None
    expires_at: str | None = Field(None, description="ISO 8601; never when unset")
    limits: KeyLimits | None = None

    @model_validator(mode="after")
    def _one_grant(self) -> KeyCreate:
        if (self.scopes is None) == (self.profile is None):
            raise ValueError("give exactly one of 'scopes' and 'profile'")
        return self


class KeyInfo(Wire):
    id: str
    name: str
    prefix: str
    organization_id: str
    scopes: list[str]
    limits: dict[str, Any] | None = None
    created_at: str
    expires_at: str | None = None
    last_used_at: str | None = None


class KeyCreated(KeyInfo):
    """The only answer that carries the key itself."""

    key: str


class OrganizationCreate(Request):
    name: Name


class OrganizationQuotas(Request):
    """What an organization may have in all; unset or null is no bound. `diskMb` counts what its sandboxes may write,
    its volumes' sizes, and what its snapshots held when they were taken."""

    max_sandboxes: int | None = Field(None, ge=0)
    cpu: int | None = Field(None, ge=0, description="cores")
    memory_mb: int | None = Field(None, ge=0)
    disk_mb: int | None = Field(None, ge=0)
    creates_per_minute: int | None = Field(None, ge=0)


class OrganizationPatch(Request):
    """Quotas that are not named stay as they are; null lifts one."""

    quotas: OrganizationQuotas


class OrganizationInfo(Wire):
    id: str
    name: str
    created_at: str
    quotas: OrganizationQuotas | None = None
