"""Images: pull, import, commit, list, delete. Changing them takes `admin:*`; whoever may see sandboxes may see them."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field
from starlette.responses import Response

from runra.contract import (
    ImageCommit,
    ImageInfo,
    ImageName,
    ImagePrune,
    ImagePull,
    ImagePulling,
    ImagesPruned,
    ImageTag,
    Page,
)
from runra.server.answers import answer, page
from runra.server.calls import Query
from runra.server.faults import bad_request
from runra.server.routing import Caller, Parameters, Routes

routes: Final = Routes("images")


class ImagesQuery(Query):
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    offset: Annotated[int, Field(ge=0, le=2**31)] = 0
    #: Steps of recipes are images too; they are left out unless asked for.
    steps: bool = False


class ImportQuery(Query):
    name: ImageName | None = None
    shared: bool = False


@routes.route("POST", "/images", scope="admin:*", answer=ImagePulling, status=202)
async def pull_image(call: Caller, body: ImagePull) -> Response:
    """Begin to pull an image, or to refresh one that is here. What follows is told on the event stream, as
    `image.progress`, then `image.ready` or `image.error`, with its `pullId`: read it from the event `after` on."""
    call.services.access.require_image(call.key, body.reference)
    after = call.services.events.last_id
    begun = call.services.node.images.begin(body.reference, call.key.organization_id, body.credentials, body.shared)
    return answer(begun.model_copy(update={"after": after}), 202)


@routes.route("POST", "/images/import", scope="admin:*", answer=ImageInfo, status=201, raw_body="application/x-tar")
async def import_image(call: Caller, query: Annotated[ImportQuery, Parameters()]) -> Response:
    """Import an image from a tar: an OCI image layout, what `docker save` writes, or a whole root file system (which
    needs a `name`). Compressed or not. `shared` makes it every organization's."""
    images = call.services.node.images
    if call.key.limits is not None and call.key.limits.images is not None and query.name is None:
        raise bad_request("name", "this API key is for certain images only; name the image")
    if query.name is not None:
        call.services.access.require_image(call.key, query.name)
    made = await images.import_archive(call.chunks(), query.name, call.key.organization_id, shared=query.shared)
    return answer(made, 201)


@routes.route("POST", "/images/tag", scope="admin:*", answer=ImageInfo, status=201)
async def tag_image(call: Caller, body: ImageTag) -> Response:
    """Give an image that is here another name, your organization's own unless `shared`. It takes no more room."""
    call.services.access.require_image(call.key, body.image)
    call.services.access.require_image(call.key, body.reference)
    images = call.services.node.images
    return answer(await images.tag(body.image, body.reference, call.key.organization_id, shared=body.shared), 201)


@routes.route("POST", "/images/prune", scope="admin:*", answer=ImagesPruned)
async def prune_images(call: Caller, body: ImagePrune) -> Response:
    """Delete the images of your organization and everybody's that no sandbox uses."""
    return answer(await call.services.node.images.prune(call.key.organization_id, body.unused_for_ms))


@routes.route("GET", "/images", scope="sandbox:read", answer=Page[ImageInfo])
async def list_images(call: Caller, query: Annotated[ImagesQuery, Parameters()]) -> Response:
    """List the images your organization may use, newest first. Of those that only other organizations' creates asked
    for, keys with `admin:*` alone are told."""
    found = call.services.node.images.listed(
        call.key.organization_id, steps=query.steps, administrator=call.key.may("admin:*")
    )
    return page(found[query.offset : query.offset + query.limit], len(found), query.limit, query.offset)


@routes.route("GET", "/images/{reference:path}", scope="sandbox:read", answer=ImageInfo)
async def get_image(call: Caller) -> Response:
    """Get an image by its name, slashes and all; also one that is being pulled."""
    images = call.services.node.images
    administrator = call.key.may("admin:*")
    return answer(images.info(call.path["reference"], call.key.organization_id, administrator=administrator))


@routes.route("DELETE", "/images/{reference:path}", scope="admin:*", answer=ImageInfo)
async def delete_image(call: Caller) -> Response:
    """Forget an image: your organization's own, else everybody's of that name. Sandboxes made from it live on."""
    return answer(await call.services.node.images.delete(call.path["reference"], call.key.organization_id))


@routes.route("POST", "/sandboxes/{id}/commit", scope="admin:*", answer=ImageInfo, status=201)
async def commit_sandbox(call: Caller, body: ImageCommit) -> Response:
    """Make an image of the files of a sandbox, which stands still meanwhile. It must be made of an image itself."""
    call.services.access.require_image(call.key, body.reference)
    made = await call.services.node.commit(call.sandbox.id, body.reference, shared=body.shared, step=body.step)
    return answer(made, 201)
