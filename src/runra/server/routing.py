"""Routes that cannot be reached around the guard: none can be made without saying which scope it takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final, Literal, get_type_hints

from fastapi import Depends, FastAPI
from fastapi import Query as QueryParameters
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse, Response
from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from runra.contract import Request as Body
from runra.contract import Scope as KeyScope
from runra.server.access import SCOPES
from runra.server.calls import Call, Query, parse_query, services
from runra.server.faults import ErrorAnswer
from runra.tracing import current_run, told_run

PREFIX: Final = "/v1"
#: Where a route's scope stands, in the OpenAPI document as well.
SCOPE_FIELD: Final = "x-runra-scope"

#: A route's one required parameter. FastAPI sees a dependency (so that it is no part of the document); it is never
#: solved, since `GuardedRoute` calls the endpoint itself.
Caller = Annotated[Call, Depends(lambda: None)]
Endpoint = Callable[..., Awaitable[Response]]
SocketEndpoint = Callable[[Call, WebSocket], Awaitable[None]]

_PATH_PARAMETERS: Final[Mapping[str, dict[str, Any]]] = {
    "id": {"description": "id of a sandbox", "schema": {"type": "string", "examples": ["sb_0123456789abcdef"]}},
    "pid": {"description": "id of a process in the sandbox", "schema": {"type": "integer", "minimum": 1}},
    "organization_id": {"description": "id of an organization", "schema": {"type": "string"}},
    "snapshot_id": {"description": "id or name of a snapshot", "schema": {"type": "string"}},
    "volume_id": {"description": "id or name of a volume", "schema": {"type": "string"}},
    "reference": {"description": "name of an image", "schema": {"type": "string", "examples": ["python:3.12"]}},
    "port": {"description": "number of a port", "schema": {"type": "integer", "minimum": 1024, "maximum": 65535}},
    "key_id": {"description": "id of an API key", "schema": {"type": "string", "examples": ["key_0123456789abcdef"]}},
}


async def _guard(scope: Scope, receive: Receive, needed: str) -> Call:
    """Key, scope, owner, in this order and before a byte of the body is read."""
    found = services(scope)
    key = found.access.authenticate(scope["headers"])
    found.access.require(key, needed)
    call = Call(scope, receive, found, key)
    sandbox_id = call.path.get("id")
    if sandbox_id is not None:
        await call.find_sandbox(sandbox_id)
    # In this request's own context: the events it leads to carry its run, those of commands it leaves behind too.
    current_run.set(told_run(scope["headers"]))
    return call


class GuardedRoute(APIRoute):
    """A route of the API. FastAPI describes it; answering goes straight: guard, query, body, endpoint, response."""

    def __init__(self, path: str, endpoint: Endpoint, **options: Any) -> None:
        scope = (options.get("openapi_extra") or {}).get(SCOPE_FIELD)
        if scope not in SCOPES:
            raise TypeError(f"{path}: a route needs one of the contract's scopes, not {scope!r}")
        super().__init__(path, endpoint, **options)
        hints = get_type_hints(endpoint)
        self.needed: str = scope
        self._endpoint = endpoint
        self._query: type[Query] | None = hints.get("query")
        self._body: type[Body] | None = hints.get("body")
        self._raw = "requestBody" in (options["openapi_extra"] or {})
        self._apart: str = options["openapi_extra"].get("x-runra-apart", "")
        self._reads = options.get("methods") == ["GET"]
        # FastAPI's own handler (dependencies, two exit stacks) would cost more than all of this; measured in docs.
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = await _guard(scope, receive, self.needed)
        call.query, call.apart = parse_query(scope, self._query, self._apart)
        arguments: dict[str, Any] = {}
        if self._query is not None:
            arguments["query"] = call.query
        if self._body is not None:
            arguments["body"] = await call.body(self._body)
        elif not self._raw and not self._reads:
            await call.no_body()
        response = await self._endpoint(call, **arguments)
        await response(scope, receive, send)


class GuardedSocket(WebSocketRoute):
    """A WebSocket of the API, behind the same guard."""

    def __init__(self, path: str, endpoint: SocketEndpoint, *, scope: str, query: type[Query]) -> None:
        if scope not in SCOPES:
            raise TypeError(f"{path}: a route needs one of the contract's scopes, not {scope!r}")
        super().__init__(path, endpoint)
        self.needed = scope
        self._socket_endpoint = endpoint
        self._query = query
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = await _guard(scope, receive, self.needed)
        call.query, _ = parse_query(scope, self._query)
        await self._socket_endpoint(call, WebSocket(scope, receive, send))


class Routes:
    """The routes of one module, in the order they are written down."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._made: list[Callable[[FastAPI], None]] = []

    def route(
        self,
        method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"],
        path: str,
        *,
        scope: KeyScope,
        answer: Any = None,
        status: int = 200,
        content: Mapping[str, str] | None = None,
        also: Mapping[int, Mapping[str, Any]] | None = None,
        raw_body: str | None = None,
        headers: Mapping[str, str] | None = None,
        apart: str = "",
    ) -> Callable[[Endpoint], Endpoint]:
        """Register an endpoint.

        `answer` is the model of a JSON answer; `content` describes others by media type; `also` further statuses;
        `raw_body` is the media type of a body that is no JSON; `headers` the request headers it reads; `apart` the
        name of a parameter written `name[key]=value`.
        """

        def register(endpoint: Endpoint) -> Endpoint:
            parameters = [
                {"name": name, "in": "path", "required": True, **described}
                for name, described in _PATH_PARAMETERS.items()
                if f"{{{name}}}" in path or f"{{{name}:path}}" in path
            ] + [
                {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
                for name, text in (headers or {}).items()
            ]
            if apart:
                parameters.append(
                    {
                        "name": apart,
                        "in": "query",
                        "style": "deepObject",
                        "explode": True,
                        "description": f"every given pair must match: {apart}[key]=value",
                        # No type for the values: in a query string whatever is written is text.
                        "schema": {"type": "object", "additionalProperties": True},
                    }
                )
            extra: dict[str, Any] = {SCOPE_FIELD: scope, "security": [{"key": []}], "parameters": parameters}
            if apart:
                extra["x-runra-apart"] = apart
            if raw_body is not None:
                extra["requestBody"] = {
                    # No body at all is an empty one: an empty file, or nothing but `close=true`.
                    "required": False,
                    "content": {raw_body: {"schema": {"type": "string", "format": "binary"}}},
                }
            media = {kind: {"schema": {"type": "string"}, "example": text} for kind, text in (content or {}).items()}
            responses: dict[int | str, dict[str, Any]] = {
                status: {"description": "done", **({"content": media} if media else {})},
                **{code: dict(described) for code, described in (also or {}).items()},
                "default": {"description": "what went wrong", "model": ErrorAnswer},
            }

            def mount(app: FastAPI) -> None:
                app.router.add_api_route(
                    PREFIX + path,
                    endpoint,
                    methods=[method],
                    status_code=status,
                    response_model=answer,
                    response_class=JSONResponse if answer is not None else Response,
                    responses=responses,
                    tags=[self._tag],
                    operation_id=endpoint.__name__,
                    openapi_extra=extra,
                    route_class_override=GuardedRoute,
                )

            self._made.append(mount)
            return endpoint

        return register

    def socket(self, path: str, *, scope: KeyScope, query: type[Query]) -> Callable[[SocketEndpoint], SocketEndpoint]:
        def register(endpoint: SocketEndpoint) -> SocketEndpoint:
            self._made.append(
                lambda app: app.router.routes.append(GuardedSocket(PREFIX + path, endpoint, scope=scope, query=query))
            )
            return endpoint

        return register

    def mount(self, app: FastAPI) -> None:
        for mount in self._made:
            mount(app)


#: Marks a parameter as the route's query model, for FastAPI's document.
Parameters = QueryParameters
