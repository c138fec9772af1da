"""The fork in the road, before anything else looks at a request: a preview's name goes to the ingress, all else to the
API."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from runra.server.ingress.ingress import Ingress


class Front:
    """Pure ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        ingress: Ingress = scope["app"].state.services.ingress
        place = ingress.place(scope["headers"])
        if place is None:
            await self._app(scope, receive, send)
        else:
            await ingress.serve(place, scope, receive, send)
