"""The exporter `postgres`: events into a table of PostgreSQL, which it makes and migrates itself."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import asyncpg
from pydantic import Field, field_validator

from runra.errors import RunraError
from runra.event_catalogue import level_of
from runra.events import Event
from runra.runtime.exporters.delivery import Delivery, Secret

_NAME: Final = re.compile(r"(?:[a-z_][a-z0-9_]{0,39}\.)?[a-z_][a-z0-9_]{0,39}")
_COLUMNS: Final = ("id", "timestamp", "type", "level", "sandbox_id", "run_id", "trace_id", "data")
#: What brings a table from one version to the next; `{table}` is its name, `{short}` that without its schema. Never
#: change one that was released: add another.
_MIGRATIONS: Final = (
    (
        "CREATE TABLE {table} (id text NOT NULL, timestamp timestamptz NOT NULL, type text NOT NULL,"
        " level text NOT NULL, sandbox_id text NOT NULL, run_id text NOT NULL, trace_id text NOT NULL,"
        " data jsonb NOT NULL, PRIMARY KEY (id, timestamp)) {partitioned}",
        "CREATE INDEX {short}_by_time ON {table} (timestamp)",
        "CREATE INDEX {short}_by_sandbox ON {table} (sandbox_id, timestamp)",
        "CREATE INDEX {short}_by_run ON {table} (run_id, timestamp) WHERE run_id <> ''",
    ),
)
#: Server errors that pass: connection (08), resources (53), operator's doing (57), system (58), and lost races (40).
_PASSING: Final = ("08", "53", "57", "58", "40")
#: What the driver raises. The last two also stand for a connection that ended in the middle of a call.
_ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class PostgresConfig(Delivery):
    """`url`: `postgresql://user:password@host/database`; without it libpq's PGHOST, PGUSER … hold. `table` may have a
    schema before it. `partition_by_day` makes one partition a day (decided when the table is made), of which
    `retention_days` drops the older ones."""

    url: Secret | None = None
    table: str = "runra_events"
    partition_by_day: bool = False
    retention_days: int | None = Field(None, ge=1)

    @field_validator("table")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("must be table or schema.table, in lower-case letters, digits and _")
        return value


class PostgresExporter:
    """COPY into a temporary table, then INSERT of what is not there yet: a batch repeated after a lost answer leaves no
    duplicates. One connection."""

    name = "postgres"
    Config = PostgresConfig

    def __init__(self, config: PostgresConfig) -> None:
        if config.retention_days is not None and not config.partition_by_day:
            raise RunraError(
                "INVALID_CONFIG",
                "postgres.retentionDays: needs partitionByDay, for whole partitions are dropped",
                details={"field": "retentionDays", "provider": "postgres"},
            )
        self._config = config
        self._table = config.table
        self._short = config.table.rpartition(".")[2]
        self._connection: asyncpg.Connection[Any] | None = None
        self._partitioned = False
        self._days: set[date] = set()

    async def start(self) -> None:
        await self._connected()

    async def export(self, events: Sequence[Event]) -> None:
        rows = [_row(event) for event in events]
        connection = await self._connected()
        try:
            async with connection.transaction():
                if self._partitioned:
                    await self._partition(connection, {row[1].date() for row in rows})
                await connection.copy_records_to_table("runra_incoming", records=rows, columns=_COLUMNS)
                await connection.execute(
                    f"INSERT INTO {self._table} ({', '.join(_COLUMNS)}) "  # noqa: S608 - a checked name
                    f"SELECT {', '.join(_COLUMNS)} FROM runra_incoming ON CONFLICT DO NOTHING"
                )
                await connection.execute("TRUNCATE runra_incoming")
        except _ERRORS as error:
            if isinstance(error, asyncpg.InternalClientError):  # whatever state it is in, it is of no more use
                connection.terminate()
            raise _failure(error) from error

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=2)
            except (OSError, TimeoutError, *_ERRORS, asyncio.CancelledError):
                connection.terminate()
                raise

    async def _connected(self) -> asyncpg.Connection[Any]:
        """The connection; a new one, and the table up to date, when there is none or it was lost."""
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        url = self._config.url.get_secret_value() if self._config.url else None
        try:
            connection = await asyncpg.connect(url, timeout=10, server_settings={"application_name": "runra"})
        except (*_ERRORS, ValueError) as error:
            raise _failure(error) from error
        try:
            # jsonb: a version byte and the text, as the type's own binary form has it.
            await connection.set_type_codec(
                "jsonb", schema="pg_catalog", encoder=_jsonb, decoder=bytes, format="binary"
            )
            async with connection.transaction():
                await self._migrate(connection)
            self._partitioned = await connection.fetchval(
                "SELECT relkind = 'p' FROM pg_class WHERE oid = $1::regclass", self._table
            )
            await connection.execute(f"CREATE TEMPORARY TABLE runra_incoming (LIKE {self._table})")
        except BaseException as error:
            connection.terminate()
            if isinstance(error, _ERRORS):
                raise _failure(error) from error
            raise
        self._days.clear()
        self._connection = connection
        return connection

    async def _migrate(self, connection: asyncpg.Connection[Any]) -> None:
        """Make the table, or bring it up to date. One program at a time: others wait for the lock."""
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", f"runra {self._table}")
        await connection.execute(f"CREATE TABLE IF NOT EXISTS {self._table}_schema (version int NOT NULL)")
        latest = f"SELECT max(version) FROM {self._table}_schema"  # noqa: S608 - a checked name
        version = await connection.fetchval(latest) or 0
        if version > len(_MIGRATIONS):
            raise RunraError(
                "INVALID_CONFIG",
                f"table {self._table} was made by a newer Runra: it has version {version}, this one knows "
                f"{len(_MIGRATIONS)}; upgrade, or name another table",
                retryable=False,
            )
        partitioned = "PARTITION BY RANGE (timestamp)" if self._config.partition_by_day else ""
        for number, statements in enumerate(_MIGRATIONS[version:], version + 1):
            for statement in statements:
                await connection.execute(
                    statement.format(table=self._table, short=self._short, partitioned=partitioned)
                )
            await connection.execute(f"INSERT INTO {self._table}_schema VALUES ($1)", number)  # noqa: S608 - checked

    async def _partition(self, connection: asyncpg.Connection[Any], days: set[date]) -> None:
        """Make the partitions of these days, and drop those older than wanted."""
        new = days - self._days
        if not new:
            return
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", f"runra {self._table}")
        for day in new:
            await connection.execute(
                f"CREATE TABLE IF NOT EXISTS {self._table}_{day:%Y%m%d} PARTITION OF {self._table} "
                f"FOR VALUES FROM ('{day} 00:00:00+00') TO ('{day + timedelta(days=1)} 00:00:00+00')"
            )
        if self._config.retention_days is not None:
            oldest = f"{datetime.now(UTC).date() - timedelta(days=self._config.retention_days):%Y%m%d}"
            for (partition,) in await connection.fetch(
                "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::regclass", self._table
            ):
                if partition[-8:].isdigit() and partition[-8:] < oldest:
                    await connection.execute(f"DROP TABLE {partition}")
        if len(self._days) > 1_000:
            self._days.clear()
        self._days |= new


def _row(event: Event) -> tuple[Any, ...]:
    level = level_of(event.type, event.data)
    moment = _moment(event.timestamp)
    return (event.id, moment, event.type, level, event.sandbox_id, event.run_id, event.trace_id, event)


def _moment(text: str) -> datetime:
    """When it was; now, for a timestamp of an agent or provider that is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return datetime.now(UTC)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _jsonb(event: Event) -> bytes:
    """The binary form of the type: a version byte and the text."""
    return b"\x01" + event.model_dump_json(include={"data"})[8:-1].encode()


def _failure(error: Exception) -> RunraError:
    """The server's own words, without the connection string; whether it passes, by the error's class."""
    state = getattr(error, "sqlstate", None) or ""
    passing = state.startswith(_PASSING) or (
        isinstance(error, _ERRORS[1:]) and not isinstance(error, ValueError)  # a URL that is none
    )
    text = str(error).partition("\n")[0][:300] if isinstance(error, asyncpg.PostgresError) else type(error).__name__
    return RunraError(
        "NETWORK_ERROR" if passing else "INVALID_CONFIG",
        f"PostgreSQL: {text}{f' ({state})' if state else ''}",
        details={"sqlstate": state},
        retryable=passing,
    )
