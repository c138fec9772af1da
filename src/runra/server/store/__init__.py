"""What a crash may not lose: organizations, keys, sandboxes, idempotent creates; in SQLite, or PostgreSQL by URL."""

from runra.server.store.database import Store

__all__ = ["Store"]
