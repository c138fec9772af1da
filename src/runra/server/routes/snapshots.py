"""Snapshots of a sandbox's files, and forks of sandboxes."""

from __future__ import annotations

from typing import Annotated, Final

from starlette.responses import Response

from runra.contract import ForkRequest, Page, SandboxInfo, SnapshotCreate, SnapshotInfo
from runra.server.answers import answer, page
from runra.server.routes.keys import PageQuery
from runra.server.routing import Caller, Parameters, Routes

routes: Final = Routes("snapshots")


@routes.route("POST", "/sandboxes/{id}/snapshots", scope="sandbox:create", answer=SnapshotInfo, status=201)
async def take_snapshot(call: Caller, body: SnapshotCreate) -> Response:
    """Keep the files of a running or paused sandbox as they are now. Processes, memory, volumes, /run and /dev/shm are
    not part of it. Make sandboxes from it with `image: "snapshot:<name or id>"`."""
    return answer(await call.services.keeping.take_snapshot(call.key, call.sandbox, body), 201)


@routes.route("POST", "/sandboxes/{id}/fork", scope="sandbox:create", answer=Page[SandboxInfo], status=201)
async def fork_sandbox(call: Caller, body: ForkRequest) -> Response:
    """Make copies of a running or paused sandbox: its files at one moment, its configuration, an identity of their own.
    With `processes`, of a running one behind `gvisor`, what runs in it goes on in each copy. All of them run when this
    answers, or there is none."""
    made = await call.services.creates.fork(call.key, call.sandbox, body.count, processes=body.processes)
    response = page(made, len(made), len(made), 0)
    response.status_code = 201
    return response


@routes.route("GET", "/snapshots", scope="sandbox:read", answer=Page[SnapshotInfo])
async def list_snapshots(call: Caller, query: Annotated[PageQuery, Parameters()]) -> Response:
    """List your organization's snapshots, newest first."""
    found, total = await call.services.keeping.list_snapshots(call.key, query.limit, query.offset)
    return page(found, total, query.limit, query.offset)


@routes.route("GET", "/snapshots/{snapshot_id}", scope="sandbox:read", answer=SnapshotInfo)
async def get_snapshot(call: Caller) -> Response:
    """Get a snapshot by id or name."""
    return answer(await call.services.keeping.snapshot(call.key, call.path["snapshot_id"]))


@routes.route("DELETE", "/snapshots/{snapshot_id}", scope="sandbox:delete", answer=SnapshotInfo)
async def delete_snapshot(call: Caller) -> Response:
    """Delete a snapshot by id or name. Sandboxes made from it lose nothing."""
    return answer(await call.services.keeping.delete_snapshot(call.key, call.path["snapshot_id"]))
