"""What a runtime and its sandboxes share: the provider, the bus, and who follows which sandbox's events."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, cast

from runra.errors import RunraError
from runra.events import Event, EventIds, EventType, now_iso
from runra.runtime.bus import Bus, Handler, Sink
from runra.runtime.resources import Resources
from runra.runtime.sandboxes.base import BaseProvider
from runra.tracing import Run, current_run

if TYPE_CHECKING:
    from runra.runtime.exporters import Redactor

_log = logging.getLogger("runra.runtime")

#: How long the last event of a sandbox that was ended is waited for, in seconds.
LAST_EVENT_S: Final = 5.0
#: How many ended sandboxes are remembered, so that the end of none is told twice.
_REMEMBERED: Final = 10_000


class Session:
    """One provider in use. Events outside of any `start` carry `run`, the session's own."""

    def __init__(self, provider: BaseProvider) -> None:
        self.provider = provider
        self.bus = Bus()
        self.run = Run()
        self.told = "events" in provider.capabilities
        #: What ends each sandbox that was made here and has not ended, as far as is known.
        self.owned: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}
        #: What keeps secrets out of the exporters; None without any.
        self.redactor: Redactor | None = None
        self._ids = EventIds("r")
        self._following: dict[str, _Follower] = {}
        #: Sandboxes that will be followed once somebody listens.
        self._unheard: dict[str, Run] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self.resources = Resources(self)
        provider.report = self._reported

    # --- events made here ----------------------------------------------------------------------------------------

    def emit(self, type: EventType, sandbox_id: str, data: dict[str, Any], run: Run | None = None) -> Event:
        """Publish an event of the current run."""
        run = run or current_run.get() or self.run
        event = Event(
            id=self._ids.next(),
            timestamp=now_iso(),
            type=type,
            sandbox_id=sandbox_id,
            run_id=run.id,
            trace_id=run.trace_id,
            data=data,
        )
        self.bus.publish(event)
        return event

    def tell(self, type: EventType, sandbox_id: str, data: dict[str, Any]) -> None:
        """Publish what was done to a sandbox, unless the provider's own server tells it: each event comes once."""
        if not self.told:
            self.emit(type, sandbox_id, data)

    @property
    def telling(self) -> bool:
        """Whether `tell` reaches anybody."""
        return not self.told and not self.bus.idle

    def ended(self, sandbox_id: str, reason: str, ran_ms: int) -> None:
        """Tell, once, that a sandbox is gone, whoever noticed first."""
        self.owned.pop(sandbox_id, None)
        self.resources.forget(sandbox_id)
        if sandbox_id not in self._ended:
            self._ended[sandbox_id] = None
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
            self.tell("sandbox.terminated", sandbox_id, {"reason": reason, "totalRuntimeMs": ran_ms})

    def _reported(self, type: EventType, sandbox_id: str, data: dict[str, Any]) -> None:
        if type == "sandbox.terminated":
            self.ended(sandbox_id, str(data.get("reason", "error")), int(data.get("totalRuntimeMs", 0)))
        else:
            self.tell(type, sandbox_id, data)

    def hide(self, env: Mapping[str, str], *secrets: str) -> None:
        """Keep back from the exporters, from now on, what `env` holds under a secret's name, and `secrets`."""
        if self.redactor is not None:
            from runra.runtime.exporters.redaction import secret_values  # here: without exporters none is loaded

            self.redactor.add(*secret_values(env), *secrets)

    def output_asked(self) -> bool:
        """Whether anybody wants to hear what commands print."""
        return self.bus.asked("exec.streamed")

    # --- events told by the provider's server --------------------------------------------------------------------

    def follow(self, sandbox_id: str, *, from_start: bool) -> None:
        """Publish what the provider's server tells of a sandbox until it ends, beginning when somebody listens. A
        second call changes nothing."""
        if not self.told:
            if "resources" in self.provider.capabilities:
                self.resources.watch(sandbox_id)
            return
        if sandbox_id in self._following:
            return
        run = current_run.get() or self.run
        if self.bus.idle:
            self._unheard[sandbox_id] = run
        else:
            self._following[sandbox_id] = _Follower(self, sandbox_id, from_start, run)

    def on(self, pattern: str, handler: Handler) -> Callable[[], None]:
        """As the bus's `on`; what nobody listened to so far is followed from now on."""
        off = self.bus.on(pattern, handler)
        self._follow_unheard()
        self._ask()

        def leave() -> None:
            off()
            self._ask()

        return leave

    def listen(self, sink: Sink) -> Callable[[], None]:
        """As the bus's `attach`; what nobody listened to so far is followed from now on."""
        detach = self.bus.attach(sink)
        self._follow_unheard()
        return detach

    def _follow_unheard(self) -> None:
        for sandbox_id, run in self._unheard.items():
            self._following[sandbox_id] = _Follower(self, sandbox_id, False, run)
        self._unheard.clear()

    def types(self) -> list[str]:
        """What a server is asked for."""
        return ["*", "exec.streamed"] if self.output_asked() else ["*"]

    def _ask(self) -> None:
        for follower in self._following.values():
            follower.ask(self.types())

    async def ready(self, sandbox_id: str) -> None:
        """Wait until what the caller does next is sure to be heard of."""
        follower = self._following.get(sandbox_id)
        if follower is not None:
            await follower.ready()

    async def settled(self, sandbox_id: str) -> None:
        """Wait, not for long, for the last event of a sandbox that has been terminated."""
        self._unheard.pop(sandbox_id, None)
        follower = self._following.get(sandbox_id)
        if follower is not None and await follower.over(LAST_EVENT_S):
            self._following.pop(sandbox_id, None)

    async def close(self, timeout: float) -> None:
        """Stop following, then let the handlers finish for up to `timeout` seconds."""
        await self.resources.close()
        for follower in tuple(self._following.values()):
            await follower.stop()
        self._following.clear()
        await self.bus.close(timeout)


