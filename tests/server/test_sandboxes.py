"""The life of sandboxes over the API."""

from __future__ import annotations

import asyncio

import pytest

from runra.errors import RunraError

from .conftest import Client, Running, started


async def test_create_get_list_change_terminate(client: Client) -> None:
    made = await client.call("POST", "/sandboxes", json={"image": "host", "metadata": {"a": "1"}})
    assert made.status == 201
    assert made.headers["Content-Type"] == "application/json; charset=utf-8"
    assert made.headers["X-Request-Id"].startswith("req_")
    info = made.json
    assert info["state"] == "running"
    assert info["resources"] == {"cpu": 2, "memoryMb": 4096, "diskMb": 10240}
    assert made.headers["Location"] == f"/v1/sandboxes/{info['id']}"
    assert (await client.call("GET", f"/sandboxes/{info['id']}")).json == info
    changed = await client.call("PATCH", f"/sandboxes/{info['id']}", json={"metadata": {"b": "2"}})
    assert changed.json["metadata"] == {"b": "2"}
    by_old = await client.call("GET", "/sandboxes", params={"metadata[a]": "1"})
    by_new = await client.call("GET", "/sandboxes", params={"metadata[b]": "2"})
    assert (by_old.json["pagination"]["total"], by_new.json["pagination"]["total"]) == (0, 1)
    for _ in range(2):
        gone = await client.call("DELETE", f"/sandboxes/{info['id']}")
        assert gone.status == 200
        assert gone.json["state"] == "terminated"
        assert gone.json["terminationReason"] == "user"
    assert (await client.call("GET", f"/sandboxes/{info['id']}")).json["state"] == "terminated"
    for method, path in (("POST", "/pause"), ("POST", "/resume"), ("GET", "/metrics"), ("GET", "/files?path=/x")):
        after = await client.call(method, f"/sandboxes/{info['id']}{path}")
        assert (after.status, after.error["code"]) == (409, "INVALID_STATE")
    listed = await client.call("GET", "/sandboxes", params={"state": "terminated"})
    assert [it["id"] for it in listed.json["data"]] == [info["id"]]


async def test_list_pages_newest_first(client: Client) -> None:
    ids = [(await client.sandbox())["id"] for _ in range(5)]
    first = (await client.call("GET", "/sandboxes?limit=2")).json
    assert [it["id"] for it in first["data"]] == [ids[4], ids[3]]
    assert first["pagination"] == {"total": 5, "limit": 2, "offset": 0, "hasMore": True}
    last = (await client.call("GET", "/sandboxes?limit=2&offset=4")).json
    assert [it["id"] for it in last["data"]] == [ids[0]]
    assert last["pagination"]["hasMore"] is False
    assert (await client.call("GET", "/sandboxes?image=other")).json["data"] == []


async def test_pause_and_resume_are_idempotent(client: Client) -> None:
    sandbox = await client.sandbox()
    for _ in range(2):
        assert (await client.call("POST", f"/sandboxes/{sandbox['id']}/pause")).json["state"] == "paused"
    refused = await client.call("POST", f"/sandboxes/{sandbox['id']}/execute", json={"command": "true"})
    assert (refused.status, refused.error["code"]) == (409, "INVALID_STATE")
    for _ in range(2):
        assert (await client.call("POST", f"/sandboxes/{sandbox['id']}/resume", json={})).json["state"] == "running"
    auto = await client.sandbox(autoResume=True)
    await client.call("POST", f"/sandboxes/{auto['id']}/pause")
    assert (await client.run(auto["id"], "echo up"))["stdout"] == "up\n"


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({}, "image", "required"),
        ({"image": "host", "nope": 1}, "nope", "unknown field"),
        ({"image": "host", "resources": {"memoryMb": 64}}, "resources.memoryMb", "between 2048 and 16384, not 64"),
        ({"image": "host", "resources": {"memory_mb": 4096}}, "resources.memory_mb", "unknown field"),
        ({"image": "host", "resources": {"cpu": 3}}, "resources.cpu", "2, 4, 8, not 3"),
        ({"image": "host", "timeoutMs": "5"}, "timeoutMs", "integer"),
        ({"image": "host", "timeoutMs": 0}, "timeoutMs", "not 0"),
        ({"image": "../etc"}, "image", "image name"),
        ({"image": "host", "workdir": "relative"}, "workdir", "absolute"),
        ({"image": "host", "metadata": {str(n): "" for n in range(21)}}, "metadata", "at most 20"),
        ({"image": "host", "metadata": {"a": "b\0"}}, "metadata", "NUL"),
    ],
)
async def test_a_bad_body_names_field_value_and_range(client: Client, body: object, field: str, says: str) -> None:
    refused = await client.call("POST", "/sandboxes", json=body)
    assert refused.status == 400
    error = refused.error
    assert error["code"] == "INVALID_REQUEST"
    assert error["details"]["field"] == field
    assert says in error["message"]
    assert error["retryable"] is False
    assert error["requestId"] == refused.headers["X-Request-Id"]
    assert (await client.call("GET", "/sandboxes")).json["data"] == []


