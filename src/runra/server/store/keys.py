"""Organizations and API keys in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, select, update

from runra.contract import OrganizationInfo, OrganizationQuotas
from runra.server.store.database import Store
from runra.server.store.tables import api_keys, organizations


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key as stored: its hash, never itself. Times are ISO 8601."""

    id: str
    organization_id: str
    name: str
    prefix: str
    hash: str
    scopes: Sequence[str]
    limits: Mapping[str, Any] | None
    created_at: str
    expires_at: str | None
    last_used_at: str | None

    def values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


async def all_keys(store: Store) -> list[KeyRow]:
    async with store.read() as connection:
        rows = await connection.execute(select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id))
        return [KeyRow(**row) for row in rows.mappings()]


async def add_key(store: Store, key: KeyRow, organization: OrganizationInfo | None = None) -> None:
    """Write a key, and with it the organization it opens when one is given."""
    async with store.write(durable=True) as connection:
        if organization is not None:
            await connection.execute(insert(organizations).values(**_organization(organization)))
        await connection.execute(insert(api_keys).values(**key.values()))


async def remove_key(store: Store, key_id: str) -> None:
    async with store.write(durable=True) as connection:
        await connection.execute(delete(api_keys).where(api_keys.c.id == key_id))


async def note_use(store: Store, used: Mapping[str, str]) -> None:
    """Write when each key was last used: a hint for people, so now and then is often enough."""
    async with store.write() as connection:
        for key_id, at in used.items():
            await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=at))


async def add_organization(store: Store, organization: OrganizationInfo) -> None:
    async with store.write(durable=True) as connection:
        await connection.execute(insert(organizations).values(**_organization(organization)))


async def has_organization(store: Store, organization_id: str) -> bool:
    async with store.read() as connection:
        found = await connection.scalar(select(organizations.c.id).where(organizations.c.id == organization_id))
        return found is not None


async def list_organizations(store: Store, limit: int, offset: int) -> tuple[list[OrganizationInfo], int]:
    async with store.read() as connection:
        total = await connection.scalar(select(func.count()).select_from(organizations))
        rows = await connection.execute(
            select(organizations)
            .order_by(organizations.c.created_at.desc(), organizations.c.id)
            .limit(limit)
            .offset(offset)
        )
        return [OrganizationInfo(**row) for row in rows.mappings()], total or 0


async def all_quotas(store: Store) -> dict[str, OrganizationQuotas]:
    """The quotas of every organization that has any."""
    async with store.read() as connection:
        rows = await connection.execute(select(organizations.c.id, organizations.c.quotas))
        return {row.id: OrganizationQuotas.model_validate(row.quotas) for row in rows if row.quotas}


async def set_quotas(store: Store, organization_id: str, quotas: OrganizationQuotas) -> bool:
    """Write an organization's quotas; False when there is none of that id."""
    wire = quotas.model_dump(by_alias=True, exclude_none=True) or None
    async with store.write(durable=True) as connection:
        wanted = update(organizations).where(organizations.c.id == organization_id).values(quotas=wire)
        return bool((await connection.execute(wanted)).rowcount)


async def find_organization(store: Store, organization_id: str) -> OrganizationInfo | None:
    async with store.read() as connection:
        rows = await connection.execute(select(organizations).where(organizations.c.id == organization_id))
        row = rows.mappings().one_or_none()
        return None if row is None else OrganizationInfo(**row)


def _organization(organization: OrganizationInfo) -> dict[str, Any]:
    return organization.model_dump(include={"id", "name", "created_at"})
