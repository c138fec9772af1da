"""Sandboxes and idempotent creates in the store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, exists, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from runra.contract import SandboxInfo
from runra.server.store.database import Store
from runra.server.store.tables import api_keys, idempotency, sandbox_metadata, sandboxes

#: How long an Idempotency-Key of a create is remembered.
REMEMBERED_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Remembered:
    """An idempotent create: `response` is None while the sandbox is being made."""

    key_id: str
    idempotency_key: str
    body_hash: str
    sandbox_id: str
    response: dict[str, Any] | None = None


class TooMany(Exception):
    """The key already holds as many sandboxes as it may."""


async def _put_metadata(connection: AsyncConnection, sandbox_id: str, metadata: Mapping[str, str]) -> None:
    await connection.execute(delete(sandbox_metadata).where(sandbox_metadata.c.sandbox_id == sandbox_id))
    if metadata:
        await _add_metadata(connection, sandbox_id, metadata)


async def _add_metadata(connection: AsyncConnection, sandbox_id: str, metadata: Mapping[str, str]) -> None:
    rows = [{"sandbox_id": sandbox_id, "name": name, "value": value} for name, value in metadata.items()]
    await connection.execute(insert(sandbox_metadata), rows)


async def begin_create(
    store: Store, info: SandboxInfo, key_id: str, remember: Remembered | None, most: int | None
) -> Remembered | None:
    """Write down that a sandbox is being made; or return the create of the same idempotency key instead.

    Counting and writing are one transaction, so a burst of creates cannot pass `most`. Raises `TooMany`.
    """
    async with store.write() as connection:
        if remember is not None and (earlier := await _claim(store, connection, remember)) is not None:
            return earlier
        if most is not None:
            # Where transactions run side by side, those of one key stand in line here (SQLite has one writer).
            await connection.execute(select(api_keys.c.id).where(api_keys.c.id == key_id).with_for_update())
            held = await connection.scalar(
                select(func.count())
                .select_from(sandboxes)
                .where(sandboxes.c.key_id == key_id, sandboxes.c.state != "terminated")
            )
            if (held or 0) >= most:
                raise TooMany
        await connection.execute(
            insert(sandboxes).values(
                id=info.id,
                organization_id=info.organization_id,
                key_id=key_id,
                state=info.state,
                image=info.image,
                info=info.to_wire(),
            )
        )
        if info.metadata:
            await _add_metadata(connection, info.id, info.metadata)
    return None


async def _claim(store: Store, connection: AsyncConnection, remember: Remembered) -> Remembered | None:
    """Take an idempotency key, or return the create that holds it. One statement in the common case."""
    new = (
        (sqlite if store.sqlite else postgresql)
        .insert(idempotency)
        .values(
            key_id=remember.key_id,
            idempotency_key=remember.idempotency_key,
            body_hash=remember.body_hash,
            sandbox_id=remember.sandbox_id,
            created_ms=_now_ms(),
        )
    )
    if (await connection.execute(new.on_conflict_do_nothing())).rowcount:
        return None
    mine = (idempotency.c.key_id == remember.key_id) & (idempotency.c.idempotency_key == remember.idempotency_key)
    row = (await connection.execute(select(idempotency).where(mine))).mappings().one()
    if row["created_ms"] >= _now_ms() - REMEMBERED_MS:
        return Remembered(**{name: row[name] for name in Remembered.__slots__})
    await connection.execute(delete(idempotency).where(mine))
    await connection.execute(new)
    return None


async def drop_create(store: Store, sandbox_id: str) -> None:
    """Forget a create that came to nothing, its idempotency key included, so that a retry makes another."""
    async with store.write() as connection:
        await connection.execute(delete(idempotency).where(idempotency.c.sandbox_id == sandbox_id))
        await connection.execute(delete(sandboxes).where(sandboxes.c.id == sandbox_id))


async def save(store: Store, info: SandboxInfo, *, answered: bool = False, metadata: bool = False) -> None:
    """Write a sandbox as it is now. `answered`: this is also the answer its create gives; `metadata`: it changed."""
    wire = info.to_wire()
    async with store.write() as connection:
        await connection.execute(
            update(sandboxes)
            .where(sandboxes.c.id == info.id)
            .values(state=info.state, terminated_at=info.terminated_at, info=wire)
        )
        if metadata:
            await _put_metadata(connection, info.id, info.metadata)
        if answered:
            await connection.execute(
                update(idempotency).where(idempotency.c.sandbox_id == info.id).values(response=wire)
            )


async def find(store: Store, sandbox_id: str, organization_id: str) -> SandboxInfo | None:
    """The stored sandbox of this tenant; another tenant's is not found."""
    async with store.read() as connection:
        wire = await connection.scalar(
            select(sandboxes.c.info).where(sandboxes.c.id == sandbox_id, sandboxes.c.organization_id == organization_id)
        )
        return None if wire is None else SandboxInfo.model_validate(wire)


async def listed(
    store: Store,
    organization_id: str,
    *,
    state: str | None,
    image: str | None,
    metadata: Mapping[str, str],
    limit: int,
    offset: int,
) -> tuple[list[SandboxInfo], int]:
    """A page of a tenant's sandboxes, newest first, and how many there are in all."""
    wanted = [sandboxes.c.organization_id == organization_id]
    if state is not None:
        wanted.append(sandboxes.c.state == state)
    if image is not None:
        wanted.append(sandboxes.c.image == image)
    for name, value in metadata.items():
        wanted.append(
            exists().where(
                sandbox_metadata.c.sandbox_id == sandboxes.c.id,
                sandbox_metadata.c.name == name,
                sandbox_metadata.c.value == value,
            )
        )
    async with store.read() as connection:
        total = await connection.scalar(select(func.count()).select_from(sandboxes).where(*wanted))
        rows = await connection.scalars(
            select(sandboxes.c.info).where(*wanted).order_by(sandboxes.c.seq.desc()).limit(limit).offset(offset)
        )
        return [SandboxInfo.model_validate(wire) for wire in rows], total or 0


async def live(store: Store) -> list[SandboxInfo]:
    """Every sandbox the store believes alive, of all tenants: for the start of a server."""
    async with store.read() as connection:
        rows = await connection.scalars(select(sandboxes.c.info).where(sandboxes.c.state != "terminated"))
        return [SandboxInfo.model_validate(wire) for wire in rows]


async def unanswered(store: Store) -> set[str]:
    """Ids of sandboxes whose idempotent create never answered (the server died in between)."""
    async with store.read() as connection:
        rows = await connection.scalars(select(idempotency.c.sandbox_id).where(idempotency.c.response.is_(None)))
        return set(rows)


async def forget_create(store: Store, sandbox_id: str) -> None:
    async with store.write() as connection:
        await connection.execute(delete(idempotency).where(idempotency.c.sandbox_id == sandbox_id))


async def purge(store: Store, terminated_before: str) -> None:
    """Let go of old idempotency keys, and of sandboxes terminated before the given time (ISO 8601)."""
    async with store.write() as connection:
        await connection.execute(delete(idempotency).where(idempotency.c.created_ms < _now_ms() - REMEMBERED_MS))
        await connection.execute(
            delete(sandboxes).where(sandboxes.c.state == "terminated", sandboxes.c.terminated_at < terminated_before)
        )


def _now_ms() -> int:
    return int(time.time() * 1000)
