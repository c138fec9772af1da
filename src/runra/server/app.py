"""The application: its services, its routes, its start and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from runra.contract import Health
from runra.errors import RunraError
from runra.events import EventLog, now_iso
from runra.server import descriptors
from runra.server.access import Access
from runra.server.answers import answer, plain
from runra.server.bootstrap import bootstrap
from runra.server.creates import Creates
from runra.server.edge import Edge
from runra.server.executions import Executions
from runra.server.faults import fault
from runra.server.ingress.door import Door
from runra.server.ingress.front import Front
from runra.server.ingress.hosts import Names
from runra.server.ingress.ingress import Ingress
from runra.server.ingress.tokens import Signer, load_secret
from runra.server.keeping import Keeping
from runra.server.measure import Measures
from runra.server.nodeport import Node, Sandbox
from runra.server.openapi import document
from runra.server.ports import Ports
from runra.server.quotas import Quotas
from runra.server.resources import tell_resources
from runra.server.routes import ALL
from runra.server.routing import PREFIX
from runra.server.services import Services
from runra.server.settings import ServerSettings
from runra.server.store import Store
from runra.server.store.sandboxes import purge

_log = logging.getLogger("runra.server")
#: Seconds between writing when keys were last used, and between clearing out what is old.
_FLUSH_S: Final = 60.0
_PURGE_EVERY: Final = 60

#: Makes the node a server works with.
NodeMaker = Callable[[ServerSettings, EventLog], Node]


def real_node(settings: ServerSettings, events: EventLog) -> Node:
    """This host's own sandboxes."""
    # Imported here: a test with a node of its own needs none of what the real one needs.
    from runra.node import Node as LocalNode
    from runra.node import NodeSettings
    from runra.node.images.settings import read_registries
    from runra.node.network.settings import NetworkSettings

    network: NetworkSettings = settings.node.get("network", NetworkSettings())
    # The proxy holds two for each connection, the sandbox's and the one outside.
    network = replace(network, connections=descriptors.bounded(network.connections, each=2))
    return LocalNode(
        NodeSettings(
            data_dir=settings.data_dir / "node",
            pull_on_create=settings.pull_on_create,
            max_images_mb=settings.max_images_mb,
            pull_timeout=settings.pull_timeout_s,
            registries=read_registries(settings.registries) if settings.registries else {},
            **{**settings.node, "network": network},
        ),
        events,
    )


