"""CubeSandbox's two planes: the API that makes sandboxes, and the proxy in front of what runs inside them."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from pydantic import Field

from runra.contract import Request
from runra.errors import ErrorCode, RunraError, not_found
from runra.runtime.sandboxes.connect import connect_error

ENVD_PORT: Final = 49983
#: What a busy service is asked again for at most, in seconds.
_PATIENCE_S: Final = 60.0
_CODES: Final[dict[int, ErrorCode]] = {
    400: "INVALID_REQUEST",
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    405: "INVALID_CONFIG",
    409: "INVALID_STATE",
    410: "SANDBOX_NOT_FOUND",
    429: "RATE_LIMITED",
    503: "RESOURCE_EXHAUSTED",
}


class CubeConfig(Request):
    """Options of the provider. `master_url`: the API (`api_url` at the top does the same); `master_token`: its key,
    sent there alone. `templates`: ids by the names used as `image`. `domain`: of sandboxes, where a create does not
    tell one. `proxy_url`: a node to dial in place of that domain; the name stays in the Host header. `node_selector`
    goes into the create as it stands. `timeout_ms`: of a request; `pause_timeout_ms`: how long a pause may take."""

    master_url: str | None = None
    api_url: str | None = None
    master_token: str | None = Field(None, repr=False)
    api_key: str | None = Field(None, repr=False)
    templates: dict[str, str] = Field(default_factory=dict)
    node_selector: dict[str, str] | None = None
    domain: str = "cube.app"
    proxy_url: str | None = None
    namespace: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    timeout_ms: int = Field(30_000, ge=1)
    pause_timeout_ms: int = Field(60_000, ge=1)
    state_dir: str | None = None


class CubeClient:
    """Calls to one CubeSandbox. Failures are RunraError."""

    def __init__(self, config: CubeConfig) -> None:
        self._master = (config.master_url or config.api_url or "http://127.0.0.1:3000").rstrip("/")
        self._proxy = config.proxy_url.rstrip("/") if config.proxy_url is not None else None
        token = config.master_token or config.api_key
        self._key = {"X-API-Key": token} if token is not None else {}
        self._limit_s = config.timeout_ms / 1000
        # Cookies of one sandbox must not reach another.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
        )

    async def close(self) -> None:
        await self._session.close()

    # --- the API ---------------------------------------------------------------------------------------------------

    async def control(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        id: str = "",
        again: bool = False,
        params: Any = None,
        limit_s: float | None = None,
    ) -> Any:
        """A call of the API; its JSON, or None where it answers nothing. With `again` a 503 is asked again for as long
        as it says, up to a minute: for what may be repeated."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            status, headers, data = await self._ask(
                method,
                f"{self._master}{path}",
                self._key,
                json=body,
                params=params,
                doing=f"{method} {path}",
                limit_s=limit_s,
            )
            if status < 300:
                return data
            error = _refused(status, data, f"{method} {path}", id)
            wait = _retry_after(headers)
            if not again or status not in (429, 503) or time.monotonic() + wait > deadline:
                raise error
            await asyncio.sleep(wait)

    async def _ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        doing: str,
        limit_s: float | None = None,
        **options: Any,
    ) -> tuple[int, Mapping[str, str], Any]:
        seconds = self._limit_s if limit_s is None else limit_s
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.request(method, url, headers=headers, allow_redirects=False, **options) as answer,
            ):
                raw = await answer.read()
                data: Any = raw
                if answer.content_type == "application/json" and raw:
                    try:
                        data = await answer.json()
                    except ValueError:
                        data = None
                return answer.status, answer.headers, data
        except TimeoutError:
            raise _unreachable(doing, f"no answer within {seconds:g} s", "timeout") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(doing, str(error) or type(error).__name__, "connect") from error

    # --- inside a sandbox ------------------------------------------------------------------------------------------

    def place(self, id: str, domain: str, port: int = ENVD_PORT) -> tuple[str, dict[str, str]]:
        """Where a port of a sandbox is: what to dial, and the headers that lead there."""
        host = f"{port}-{id}.{domain}"
        return (self._proxy, {"Host": host}) if self._proxy is not None else (f"http://{host}", {})

    def headers(self, token: str | None, user: str | None) -> dict[str, str]:
        """Who asks, inside: never with the API's key, which some proxies hand on into the sandbox."""
        basic = base64.b64encode(f"{user or 'root'}:".encode()).decode()
        return {"Authorization": f"Basic {basic}", **({"X-Access-Token": token} if token else {})}

    async def inside(
        self, id: str, domain: str, token: str | None, method: str, path: str, *, again: bool = False, **options: Any
    ) -> Any:
        """A call of a sandbox's agent. With `again` a proxy that has lost its way (502 to 504, as just after a resume)
        is asked again for some seconds."""
        base, route = self.place(id, domain)
        headers = {**route, **self.headers(token, None), **options.pop("headers", {})}
        deadline = time.monotonic() + 10.0
        while True:
            status, told, data = await self._ask(method, base + path, headers, doing=path, **options)
            if status < 300:
                return data
            wait = max(0.1, _retry_after(told) if "retry-after" in told else 0.1)
            if again and status in (502, 503, 504) and time.monotonic() + wait < deadline:
                await asyncio.sleep(wait)
                continue
            raise _refused_inside(status, data, path, id)

    async def stream(
        self, id: str, domain: str, token: str | None, user: str | None, path: str, body: bytes
    ) -> aiohttp.ClientResponse:
        """Open a Connect stream; the caller closes it."""
        base, route = self.place(id, domain)
        headers = {
            **route,
            **self.headers(token, user),
            "Content-Type": "application/connect+json",
            "Connect-Protocol-Version": "1",
        }
        try:
            async with asyncio.timeout(self._limit_s):
                answer = await self._session.post(base + path, data=body, headers=headers, allow_redirects=False)
                if answer.status == 200:
                    return answer
                data = await answer.read()
        except TimeoutError:
            raise _unreachable(path, f"no answer within {self._limit_s:g} s", "timeout") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(path, str(error) or type(error).__name__, "connect") from error
        raise _refused_inside(answer.status, data, path, id)


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "")
    return min(30.0, float(text)) if text.replace(".", "", 1).isdigit() else 1.0


