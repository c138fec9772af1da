"""Ports through a sandbox's life: private ones, pause and resume, the end of each, and of the server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from runra.server.settings import ServerSettings

from .conftest import Preview, World, started


async def events(world: World, sandbox_id: str, kind: str) -> list[Any]:
    return [e.data for e in world.app.state.services.events._events if e.sandbox_id == sandbox_id and e.type == kind]


async def test_expose_list_close(world: World) -> None:
    sandbox = await world.sandbox()
    path = f"/sandboxes/{sandbox['id']}/ports"
    first = await world.expose(sandbox["id"], 8080)
    assert set(first) == {"port", "url", "exposedAt", "private", "token"}
    assert (first["port"], first["private"], first["token"]) == (8080, False, None)
    assert await world.expose(sandbox["id"], 8080) == first  # once more is fine
    private = await world.expose(sandbox["id"], 3000, private=True)
    assert private["token"].startswith("rpt_")
    assert (await world.expose(sandbox["id"], 3000, private=True))["token"] is None
    refused = await world.api.call("POST", path, json={"port": 3000})
    assert (refused.status, refused.error["code"]) == (409, "INVALID_STATE")  # never published by mistake
    listed = (await world.api.call("GET", path)).json
    assert [port["port"] for port in listed["data"]] == [3000, 8080]
    assert listed["pagination"] == {"total": 2, "limit": 100, "offset": 0, "hasMore": False}
    assert private["token"] not in json.dumps(listed)
    for bad in (80, 1023, 65536, "8080", None, 1.5):
        assert (await world.api.call("POST", path, json={"port": bad})).error["code"] == "INVALID_REQUEST"
    for _ in range(2):
        assert (await world.api.call("DELETE", f"{path}/8080")).status == 204
    assert (await world.api.call("DELETE", f"{path}/80")).status == 400
    assert await events(world, sandbox["id"], "port.exposed") == [
        {"port": 8080, "url": first["url"], "private": False},
        {"port": 3000, "url": private["url"], "private": True},
    ]
    assert await events(world, sandbox["id"], "port.closed") == [{"port": 8080}]
    narrow = world.api.with_key((await world.api.new_key(scopes=["sandbox:read", "sandbox:execute"]))["key"])
    assert (await narrow.call("GET", path)).status == 403


async def test_only_allowed_ports(world: World) -> None:
    sandbox = await world.sandbox(network={"ingress": {"allowPorts": [3000]}})
    assert sandbox["network"]["ingress"] == {"allowPorts": [3000]}
    await world.expose(sandbox["id"], 3000)
    refused = await world.api.call("POST", f"/sandboxes/{sandbox['id']}/ports", json={"port": 3001})
    assert (refused.status, refused.error["details"]["field"]) == (400, "port")
    none = await world.sandbox(network={"ingress": {"allowPorts": []}})
    assert (await world.api.call("POST", f"/sandboxes/{none['id']}/ports", json={"port": 3000})).status == 400


async def test_another_page_over_plain_http(settings: ServerSettings) -> None:
    """Browsers send Sec-Fetch-* to https and localhost only, and no Origin with <script src> or <img>."""
    async with started(replace(settings, domain="box.example")) as world:
        sandbox = await world.sandbox()
        await world.serve(sandbox["id"])
        preview = Preview(world, sandbox["id"], await world.expose(sandbox["id"], private=True))
        link = await world.api.call("POST", f"/sandboxes/{sandbox['id']}/ports/3000/signed-url", json={})
        _, headers, _ = await preview.get("/?" + link.json["url"].partition("?")[2])
        cookie = headers["Set-Cookie"].partition(";")[0]
        other = preview.exposed["url"].replace("3000-", "4000-")
        for method, more, status in (
            ("GET", {"Accept": "*/*"}, 403),
            ("GET", {"Accept": "image/avif,image/webp,*/*;q=0.8", "Referer": f"{other}/"}, 403),
            ("POST", {"Accept": "text/html"}, 403),
            ("GET", {"Accept": "*/*", "Origin": other}, 403),
            ("GET", {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}, 200),
            ("GET", {"Accept": "*/*", "Referer": f"{preview.exposed['url']}/page"}, 200),
            ("POST", {"Accept": "*/*", "Origin": preview.exposed["url"]}, 200),
        ):
            answer = await preview.get("/seen", method=method, headers={"Cookie": cookie, **more})
            assert answer[0] == status, (method, more)


async def test_a_port_that_is_no_longer_allowed_is_cut(world: World) -> None:
    preview = await world.app_sandbox(network={"ingress": {"allowPorts": [3000]}})
    path = f"/sandboxes/{preview.id}/network"

    async def put(body: Any) -> Any:
        answer = await world.api.call("PUT", path, json=body)
        assert answer.status == 200, answer.raw
        return answer.json["network"]

    async with preview.open("GET", "/sse") as stream:
        await stream.content.readline()
        kept = await put({"egress": {"default": "deny"}})
        assert kept["ingress"] == {"allowPorts": [3000]}
        await stream.content.readline()
        assert (await put({"ingress": {"allowPorts": [3001]}}))["ingress"] == {"allowPorts": [3001]}
        with pytest.raises(aiohttp.ClientError):
            await asyncio.wait_for(stream.content.read(), 5)
    assert (await preview.get())[0] == 404
    await put({"ingress": {"allowPorts": [3000]}})
    assert (await preview.get("/seen"))[0] == 200


async def test_private_ports(world: World) -> None:
    sandbox = await world.sandbox()
    await world.serve(sandbox["id"])
    made = await world.expose(sandbox["id"], private=True)
    preview = Preview(world, sandbox["id"], made)
    for headers in ({}, {"X-Runra-Preview-Token": made["token"] + "x"}, {"Authorization": f"Bearer {world.api.key}"}):
        status, answer, _ = await preview.get(headers=headers)
        assert (status, answer["X-Runra-Reason"]) == (401, "private")
    seen = await preview.seen(headers={"X-Runra-Preview-Token": made["token"]})
    assert made["token"] not in json.dumps(seen)
    stored = (world.settings.data_dir / "runra.db").read_bytes() + (
        world.settings.data_dir / "runra.db-wal"
    ).read_bytes()
    assert made["exposedAt"].encode() in stored
    assert made["token"].encode() not in stored

    path = f"/sandboxes/{sandbox['id']}/ports/3000"
    link = (await world.api.call("POST", f"{path}/signed-url", json={"expiresInMs": 60_000})).json
    prefix, _, token = link["url"].partition("?runra-token=")
    assert prefix == made["url"] + "/"
    status, headers, _ = await preview.get(f"//evil.example/a?x=1&runra-token={token}&y=2")
    assert (status, headers["Location"]) == (303, f"{made['url']}//evil.example/a?x=1&y=2")
    assert headers["Referrer-Policy"] == "no-referrer"
    cookie, *attributes = headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(attributes)
    assert not [one for one in attributes if one.lower().startswith("domain")]
    seen = await preview.seen(headers={"Cookie": f"a=1; runra-preview=planted; {cookie}"})
    assert [value for name, value in seen["headers"] if name == "cookie"] == ["a=1"]
    assert token not in json.dumps(seen)
    # A page of another sandbox is the same site to a browser; it may link here, not use the visitor's cookie.
    other = made["url"].replace("3000-", "4000-")
    for more, status in (
        ({"Origin": made["url"]}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
        ({"Origin": other}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),
    ):
        assert (await preview.get(headers={"Cookie": cookie, **more}))[0] == status, more
    # It opens this port of this sandbox, and only unforged.
    await world.expose(sandbox["id"], 3001, private=True)
    neighbour = Preview(world, sandbox["id"], {"url": made["url"].replace("3000-", "3001-")})
    assert (await neighbour.get(f"/?runra-token={token}"))[0] == 401
    assert (await preview.get(f"/?runra-token=9{token}"))[0] == 401
    # With a body there is nothing to redirect: the parameter is taken out all the same.
    seen = await preview.seen(f"/seen?runra-token={token}&z=1", method="POST", data=b"x")
    assert seen["target"] == "/seen?z=1"

    short = (await world.api.call("POST", f"{path}/signed-url", json={"expiresInMs": 1})).json
    await asyncio.sleep(0.01)
    assert (await preview.get("/?" + short["url"].partition("?")[2]))[0] == 401
    async with preview.open("GET", "/sse", headers={"Cookie": cookie}) as stream:
        await stream.content.readline()
        assert (await world.api.call("DELETE", f"{path}/signed-urls")).status == 204
        with pytest.raises(Exception, match=r"."):
            await asyncio.wait_for(stream.content.read(), 5)
    assert (await preview.get(headers={"Cookie": cookie}))[0] == 401
    assert (await preview.get(f"/?runra-token={token}"))[0] == 401
    assert (await preview.get("/seen", headers={"X-Runra-Preview-Token": made["token"]}))[0] == 200
    # Closed and exposed anew: nothing of before opens it.
    await world.api.call("DELETE", path)
    assert (await preview.get(headers={"X-Runra-Preview-Token": made["token"]}))[0] == 404
    again = await world.expose(sandbox["id"], private=True)
    assert (await preview.get(headers={"X-Runra-Preview-Token": made["token"]}))[0] == 401
    assert (await preview.get(headers={"X-Runra-Preview-Token": again["token"]}))[0] == 200
    public = await world.expose(sandbox["id"], 5000)
    assert public["token"] is None
    refused = await world.api.call("POST", f"/sandboxes/{sandbox['id']}/ports/5000/signed-url", json={})
    assert refused.error["code"] == "INVALID_STATE"
    assert (await world.api.call("POST", f"/sandboxes/{sandbox['id']}/ports/5001/signed-url", json={})).status == 404


async def test_pause_in_mid_stream_and_resume(preview: Preview) -> None:
    world, path = preview.world, f"/sandboxes/{preview.id}"
    async with preview.open("GET", "/sse") as stream:
        assert await stream.content.readline() == b"data: 0\n"
        await world.api.call("POST", f"{path}/pause")
        status, headers, _ = await preview.get()
        assert (status, headers["X-Runra-Reason"]) == (503, "paused")
        assert (await world.api.call("GET", path)).json["state"] == "paused"
        await world.api.call("POST", f"{path}/resume")
        assert (await preview.seen())["method"] == "GET"
        lines = [await asyncio.wait_for(stream.content.readline(), 5) for _ in range(20)]  # it goes on where it was
        numbers = [int(line[6:]) for line in lines if line.startswith(b"data")]
        assert numbers == list(range(1, len(numbers) + 1))


async def test_a_visit_resumes_and_keeps_awake(world: World) -> None:
    sandbox = await world.sandbox(autoResume=True, idleTimeoutMs=1000)
    await world.api.call("PUT", f"/sandboxes/{sandbox['id']}/files", params={"path": "/tmp/x"}, data=b"")
    await world.serve(sandbox["id"])
    # Behind the agent's back, so that no running command keeps the sandbox awake.
    await world.api.run(sandbox["id"], "setsid python3 /tmp/inside.py 127.0.0.1 3100 >/dev/null 2>&1 & sleep 0.5")
    for process in (await world.api.call("GET", f"/sandboxes/{sandbox['id']}/processes")).json["data"]:
        if process["state"] == "running":
            await world.api.call(
                "POST", f"/sandboxes/{sandbox['id']}/processes/{process['pid']}/signal", json={"signal": "SIGKILL"}
            )
    preview = Preview(world, sandbox["id"], await world.expose(sandbox["id"], 3100))
    live = world.app.state.services.node.sandboxes[sandbox["id"]]

    async def until(state: str) -> None:
        async with asyncio.timeout(10):
            while live.info().state != state:
                await asyncio.sleep(0.02)

    await until("paused")
    async with preview.open("GET", "/sse") as stream:
        await stream.content.readline()
        assert live.info().state == "running"
        await asyncio.sleep(2.5)  # more than twice its idle time
        assert live.info().state == "running"
    await until("paused")


async def test_the_end_of_a_port_and_of_a_sandbox_cuts_what_is_open(preview: Preview) -> None:
    world, path = preview.world, f"/sandboxes/{preview.id}"

    async def cut_by(method: str, what: str) -> None:
        async with preview.open("GET", "/sse") as stream:
            await stream.content.readline()
            assert (await world.api.call(method, what)).status in (200, 204)
            with pytest.raises(Exception, match=r"."):  # a connection that breaks, never an end that looks whole
                await asyncio.wait_for(stream.content.read(), 5)

    await cut_by("DELETE", f"{path}/ports/3000")
    assert (await preview.get())[0] == 404
    await world.expose(preview.id)
    assert (await preview.seen())["method"] == "GET"
    await cut_by("DELETE", path)
    status, headers, _ = await preview.get()
    assert (status, headers["X-Runra-Reason"]) == (404, "not_exposed")
    assert (await world.api.call("GET", f"{path}/ports")).json["data"] == []
    refused = await world.api.call("POST", f"{path}/ports", json={"port": 3000})
    assert refused.error["code"] == "INVALID_STATE"
    assert not world.app.state.services.ports._ports


async def test_closing_beats_a_visit_under_way(preview: Preview) -> None:
    """Let in before, connected after: here the connection waits for a paused sandbox's agent."""
    world, path = preview.world, f"/sandboxes/{preview.id}"
    live = world.app.state.services.node.sandboxes[preview.id]
    await live.cgroup.freeze()  # behind its back: the server believes that it runs
    visit = asyncio.ensure_future(preview.get())
    async with asyncio.timeout(10):
        while not world.app.state.services.ingress._open:
            await asyncio.sleep(0.005)
    await world.api.call("DELETE", f"{path}/ports/3000")
    live.cgroup.thaw()
    status, headers, _ = await visit
    assert (status, headers["X-Runra-Reason"]) == (404, "closed")


