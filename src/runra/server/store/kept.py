"""What organizations keep beside sandboxes, in the store: snapshots and volumes, in a table each of the same shape.

A row is written before the node makes anything and removed after the node has forgotten it, so that a crash at any
step leaves a row that says what is to be undone.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Table, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from runra.server.store.database import Store
from runra.server.store.tables import organizations, snapshots, volumes

TABLES: Final = {"snapshot": snapshots, "volume": volumes}
Kind = Literal["snapshot", "volume"]


class NameTaken(Exception):
    """The organization has one of that name."""


class TooManyKept(Exception):
    """The organization has as many as it may."""


async def begin(
    store: Store, kind: Kind, kept_id: str, organization_id: str, name: str | None, created_at: str, most: int
) -> None:
    """Write down that one is being made. Raises NameTaken or TooManyKept; a burst cannot pass `most`."""
    table = TABLES[kind]
    try:
        async with store.write(durable=True) as connection:
            # Where transactions run side by side, those of one organization stand in line here.
            mine = organizations.c.id == organization_id
            await connection.execute(select(organizations.c.id).where(mine).with_for_update())
            held = await connection.scalar(
                select(func.count()).select_from(table).where(table.c.organization_id == organization_id)
            )
            if (held or 0) >= most:
                raise TooManyKept
            await connection.execute(
                insert(table).values(
                    id=kept_id, organization_id=organization_id, name=name, state="creating", created_at=created_at
                )
            )
    except IntegrityError as error:
        raise NameTaken from error


async def finish(store: Store, kind: Kind, kept_id: str, info: dict[str, Any]) -> None:
    """It is made: from now on it can be found."""
    table = TABLES[kind]
    async with store.write(durable=True) as connection:
        await connection.execute(update(table).where(table.c.id == kept_id).values(state="ready", info=info))


async def ending(store: Store, kind: Kind, kept_id: str) -> None:
    """It is being deleted: from now on it cannot be found, and a crash ends with its end."""
    table = TABLES[kind]
    async with store.write(durable=True) as connection:
        await connection.execute(update(table).where(table.c.id == kept_id).values(state="deleting"))


async def forget(store: Store, kind: Kind, kept_id: str) -> None:
    table = TABLES[kind]
    async with store.write(durable=True) as connection:
        await connection.execute(delete(table).where(table.c.id == kept_id))


async def find(store: Store, kind: Kind, organization_id: str, reference: str) -> dict[str, Any] | None:
    """The organization's own, by id or name; another tenant's is not found."""
    table = TABLES[kind]
    wanted = _ready(table, organization_id) & ((table.c.id == reference) | (table.c.name == reference))
    async with store.read() as connection:
        found: dict[str, Any] | None = await connection.scalar(select(table.c.info).where(wanted))
        return found


async def listed(
    store: Store, kind: Kind, organization_id: str, limit: int, offset: int
) -> tuple[list[dict[str, Any]], int]:
    """A page of an organization's, newest first, and how many there are in all."""
    table = TABLES[kind]
    wanted = _ready(table, organization_id)
    async with store.read() as connection:
        total = await connection.scalar(select(func.count()).select_from(table).where(wanted))
        rows = await connection.scalars(
            select(table.c.info)
            .where(wanted)
            .order_by(table.c.created_at.desc(), table.c.id)
            .limit(limit)
            .offset(offset)
        )
        return list(rows), total or 0


async def kept_mb(store: Store, organization_id: str) -> int:
    """MB of disk that an organization's volumes may take and its snapshots held."""
    async with store.read() as connection:
        sizes = []
        for table, field, unit in ((volumes, "sizeMb", 1), (snapshots, "sizeBytes", 1 << 20)):
            rows = await connection.scalars(select(table.c.info).where(_ready(table, organization_id)))
            sizes.append(sum(info[field] for info in rows) // unit)
        return sum(sizes)


async def states(store: Store, kind: Kind) -> dict[str, str]:
    """The state of each, of all tenants: for the start of a server."""
    table = TABLES[kind]
    async with store.read() as connection:
        return {row.id: row.state for row in await connection.execute(select(table.c.id, table.c.state))}


def _ready(table: Table, organization_id: str) -> ColumnElement[bool]:
    return (table.c.organization_id == organization_id) & (table.c.state == "ready")
