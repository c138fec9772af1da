"""API keys and organizations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from runra.contract import (
    KeyCreate,
    KeyCreated,
    KeyInfo,
    KeyLimits,
    OrganizationCreate,
    OrganizationInfo,
    OrganizationQuotas,
)
from runra.sdk._async.api import AsyncApi
from runra.sdk.types import RawPage, checked, merged, parsed

Model = TypeVar("Model", bound=BaseModel)
_PAGE = 100


async def every(api: AsyncApi, path: str, model: type[Model]) -> list[Model]:
    """All items of a collection, page by page."""
    items: list[Model] = []
    while True:
        answer = await api.call("GET", path, params={"limit": _PAGE, "offset": len(items)})
        page = parsed(RawPage, answer.json(f"GET {path}"), f"GET {path}")
        items += [parsed(model, item, f"GET {path}") for item in page.data]
        if not page.pagination.has_more or not page.data:
            return items


class AsyncApiKeys:
    """The organization's API keys."""

    def __init__(self, api: AsyncApi) -> None:
        self._api = api

    async def create(
        self,
        name: str,
        *,
        scopes: Sequence[str] | None = None,
        profile: str | None = None,
        organization_id: str | None = None,
        expires_at: str | None = None,
        limits: KeyLimits | Mapping[str, Any] | None = None,
    ) -> KeyCreated:
        """Make a key. Its `key` is in this answer and never shown again.

        Give either `scopes` or a `profile` (`read-only`, `sandbox-user`, `full`); `expires_at` is ISO 8601.
        """
        given = {
            "name": name,
            "scopes": list(scopes) if scopes is not None else None,
            "profile": profile,
            "organization_id": organization_id,
            "expires_at": expires_at,
            "limits": limits,
        }
        request = checked(KeyCreate, merged(None, given, "create"))
        answer = await self._api.call("POST", "/api-keys", content=request.to_wire())
        return parsed(KeyCreated, answer.json("POST /api-keys"), "POST /api-keys")

    async def list(self) -> list[KeyInfo]:
        """All keys, without their secrets."""
        return await every(self._api, "/api-keys", KeyInfo)

    async def revoke(self, key_id: str) -> None:
        """End a key at once and for ever."""
        from urllib.parse import quote

        await self._api.call("DELETE", f"/api-keys/{quote(key_id, safe='')}", safe=True)


class AsyncOrganizations:
    """The tenants of this server."""

    def __init__(self, api: AsyncApi) -> None:
        self._api = api

    async def create(self, name: str) -> OrganizationInfo:
        """Make an organization."""
        request = checked(OrganizationCreate, {"name": name})
        answer = await self._api.call("POST", "/organizations", content=request.to_wire())
        return parsed(OrganizationInfo, answer.json("POST /organizations"), "POST /organizations")

    async def set_quotas(
        self, organization_id: str, quotas: OrganizationQuotas | Mapping[str, Any]
    ) -> OrganizationInfo:
        """Bound what an organization may have in all: `max_sandboxes`, `cpu`, `memory_mb`, `disk_mb`,
        `creates_per_minute`. Those not named stay as they are; None lifts one."""
        from urllib.parse import quote

        given = quotas if isinstance(quotas, OrganizationQuotas) else checked(OrganizationQuotas, quotas)
        path = f"/organizations/{quote(organization_id, safe='')}"
        answer = await self._api.call("PATCH", path, content={"quotas": given.to_wire()}, safe=True)
        return parsed(OrganizationInfo, answer.json("PATCH /organizations"), "PATCH /organizations")

    async def list(self) -> list[OrganizationInfo]:
        """All organizations."""
        return await every(self._api, "/organizations", OrganizationInfo)
