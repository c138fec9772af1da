"""Keys, scopes and owners: no route can be reached around them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.routing import APIRoute

from runra.server.routing import GuardedRoute, GuardedSocket, Routes

from .conftest import Client, Running

OPEN = {"/v1/health", "/v1/openapi.json"}
_BODIES: dict[str, Any] = {
    "create_sandbox": {"image": "host"},
    "change_sandbox": {"timeoutMs": 1000},
    "execute": {"command": "true"},
    "signal_process": {"signal": "SIGTERM"},
    "make_folder": {"path": "x"},
    "move_file": {"from": "a", "to": "b"},
    "expose_port": {"port": 3000},
    "sign_url": {"expiresInMs": 1000},
    "create_key": {"name": "k", "profile": "read-only"},
    "create_organization": {"name": "o"},
    "change_organization": {"quotas": {}},
    "take_snapshot": {},
    "fork_sandbox": {},
    "create_volume": {"name": "v"},
}


async def _walk(
    client: Client, document: Any, sandbox_id: str, only: Callable[[str, Any], bool] = lambda path, operation: True
) -> list[tuple[str, Any, Any]]:
    """Call every operation of the document as `client`: (path, operation, answer)."""
    found = []
    for path, operations in document["paths"].items():
        if path in OPEN:
            continue
        for method, operation in operations.items():
            if not only(path, operation):
                continue
            real = (
                path.replace("{id}", sandbox_id)
                .replace("{pid}", "1")
                .replace("{port}", "3000")
                .replace("{key_id}", "key_none")
            )
            real = real.replace("{snapshot_id}", "snap_none").replace("{volume_id}", "vol_none")
            real = real.replace("{organization_id}", "org_none")
            options: dict[str, Any] = {"params": {"path": "/x"} if "/files" in path and method != "post" else {}}
            if operation["operationId"] in _BODIES:
                options["json"] = _BODIES[operation["operationId"]]
            elif "requestBody" in operation:
                options["data"] = b"x"
            answer = await client.call(method.upper(), real.removeprefix("/v1"), **options)
            found.append((path, operation, answer))
    return found


async def _document(client: Client) -> Any:
    return (await client.with_key("").call("GET", "/openapi.json")).json


async def test_no_route_without_a_key(client: Client) -> None:
    sandbox = await client.sandbox()
    walked = await _walk(client.with_key(""), await _document(client), sandbox["id"])
    assert len(walked) > 30
    for path, _, answer in walked:
        assert (answer.status, answer.error["code"]) == (401, "UNAUTHORIZED"), path
        assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_another_tenants_sandbox_is_not_found_on_any_route(client: Client) -> None:
    sandbox = await client.sandbox()
    organization = (await client.call("POST", "/organizations", json={"name": "b"})).json
    foreign = await client.new_key(profile="full", organizationId=organization["id"])
    other = client.with_key(foreign["key"])
    for live in (True, False):
        if not live:
            await client.call("DELETE", f"/sandboxes/{sandbox['id']}")
        found = await _walk(other, await _document(client), sandbox["id"], lambda path, _: "{id}" in path)
        assert len(found) > 20
        for path, _, answer in found:
            assert (answer.status, answer.error["code"]) == (404, "SANDBOX_NOT_FOUND"), path
            missing = answer.raw.decode().replace(sandbox["id"], "?").replace(answer.headers["X-Request-Id"], "!")
            if path.endswith("/execute"):
                never = await other.call("POST", "/sandboxes/sb_0000000000000000/execute", json={"command": "x"})
                same = never.raw.decode().replace("sb_0000000000000000", "?")
                assert missing == same.replace(never.headers["X-Request-Id"], "!")
    assert (await other.call("GET", "/sandboxes")).json["data"] == []
    mine = (await client.call("GET", "/sandboxes")).json["data"]
    assert {it["id"] for it in mine} == {sandbox["id"]}


async def test_every_route_wants_its_scope(client: Client) -> None:
    sandbox = await client.sandbox()
    document = await _document(client)
    walked = await _walk(client.with_key(""), document, "x")
    every = {operation["x-runra-scope"] for _, operation, _ in walked}
    checked = 0
    for scope in every:
        key = (await client.new_key(scopes=sorted((every | {"billing:read"}) - {scope})))["key"]
        for path, _, answer in await _walk(
            client.with_key(key), document, sandbox["id"], lambda _, it, scope=scope: it["x-runra-scope"] == scope
        ):
            assert (answer.status, answer.error["code"]) == (403, "FORBIDDEN"), path
            assert scope in answer.error["message"]
            checked += 1
    assert checked == len(walked)
    assert (await client.call("GET", f"/sandboxes/{sandbox['id']}")).json == sandbox


def test_a_route_without_a_scope_cannot_be_made(run: Running) -> None:
    async def endpoint() -> None: ...

    with pytest.raises(TypeError, match="scope"):
        GuardedRoute("/v1/x", endpoint)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="scope"):
        GuardedSocket("/v1/x", endpoint, scope="sandbox:all", query=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Routes("x").route("GET", "/x")  # type: ignore[call-arg]
    for route in run.app.routes:
        if route.path not in OPEN:
            assert isinstance(route, GuardedRoute | GuardedSocket), route.path
        else:
            assert isinstance(route, APIRoute)


async def test_scopes_cover_what_they_say(client: Client) -> None:
    admin = client.with_key((await client.new_key(scopes=["admin:*"]))["key"])
    sandbox = await client.sandbox()
    for path in ("/sandboxes", f"/sandboxes/{sandbox['id']}", "/events"):
        assert (await admin.call("GET", path)).status == 403
    everything = client.with_key((await client.new_key(scopes=["sandbox:*"]))["key"])
    assert (await everything.call("GET", "/sandboxes")).status == 200
    assert (await everything.call("GET", "/api-keys")).status == 403
    read_only = client.with_key((await client.new_key(profile="read-only"))["key"])
    assert (await read_only.call("GET", f"/sandboxes/{sandbox['id']}")).status == 200
    assert (await read_only.call("DELETE", f"/sandboxes/{sandbox['id']}")).status == 403


async def test_a_key_is_shown_once_and_stored_hashed(run: Running) -> None:
    made = await run.client.new_key(profile="sandbox-user")
    assert made["key"].startswith("rra_live_")
    assert len(made["key"]) >= len("rra_live_") + 32
    assert made["scopes"] == ["sandbox:*"]
    listed = (await run.client.call("GET", "/api-keys")).json
    assert listed["data"][0]["id"] == made["id"]
    assert all("key" not in it and "hash" not in it for it in listed["data"])
    async with run.services.store.read() as connection:
        rows = (await connection.exec_driver_sql("select * from api_keys")).fetchall()
    text = repr(rows)
    assert made["key"] not in text
    assert hashlib.sha256(made["key"].encode()).hexdigest() in text


async def test_revoking_and_expiry_work_at_once(run: Running) -> None:
    client = run.client
    made = await client.new_key(profile="read-only")
    user = client.with_key(made["key"])
    assert (await user.call("GET", "/sandboxes")).status == 200
    revoked = await client.call("DELETE", f"/api-keys/{made['id']}")
    assert (revoked.status, revoked.json["id"]) == (200, made["id"])
    assert (await user.call("GET", "/sandboxes")).status == 401
    assert (await client.call("DELETE", f"/api-keys/{made['id']}")).status == 404
    soon = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat()
    short = await client.new_key(profile="read-only", expiresAt=soon)
    assert (await client.with_key(short["key"]).call("GET", "/sandboxes")).status == 200
    await asyncio.sleep(0.6)
    expired = await client.with_key(short["key"]).call("GET", "/sandboxes")
    assert (expired.status, "expired" in expired.error["message"]) == (401, True)
    for wrong in ("yesterday", "2020-01-01T00:00:00Z", "2099-01-01T00:00:00"):
        refused = await client.call("POST", "/api-keys", json={"name": "k", "profile": "full", "expiresAt": wrong})
        assert refused.error["details"]["field"] == "expiresAt"


async def test_no_key_grants_more_than_it_has(client: Client) -> None:
    limits = {"cpu": 2, "images": ["host", "other"], "maxSandboxes": 3}
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    weak = await client.new_key(scopes=["admin:*", "sandbox:read"], limits=limits, expiresAt=later)
    maker = client.with_key(weak["key"])
    for body in (
        {"profile": "full"},
        {"scopes": ["sandbox:*"]},
        {"scopes": ["sandbox:read"], "limits": {"cpu": 8}},
        {"scopes": ["sandbox:read"], "limits": {"images": ["third"]}},
        {"scopes": ["sandbox:read"], "expiresAt": "2099-01-01T00:00:00Z"},
    ):
        refused = await maker.call("POST", "/api-keys", json={"name": "k", **body})
        assert (refused.status, refused.error["code"]) == (403, "FORBIDDEN"), body
    child = await maker.new_key(scopes=["sandbox:read"], limits={"maxSandboxes": 1})
    assert child["limits"] == {"cpu": 2, "images": ["host", "other"], "maxSandboxes": 1}
    assert child["expiresAt"] == weak["expiresAt"]
    for both in ({}, {"profile": "full", "scopes": ["admin:*"]}, {"scopes": ["everything"]}, {"scopes": []}):
        assert (await client.call("POST", "/api-keys", json={"name": "k", **both})).status == 400
    nowhere = {"name": "k", "profile": "full", "organizationId": "org_none"}
    assert (await client.call("POST", "/api-keys", json=nowhere)).status == 400


async def test_a_keys_limits_hold_at_create(client: Client) -> None:
    limits = {"cpu": 2, "memoryMb": 4096, "diskMb": 10240, "images": ["host"], "maxSandboxes": 2}
    user = client.with_key((await client.new_key(profile="sandbox-user", limits=limits))["key"])
    for body, field in (
        ({"image": "other"}, "image"),
        ({"image": "host", "resources": {"cpu": 4}}, "resources.cpu"),
        ({"image": "host", "resources": {"memoryMb": 8192}}, "resources.memoryMb"),
        ({"image": "host", "resources": {"diskMb": 20480}}, "resources.diskMb"),
    ):
        refused = await user.call("POST", "/sandboxes", json=body)
        assert (refused.status, refused.error["details"]["field"]) == (403, field)
    refused = await user.call("POST", "/volumes", json={"name": "v", "sizeMb": 10241})
    assert (refused.status, refused.error["details"]["field"]) == (403, "sizeMb")
    assert (await user.call("POST", "/volumes", json={"name": "v", "sizeMb": 10240})).status == 201
    burst = await asyncio.gather(*(user.call("POST", "/sandboxes", json={"image": "host"}) for _ in range(6)))
    assert sorted(answer.status for answer in burst) == [201, 201, 503, 503, 503, 503]
    one = next(answer.json for answer in burst if answer.status == 201)
    await user.call("DELETE", f"/sandboxes/{one['id']}")
    await user.sandbox()


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic abc",
        "Bearer rra_live_x",
        "Bearer " + "x" * 5000,
        "Bearer \xff\xfe",
        "rra_live_x",
    ],
)
async def test_bad_authorization(client: Client, value: str) -> None:
    answer = await client.with_key("").call("GET", "/sandboxes", headers={"Authorization": value})
    assert (answer.status, answer.error["code"]) == (401, "UNAUTHORIZED")
    if len(value) > 10:
        assert value.removeprefix("Bearer ") not in answer.raw.decode()


async def test_last_use_is_noted_without_a_write_per_call(run: Running) -> None:
    made = await run.client.new_key(profile="read-only")
    await run.client.with_key(made["key"]).call("GET", "/sandboxes")
    listed = (await run.client.call("GET", "/api-keys")).json["data"]
    assert next(it for it in listed if it["id"] == made["id"])["lastUsedAt"] is not None
    await run.services.access.flush()
    await run.services.access.load()
    found, _ = run.services.access.listed(None, 100, 0)
    assert next(it for it in found if it.id == made["id"]).last_used_at is not None
