"""One call: its caller, its sandbox, its query and its body, each read once and within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from functools import lru_cache
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from runra.contract import MAX_BODY_BYTES, SandboxInfo
from runra.contract import Request as Body
from runra.errors import RunraError
from runra.ids import SANDBOX_ID
from runra.server.access import Key
from runra.server.faults import bad_request, invalid, shown
from runra.server.nodeport import Sandbox
from runra.server.services import Services
from runra.server.store import sandboxes as rows

BodyT = TypeVar("BodyT", bound=Body)
#: Seconds a client may pause within a JSON body.
_BODY_DEADLINE: Final = 60.0
_MAX_PARAMETERS: Final = 100


class Query(BaseModel):
    """Base of all query parameters: a name the route does not know is an error."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)


QueryT = TypeVar("QueryT", bound=Query)


def header(scope: Scope, name: bytes) -> str | None:
    """The first value of a header (its name in lower case), or None."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


def services(scope: Scope) -> Services:
    found: Services = scope["app"].state.services
    return found


def parameters(scope: Scope) -> dict[str, str]:
    """The query string; a name given twice is an error, since which one counts would be a guess."""
    raw: bytes = scope["query_string"]
    if not raw:
        return {}
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, errors="surrogateescape", max_num_fields=_MAX_PARAMETERS
        )
    except ValueError:
        raise bad_request("query", f"must be percent-encoded, with at most {_MAX_PARAMETERS} parameters") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise bad_request(name[:100], "is given twice; give it once")
        # A file's name may be any bytes; everything else is text.
        if not (name if name == "path" else name + value).isascii():
            _check_text(name, value if name != "path" else "")
        found[name] = value
    return found


def _check_text(name: str, value: str) -> None:
    try:
        (name + value).encode()
    except UnicodeEncodeError:
        raise bad_request("query", "must be percent-encoded UTF-8", name + value) from None


@lru_cache(maxsize=256)
def _wire_names(model: type[Query]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in model.model_fields.items())


def parse_query(scope: Scope, model: type[QueryT] | None, also: str = "") -> tuple[QueryT | None, dict[str, str]]:
    """The query as its model, and the parameters named `also[...]` apart."""
    given = parameters(scope)
    apart: dict[str, str] = {}
    if also:
        for name in [name for name in given if name.startswith(f"{also}[") and name.endswith("]")]:
            apart[name[len(also) + 1 : -1]] = given.pop(name)
    known: Collection[str] = _wire_names(model) if model else ()
    unknown = [name for name in given if name not in known]
    if unknown:
        raise bad_request(
            unknown[0][:100],
            "unknown query parameter; " + (f"this call knows {', '.join(sorted(known))}" if known else "none is known"),
        )
    if model is None:
        return None, apart
    try:
        return model.model_validate(given), apart
    except ValidationError as error:
        raise invalid(error) from None


class Call:
    """A call that has passed the guard: it carries a valid key with the route's scope, and when the path names a
    sandbox, one of the key's own organization."""

    __slots__ = ("_receive", "apart", "key", "live", "path", "query", "request_id", "scope", "services", "stored")

    def __init__(self, scope: Scope, receive: Receive, services: Services, key: Key) -> None:
        self.scope = scope
        self._receive = receive
        self.services = services
        self.key = key
        self.request_id: str = scope["state"]["request_id"]
        self.path: Mapping[str, Any] = scope["path_params"]
        self.query: Any = None
        self.apart: dict[str, str] = {}
        self.live: Sandbox | None = None
        self.stored: SandboxInfo | None = None

    async def find_sandbox(self, sandbox_id: str) -> None:
        """Find the sandbox among the living or in the store, and check its owner."""
        live = self.services.node.sandboxes.get(sandbox_id)
        if live is not None:
            self.services.access.require_owner(self.key, sandbox_id, live.organization_id)
            self.live = live
            live.touch()
            return
        if SANDBOX_ID.fullmatch(sandbox_id):
            self.stored = await rows.find(self.services.store, sandbox_id, self.key.organization_id)
        self.services.access.require_owner(self.key, sandbox_id, self.stored.organization_id if self.stored else None)

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox, for what only a living one can do."""
        if self.live is not None:
            return self.live
        stored = self.stored
        assert stored is not None, "the route names no sandbox"
        reason = f" (reason {stored.termination_reason})" if stored.termination_reason else ""
        raise RunraError(
            "INVALID_STATE",
            f"sandbox {stored.id} is {stored.state}{reason}; "
            + ("create another one" if stored.state == "terminated" else "try again when it is running"),
            details={"sandboxId": stored.id, "state": stored.state, "terminationReason": stored.termination_reason},
        )

    def info(self) -> SandboxInfo:
        info = self.live.info() if self.live is not None else self.stored
        assert info is not None, "the route names no sandbox"
        return info

    def header(self, name: bytes) -> str | None:
        return header(self.scope, name)

    @property
    def pid(self) -> int:
        text = str(self.path["pid"])
        if not (text.isascii() and text.isdigit() and 0 < len(text) <= 9 and int(text) > 0):
            raise bad_request("pid", "must be the number of a process", text)
        return int(text)

    @property
    def idempotency_key(self) -> str | None:
        key = self.header(b"idempotency-key")
        if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
            raise bad_request("Idempotency-Key", "must be 1 to 255 printable ASCII characters", key)
        return key

    async def body(self, model: type[BodyT]) -> BodyT:
        """The JSON body, checked in one pass. Names are the wire's own: `memoryMb`, not `memory_mb`."""
        data = await self._json_bytes()
        if not data:
            raise bad_request("body", "is missing; send a JSON object")
        try:
            return model.model_validate_json(data, by_alias=True, by_name=False)
        except ValidationError as error:
            raise invalid(error) from None

    async def no_body(self) -> None:
        """A call without fields: a body would be a mistake, but an empty object does no harm."""
        if self.header(b"content-length") in (None, "0") and self.header(b"transfer-encoding") is None:
            return
        data = (await self._json_bytes()).strip()
        if data not in (b"", b"{}"):
            raise bad_request("body", "this call takes no fields; send no body")

    async def _json_bytes(self) -> bytes:
        kind = self.header(b"content-type")
        if kind is not None and kind.partition(";")[0].strip().lower() != "application/json":
            raise bad_request("Content-Type", "must be application/json", kind)
        announced = self.header(b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > MAX_BODY_BYTES:
            raise _too_large()
        parts: list[bytes] = []
        size = 0
        more = True
        while more:
            try:
                async with asyncio.timeout(_BODY_DEADLINE):
                    message = await self._receive()
            except TimeoutError:
                raise bad_request("body", f"nothing came for {_BODY_DEADLINE:.0f} s before its end") from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise _too_large()
            parts.append(part)
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        """A raw body as it comes; reading slowly here slows the client down."""
        stall = self.services.settings.stall_s
        more = True
        while more:
            try:
                async with asyncio.timeout(stall):
                    message = await self._receive()
            except TimeoutError:
                raise bad_request("body", f"nothing came for {stall:.0f} s before its end") from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            if part := message.get("body", b""):
                yield part
            more = message.get("more_body", False)

    async def gone(self) -> None:
        """Return when the client has gone (its body must have been read, or it has none)."""
        while (await self._receive())["type"] != "http.disconnect":
            continue


def _too_large() -> RunraError:
    return bad_request("body", f"at most {MAX_BODY_BYTES} bytes of JSON; send file content to PUT …/files")


def check_id(field: str, value: str) -> str:
    """An id of a path that is no sandbox's."""
    if not value.replace("_", "").isalnum() or len(value) > 64:
        raise bad_request(field, f"{shown(value)} is no id", status=404)
    return value
