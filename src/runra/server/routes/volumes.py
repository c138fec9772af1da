"""Volumes: named folders that outlive sandboxes."""

from __future__ import annotations

from typing import Annotated, Final

from starlette.responses import Response

from runra.contract import Page, VolumeCreate, VolumeInfo
from runra.server.answers import answer, page
from runra.server.routes.keys import PageQuery
from runra.server.routing import Caller, Parameters, Routes

routes: Final = Routes("volumes")


@routes.route("POST", "/volumes", scope="sandbox:create", answer=VolumeInfo, status=201)
async def create_volume(call: Caller, body: VolumeCreate) -> Response:
    """Make an empty volume. Mount it with `volumes: [{"name": …, "path": …}]` in a create."""
    return answer(await call.services.keeping.make_volume(call.key, body), 201)


@routes.route("GET", "/volumes", scope="sandbox:read", answer=Page[VolumeInfo])
async def list_volumes(call: Caller, query: Annotated[PageQuery, Parameters()]) -> Response:
    """List your organization's volumes, newest first, with what they hold and who has them."""
    found, total = await call.services.keeping.list_volumes(call.key, query.limit, query.offset)
    return page(found, total, query.limit, query.offset)


@routes.route("GET", "/volumes/{volume_id}", scope="sandbox:read", answer=VolumeInfo)
async def get_volume(call: Caller) -> Response:
    """Get a volume by id or name."""
    return answer(await call.services.keeping.volume(call.key, call.path["volume_id"]))


@routes.route("DELETE", "/volumes/{volume_id}", scope="sandbox:delete", answer=VolumeInfo)
async def delete_volume(call: Caller) -> Response:
    """Delete a volume by id or name, and all in it. INVALID_STATE while a sandbox has it, running or paused."""
    return answer(await call.services.keeping.delete_volume(call.key, call.path["volume_id"]))