def _unreachable(doing: str, why: str, reason: str) -> RunraError:
    return RunraError(
        "NETWORK_ERROR",
        f"cubesandbox, {doing}: {why}",
        details={"reason": reason},
        retryable=reason == "connect",
    )


def _text(data: Any) -> str:
    if isinstance(data, dict):
        return str(data.get("message") or data.get("error") or "")[:500]
    return data[:500].decode(errors="replace") if isinstance(data, bytes) else ""


def _refused(status: int, data: Any, doing: str, id: str) -> RunraError:
    """An error answer of the API. A missing template hides in any status, with `130404` or by its name."""
    text = _text(data)
    details: dict[str, Any] = {"status": status, **({"sandboxId": id} if id else {})}
    if "130404" in text or (status == 404 and "template" in text.lower()):
        return RunraError(
            "INVALID_REQUEST", f"image: there is no such template ({text})", details={**details, "field": "image"}
        )
    if status == 404 or (status == 410 and id):
        return (
            not_found(id)
            if id
            else RunraError("INVALID_CONFIG", f"cubesandbox, {doing}: no such route", details=details)
        )
    code = _CODES.get(status, "INTERNAL_ERROR")
    message = f"cubesandbox, {doing}: {text or f'status {status}'}"
    return RunraError(code, message, details=details, retryable=status in (429, 502, 503, 504))


def _refused_inside(status: int, data: Any, path: str, id: str) -> RunraError:
    """An error answer from inside a sandbox, or from the proxy before it."""
    if isinstance(data, dict) and isinstance(data.get("code"), str):
        return connect_error(data, path)
    text = _text(data)
    if status == 410 or (status in (404, 502) and "sandbox" in text.lower()):
        return not_found(id)
    details = {"status": status, "sandboxId": id}
    if status == 404:
        return RunraError("INVALID_REQUEST", f"{path}: {text}", details={**details, "reason": "not_found"})
    if status == 400 and "directory" in text:
        reason = "is_a_directory" if "is a directory" in text else "not_a_directory"
        return RunraError("INVALID_REQUEST", f"{path}: {text}", details={**details, "reason": reason})
    if status == 507:
        return RunraError("RESOURCE_EXHAUSTED", f"{path}: {text}", details={**details, "reason": "disk_full"})
    if status in (502, 503, 504):
        return RunraError("NETWORK_ERROR", f"{path}: {text or f'status {status}'}", details=details, retryable=True)
    return RunraError(_CODES.get(status, "INTERNAL_ERROR"), f"{path}: {text or f'status {status}'}", details=details)
