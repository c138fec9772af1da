"""What an organization may have in all: held at every way of getting more, for it alone."""

from __future__ import annotations

import asyncio
from typing import Any

from runra.server.settings import ServerSettings

from .conftest import Answer, Client, Running, started

RESOURCES = {"cpu": 2, "memoryMb": 4096, "diskMb": 10240}


async def tenant(client: Client) -> tuple[str, Client]:
    organization = (await client.call("POST", "/organizations", json={"name": "b"})).json["id"]
    made = await client.new_key(profile="full", organizationId=organization)
    return organization, client.with_key(made["key"])


async def allow(client: Client, organization: str, **quotas: Any) -> Any:
    answer = await client.call("PATCH", f"/organizations/{organization}", json={"quotas": quotas})
    assert answer.status == 200, answer.raw
    return answer.json["quotas"]


def quota(answer: Answer) -> tuple[int, str, str]:
    return answer.status, answer.error["code"], answer.error["details"]["quota"]


async def test_each_quota_holds(client: Client) -> None:
    organization, user = await tenant(client)
    for quotas, name in (
        ({"maxSandboxes": 2}, "maxSandboxes"),
        ({"cpu": 5}, "cpu"),
        ({"memoryMb": 8192}, "memoryMb"),
        ({"diskMb": 20480}, "diskMb"),
    ):
        await allow(client, organization, **quotas)
        burst = await asyncio.gather(
            *(user.call("POST", "/sandboxes", json={"image": "host", "resources": RESOURCES}) for _ in range(5))
        )
        made = [answer.json["id"] for answer in burst if answer.status == 201]
        assert len(made) == 2
        assert {quota(answer) for answer in burst if answer.status != 201} == {(503, "RESOURCE_EXHAUSTED", name)}
        assert all("Retry-After" in answer.headers for answer in burst if answer.status != 201)
        assert quota(await user.call("POST", f"/sandboxes/{made[0]}/fork", json={"count": 1}))[2] == name
        assert (await user.call("GET", "/sandboxes?state=creating")).json["data"] == []
        await client.sandbox()  # others are not concerned
        await user.call("DELETE", f"/sandboxes/{made[0]}")
        assert quota(await user.call("POST", f"/sandboxes/{made[1]}/fork", json={"count": 2}))[2] == name
        assert (await user.call("POST", f"/sandboxes/{made[1]}/fork", json={"count": 1})).status == 201
        for one in (await user.call("GET", "/sandboxes?state=running")).json["data"]:
            await user.call("DELETE", f"/sandboxes/{one['id']}")
        await allow(client, organization, **dict.fromkeys(quotas))


async def test_a_replayed_create_takes_nothing(client: Client) -> None:
    organization, user = await tenant(client)
    await allow(client, organization, maxSandboxes=1, createsPerMinute=1)
    first, again = [
        await user.call("POST", "/sandboxes", json={"image": "host"}, headers={"Idempotency-Key": "k"})
        for _ in range(2)
    ]
    assert (first.status, again.status, first.json["id"]) == (201, 201, again.json["id"])
    other = {"Idempotency-Key": "other"}
    assert (await user.call("POST", "/sandboxes", json={"image": "host"}, headers=other)).status == 503
    await allow(client, organization, maxSandboxes=None, createsPerMinute=None)
    # What was refused is forgotten: the same key may try again.
    assert (await user.call("POST", "/sandboxes", json={"image": "host"}, headers=other)).status == 201


async def test_creates_a_minute(client: Client) -> None:
    organization, user = await tenant(client)
    await allow(client, organization, createsPerMinute=3)
    source = await user.sandbox()
    assert (await user.call("POST", f"/sandboxes/{source['id']}/fork", json={"count": 2})).status == 201
    for refused in (
        await user.call("POST", "/sandboxes", json={"image": "host"}),
        await user.call("POST", f"/sandboxes/{source['id']}/fork", json={"count": 1}),
    ):
        assert quota(refused) == (429, "RATE_LIMITED", "createsPerMinute")
        assert 50 <= int(refused.headers["Retry-After"]) <= 60


async def test_disk_counts_what_is_kept(settings: ServerSettings) -> None:
    async with started(settings) as run:
        client = run.client
        organization, user = await tenant(client)
        await allow(client, organization, diskMb=30_000)
        assert (await user.call("POST", "/volumes", json={"name": "a", "sizeMb": 15_000})).status == 201
        burst = await asyncio.gather(
            *(user.call("POST", "/volumes", json={"name": f"v{n}", "sizeMb": 4000}) for n in range(6))
        )
        assert sorted(answer.status for answer in burst) == [201] * 3 + [503] * 3
        assert quota(await user.call("POST", "/sandboxes", json={"image": "host"})) == (
            503,
            "RESOURCE_EXHAUSTED",
            "diskMb",
        )
        await user.call("DELETE", "/volumes/a")
        source = await user.sandbox()
        await allow(client, organization, diskMb=10)
        assert quota(await user.call("POST", f"/sandboxes/{source['id']}/snapshots", json={}))[2] == "diskMb"
    async with started(settings) as run:  # they outlive the server
        found = (await run.client.call("GET", "/organizations")).json["data"]
        assert {it["id"]: it["quotas"] for it in found}[organization]["diskMb"] == 10
        assert (await user_of(run.client, user).call("POST", "/sandboxes", json={"image": "host"})).status == 503


def user_of(client: Client, user: Client) -> Client:
    return client.with_key(user.key)


async def test_what_copies_begin_with_counts(run: Running) -> None:
    """Else a sandbox could fill its disk, be forked and deleted, and so on without an end."""
    organization, user = await tenant(run.client)
    await allow(run.client, organization, diskMb=27_480)
    source = await user.sandbox(resources={"diskMb": 10_240})
    run.node.sandboxes[source["id"]].held_mb = 6000
    fork = f"/sandboxes/{source['id']}/fork"
    assert quota(await user.call("POST", fork, json={"count": 2}))[2] == "diskMb"
    made = (await user.call("POST", fork, json={"count": 1})).json["data"][0]
    run.node.sandboxes[made["id"]].inherited_mb = 8000
    await user.call("DELETE", f"/sandboxes/{source['id']}")
    refused = await user.call("POST", "/sandboxes", json={"image": "host", "resources": {"diskMb": 10_240}})
    assert quota(refused) == (503, "RESOURCE_EXHAUSTED", "diskMb")
    assert (refused.error["details"]["used"], refused.error["details"]["asked"]) == (18_240, 10_240)


async def test_setting_them(client: Client) -> None:
    organization, _ = await tenant(client)
    assert (await allow(client, organization, cpu=4))["cpu"] == 4
    assert await allow(client, organization, memoryMb=1) == {
        "maxSandboxes": None,
        "cpu": 4,
        "memoryMb": 1,
        "diskMb": None,
        "createsPerMinute": None,
    }
    assert (await allow(client, organization, cpu=None))["cpu"] is None
    for wrong in ({"quotas": {"cpu": -1}}, {"quotas": {"cores": 1}}, {"quotas": {"cpu": "2"}}, {}, {"cpu": 1}):
        assert (await client.call("PATCH", f"/organizations/{organization}", json=wrong)).status == 400
    assert (await client.call("PATCH", "/organizations/org_none", json={"quotas": {"cpu": 1}})).status == 404
    limited = client.with_key((await client.new_key(profile="sandbox-user", organizationId=organization))["key"])
    assert (await limited.call("PATCH", f"/organizations/{organization}", json={"quotas": {"cpu": 99}})).status == 403
