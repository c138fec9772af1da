"""The outermost layer: a request id on every answer, every failure in the one shape, a measure of each call."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Any, Final

from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from runra.errors import RunraError
from runra.server.faults import fault, invalid, unexpected

_log = logging.getLogger("runra.server")
_access = logging.getLogger("runra.server.access")

_STARTS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


def _stopping() -> RunraError:
    return RunraError(
        "INTERNAL_ERROR",
        "the server is stopping; sandboxes and their commands run on. Call again, with the same Idempotency-Key",
        retryable=True,
    )


class Edge:
    """Pure ASGI middleware: one small wrapper around `send`, no task and no copy of the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        # Ours, never the client's: it finds this call in our log, and nobody can forge another's.
        request_id = f"req_{secrets.token_hex(10)}"
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] in _STARTS:
                status = message.get("status", 101)
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        except (ClientDisconnect, WebSocketDisconnect):
            _log.debug("%s: the client has gone", request_id)
        except asyncio.CancelledError:
            # uvicorn's shutdown ran out of patience. The answer says so instead of a broken connection.
            if not scope["app"].state.services.closing.is_set():
                raise
            await self._fail(_stopping(), status, scope, receive, tagged)
        except RunraError as error:
            if error.code == "INTERNAL_ERROR":
                _log.error("%s %s: %s", request_id, scope["path"], error, exc_info=error)
            await self._fail(error, status, scope, receive, tagged)
        except ValidationError as error:
            await self._fail(invalid(error), status, scope, receive, tagged)
        except Exception as error:  # noqa: BLE001 - the last resort: logged whole, answered without its details
            _log.error("%s %s: unexpected", request_id, scope["path"], exc_info=error)
            await self._fail(unexpected(), status, scope, receive, tagged)
        finally:
            route: Any = scope.get("route")
            path = getattr(route, "path", "unknown")
            seconds = time.perf_counter() - began
            method = scope.get("method", "WEBSOCKET")
            measures = scope["app"].state.services.measures
            measures.request(method if path != "unknown" else "any", path, status, seconds)
            if _access.isEnabledFor(logging.INFO):
                _access.info("%s %s %s %d %.1f ms", request_id, method, scope["path"], status, seconds * 1000)

    async def _fail(self, error: RunraError, status: int, scope: Scope, receive: Receive, send: Send) -> None:
        if not status:
            # On a WebSocket Starlette sends this as the refusal of the handshake.
            await fault(error, scope["state"]["request_id"])(scope, receive, send)
            return
        # Half an answer is out. Cutting the connection is the only way left to say that the rest is missing.
        abort = scope["state"].get("abort")
        if abort is not None:
            abort()
            await asyncio.sleep(0)
