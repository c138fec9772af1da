"""What running sandboxes use, as events."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from runra.server.settings import ServerSettings
from tests.hosting import until
from tests.server.conftest import sse, started


async def test_what_is_used_is_told_to_listeners_when_it_changes_and_not_kept(settings: ServerSettings) -> None:
    async with started(replace(settings, resource_events_s=0.05)) as run:
        made = await run.client.sandbox()
        paused = await run.client.sandbox()
        assert (await run.client.call("POST", f"/sandboxes/{paused['id']}/pause")).status == 200
        async with run.client.open("GET", "/events") as response:
            found = await asyncio.wait_for(sse(response, limit=3), 10)
            assert [one["event"] for one in found] == ["resource.cpu", "resource.memory", "resource.disk"]
            assert {one["data"]["sandboxId"] for one in found} == {made["id"]}
            assert [one["data"]["data"]["cpuMs"] for one in found[:1]] == [1]
            # Nothing has changed since: what comes next is something else.
            await asyncio.sleep(0.3)
            assert (await run.client.call("POST", f"/sandboxes/{made['id']}/pause")).status == 200
            (next_one,) = await asyncio.wait_for(sse(response, limit=1), 10)
            assert next_one["event"] == "sandbox.paused"
        headers = {"Last-Event-ID": "evt_0"}
        async with run.client.open("GET", "/events", headers=headers) as response:
            kept = await asyncio.wait_for(sse(response, limit=6), 10)
            assert not any(one["event"].startswith("resource.") for one in kept)


async def test_limits_are_told_and_a_look_that_fails_stops_nothing(settings: ServerSettings) -> None:
    async with started(replace(settings, resource_events_s=0.02)) as run:
        made = await run.client.sandbox()
        sandbox = run.node.sandboxes[made["id"]]
        looks = 0

        async def metrics() -> dict[str, object]:
            nonlocal looks
            looks += 1
            if looks < 3:
                raise OSError("gone while we looked")
            return {"memoryBytes": looks, "limits": {"cpu": 2, "memoryMb": 4096, "diskMb": 10}}

        sandbox.metrics = metrics
        async with run.client.open("GET", f"/sandboxes/{made['id']}/events") as response:
            one, two = await asyncio.wait_for(sse(response, limit=2), 10)
        assert one["data"]["data"] == {"memoryBytes": 3, "limitBytes": 4096 << 20}
        assert two["data"]["data"]["memoryBytes"] == 4
        await until(lambda: not run.services.events.heard)
        before = looks
        await asyncio.sleep(0.2)
        assert looks <= before + 1  # nobody listens: nobody looks


async def test_none_of_it_when_switched_off(settings: ServerSettings) -> None:
    async with started(replace(settings, resource_events_s=0)) as run:
        await run.client.sandbox()
        names = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]
        assert "tell_resources" not in names
