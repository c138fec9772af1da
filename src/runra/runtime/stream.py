"""A run with its events as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Self

from runra.errors import RunraError
from runra.events import BY_NAME, Event, Subscription
from runra.runtime.controls import RunControls
from runra.runtime.session import Session
from runra.runtime.types import AgentResult
from runra.tracing import Run

_WAITING: Final = 10_000
#: How long a run that is left early may take to stop, in seconds: its sandbox is ended on the way.
_STOP_S: Final = 60.0


class RunStream:
    """Events of one run: iterate it in an `async with` block. `result` is there once the iteration has ended; a run
    that could not begin raises from the iteration. Who reads 10,000 events too slowly loses the oldest."""

    def __init__(
        self,
        session: Session,
        run: Run,
        controls: RunControls,
        start: Callable[[], Coroutine[Any, Any, AgentResult]],
    ) -> None:
        self.id = run.id
        self._session = session
        self._controls = controls
        self._start = start
        self._events = Subscription(lambda event: event.run_id == run.id and event.type not in BY_NAME, _WAITING)
        self._task: asyncio.Task[AgentResult] | None = None
        self._detach: Callable[[], None] = lambda: None

    @property
    def result(self) -> AgentResult:
        """How the run ended. Raises INVALID_STATE while it is under way."""
        if self._task is None or not self._task.done():
            raise RunraError("INVALID_STATE", "the run has not ended: read its events to the end first", status=0)
        return self._task.result()

    @property
    def dropped(self) -> int:
        """How many events were lost because they were not read in time."""
        return self._events.dropped

    async def send_message(self, message: str) -> None:
        """Say more to the agent: it has it as the next turn of the same conversation. Raises INVALID_CONFIG for an
        agent that takes no messages, INVALID_STATE when the run has ended."""
        await self._controls.send_message(message)

    async def stop(self) -> None:
        """End the agent's work; the run then ends with a result whose failure is `stopped`, costs and files in it.
        One that has ended is fine."""
        await self._controls.stop()

    async def __aenter__(self) -> Self:
        self._detach = self._session.listen(self._events.offer)
        self._task = asyncio.create_task(self._start(), name=f"runra-run {self.id}")
        self._task.add_done_callback(lambda _: self._events.close())
        return self

    async def __aiter__(self) -> AsyncIterator[Event]:
        if self._task is None:
            raise RunraError("INVALID_STATE", "use it as `async with runra.stream(…) as run`", status=0)
        async for event in self._events:
            yield event
        await self._task

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None, "__aenter__ makes it"
        self._detach()
        self._events.close()
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=_STOP_S)
