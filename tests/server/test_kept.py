"""Snapshots, forks and volumes over REST: names, owners, limits, and a store and a node that agree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from runra.server.settings import ServerSettings
from runra.server.store import kept

from .conftest import Client, Running, started


@pytest.fixture
async def real(settings: ServerSettings) -> AsyncIterator[Running]:
    async with started(settings, real=True) as run:
        yield run
        await asyncio.gather(*(sandbox.terminate() for sandbox in list(run.node.sandboxes.values())))
        await run.node.settled()


async def other_tenant(client: Client) -> Client:
    organization = (await client.call("POST", "/organizations", json={"name": "b"})).json
    made = await client.new_key(profile="full", organizationId=organization["id"])
    return client.with_key(made["key"])


async def refused(client: Client, status: int, method: str, path: str, **options: Any) -> Any:
    answer = await client.call(method, path, **options)
    assert answer.status == status, answer.raw
    return answer.error


async def test_the_main_job(real: Running) -> None:
    client = real.client
    volume = (await client.call("POST", "/volumes", json={"name": "data", "sizeMb": 64})).json
    assert (volume["access"], volume["sizeMb"], volume["enforced"]) == ("single-writer", 64, {"sizeMb": True})
    source = await client.sandbox(env={"A": "b"}, metadata={"k": "v"})
    await client.run(source["id"], "echo one > f")
    taken = await client.call("POST", f"/sandboxes/{source['id']}/snapshots", json={"name": "base"})
    assert taken.status == 201
    assert (taken.json["name"], taken.json["sandboxId"], taken.json["image"]) == ("base", source["id"], "host")
    assert taken.json["sizeBytes"] > 0
    mounted = [{"name": "data", "path": "/data"}]
    copy = await client.sandbox(image="snapshot:base", volumes=mounted)
    assert copy["image"] == "snapshot:base"
    assert [(it["name"], it["path"], it["readOnly"]) for it in copy["volumes"]] == [("data", "/data", False)]
    assert (await client.run(copy["id"], "cat f; echo two > /data/g"))["stdout"] == "one\n"
    holds = (await client.call("GET", "/volumes/data")).json["usedBy"]
    assert holds == [{"sandboxId": copy["id"], "readOnly": False}]
    error = await refused(client, 409, "DELETE", "/volumes/data")
    assert (error["code"], error["details"]["usedBy"]) == ("INVALID_STATE", holds)
    assert (await client.call("GET", "/volumes")).json["data"][0]["id"] == volume["id"]  # it is still there
    error = await refused(client, 409, "POST", "/sandboxes", json={"image": "host", "volumes": mounted})
    assert error["details"]["sandboxId"] == copy["id"]
    error = await refused(client, 409, "POST", f"/sandboxes/{copy['id']}/fork", json={})
    assert "one writer" in error["message"]
    forked = await client.call("POST", f"/sandboxes/{source['id']}/fork", json={"count": 3})
    assert forked.status == 201
    forks = forked.json["data"]
    assert len({it["id"] for it in forks}) == 3
    assert {(it["state"], it["env"]["A"], it["metadata"]["k"]) for it in forks} == {("running", "b", "v")}
    assert [(await client.run(it["id"], "cat f"))["stdout"] for it in forks] == ["one\n"] * 3
    listed = (await client.call("GET", "/sandboxes")).json["data"]
    assert {it["id"] for it in listed} == {source["id"], copy["id"], *(it["id"] for it in forks)}
    await client.call("DELETE", f"/sandboxes/{copy['id']}")
    assert (await client.call("DELETE", f"/volumes/{volume['id']}")).json["name"] == "data"
    assert (await client.call("DELETE", "/snapshots/base")).json["id"] == taken.json["id"]
    for path in ("/volumes", "/snapshots"):
        assert (await client.call("GET", path)).json["pagination"]["total"] == 0
    assert not real.node.volumes.ids | real.node.snapshots.ids
    error = await refused(client, 409, "POST", f"/sandboxes/{copy['id']}/snapshots", json={})
    assert error["code"] == "INVALID_STATE"
    error = await refused(client, 400, "POST", "/sandboxes", json={"image": "snapshot:base"})
    assert error["details"]["field"] == "image"


async def test_names_are_the_organizations_own(client: Client) -> None:
    sandbox = await client.sandbox()
    box = f"/sandboxes/{sandbox['id']}/snapshots"
    for path, body in ((box, {"name": "n"}), ("/volumes", {"name": "n"})):
        assert (await client.call("POST", path, json=body)).status == 201
        error = await refused(client, 409, "POST", path, json=body)
        assert (error["code"], error["details"]["field"]) == ("INVALID_STATE", "name")
        for wrong in ("", "a/b", "../x", "a..b", "-a", "x" * 64, "vol_0123456789abcdef", "snap_0123456789abcdef", 3):
            error = await refused(client, 400, "POST", path, json={"name": wrong})
            assert error["details"]["field"] == "name", wrong
    burst = await asyncio.gather(*(client.call("POST", "/volumes", json={"name": "once"}) for _ in range(5)))
    assert sorted(it.status for it in burst) == [201, 409, 409, 409, 409]
    unnamed = [(await client.call("POST", box, json={})).json for _ in range(2)]
    assert [it["name"] for it in unnamed] == [None, None]
    stranger = await other_tenant(client)
    assert (await stranger.call("POST", "/volumes", json={"name": "n"})).status == 201
    assert (await stranger.call("GET", "/snapshots")).json["data"] == []
    assert [it["name"] for it in (await stranger.call("GET", "/volumes")).json["data"]] == ["n"]


async def test_another_tenants_look_like_none(client: Client) -> None:
    sandbox = await client.sandbox()
    snapshot = (await client.call("POST", f"/sandboxes/{sandbox['id']}/snapshots", json={"name": "s"})).json
    volume = (await client.call("POST", "/volumes", json={"name": "v"})).json
    stranger = await other_tenant(client)
    for kind, references in (("snapshots", ("s", snapshot["id"])), ("volumes", ("v", volume["id"]))):
        for method in ("GET", "DELETE"):
            told = set()
            for reference in (*references, "never", "x" * 300):
                error = await refused(stranger, 404, method, f"/{kind}/{reference}")
                shown = error["details"][kind[:-1]]
                told.add((error["code"], error["message"].replace(repr(shown), "?")))
            assert len(told) == 1
    assert (await client.call("GET", "/snapshots/s")).json == snapshot
    assert (await client.call("GET", "/volumes/v")).status == 200
    for path, body in (("fork", {"count": 1}), ("snapshots", {})):
        error = await refused(stranger, 404, "POST", f"/sandboxes/{sandbox['id']}/{path}", json=body)
        assert error["code"] == "SANDBOX_NOT_FOUND"


async def test_there_are_bounds(settings: ServerSettings) -> None:
    async with started(replace(settings, max_kept=2)) as run:
        client = run.client
        answers = await asyncio.gather(*(client.call("POST", "/volumes", json={"name": f"v{n}"}) for n in range(5)))
        assert sorted(it.status for it in answers) == [201, 201, 503, 503, 503]
        for body in ({"count": 0}, {"count": 33}, {"count": "2"}, {"n": 1}):
            sandbox = await client.sandbox()
            await refused(client, 400, "POST", f"/sandboxes/{sandbox['id']}/fork", json=body)
        for size in (0, 15, 1 << 40):
            await refused(client, 400, "POST", "/volumes", json={"name": "x", "sizeMb": size})


async def test_a_keys_limits_hold_for_forks(client: Client) -> None:
    source = await client.sandbox()
    limits = {"maxSandboxes": 2, "images": ["host"], "cpu": 2}
    user = client.with_key((await client.new_key(profile="sandbox-user", limits=limits))["key"])
    fork = f"/sandboxes/{source['id']}/fork"
    error = await refused(user, 503, "POST", fork, json={"count": 3})
    assert error["code"] == "RESOURCE_EXHAUSTED"
    assert (await client.call("GET", "/sandboxes")).json["pagination"]["total"] == 1
    assert (await user.call("POST", fork, json={"count": 2})).status == 201
    assert (await user.call("POST", fork, json={})).status == 503
    big = await client.sandbox(resources={"cpu": 4})
    error = await refused(user, 403, "POST", f"/sandboxes/{big['id']}/fork", json={})
    assert error["details"]["field"] == "resources.cpu"
    reader = client.with_key((await client.new_key(profile="read-only"))["key"])
    for path, body in ((fork, {}), (f"/sandboxes/{source['id']}/snapshots", {}), ("/volumes", {"name": "x"})):
        await refused(reader, 403, "POST", path, json=body)
    assert (await reader.call("GET", "/volumes")).status == 200


async def test_what_a_crash_cut_short_is_undone_and_nothing_else(settings: ServerSettings) -> None:
    """The rows of a dead server: being made, being deleted, whole; and data of which the store knows nothing."""
    async with started(settings, real=True) as run:
        client = run.client
        for name in ("making", "deleting", "whole", "lost", "unknown", "taken"):
            assert (await client.call("POST", "/volumes", json={"name": name, "sizeMb": 32})).status == 201
        ids = {it["name"]: it["id"] for it in (await client.call("GET", "/volumes")).json["data"]}
        sandbox = await client.sandbox(volumes=[{"name": "taken", "path": "/data"}])
        store = run.services.store
        await kept.ending(store, "volume", ids["deleting"])
        await kept.ending(store, "volume", ids["taken"])  # a live sandbox has it: it cannot go
        run.node.volumes.delete(ids["lost"])
        await kept.forget(store, "volume", ids["unknown"])
        async with store.write() as connection:
            await connection.exec_driver_sql(f"update volumes set state = 'creating' where id = '{ids['making']}'")
    async with started(settings, real=True) as run:
        client = run.client
        assert {it["name"] for it in (await client.call("GET", "/volumes")).json["data"]} == {"whole", "lost", "taken"}
        assert run.node.volumes.ids == {ids["whole"], ids["unknown"], ids["taken"]}
        assert (await client.call("POST", "/volumes", json={"name": "making", "sizeMb": 32})).status == 201
        assert (await client.run(sandbox["id"], "echo x > /data/f; cat /data/f"))["stdout"] == "x\n"
        # One whose data is gone can be deleted, and then made anew.
        assert (await client.call("DELETE", "/volumes/lost")).status == 200
        await client.call("DELETE", f"/sandboxes/{sandbox['id']}")
        await run.node.settled()


async def test_a_failed_make_leaves_no_name_behind(run: Running) -> None:
    client = run.client
    sandbox = await client.sandbox()

    async def broken(*_: Any) -> Any:
        raise OSError("the disk burns")

    run.node.snapshot = broken
    assert (await client.call("POST", f"/sandboxes/{sandbox['id']}/snapshots", json={"name": "s"})).status == 500
    del run.node.snapshot
    assert (await client.call("POST", f"/sandboxes/{sandbox['id']}/snapshots", json={"name": "s"})).status == 201
