"""Ports of a sandbox: expose, list, close; signed links to private ones."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field
from starlette.responses import Response

from runra.contract import Page, Port, PortExposed, PortRequest, SignedUrl, SignedUrlRequest
from runra.errors import RunraError
from runra.server.answers import answer, empty, page
from runra.server.calls import Query
from runra.server.faults import bad_request
from runra.server.ingress.hosts import Place
from runra.server.ports import MOST, Exposed
from runra.server.routing import Caller, Parameters, Routes

routes: Final = Routes("ports")


class PortsQuery(Query):
    limit: Annotated[int, Field(ge=1, le=MOST)] = MOST
    offset: Annotated[int, Field(ge=0, le=2**31)] = 0


@routes.route("POST", "/sandboxes/{id}/ports", scope="sandbox:ports", answer=PortExposed, status=201)
async def expose_port(call: Caller, body: PortRequest) -> Response:
    """Give a port a URL of its own; one that has it already keeps it. `token` is in the first answer for a private port
    and nowhere else. Nothing need listen there yet."""
    return answer(await call.services.ports.expose(call.sandbox, body.port, body.private), 201)


@routes.route("GET", "/sandboxes/{id}/ports", scope="sandbox:ports", answer=Page[Port])
async def list_ports(call: Caller, query: Annotated[PortsQuery, Parameters()]) -> Response:
    """List exposed ports, by number."""
    found = call.services.ports.listed(call.info().id)
    return page(found[query.offset : query.offset + query.limit], len(found), query.limit, query.offset)


@routes.route("DELETE", "/sandboxes/{id}/ports/{port}", scope="sandbox:ports", status=204)
async def close_port(call: Caller) -> Response:
    """Close a port: its URL answers 404 from now on, and what is open to it is cut. Closing a closed one is fine."""
    port = _port(call)
    if call.live is not None:
        await call.services.ports.close(call.live, port)
    return empty()


@routes.route("POST", "/sandboxes/{id}/ports/{port}/signed-url", scope="sandbox:ports", answer=SignedUrl, status=201)
async def sign_url(call: Caller, body: SignedUrlRequest) -> Response:
    """Make a link that opens a private port in a browser, for a while."""
    exposed = _exposed(call)
    if not exposed.row.private:
        raise RunraError(
            "INVALID_STATE",
            f"port {exposed.row.port} is public: its URL opens it for everyone",
            details={"port": exposed.row.port},
        )
    return answer(call.services.ports.sign(exposed, body.expires_in_ms), 201)


@routes.route("DELETE", "/sandboxes/{id}/ports/{port}/signed-urls", scope="sandbox:ports", status=204)
async def revoke_urls(call: Caller) -> Response:
    """End every signed link to a port at once. Its token stays good."""
    await call.services.ports.revoke(_exposed(call))
    return empty()


def _port(call: Any) -> int:
    text = str(call.path["port"])
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1024 <= int(text) <= 65535):
        raise bad_request("port", "must be between 1024 and 65535", text)
    return int(text)


def _exposed(call: Any) -> Exposed:
    port = _port(call)
    exposed: Exposed | None = call.services.ports.find(Place(call.sandbox.id, port))
    if exposed is None:
        raise bad_request("port", "is not exposed; expose it first", port, status=404)
    return exposed
