"""CubeSandbox 0.7 as its clients see it: its API, and its proxy on the same port, told apart by the Host header."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tests.runtime.fakes.service import Kept, Service

DOMAIN = "cube.test"
_INSIDE = re.compile(rf"(\d+)-([a-z0-9]+)\.{re.escape(DOMAIN)}")


class CubeService(Service):
    """One CubeSandbox. Its faults are set by tests; metadata is lost over a pause, as with the real one."""

    def __init__(self) -> None:
        super().__init__()
        self.pause_s = 0.1
        self.never_paused = False
        self.unknown_after_resume = 0
        self.octet_refused = False
        self.hidden_404 = False
        #: How often a policy is refused, and with what status.
        self.network_fails = 0
        self.network_status = 503
        #: Called before a timer is set.
        self.on_timeout: Callable[[], None] = lambda: None
        self.networks: list[tuple[str, Any]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        match = _INSIDE.fullmatch(request.host)
        if match is not None:
            return await self._inside(request, int(match[1]), match[2])
        if self.keys and request.headers.get("X-API-Key") not in self.keys:
            return _refuse(401, "unauthorized")
        parts = request.path.strip("/").split("/")
        match request.method, parts:
            case "GET", ["health"]:
                return web.json_response({"status": "ok", "sandboxes": len(self.sandboxes)})
            case "POST", ["v2", "sandboxes"]:
                return _refuse(405, "method not allowed")
            case "POST", ["sandboxes"]:
                return await self._create(await request.json())
            case "GET", ["v2", "sandboxes"]:
                return web.json_response([self._detail(one) for one in self.sandboxes.values()])
            case method, ["sandboxes", id, *rest]:
                one = self.sandboxes.get(id)
                if one is None:
                    return _refuse(404, "sandbox not found")
                return await self._one(request, method, one, rest)
        return _refuse(404, "page not found")

    async def _inside(self, request: web.Request, port: int, id: str) -> web.StreamResponse:
        if self.faults.proxy_504:
            self.faults.proxy_504 -= 1
            return web.Response(status=504, text="stale upstream")
        one = self.sandboxes.get(id)
        if one is None:
            return web.json_response({"code": 410, "message": "sandbox was killed"}, status=410)
        assert one.state == "running", "nobody may call a paused one"
        if port != 49983:
            return web.Response(body=await one.envd.box.fetch(port, request.path))
        assert "X-API-Key" not in request.headers, "the master token must not reach a sandbox"
        assert request.headers["Authorization"].startswith("Basic ")
        if request.path == "/process.Process/CloseStdin":
            return web.json_response({"code": "unimplemented", "message": "unknown method"}, status=501)
        if self.octet_refused and request.content_type == "application/octet-stream" and request.method == "POST":
            return _refuse(400, "expected multipart")
        return await one.envd.answer(request)

    async def _create(self, body: dict[str, Any]) -> web.Response:
        unknown = set(body) - {
            "templateID", "timeout", "envVars", "metadata", "allow_internet_access", "network", "lifecycle", "nodeSelector",
        }  # fmt: skip
        assert not unknown, unknown
        if not self.knows(body["templateID"]):
            if self.hidden_404:
                return _refuse(500, "create failed: code=130404 no such resource")
            return _refuse(404, f"template {body['templateID']} not found")
        one = await self.make(body, body["timeout"])
        return web.json_response({**self._brief(one), "trafficAccessToken": "tt"}, status=201)

    def _brief(self, one: Kept) -> dict[str, Any]:
        return {
            "templateID": one.template, "sandboxID": one.id, "clientID": "c", "envdVersion": "0.2.0", "domain": DOMAIN,
        }  # fmt: skip

    def _detail(self, one: Kept) -> dict[str, Any]:
        at = datetime.fromtimestamp(one.started, UTC).isoformat().replace("+00:00", "Z")
        return {
            **self._brief(one), "startedAt": at, "cpuCount": 2, "memoryMB": 2000, "metadata": one.metadata,
            "state": one.state,
        }  # fmt: skip

    async def _one(self, request: web.Request, method: str, one: Kept, rest: list[str]) -> web.Response:
        match method, rest:
            case "GET", []:
                if self.unknown_after_resume and one.asked.get("resumed"):
                    self.unknown_after_resume -= 1
                    return _refuse(404, "sandbox not found")
                return web.json_response(self._detail(one))
            case "DELETE", []:
                if one.state == "pausing":
                    return web.json_response(
                        {"code": 503, "message": "pausing"}, status=503, headers={"Retry-After": "0.1"}
                    )
                await self.drop(one)
                return web.Response(status=204)
            case "POST", ["pause"]:
                if one.state != "running":
                    return (
                        _refuse(409, f"sandbox is {one.state}") if one.state == "pausing" else web.Response(status=204)
                    )
                one.state = "pausing"
                one.asked["pausing"] = asyncio.ensure_future(self._pause(one))
                return web.Response(status=204)
            case "POST", ["connect"]:
                if one.state == "pausing":
                    return _refuse(409, "overlapping operation")
                if one.state == "paused":
                    await one.envd.box.resume()
                    one.state = "running"
                    one.asked["resumed"] = True
                return web.json_response(self._brief(one))
            case "POST", ["timeout"]:
                self.on_timeout()
                one.timeout_s = (await request.json())["timeout"]
                return web.Response(status=204)
            case "POST", ["snapshots"]:
                if one.state != "running":
                    return _refuse(409, "not running")
                return web.json_response({"snapshotID": await self.snapshot(one), "names": []}, status=201)
            case "PUT", ["network"]:
                if one.state != "running":
                    return _refuse(409, "not running")
                if self.network_fails:
                    self.network_fails -= 1
                    refusal = {"code": self.network_status, "message": "no"}
                    return web.json_response(refusal, status=self.network_status, headers={"Retry-After": "0.05"})
                self.networks.append((one.id, await request.json()))
                return web.Response(status=204)
        return _refuse(404, "page not found")

    async def _pause(self, one: Kept) -> None:
        await asyncio.sleep(self.pause_s)
        if self.never_paused:
            return
        await one.envd.box.pause()
        one.state = "paused"
        one.metadata = {}
        one.started = time.time()


def _refuse(status: int, message: str) -> web.Response:
    return web.json_response({"code": status, "message": message}, status=status)
