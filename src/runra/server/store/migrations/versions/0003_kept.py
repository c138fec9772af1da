"""Snapshots and volumes.

Revision: 0003_kept, after 0002_ports.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_kept"
down_revision = "0002_ports"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("snapshots", "volumes"):
        op.create_table(
            table,
            sa.Column("id", sa.String(32), nullable=False),
            sa.Column("organization_id", sa.String(32), nullable=False),
            sa.Column("name", sa.String(63), nullable=True),
            sa.Column("state", sa.String(16), nullable=False),
            sa.Column("created_at", sa.String(32), nullable=False),
            sa.Column("info", sa.JSON(none_as_null=True), nullable=True),
            sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=f"fk_{table}_organization_id"),
            sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
            sa.UniqueConstraint("organization_id", "name", name=f"uq_{table}_organization_id"),
        )


def downgrade() -> None:
    for table in ("volumes", "snapshots"):
        op.drop_table(table)
