"""One test for both forms: the sync client made to look async, each of its calls on a thread."""

from __future__ import annotations

import asyncio
import types
from typing import Any

from runra import Files, Process, Runra, Sandbox, SandboxList, Stdin, Terminal
from runra.sdk._sync.admin import ApiKeys, Organizations
from runra.sdk._sync.events import EventStream
from runra.sdk._sync.files import FileStream
from runra.sdk._sync.images import Images
from runra.sdk._sync.kept import Snapshots, Volumes
from runra.sdk._sync.processes import Processes
from runra.sdk._sync.sandboxes import Sandboxes

_WRAPPED = (
    *(Runra, Sandbox, Sandboxes, Files, FileStream, Process, Processes, Terminal, EventStream, ApiKeys, Organizations),
    *(Images, Snapshots, Stdin, Volumes),
    types.GeneratorType,
)
#: What returns at once in the async form as well.
_PLAIN = frozenset(("on", "events", "logs", "watch", "iter", "open_stdin"))
_END = object()


def wrapped(value: Any) -> Any:
    if isinstance(value, SandboxList):
        return SandboxList([wrapped(item) for item in value.data], value.pagination)
    if isinstance(value, list):
        return [wrapped(item) for item in value]
    return Threaded(value) if isinstance(value, _WRAPPED) else value


class Threaded:
    """A sync object with the surface of its async form."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, "close" if name == "aclose" else name)
        if not callable(value):
            return wrapped(value)
        if name in _PLAIN:
            return lambda *args, **named: wrapped(value(*args, **named))

        async def call(*args: Any, **named: Any) -> Any:
            return wrapped(await asyncio.to_thread(value, *args, **named))

        return call

    async def __aenter__(self) -> Threaded:
        await asyncio.to_thread(self._target.__enter__)
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await asyncio.to_thread(self._target.__exit__, *exc)

    async def __aiter__(self) -> Any:
        iterator = iter(self._target)
        while (item := await asyncio.to_thread(next, iterator, _END)) is not _END:
            yield wrapped(item)

    async def __anext__(self) -> Any:
        item = await asyncio.to_thread(next, self._target, _END)
        if item is _END:
            raise StopAsyncIteration
        return wrapped(item)