def create_app(settings: ServerSettings, make_node: NodeMaker = real_node) -> FastAPI:
    """The REST service. Starting it (its lifespan) opens the store, starts the node and adopts what survived;
    stopping it leaves every sandbox alive."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(settings, make_node) as services:
            app.state.services = services
            yield

    app = FastAPI(
        title="Runra",
        version="1",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for routes in ALL:
        routes.mount(app)
    _add_open_routes(app)
    app.router.default = _nowhere
    app.add_middleware(Edge)
    app.add_middleware(Front)  # the last one added is the first one asked
    app.add_exception_handler(405, _other_method)
    # FastAPI's own way to replace the document.
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app


@contextlib.asynccontextmanager
async def running(settings: ServerSettings, make_node: NodeMaker) -> AsyncIterator[Services]:
    """Everything the routes work with, from open to closed."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(settings.widened())
        await asyncio.to_thread(settings.data_dir.mkdir, mode=0o700, parents=True, exist_ok=True)
        store = Store(settings.store_url)
        stack.push_async_callback(store.close)
        await store.open()
        access = Access(store)
        await access.load()
        await bootstrap(settings, access)
        events, measures = EventLog(), Measures()
        stack.callback(events.close)
        node = make_node(settings, events)
        executions = Executions(events, measures, settings.collect_bytes)
        quotas = Quotas(store, node)
        await quotas.load()
        creates = Creates(store, node, quotas, settings.create_timeout_s + settings.pull_timeout_s)
        names = Names(settings.domain, settings.url)
        signer = Signer(await asyncio.to_thread(load_secret, settings.data_dir / "preview-secret"))
        ports = Ports(store, events, names, signer)
        ingress = Ingress(settings, names, Door(node, ports, names), measures)
        keeping = Keeping(store, node, quotas, settings.max_kept)
        to_adopt: set[str] = set()

        async def changed(sandbox: Sandbox) -> None:
            await creates.keep(sandbox)
            if sandbox.info().state == "terminated":
                await ports.forget(sandbox.id)
            # A paused sandbox cannot answer; its commands are followed again once it is resumed.
            if sandbox.id in to_adopt and sandbox.info().state == "running":
                to_adopt.discard(sandbox.id)
                await executions.adopt(sandbox)

        node.on_change = changed
        stack.push_async_callback(node.close)
        await node.start()
        stack.push_async_callback(executions.close)
        await creates.reconcile()
        await keeping.reconcile()
        await ports.load()
        alive = list(node.sandboxes.values())
        awake = [sandbox for sandbox in alive if sandbox.info().state == "running"]
        to_adopt |= {sandbox.id for sandbox in alive} - {sandbox.id for sandbox in awake}
        # Before the first call comes in: a retry must find its command, not start a second reader of it.
        await asyncio.gather(*(executions.adopt(sandbox) for sandbox in awake))
        services = Services(
            settings, store, node, events, access, creates, executions, measures, ports, ingress, keeping, quotas
        )
        keeper = asyncio.get_running_loop().create_task(_keep_house(services))
        stack.push_async_callback(_end, keeper)
        if settings.resource_events_s > 0:
            teller = asyncio.get_running_loop().create_task(tell_resources(node, events, settings.resource_events_s))
            stack.push_async_callback(_end, teller)
        stack.push_async_callback(access.flush)
        stack.callback(services.closing.set)
        stack.callback(ingress.stop)
        yield services


async def _keep_house(services: Services) -> None:
    """Write down what is only noted in memory, and clear out what is old, now and then."""
    count = 0
    while True:
        try:
            if count % _PURGE_EVERY == 0:
                kept_since = datetime.now(UTC) - timedelta(days=services.settings.keep_terminated_days)
                await purge(services.store, kept_since.isoformat())
            await services.access.flush()
        except Exception:  # noqa: BLE001 - logged whole, and tried again
            # The next round tries again; a full disk must not end the rounds.
            _log.exception("clearing out failed")
        count += 1
        await asyncio.sleep(_FLUSH_S)


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _add_open_routes(app: FastAPI) -> None:
    """The two routes without a key: they tell nothing of any tenant."""

    @app.get(f"{PREFIX}/health", response_model=Health, tags=["server"], operation_id="health")
    async def health() -> Response:
        """Whether the server answers."""
        return answer(Health(timestamp=now_iso()))

    @app.get(f"{PREFIX}/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return plain(app.openapi())


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """No route has this path. (Starlette's own answer to a WebSocket would be a bare 403.)"""
    raise RunraError(
        "INVALID_REQUEST",
        f"{scope.get('method', 'WebSocket')} {scope['path'][:200]}: there is no such route; all of them are in "
        f"{PREFIX}/openapi.json",
        status=404,
    )


async def _other_method(request: Request, error: Exception) -> Response:
    """405 of the router, in the one shape, naming all methods of the path."""
    allowed = ", ".join(sorted(_methods(request)))
    wrong = RunraError(
        "INVALID_REQUEST", f"{request.method} {request.url.path[:200]}: this path knows {allowed}", status=405
    )
    return fault(wrong, request.scope["state"]["request_id"], {"Allow": allowed})


def _methods(request: Request) -> set[str]:
    matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    # What is written out in full (`/images/import`) is a resource of its own, whatever a pattern takes besides.
    exact = [route for route in matching if getattr(route, "path", "") == request.url.path]
    return {method for route in exact or matching for method in getattr(route, "methods", None) or ()}
