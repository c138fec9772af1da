"""Exposed ports in the store."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import delete, insert, select, update

from runra.server.store.database import Store
from runra.server.store.tables import ports, sandboxes


@dataclass(frozen=True, slots=True)
class PortRow:
    """An exposed port as stored: the hash of its token, never itself. `nonce` is part of what links are signed over, so
    a new one revokes them all."""

    sandbox_id: str
    port: int
    private: bool
    token_hash: str | None
    nonce: str
    exposed_at: str

    def values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


async def load_ports(store: Store) -> list[PortRow]:
    """The ports of all sandboxes that are not terminated; those of others are deleted."""
    alive = select(sandboxes.c.id).where(sandboxes.c.state != "terminated")
    async with store.write() as connection:
        await connection.execute(delete(ports).where(ports.c.sandbox_id.not_in(alive)))
        rows = await connection.execute(select(ports).order_by(ports.c.port))
        return [PortRow(**row) for row in rows.mappings()]


async def add_port(store: Store, row: PortRow) -> None:
    async with store.write() as connection:
        await connection.execute(insert(ports).values(**row.values()))


async def set_nonce(store: Store, sandbox_id: str, port: int, nonce: str) -> None:
    """Durable: what was revoked stays revoked."""
    async with store.write(durable=True) as connection:
        await connection.execute(
            update(ports).where(ports.c.sandbox_id == sandbox_id, ports.c.port == port).values(nonce=nonce)
        )


async def remove_port(store: Store, sandbox_id: str, port: int) -> None:
    """Durable: what was closed stays closed."""
    async with store.write(durable=True) as connection:
        await connection.execute(delete(ports).where(ports.c.sandbox_id == sandbox_id, ports.c.port == port))


async def remove_ports(store: Store, sandbox_id: str) -> None:
    async with store.write() as connection:
        await connection.execute(delete(ports).where(ports.c.sandbox_id == sandbox_id))
