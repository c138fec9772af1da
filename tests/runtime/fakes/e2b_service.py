"""E2B as its official SDK sees it: the control plane and, on the same port, every sandbox's envd by header."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

from aiohttp import web

from tests.runtime.fakes.service import Kept, Service


class E2BService(Service):
    """One E2B. Without `keys` any key will do."""

    def __init__(self) -> None:
        super().__init__()
        self.paused_before_connect = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        inside = request.headers.get("E2b-Sandbox-Id")
        if inside is not None:
            return await self._inside(request, inside)
        if self.keys and request.headers.get("X-API-KEY") not in self.keys:
            return _refuse(401, "Invalid API key")
        if self.faults.proxy_504:
            self.faults.proxy_504 -= 1
            return web.json_response({"code": 503, "message": "no room"}, status=503, headers={"Should-Retry": "false"})
        parts = request.path.strip("/").split("/")
        if parts[0] == "v2":
            parts = parts[1:]
        match request.method, parts:
            case "POST", ["sandboxes"]:
                return await self._create(await request.json())
            case "GET", ["sandboxes"]:
                return self._list(request)
            case method, ["sandboxes", id, *rest]:
                one = self.sandboxes.get(id)
                if one is None:
                    return _refuse(404, f"sandbox {id} not found")
                return await self._one(request, method, one, rest)
        return _refuse(404, request.path)

    async def _inside(self, request: web.Request, id: str) -> web.StreamResponse:
        one = self.sandboxes.get(id)
        port = int(request.headers["E2b-Sandbox-Port"])
        if one is not None and port != 49983:
            return web.Response(body=await one.envd.box.fetch(port, request.path))
        if one is None or one.state != "running":
            return web.json_response({"message": "The sandbox was not found", "code": 502, "sandboxId": id}, status=502)
        assert request.headers["X-Access-Token"] == f"token-{id}"
        assert "X-API-KEY" not in request.headers, "the key must not reach a sandbox"
        return await one.envd.answer(request)

    async def _create(self, body: dict[str, Any]) -> web.Response:
        if not self.knows(body["templateID"]):
            return _refuse(404, f"template '{body['templateID']}' not found")
        one = await self.make(body, body.get("timeout", 300))
        one.ends = time.time() + one.timeout_s
        return web.json_response(self._brief(one), status=201)

    def _brief(self, one: Kept) -> dict[str, Any]:
        return {
            "templateID": one.template, "sandboxID": one.id, "clientID": "c", "envdVersion": "0.6.13",
            "envdAccessToken": f"token-{one.id}",
        }  # fmt: skip

    def _detail(self, one: Kept) -> dict[str, Any]:
        return {
            **self._brief(one), "startedAt": _iso(one.started), "endAt": _iso(one.ends), "cpuCount": 2, "memoryMB": 1024,
            "diskSizeMB": 1024, "state": one.state, "metadata": one.metadata, "alias": one.template,
        }  # fmt: skip

    def _list(self, request: web.Request) -> web.Response:
        found = sorted(self.sandboxes.values(), key=lambda one: -one.started)
        if states := request.query.get("state"):
            found = [one for one in found if one.state in states.split(",")]
        if metadata := request.query.get("metadata"):
            wanted = {unquote(name): unquote(value) for name, value in parse_qsl(metadata)}
            found = [one for one in found if wanted.items() <= one.metadata.items()]
        at = int(request.query.get("nextToken") or 0)
        page, rest = found[at : at + 2], found[at + 2 :]  # small pages, so that there are several
        headers = {"x-next-token": str(at + 2)} if rest else {}
        return web.json_response([self._detail(one) for one in page], headers=headers)

    async def _one(self, request: web.Request, method: str, one: Kept, rest: list[str]) -> web.Response:
        match method, rest:
            case "GET", []:
                return web.json_response(self._detail(one))
            case "DELETE", []:
                await self.drop(one)
                return web.Response(status=204)
            case "POST", ["pause"]:
                if one.state == "paused":
                    return _refuse(409, "already paused")
                await one.envd.box.pause()
                one.state = "paused"
                return web.Response(status=204)
            case "POST", ["connect"]:
                if self.paused_before_connect:
                    await one.envd.box.pause()
                    one.state = "paused"
                timeout = (await request.json()).get("timeout", 300)
                status = 200
                if one.state == "paused":
                    await one.envd.box.resume()
                    one.state, one.ends, status = "running", time.time() + timeout, 201
                else:
                    one.ends = max(one.ends, time.time() + timeout)
                return web.json_response(self._brief(one), status=status)
            case "POST", ["snapshots"]:
                return web.json_response({"snapshotID": await self.snapshot(one), "names": []}, status=201)
            case "GET", ["metrics"]:
                return web.json_response([_measured(at) for at in (time.time() - 5, time.time())])
            case "PUT", ["network"]:
                one.asked["network"] = await request.json()
                return web.Response(status=204)
        return _refuse(404, request.path)


def _measured(at: float) -> dict[str, Any]:
    return {
        "timestamp": _iso(at), "timestampUnix": int(at), "cpuCount": 2, "cpuUsedPct": 1.5, "memUsed": int(at),
        "memTotal": 1 << 30, "memCache": 0, "diskUsed": 5 << 20, "diskTotal": 1 << 33,
    }  # fmt: skip


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _refuse(status: int, message: str) -> web.Response:
    return web.json_response({"code": status, "message": message}, status=status)