class _Follower:
    """The events of one sandbox, from the provider's server to the bus."""

    def __init__(self, session: Session, sandbox_id: str, from_start: bool, run: Run) -> None:
        self._session = session
        self._sandbox_id = sandbox_id
        self._run = run
        #: The last event that was published; empty for the beginning, None for now.
        self._after: str | None = "" if from_start else None
        self._types = session.types()
        self._started = not from_start
        self._begin()

    def _begin(self) -> None:
        #: Set once nothing can be missed any more; from the start on, once the start itself has been told.
        self._connected = asyncio.Event()
        self._task = asyncio.create_task(self._follow(), name=f"runra-follow {self._sandbox_id}")

    def ask(self, types: list[str]) -> None:
        """Ask for these types from now on. Nothing that is kept is missed, nor comes twice."""
        if types != self._types:
            self._types = types
            if not self._task.done():
                self._task.cancel()
                self._begin()

    async def ready(self) -> None:
        if not self._connected.is_set() and self._task is not asyncio.current_task():
            waiting = asyncio.ensure_future(self._connected.wait())
            await asyncio.wait({waiting, self._task}, timeout=LAST_EVENT_S, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()

    async def over(self, timeout: float) -> bool:
        """Whether it came to its end within `timeout` seconds."""
        if self._task is not asyncio.current_task():
            await asyncio.wait({self._task}, timeout=timeout)
        return self._task.done()

    async def stop(self) -> None:
        self._task.cancel()
        await self.over(1.0)

    async def _follow(self) -> None:
        # The stream belongs to no run; what the server does by itself (timers) goes to the one that began to follow.
        current_run.set(None)
        run, publish = self._run, self._session.bus.publish
        connected = self._connected.set if self._started else (lambda: None)
        told = self._session.provider.events(
            self._sandbox_id, after=self._after, types=self._types, connected=connected
        )
        try:
            async with aclosing(cast(Any, told)) as events:
                async for event in events:
                    missing = {} if event.run_id else {"run_id": run.id}
                    if not event.trace_id:
                        missing["trace_id"] = run.trace_id
                    self._after = event.id
                    publish(event.model_copy(update=missing) if missing else event)
                    if event.type == "sandbox.started":
                        self._started = True
                        self._connected.set()
                    elif event.type == "sandbox.terminated":
                        self._session.owned.pop(self._sandbox_id, None)
                        return
        except RunraError as error:
            _log.warning("sandbox %s: its events can no longer be followed: %s", self._sandbox_id, error)
            told_error = {"code": error.code, "message": error.message}
            self._session.emit("sandbox.error", self._sandbox_id, told_error, run)
