"""Alembic's folder: `env` runs the migrations in `versions` on the connection the store hands over."""
