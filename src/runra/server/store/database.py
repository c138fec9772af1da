"""The engine, its transactions and its migrations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

_BUSY_MS = 10_000


def _sqlite_connection(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    cursor.execute("PRAGMA foreign_keys=ON")
    # In WAL mode NORMAL survives a killed process; only a power cut may take the last transactions, and that takes
    # the sandboxes they describe as well. What outlives a power cut is written with `durable`.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def migrate(connection: Connection) -> None:
    """Bring the database up to the newest migration."""
    # Imported here: only a starting server needs Alembic.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "runra.server.store:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


class Store:
    """One database. Reads run side by side; writes of this process queue here, not in SQLite's busy handler."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self.sqlite = self._url.get_backend_name() == "sqlite"
        self.engine: AsyncEngine = create_async_engine(self._url, pool_pre_ping=not self.sqlite)
        self._writing = asyncio.Lock()
        if self.sqlite:
            event.listen(self.engine.sync_engine, "connect", _sqlite_connection)

    async def open(self) -> None:
        """Create what is missing: the file (readable by its owner alone) and the tables."""
        if self.sqlite and self._url.database and self._url.database != ":memory:":
            path = Path(self._url.database)
            await asyncio.to_thread(path.touch, mode=0o600)
        async with self.engine.begin() as connection:
            await connection.run_sync(migrate)

    async def close(self) -> None:
        await self.engine.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        async with self.engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self, *, durable: bool = False) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed at the end or rolled back. `durable` outlives a power cut (one fsync)."""
        async with self._writing if self.sqlite else _nothing(), self.engine.connect() as connection:
            if self.sqlite and durable:
                await connection.exec_driver_sql("PRAGMA synchronous=FULL")
            try:
                async with _begun(connection):
                    yield connection
            finally:
                if self.sqlite and durable:
                    await connection.exec_driver_sql("PRAGMA synchronous=NORMAL")
                    await connection.rollback()


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def _begun(connection: AsyncConnection) -> AsyncIterator[None]:
    # SQLAlchemy began its own (empty) transaction with the pragma; the driver only begins at the first write.
    try:
        yield
    except BaseException:
        await connection.rollback()
        raise
    await connection.commit()
