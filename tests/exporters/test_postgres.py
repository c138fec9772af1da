"""The exporter `postgres` against a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from runra.runtime.exporters import Pipeline, build, pipeline
from tests.exporters.making import event
from tests.hosting import until


@pytest.fixture
def table() -> str:
    return f"events_{secrets.token_hex(6)}"


@asynccontextmanager
async def exporting(url: str, table: str, **config: Any) -> AsyncIterator[Pipeline]:
    it = pipeline({"provider": "postgres", "url": url, "table": table, "flushIntervalMs": 10, **config})
    await it.start()
    try:
        yield it
    finally:
        await it.close(0.5)


@asynccontextmanager
async def looking(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def test_events_become_rows(postgres: str, table: str) -> None:
    sent = [event(at_ms=n, run_id="run_1", trace_id="0" * 31 + "1") for n in range(250)]
    odd = event(
        "exec.completed", {"oom": True, "text": "quote ' \" \\ \t\n\x01 日本 \udc80 \0", "n": [1, None, {"a": 1.5}]}
    )
    async with exporting(postgres, table) as it, looking(postgres) as look:
        for one in (*sent, odd):
            it.offer(one)
        assert await it.flush()
        assert it.stats["postgres"].exported == 251
        rows = await look.fetch(f"SELECT * FROM {table} WHERE run_id = 'run_1' ORDER BY timestamp")
        assert [row["id"] for row in rows] == [one.id for one in sent]
        assert json.loads(rows[0]["data"]) == sent[0].data
        assert rows[7]["timestamp"] == datetime.fromisoformat(sent[7].timestamp)
        assert (rows[0]["type"], rows[0]["level"], rows[0]["sandbox_id"]) == (
            "exec.completed",
            "info",
            sent[0].sandbox_id,
        )
        (row,) = await look.fetch(f"SELECT level, data FROM {table} WHERE id = $1", odd.id)
        assert row["level"] == "warn"
        assert json.loads(row["data"])["n"] == [1, None, {"a": 1.5}]
        assert await look.fetchval(f"SELECT count(*) FROM {table} WHERE data->>'exitCode' = '0'") == 250


async def test_a_repeated_batch_leaves_no_duplicates(postgres: str, table: str) -> None:
    sent = [event() for _ in range(10)]
    for _ in range(2):
        async with exporting(postgres, table) as it:
            for one in (*sent, sent[0]):
                it.offer(one)
            assert await it.flush()
    async with looking(postgres) as look:
        assert await look.fetchval(f"SELECT count(*) FROM {table}") == 10


async def test_a_lost_connection_is_made_again_and_nothing_is_lost(postgres: str, table: str) -> None:
    async with exporting(postgres, table) as it, looking(postgres) as look:
        it.offer(event())
        assert await it.flush()
        ended = await look.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'runra'"
        )
        assert ended >= 1
        it.offer(event())
        assert await it.flush()
        assert (it.stats["postgres"].exported, it.stats["postgres"].dropped) == (2, 0)
        assert await look.fetchval(f"SELECT count(*) FROM {table}") == 2


async def test_a_table_that_is_locked_delays_only_the_exporter(postgres: str, table: str) -> None:
    async with exporting(postgres, table, timeoutMs=300) as it, looking(postgres) as look:
        it.offer(event())
        assert await it.flush()
        async with look.transaction():
            await look.execute(f"LOCK TABLE {table}")
            it.offer(event())
            await until(lambda: it.stats["postgres"].retries > 0)
        assert await it.flush(20)
        assert await look.fetchval(f"SELECT count(*) FROM {table}") == 2


async def test_a_server_that_is_not_there_is_tried_again_and_a_wrong_database_is_not(postgres: str, table: str) -> None:
    async with exporting("postgresql://runra@/postgres?host=/nowhere", table) as it:
        it.offer(event())
        await until(lambda: it.stats["postgres"].retries > 0)
    async with exporting(postgres.replace("/postgres?", "/nosuch?"), table) as it:
        it.offer(event())
        await until(lambda: it.stats["postgres"].dropped == 1)
        assert "3D000" in it.stats["postgres"].failure


async def test_two_programs_make_the_table_at_once(postgres: str, table: str) -> None:
    pipelines = [
        Pipeline(build({"provider": "postgres", "url": postgres, "table": table, "partitionByDay": True}))
        for _ in range(4)
    ]
    for it in pipelines:
        await it.start()
        it.offer(event())
    assert all(await asyncio.gather(*(it.close(30) for it in pipelines))), [it.stats for it in pipelines]
    async with looking(postgres) as look:
        assert await look.fetchval(f"SELECT count(*) FROM {table}") == 4
        assert await look.fetch(f"SELECT version FROM {table}_schema") == [(1,)]


async def test_a_table_of_a_newer_runra_is_left_alone(postgres: str, table: str) -> None:
    async with looking(postgres) as look:
        await look.execute(f"CREATE TABLE {table}_schema (version int NOT NULL)")
        await look.execute(f"INSERT INTO {table}_schema VALUES (99)")
        async with exporting(postgres, table) as it:
            it.offer(event())
            await until(lambda: it.stats["postgres"].dropped == 1)
            assert "newer Runra" in it.stats["postgres"].failure
        assert await look.fetchval("SELECT to_regclass($1)", table) is None


async def test_a_partition_for_each_day_and_the_oldest_are_dropped(postgres: str, table: str) -> None:
    today = datetime.now(UTC)

    def at(days: int) -> Any:
        moment = (today - timedelta(days=days)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return event().model_copy(update={"timestamp": moment})

    async def partitions(look: asyncpg.Connection[Any]) -> list[str]:
        rows = await look.fetch(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::regclass", table
        )
        return sorted(row[0] for row in rows)

    def named(days: int) -> str:
        return f"{table}_{today - timedelta(days=days):%Y%m%d}"

    async with looking(postgres) as look:
        async with exporting(postgres, table, partitionByDay=True) as it:
            for days in (20, 1, 0):
                it.offer(at(days))
            assert await it.flush()
            assert await partitions(look) == [named(20), named(1), named(0)]
        async with exporting(postgres, table, partitionByDay=True, retentionDays=7) as it:
            it.offer(at(0))
            assert await it.flush()
            assert await partitions(look) == [named(1), named(0)]
            assert await look.fetchval(f"SELECT count(*) FROM {table}") == 3


async def test_a_table_in_a_schema(postgres: str, table: str) -> None:
    schema = f"s_{secrets.token_hex(4)}"
    async with looking(postgres) as look:
        await look.execute(f"CREATE SCHEMA {schema}")
        async with exporting(postgres, f"{schema}.{table}", partitionByDay=True) as it:
            it.offer(event())
            assert await it.flush()
        assert await look.fetchval(f"SELECT count(*) FROM {schema}.{table}") == 1


async def test_no_connection_is_left(postgres: str, table: str) -> None:
    name = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'runra'"
    async with looking(postgres) as look:
        async with exporting(postgres, table) as it:
            it.offer(event())
            assert await it.flush()
            assert await look.fetchval(name) >= 1

        async def none() -> bool:
            return bool(await look.fetchval(name) == 0)

        await until(none)
