"""The OpenAPI document: FastAPI's from the routes, with what all of them have in common."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_DESCRIPTION = """Sandboxes for AI agents. Every call but `/v1/health` and this document carries
`Authorization: Bearer <key>`; `x-runra-scope` names the scope a call takes. Every answer carries `X-Request-Id`.
Every error has the shape of `ErrorAnswer`."""


def document(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes, tags=app.openapi_tags
        )
        made.setdefault("components", {})["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "an API key: rra_live_… or rra_test_…"}
        }
        for path in made["paths"].values():
            for operation in path.values():
                operation.pop("x-runra-apart", None)
                _finish(operation)
        app.openapi_schema = made
    return app.openapi_schema


def _finish(operation: dict[str, Any]) -> None:
    identified = {"X-Request-Id": {"description": "names this call in the server's log", "schema": {"type": "string"}}}
    for status, described in operation["responses"].items():
        headers = dict(identified)
        if status == "201" and operation["operationId"] == "create_sandbox":
            headers["Location"] = {"description": "the sandbox's own path", "schema": {"type": "string"}}
        if status == "default":
            headers["Retry-After"] = {
                "description": "seconds, with RATE_LIMITED and RESOURCE_EXHAUSTED",
                "schema": {"type": "integer"},
            }
        described["headers"] = described.get("headers", {}) | headers
