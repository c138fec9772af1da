"""Runs migrations on the connection the store gives (`config.attributes["connection"]`)."""

from __future__ import annotations

from alembic import context

from runra.server.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite changes a table by copying it.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
