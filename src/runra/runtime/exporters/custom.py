"""The exporter `custom`: a function, an object or a class of the caller's own; also what plug-ins and
`register_observability_exporter` give."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from pydantic import Field

from runra.errors import RunraError
from runra.events import Event
from runra.runtime.exporters.delivery import Delivery
from runra.runtime.exporters.worker import Worker


class CustomConfig(Delivery):
    """`exporter`: a function of a list of events, an exporter, or a class of one; in a file its place as
    `"package.module:name"`. `config` goes to its `initialize`, when it has one."""

    exporter: Any
    config: dict[str, Any] = Field(default_factory=dict)


class CustomExporter:
    """Wraps what was given. What is `async def` runs on the event loop and must not block it; what is not, in a thread
    of its own. `initialize(config)` or `start()`, `export(events)`, `flush()`, `close()` or `dispose()` are called
    where there are such; only `export`, or being callable, is required.
    """

    Config = CustomConfig

    def __init__(self, config: CustomConfig) -> None:
        given = _found(config.exporter) if isinstance(config.exporter, str) else config.exporter
        if inspect.isclass(given):
            given = given()
        export = getattr(given, "export", None) or given
        if not callable(export):
            raise RunraError(
                "INVALID_CONFIG",
                f"custom.exporter: must be a function of a list of events or have export(), not {type(given).__name__}",
                details={"field": "exporter", "provider": "custom"},
            )
        named = getattr(given, "name", None) or getattr(given, "id", None)
        self.name = named if isinstance(named, str) and named else "custom"
        self._given = given
        self._export: Callable[[Sequence[Event]], Any] = export
        self._config: Mapping[str, Any] = config.config
        self._worker = Worker(self.name)

    async def start(self) -> None:
        await self._optional("initialize", dict(self._config))
        await self._optional("start")

    async def export(self, events: Sequence[Event]) -> None:
        await self._call(self._export, list(events))

    async def close(self) -> None:
        try:
            await self._optional("flush")
            await self._optional("close")
            await self._optional("dispose")
        finally:
            self._worker.stop()

    async def _optional(self, method: str, *args: Any) -> None:
        call = getattr(self._given, method, None)
        if callable(call) and not inspect.isfunction(self._given):
            await self._call(call, *args)

    async def _call(self, call: Callable[..., Any], *args: Any) -> None:
        if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None)):  # noqa: B004
            await call(*args)
            return
        given = await self._worker.run(call, *args)
        if isinstance(given, Awaitable):  # a plain function that returns a coroutine
            await given


def _found(place: str) -> Any:
    module, colon, name = place.partition(":")
    try:
        if not colon:
            raise AttributeError("no ':' in it")
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RunraError(
            "INVALID_CONFIG",
            f"custom.exporter: {place!r} cannot be imported ({error}); give package.module:name",
            details={"field": "exporter", "provider": "custom"},
        ) from None
