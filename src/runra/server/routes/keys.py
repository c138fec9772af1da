"""API keys and organizations. All of it takes `admin:*`, which is about the whole server."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field
from starlette.responses import Response

from runra.contract import (
    KeyCreate,
    KeyCreated,
    KeyInfo,
    OrganizationCreate,
    OrganizationInfo,
    OrganizationPatch,
    Page,
)
from runra.events import now_iso
from runra.ids import new_id
from runra.server.answers import answer, page
from runra.server.calls import Query, check_id
from runra.server.faults import bad_request
from runra.server.routing import Caller, Parameters, Routes
from runra.server.store.keys import add_organization, find_organization, list_organizations

routes: Final = Routes("keys")


class PageQuery(Query):
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    offset: Annotated[int, Field(ge=0, le=2**31)] = 0


class KeysQuery(PageQuery):
    organization_id: Annotated[str, Field(min_length=1, max_length=64)] | None = None


@routes.route("POST", "/api-keys", scope="admin:*", answer=KeyCreated, status=201)
async def create_key(call: Caller, body: KeyCreate) -> Response:
    """Make a key. Its secret is in this answer and nowhere else. It can do no more than the key that makes it."""
    return answer(await call.services.access.create(call.key, body), 201)


@routes.route("GET", "/api-keys", scope="admin:*", answer=Page[KeyInfo])
async def list_keys(call: Caller, query: Annotated[KeysQuery, Parameters()]) -> Response:
    """List keys, newest first, of all organizations or of one."""
    found, total = call.services.access.listed(query.organization_id, query.limit, query.offset)
    return page(found, total, query.limit, query.offset)


@routes.route("DELETE", "/api-keys/{key_id}", scope="admin:*", answer=KeyInfo)
async def revoke_key(call: Caller) -> Response:
    """Revoke a key; from the answer on it opens nothing. Its sandboxes stay."""
    return answer(await call.services.access.revoke(check_id("id", call.path["key_id"])))


@routes.route("POST", "/organizations", scope="admin:*", answer=OrganizationInfo, status=201)
async def create_organization(call: Caller, body: OrganizationCreate) -> Response:
    """Make an organization: a tenant of its own. Make keys for it with `organizationId`."""
    made = OrganizationInfo(id=new_id("org"), name=body.name, created_at=now_iso())
    await add_organization(call.services.store, made)
    return answer(made, 201)


@routes.route("PATCH", "/organizations/{organization_id}", scope="admin:*", answer=OrganizationInfo)
async def change_organization(call: Caller, body: OrganizationPatch) -> Response:
    """Set quotas: what the organization's sandboxes, volumes and snapshots may take in all, and creates a minute. Those
    not named stay; null lifts one. What is over a new quota stays, and nothing is added."""
    organization_id = check_id("id", call.path["organization_id"])
    changed = await call.services.quotas.change(organization_id, body.quotas)
    info = await find_organization(call.services.store, organization_id)
    if changed is None or info is None:
        raise bad_request("id", "there is no such organization; list them", organization_id, status=404)
    return answer(info)


@routes.route("GET", "/organizations", scope="admin:*", answer=Page[OrganizationInfo])
async def list_all_organizations(call: Caller, query: Annotated[PageQuery, Parameters()]) -> Response:
    """List organizations, newest first."""
    found, total = await list_organizations(call.services.store, query.limit, query.offset)
    return page(found, total, query.limit, query.offset)
