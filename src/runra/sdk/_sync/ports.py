"""Ports of a sandbox: names under which the outside reaches servers inside."""

# Made from `_async/ports.py` by scripts/generate_sync.py: change that one.

from __future__ import annotations

from runra.contract import Port, PortExposed, PortRequest, SignedUrl, SignedUrlRequest
from runra.sdk._sync.admin import every
from runra.sdk._sync.api import Api
from runra.sdk.types import checked, merged, parsed
from runra.sdk.wire import sandbox_path


def expose(api: Api, sandbox_id: str, port: int, private: bool) -> PortExposed:
    path = sandbox_path(sandbox_id, "ports")
    request = checked(PortRequest, merged(None, {"port": port, "private": private or None}, "expose_port"))
    # A private port's token is in the first answer alone: that call is not repeated once it was sent.
    answer = api.call("POST", path, content=request.to_wire(), safe=not private)
    return parsed(PortExposed, answer.json(f"POST {path}"), f"POST {path}", answer.headers.get("x-request-id", ""))


def listed(api: Api, sandbox_id: str) -> list[Port]:
    return every(api, sandbox_path(sandbox_id, "ports"), Port)


def close(api: Api, sandbox_id: str, port: int) -> None:
    api.call("DELETE", sandbox_path(sandbox_id, "ports", port), safe=True)


def sign(api: Api, sandbox_id: str, port: int, expires_in_ms: int | None) -> SignedUrl:
    path = sandbox_path(sandbox_id, "ports", port, "signed-url")
    request = checked(SignedUrlRequest, merged(None, {"expires_in_ms": expires_in_ms}, "sign_url"))
    answer = api.call("POST", path, content=request.to_wire(), safe=True)
    return parsed(SignedUrl, answer.json(f"POST {path}"), f"POST {path}", answer.headers.get("x-request-id", ""))


def revoke(api: Api, sandbox_id: str, port: int) -> None:
    api.call("DELETE", sandbox_path(sandbox_id, "ports", port, "signed-urls"), safe=True)