async def test_a_restart_keeps_every_name(settings: ServerSettings) -> None:
    async with started(settings, leave=True) as world:
        preview = await world.app_sandbox()
        private = await world.expose(preview.id, 3001, private=True)
        link = (await world.api.call("POST", f"/sandboxes/{preview.id}/ports/3001/signed-url", json={})).json
        gone = await world.app_sandbox()
        await world.api.call("DELETE", f"/sandboxes/{gone.id}")
        async with preview.open("GET", "/sse") as stream:
            await stream.content.readline()
    # The port of the server is part of the name: the next one takes the same.
    async with started(ServerSettings(**{**vars(settings), "port": world.port})) as again:
        moved = Preview(again, preview.id, preview.exposed)
        listed = (await again.api.call("GET", f"/sandboxes/{preview.id}/ports")).json["data"]
        assert [port["url"] for port in listed] == [preview.exposed["url"], private["url"]]
        assert (await moved.seen())["method"] == "GET"
        closed = Preview(again, preview.id, private)
        status, headers, _ = await closed.get(headers={"X-Runra-Preview-Token": private["token"]})
        assert (status, headers["X-Runra-Reason"]) == (502, "port_closed")
        assert (await closed.get("/?" + link["url"].partition("?")[2]))[0] == 303
        assert (await Preview(again, gone.id, gone.exposed).get())[0] == 404


async def test_a_stopping_server_ends_what_has_no_end(
    settings: ServerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(settings, leave=True) as world:
        preview = await world.app_sandbox()
        stream = await preview.open("GET", "/sse")
        await stream.content.readline()
        socket = await world.session.ws_connect(
            f"http://127.0.0.1:{world.port}/ws", headers={"Host": preview.host}, compress=0
        )
        assert (await socket.receive()).data == "hello"
        waiting = asyncio.ensure_future(preview.get("/slow?0.3"))  # this one has an end, and is waited for
        async with asyncio.timeout(10):
            while world.app.state.services.ingress._open[preview.id] < 3:
                await asyncio.sleep(0.005)
        world.stop()
        assert (await waiting)[2] == b"late"
        assert (await asyncio.wait_for(socket.receive(), 5)).type.name in ("CLOSED", "CLOSE", "ERROR", "CLOSING")
        with pytest.raises(Exception, match=r"."):
            await asyncio.wait_for(stream.content.read(), 5)
    assert "graceful shutdown exceeded" not in caplog.text
    async with started(settings):  # and ends the sandbox
        pass
