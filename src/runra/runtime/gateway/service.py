"""The gateway: agents' calls to models come in with a run's token and leave with the real key."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from runra.errors import RunraError
from runra.ids import new_id
from runra.runtime.gateway.bodies import Body, parse
from runra.runtime.gateway.errors import answer
from runra.runtime.gateway.policy import permitted
from runra.runtime.gateway.relay import Relay, Sink
from runra.runtime.gateway.runs import Call, Emit, Run, RunLimits, Tokens, Totals
from runra.runtime.llms import prices
from runra.runtime.llms.failures import failure
from runra.runtime.llms.targets import Target
from runra.runtime.llms.types import Format
from runra.runtime.llms.upstream import Upstream, request_url

_log = logging.getLogger("runra.gateway")

#: Largest request, in bytes: Anthropic's own limit.
MAX_BODY: Final = 32 << 20
#: Seconds a client may take to send its request.
READ_S: Final = 60.0
#: Most runs at once.
_MAX_RUNS: Final = 10_000

_FORMATS: Final[dict[str, Format]] = {
    "/messages": "messages",
    "/messages/count_tokens": "messages",
    "/responses": "responses",
    "/chat/completions": "chat",
}


@dataclass(frozen=True)
class Request:
    """A request of a client. `headers` by lower-case name; `read(limit)` gives the body or raises when it is longer."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    read: Callable[[int], Awaitable[bytes]]


@dataclass(frozen=True)
class Admission:
    """What a run is given: its id and the token its agent shows. The token is in no repr."""

    run: str
    token: str

    def __repr__(self) -> str:
        return f"Admission(run={self.run!r})"