async def test_secrets_stay_out_of_errors(client: Client) -> None:
    refused = await client.call("POST", "/sandboxes", json={"image": "host", "env": {"KEY": 12345678}})
    assert refused.error["details"]["field"] == "env.KEY"
    assert "12345678" not in refused.raw.decode()


async def test_idempotent_create(run: Running) -> None:
    client, headers = run.client, {"Idempotency-Key": "one"}
    run.node.delay = 0.2
    both = await asyncio.gather(
        *(client.call("POST", "/sandboxes", json={"image": "host"}, headers=headers) for _ in range(5))
    )
    assert {answer.status for answer in both} == {201}
    assert len({answer.json["id"] for answer in both}) == 1
    assert run.node.created == 1
    assert sorted(answer.headers.get("Idempotent-Replayed", "") for answer in both) == ["", *["true"] * 4]
    other = await client.call("POST", "/sandboxes", json={"image": "host", "timeoutMs": 5}, headers=headers)
    assert (other.status, other.error["code"]) == (400, "INVALID_REQUEST")
    again = await client.call("POST", "/sandboxes", json={"image": "host"}, headers=headers)
    assert again.json == both[0].json
    bad = await client.call("POST", "/sandboxes", json={"image": "host"}, headers={"Idempotency-Key": "x" * 256})
    assert bad.error["details"]["field"] == "Idempotency-Key"


async def test_a_failed_create_leaves_nothing_and_may_be_retried(run: Running) -> None:
    client, headers = run.client, {"Idempotency-Key": "one"}
    run.node.fail = RunraError("RESOURCE_EXHAUSTED", "full")
    full = await client.call("POST", "/sandboxes", json={"image": "host"}, headers=headers)
    assert (full.status, full.headers["Retry-After"], full.error["retryable"]) == (503, "1", True)
    run.node.fail = KeyError("a bug")
    broken = await client.call("POST", "/sandboxes", json={"image": "host"}, headers=headers)
    assert (broken.status, broken.error["code"]) == (500, "INTERNAL_ERROR")
    assert "bug" not in broken.raw.decode()
    run.node.fail = None
    assert (await client.call("GET", "/sandboxes")).json["data"] == []
    assert (await client.call("POST", "/sandboxes", json={"image": "host"}, headers=headers)).status == 201


async def test_everything_lives_through_a_restart(settings: object) -> None:
    world: dict[str, object] = {}
    headers = {"Idempotency-Key": "kept"}
    async with started(settings, world) as first:  # type: ignore[arg-type]
        alive = (await first.client.call("POST", "/sandboxes", json={"image": "host"}, headers=headers)).json
        lost = await first.client.sandbox()
        ended = await first.client.sandbox()
        await first.client.call("DELETE", f"/sandboxes/{ended['id']}")
        started_ = await first.client.call(
            "POST",
            f"/sandboxes/{alive['id']}/execute",
            json={"command": "echo one; sleep 0.5; echo two", "background": True},
        )
        pid = started_.json["pid"]
        key = (await first.client.new_key(profile="read-only"))["key"]
    await world.pop(lost["id"]).link.close()  # type: ignore[attr-defined]
    stray = await _stray(world, alive)
    async with started(settings, world) as second:  # type: ignore[arg-type]
        client = second.client
        states = {it["id"]: it for it in (await client.call("GET", "/sandboxes")).json["data"]}
        assert states[alive["id"]]["state"] == "running"
        assert states[lost["id"]]["terminationReason"] == "node_lost"
        assert states[ended["id"]]["terminationReason"] == "user"
        assert stray.state == "terminated"
        again = await client.call("POST", "/sandboxes", json={"image": "host"}, headers=headers)
        assert again.json["id"] == alive["id"]
        assert (await client.with_key(key).call("GET", "/sandboxes")).status == 200
        async with client.open("GET", f"/sandboxes/{alive['id']}/processes/{pid}/output") as response:
            text = (await response.read()).decode()
        assert "one" in text
        assert "two" in text
        for sandbox in list(second.node.sandboxes.values()):
            await sandbox.terminate()


async def _stray(world: dict[str, object], alive: dict[str, str]) -> object:
    from . import fake

    known = world[alive["id"]]
    stray = fake.Sandbox(known.node, "sb_straystraystrays", known.config, "org_x")  # type: ignore[attr-defined]
    stray.state = "running"
    world[stray.id] = stray
    return stray
