"""The tables. A change here comes with a migration in `migrations/versions`; a test compares the two."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

#: Constraint names are fixed so that a migration can find them again on every database.
metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

organizations: Final = Table(
    "organizations",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("quotas", JSON(none_as_null=True)),
)

api_keys: Final = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("organization_id", String(32), ForeignKey("organizations.id"), nullable=False, index=True),
    Column("name", String(128), nullable=False),
    Column("prefix", String(32), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("scopes", JSON, nullable=False),
    Column("limits", JSON(none_as_null=True)),
    Column("created_at", String(32), nullable=False),
    Column("expires_at", String(40)),
    Column("last_used_at", String(32)),
)

# `seq` orders sandboxes made in the same millisecond. `key_id` points at no row: a revoked key leaves its sandboxes.
sandboxes: Final = Table(
    "sandboxes",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("organization_id", String(32), ForeignKey("organizations.id"), nullable=False, index=True),
    Column("key_id", String(32), nullable=False, index=True),
    Column("state", String(16), nullable=False, index=True),
    Column("image", String(255), nullable=False),
    Column("terminated_at", String(32)),
    Column("info", JSON, nullable=False),
)

# One row per metadata entry, so that the list's filter is plain SQL on every database.
sandbox_metadata: Final = Table(
    "sandbox_metadata",
    metadata,
    Column("sandbox_id", String(32), ForeignKey("sandboxes.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("value", Text, nullable=False),
    Index("ix_sandbox_metadata_name_value", "name", "value"),
)

ports: Final = Table(
    "ports",
    metadata,
    Column("sandbox_id", String(32), ForeignKey("sandboxes.id", ondelete="CASCADE"), primary_key=True),
    Column("port", Integer, primary_key=True, autoincrement=False),
    Column("private", Boolean, nullable=False),
    Column("token_hash", String(64)),
    Column("nonce", String(64), nullable=False),
    Column("exposed_at", String(32), nullable=False),
)

idempotency: Final = Table(
    "idempotency",
    metadata,
    Column("key_id", String(32), ForeignKey("api_keys.id", ondelete="CASCADE"), primary_key=True),
    Column("idempotency_key", String(255), primary_key=True),
    Column("body_hash", String(64), nullable=False),
    Column("sandbox_id", String(32), nullable=False),
    Column("response", JSON(none_as_null=True)),
    Column("created_ms", BigInteger, nullable=False, index=True),
)


def _kept(name: str) -> Table:
    """What an organization keeps under names of its own. `state` is creating, ready or deleting (`kept.py`)."""
    return Table(
        name,
        metadata,
        Column("id", String(32), primary_key=True),
        Column("organization_id", String(32), ForeignKey("organizations.id"), nullable=False),
        Column("name", String(63)),
        Column("state", String(16), nullable=False),
        Column("created_at", String(32), nullable=False),
        Column("info", JSON(none_as_null=True)),
        UniqueConstraint("organization_id", "name"),
    )


snapshots: Final = _kept("snapshots")
volumes: Final = _kept("volumes")
