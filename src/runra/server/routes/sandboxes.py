"""The life of sandboxes: create, list, get, change, pause, resume, terminate."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field
from starlette.responses import Response

from runra.contract import Network, Page, SandboxConfig, SandboxInfo, SandboxPatch, SandboxState
from runra.errors import RunraError
from runra.server.answers import answer, page, plain
from runra.server.calls import Query
from runra.server.faults import bad_request
from runra.server.routing import Caller, Parameters, Routes
from runra.server.store.sandboxes import listed

routes: Final = Routes("sandboxes")


class ListQuery(Query):
    state: SandboxState | None = None
    image: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    offset: Annotated[int, Field(ge=0, le=2**31)] = 0


@routes.route(
    "POST",
    "/sandboxes",
    scope="sandbox:create",
    answer=SandboxInfo,
    status=201,
    headers={"Idempotency-Key": "the same key within 24 h gives the same sandbox; 1 to 255 printable characters"},
)
async def create_sandbox(call: Caller, body: SandboxConfig) -> Response:
    """Create a sandbox; answers when it is running."""
    made, replayed = await call.services.creates.create(call.key, body, call.idempotency_key)
    response = plain(made, 201)
    response.headers["Location"] = f"/v1/sandboxes/{made['id']}"
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return response


@routes.route("GET", "/sandboxes", scope="sandbox:read", answer=Page[SandboxInfo], apart="metadata")
async def list_sandboxes(call: Caller, query: Annotated[ListQuery, Parameters()]) -> Response:
    """List your organization's sandboxes, newest first; terminated ones as well."""
    for name, value in call.apart.items():
        if not 0 < len(name) <= 128 or "\0" in name + value:
            raise bad_request("metadata", "a key has 1 to 128 characters, and nothing in it is NUL", name)
    found, total = await listed(
        call.services.store,
        call.key.organization_id,
        state=query.state,
        image=query.image,
        metadata=call.apart,
        limit=query.limit,
        offset=query.offset,
    )
    live = call.services.node.sandboxes
    fresh = [live[info.id].info() if info.id in live else info for info in found]
    return page(fresh, total, query.limit, query.offset)


@routes.route("GET", "/sandboxes/{id}", scope="sandbox:read", answer=SandboxInfo)
async def get_sandbox(call: Caller) -> Response:
    """Get a sandbox, alive or terminated."""
    return answer(call.info())


@routes.route("PATCH", "/sandboxes/{id}", scope="sandbox:create", answer=SandboxInfo)
async def change_sandbox(call: Caller, body: SandboxPatch) -> Response:
    """Change `timeoutMs`, `idleTimeoutMs` or `metadata` (which is replaced whole)."""
    await call.sandbox.update(body)
    return answer(call.info())


@routes.route("PUT", "/sandboxes/{id}/network", scope="sandbox:create", answer=SandboxInfo)
async def change_network(call: Caller, body: Network) -> Response:
    """Replace what the sandbox may reach, and its secrets, at once: connections the new policy forbids are cut, those
    to ports that `ingress` no longer allows included. `ingress` stays as it is when it is left out."""
    await call.sandbox.update_network(body)
    call.services.ports.narrowed(call.sandbox)
    return answer(call.info())


@routes.route("POST", "/sandboxes/{id}/pause", scope="sandbox:pause", answer=SandboxInfo)
async def pause_sandbox(call: Caller) -> Response:
    """Freeze every process and give memory back. Pausing a paused sandbox is fine."""
    await call.sandbox.pause()
    return answer(call.info())


@routes.route("POST", "/sandboxes/{id}/resume", scope="sandbox:pause", answer=SandboxInfo)
async def resume_sandbox(call: Caller) -> Response:
    """Go on where pause stopped. Resuming a running sandbox is fine."""
    await call.sandbox.resume()
    return answer(call.info())


@routes.route("DELETE", "/sandboxes/{id}", scope="sandbox:delete", answer=SandboxInfo)
async def terminate_sandbox(call: Caller) -> Response:
    """End a sandbox and everything in it. Terminating a terminated one is fine."""
    if call.live is not None:
        try:
            await call.live.terminate("user")
        except RunraError as error:
            # Somebody else ended it in the same moment: that is what was asked for.
            if error.code != "INVALID_STATE":
                raise
    elif call.info().state != "terminated":
        return answer(call.sandbox.info())  # still being created: raises INVALID_STATE
    return answer(call.info())
