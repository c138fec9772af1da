"""The store: its migrations make exactly its tables, and what it holds outlives the process."""

from __future__ import annotations

import asyncio
import secrets
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from runra.contract import OrganizationInfo, SandboxInfo
from runra.server.settings import ServerSettings
from runra.server.store import Store, kept
from runra.server.store.keys import KeyRow, add_key, add_organization, remove_key
from runra.server.store.sandboxes import Remembered, TooMany, begin_create, drop_create, listed, purge, save
from runra.server.store.tables import metadata
from tests.postgres import new_database
from tests.server.conftest import started


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path / 'x.db'}"
    else:
        url = new_database(request.getfixturevalue("postgres_cluster"), f"store_{secrets.token_hex(6)}")
    opened = Store(url)
    await opened.open()
    await add_key(opened, _key(), OrganizationInfo(id="org_1", name="o", created_at="2026"))
    yield opened
    await opened.close()


def _key() -> KeyRow:
    return KeyRow("key_1", "org_1", "n", "p", "h", ["sandbox:*"], None, "2026", None, None)


def _info(name: str, **more: object) -> SandboxInfo:
    known = {
        "id": f"sb_{name}", "organization_id": "org_1", "state": "creating", "image": "host", "resources": {},
        "env": {}, "workdir": "/", "timeout_ms": 1, "idle_timeout_ms": 1, "metadata": {}, "created_at": "2026",
    }  # fmt: skip
    return SandboxInfo.model_validate(known | more)


def _difference(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata))


async def test_migrations_make_the_tables_of_the_models(store: Store) -> None:
    async with store.engine.connect() as connection:
        assert await connection.run_sync(_difference) == []
    await store.open()  # nothing to do, and no harm


