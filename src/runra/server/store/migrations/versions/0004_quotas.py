"""Quotas of organizations.

Revision: 0004_quotas, after 0003_kept.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_quotas"
down_revision = "0003_kept"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("organizations", sa.Column("quotas", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("organizations", "quotas")