class Gateway:
    """Serves many runs. Used on one event loop; `http` and `asgi` in this package are its doors; `close` when done."""

    def __init__(self) -> None:
        self._upstream = Upstream()
        self._tokens = Tokens()
        self._runs: dict[str, Run] = {}

    async def admit(
        self,
        run: str,
        target: Target,
        *,
        emit: Emit,
        limits: RunLimits | None = None,
        models: Mapping[str, Target] | None = None,
    ) -> Admission:
        """Let a run in: calls with the token go to `target`, those that name a model of `models` to that.

        `emit` gets a `cost.llm` event for every call. Raises INVALID_CONFIG for a budget on a model whose price is
        not known, INVALID_STATE for a run that is in already, RESOURCE_EXHAUSTED beyond 10,000 runs.
        """
        limits = limits or RunLimits()
        if run in self._runs:
            raise RunraError("INVALID_STATE", f"run {run!r} is in the gateway already", details={"runId": run})
        if len(self._runs) >= _MAX_RUNS:
            raise RunraError("RESOURCE_EXHAUSTED", f"the gateway serves {_MAX_RUNS} runs already; end some")
        admitted = Run(run, target, limits, emit, models)
        if not all(one.local for one in admitted.targets):
            await asyncio.to_thread(prices.load)
        unpriced = [one.model for one in admitted.targets if limits.max_cost is not None and not prices.known(one)]
        if unpriced:
            raise RunraError(
                "INVALID_CONFIG",
                f"max_cost: the price of {', '.join(unpriced)} is not known, so no budget can hold; set llm prices",
                details={"field": "maxCost", "models": unpriced},
            )
        self._runs[run] = admitted
        return Admission(run, self._tokens.issue(admitted))

    def totals(self, run: str) -> Totals:
        """What a run has used so far. Raises INVALID_STATE for one that is not in."""
        return self._run(run).totals

    async def revoke(self, run: str) -> Totals:
        """End a run: its token is void at once, its calls are cancelled and booked. Returns what it used."""
        ended = self._run(run)
        ended.closed = True
        self._tokens.forget(ended)
        del self._runs[run]
        tasks = [task for task in ended.tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)
        return ended.totals

    async def close(self) -> None:
        """End all runs and drop all connections."""
        for run in list(self._runs):
            await self.revoke(run)
        await self._upstream.close()

    async def handle(self, request: Request, sink: Sink) -> None:
        """Answer one request. Raises only when the client is gone (ConnectionResetError) or the call was cancelled."""
        path = request.path.removeprefix("/v1")
        format = _FORMATS.get(path, "chat")
        relay: Relay | None = None
        task = asyncio.current_task()
        run: Run | None = None
        try:
            if path == "/health":
                await _whole(sink, 200, {"status": "ok"})
                return
            run = self._authorized(request.headers)
            if task is not None:
                run.tasks.add(task)
            if request.method == "GET" and path == "/models":
                await _whole(sink, 200, _models(run.names))
                return
            if request.method != "POST" or path not in _FORMATS:
                raise failure("model_not_found", f"{request.method} {request.path[:100]} is no call of the gateway")
            async with asyncio.timeout(READ_S):
                raw = await request.read(MAX_BODY)
            body = parse(raw)
            target = run.target(str(body.value.get("model", "")))
            if path.endswith("/count_tokens"):
                await self._count(run, target, body, request.headers, sink)
                return
            call = Call(
                new_id("call"),
                format,
                str(body.value.get("model", ""))[:200],
                target,
                turn=bool(body.value.get("tools")),
                request_bytes=len(raw),
            )
            relay = Relay(self._upstream, run, call, body, sink)
            await relay.run(format, request.headers, request.query)
        except RunraError as error:
            _log.info("run %s: %s", run.id if run else "?", error)
            if relay is None or not relay.started:
                await _write(sink, answer(error, format))
        except TimeoutError:
            await _write(sink, answer(failure("invalid", f"the request did not arrive within {READ_S:g} s"), format))
        finally:
            if run is not None and task is not None:
                run.tasks.discard(task)

    def _authorized(self, headers: Mapping[str, str]) -> Run:
        given = headers.get("x-api-key") or headers.get("x-goog-api-key") or ""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if not given and scheme.lower() == "bearer":
            given = bearer.strip()
        run = self._tokens.find(given)
        if run is None:
            raise failure("token", "this is no token of a run that is under way")
        return run

    def _run(self, run: str) -> Run:
        if run not in self._runs:
            raise RunraError("INVALID_STATE", f"run {run!r} is not in the gateway", details={"runId": run})
        return self._runs[run]

    async def _count(self, run: Run, target: Target, body: Body, headers: Mapping[str, str], sink: Sink) -> None:
        """Count a request's tokens: by its provider where that can, else by the rule of four characters each."""
        run.throttle()
        changes = {**permitted(run.limits, "messages", body.value), "model": target.model}
        if "messages" not in target.paths:
            await _whole(sink, 200, {"input_tokens": max(1, len(body.text) // 4)})
            return
        forwarded = {name: headers[name] for name in ("anthropic-version", "anthropic-beta") if name in headers}
        url = request_url(target, "messages", "/count_tokens")
        counted = await self._upstream.open(target, url, body.replaced(changes), forwarded)
        try:
            whole = b"".join([piece async for piece in counted.chunks()])
        finally:
            counted.close()
        try:
            tokens = int(json.loads(whole)["input_tokens"])
        except (ValueError, KeyError, TypeError):
            raise failure("protocol", "the provider's count is none") from None
        await _whole(sink, 200, {"input_tokens": tokens})


def _models(names: Iterable[str]) -> dict[str, Any]:
    """The list in the shapes of both Anthropic and OpenAI at once."""
    listed = [
        {"id": name, "object": "model", "type": "model", "display_name": name, "owned_by": "runra", "created": 0}
        for name in names
    ]
    ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]}
    return {"object": "list", "data": listed, "has_more": False, **ends}


async def _whole(sink: Sink, status: int, body: dict[str, Any]) -> None:
    await _write(sink, (status, {"content-type": "application/json"}, json.dumps(body).encode()))


async def _write(sink: Sink, written: tuple[int, dict[str, str], bytes]) -> None:
    status, headers, body = written
    await sink.start(status, headers)
    await sink.write(body)