async def test_what_is_kept_has_one_name_and_a_bound(store: Store) -> None:
    await add_organization(store, OrganizationInfo(id="org_2", name="o", created_at="2026"))
    await kept.begin(store, "volume", "vol_1", "org_1", "data", "2026-1", 4)
    assert await kept.find(store, "volume", "org_1", "data") is None, "it is not made yet"
    await kept.finish(store, "volume", "vol_1", {"id": "vol_1"})
    for reference in ("data", "vol_1"):
        assert await kept.find(store, "volume", "org_1", reference) == {"id": "vol_1"}
        assert await kept.find(store, "volume", "org_2", reference) is None
        assert await kept.find(store, "snapshot", "org_1", reference) is None
    with pytest.raises(kept.NameTaken):
        await kept.begin(store, "volume", "vol_2", "org_1", "data", "2026-2", 4)
    await kept.begin(store, "volume", "vol_2", "org_2", "data", "2026-2", 4)
    makes = (kept.begin(store, "snapshot", f"snap_{n}", "org_1", None, f"2026-{n}", 3) for n in range(6))
    outcomes = await asyncio.gather(*makes, return_exceptions=True)
    assert [type(it) for it in outcomes if it is not None] == [kept.TooManyKept] * 3
    for snapshot_id in await kept.states(store, "snapshot"):
        await kept.finish(store, "snapshot", snapshot_id, {"id": snapshot_id})
    found, total = await kept.listed(store, "snapshot", "org_1", 2, 1)
    assert (len(found), total) == (2, 3)
    await kept.ending(store, "volume", "vol_1")
    assert await kept.listed(store, "volume", "org_1", 10, 0) == ([], 0)
    assert await kept.states(store, "volume") == {"vol_1": "deleting", "vol_2": "creating"}
    await kept.forget(store, "volume", "vol_1")
    await kept.begin(store, "volume", "vol_3", "org_1", "data", "2026-3", 4)


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
async def test_sqlite_is_set_up_and_private(store: Store, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "x.db").stat().st_mode) == 0o600
    for pragma, value in (("journal_mode", "wal"), ("foreign_keys", 1), ("busy_timeout", 10_000), ("synchronous", 1)):
        async with store.read() as connection:
            assert (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar() == value, pragma
    await remove_key(store, "key_none")
    async with store.read() as connection:
        assert (await connection.exec_driver_sql("PRAGMA synchronous")).scalar() == 1


async def _delete_and_fail(store: Store, *, durable: bool) -> None:
    async with store.write(durable=durable) as connection:
        await connection.exec_driver_sql("delete from api_keys")
        raise ZeroDivisionError


async def test_a_failed_write_leaves_nothing(store: Store) -> None:
    for durable in (False, True):
        with pytest.raises(ZeroDivisionError):
            await _delete_and_fail(store, durable=durable)
    async with store.read() as connection:
        assert (await connection.exec_driver_sql("select count(*) from api_keys")).scalar() == 1


async def test_creates_are_counted_without_a_race(store: Store) -> None:
    async def create(n: int) -> bool:
        try:
            await begin_create(store, _info(str(n)), "key_1", None, 3)
        except TooMany:
            return False
        return True

    assert sum(await asyncio.gather(*(create(n) for n in range(10)))) == 3
    await drop_create(
        store, (await listed(store, "org_1", state=None, image=None, metadata={}, limit=1, offset=0))[0][0].id
    )
    assert await create(99)


async def test_one_idempotency_key_is_one_create(store: Store) -> None:
    first = Remembered("key_1", "k", "hash", "sb_a")
    assert await begin_create(store, _info("a"), "key_1", first, None) is None
    second = await begin_create(store, _info("b"), "key_1", Remembered("key_1", "k", "hash", "sb_b"), None)
    assert second is not None
    assert (second.sandbox_id, second.response) == ("sb_a", None)
    await save(store, _info("a", state="running"), answered=True)
    third = await begin_create(store, _info("c"), "key_1", Remembered("key_1", "k", "hash", "sb_c"), None)
    assert third is not None
    assert third.response is not None
    assert third.response["state"] == "running"
    async with store.write() as connection:
        await connection.exec_driver_sql("update idempotency set created_ms = created_ms - 86400001")
    assert await begin_create(store, _info("d"), "key_1", Remembered("key_1", "k", "other", "sb_d"), None) is None


@pytest.mark.parametrize("name", ['a"b', "a'b", "$.x", "%", "a]b", "", "ключ", "a;drop table sandboxes"])
async def test_metadata_filters_take_any_name(store: Store, name: str) -> None:
    await begin_create(store, _info("a", metadata={name: "v%"}), "key_1", None, None)
    await begin_create(store, _info("b", metadata={name: "vx"}), "key_1", None, None)
    found, total = await listed(store, "org_1", state=None, image=None, metadata={name: "v%"}, limit=9, offset=0)
    assert ([it.id for it in found], total) == (["sb_a"], 1)


async def test_purging_takes_only_what_is_old_and_ended(store: Store) -> None:
    for name, state, at in (("a", "terminated", "2020"), ("b", "terminated", "2030"), ("c", "running", None)):
        await begin_create(store, _info(name, metadata={"m": "1"}), "key_1", None, None)
        await save(store, _info(name, state=state, terminated_at=at))
    await purge(store, "2025")
    found, _ = await listed(store, "org_1", state=None, image=None, metadata={}, limit=9, offset=0)
    assert [it.id for it in found] == ["sb_c", "sb_b"]
    async with store.read() as connection:
        assert (await connection.exec_driver_sql("select count(*) from sandbox_metadata")).scalar() == 2


async def test_a_whole_server_on_postgresql(settings: ServerSettings, postgres_cluster: Path) -> None:
    """Keys, sandboxes, idempotent creates and filters, and all of it again after a restart."""
    settings = replace(settings, database_url=new_database(postgres_cluster, f"whole_{secrets.token_hex(6)}"))
    world: dict[str, Any] = {}
    body = {"image": "host", "metadata": {"team": "blue"}}
    async with started(settings, world) as run:
        again = {"Idempotency-Key": "one"}
        made = (await run.client.call("POST", "/sandboxes", json=body, headers=again)).json
        assert (await run.client.call("POST", "/sandboxes", json=body, headers=again)).json["id"] == made["id"]
        reader = await run.client.new_key(name="reader", profile="read-only")
        assert (await run.client.run(made["id"], "echo hi"))["stdout"] == "hi\n"
    async with started(settings, world) as run:
        other = run.client.with_key(reader["key"])
        found = (await other.call("GET", "/sandboxes?metadata[team]=blue")).json
        assert [it["id"] for it in found["data"]] == [made["id"]]
        assert (await run.client.call("POST", "/sandboxes", json=body, headers=again)).json["id"] == made["id"]
        assert (await run.client.call("DELETE", f"/sandboxes/{made['id']}")).json["state"] == "terminated"
    for sandbox in world.values():
        await sandbox.link.close()
