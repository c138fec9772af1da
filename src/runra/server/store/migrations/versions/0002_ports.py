"""Exposed ports of sandboxes.

Revision: 0002, after 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_ports"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ports",
        sa.Column("sandbox_id", sa.String(32), nullable=False),
        sa.Column("port", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("private", sa.Boolean(), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=True),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("exposed_at", sa.String(32), nullable=False),
        sa.ForeignKeyConstraint(["sandbox_id"], ["sandboxes.id"], name="fk_ports_sandbox_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("sandbox_id", "port", name="pk_ports"),
    )


def downgrade() -> None:
    op.drop_table("ports")
