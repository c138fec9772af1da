"""Ports of a sandbox: names under which the outside reaches servers inside."""

from __future__ import annotations

from runra.contract import Port, PortExposed, PortRequest, SignedUrl, SignedUrlRequest
from runra.sdk._async.admin import every
from runra.sdk._async.api import AsyncApi
from runra.sdk.types import checked, merged, parsed
from runra.sdk.wire import sandbox_path


async def expose(api: AsyncApi, sandbox_id: str, port: int, private: bool) -> PortExposed:
    path = sandbox_path(sandbox_id, "ports")
    request = checked(PortRequest, merged(None, {"port": port, "private": private or None}, "expose_port"))
    # A private port's token is in the first answer alone: that call is not repeated once it was sent.
    answer = await api.call("POST", path, content=request.to_wire(), safe=not private)
    return parsed(PortExposed, answer.json(f"POST {path}"), f"POST {path}", answer.headers.get("x-request-id", ""))


async def listed(api: AsyncApi, sandbox_id: str) -> list[Port]:
    return await every(api, sandbox_path(sandbox_id, "ports"), Port)


async def close(api: AsyncApi, sandbox_id: str, port: int) -> None:
    await api.call("DELETE", sandbox_path(sandbox_id, "ports", port), safe=True)


async def sign(api: AsyncApi, sandbox_id: str, port: int, expires_in_ms: int | None) -> SignedUrl:
    path = sandbox_path(sandbox_id, "ports", port, "signed-url")
    request = checked(SignedUrlRequest, merged(None, {"expires_in_ms": expires_in_ms}, "sign_url"))
    answer = await api.call("POST", path, content=request.to_wire(), safe=True)
    return parsed(SignedUrl, answer.json(f"POST {path}"), f"POST {path}", answer.headers.get("x-request-id", ""))


async def revoke(api: AsyncApi, sandbox_id: str, port: int) -> None:
    await api.call("DELETE", sandbox_path(sandbox_id, "ports", port, "signed-urls"), safe=True)
