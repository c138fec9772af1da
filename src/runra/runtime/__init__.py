"""The runtime: an agent, a model and exporters around a sandbox of any provider. Names are loaded when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from runra.errors import RunraError as RunraError
    from runra.events import Event as Event
    from runra.runtime.blocking import SyncProcess as SyncProcess
    from runra.runtime.blocking import SyncRunra as SyncRunra
    from runra.runtime.blocking import SyncSandbox as SyncSandbox
    from runra.runtime.capabilities import Capabilities as Capabilities
    from runra.runtime.options import RunraOptions as RunraOptions
    from runra.runtime.providers import AgentAdapter as AgentAdapter
    from runra.runtime.providers import Exporter as Exporter
    from runra.runtime.providers import LLMProvider as LLMProvider
    from runra.runtime.providers import SandboxProvider as SandboxProvider
    from runra.runtime.run import AgentRun as AgentRun
    from runra.runtime.runtime import Runra as Runra
    from runra.runtime.sandbox import Sandbox as Sandbox
    from runra.runtime.types import AgentResult as AgentResult
    from runra.runtime.types import ExecuteOptions as ExecuteOptions
    from runra.runtime.types import SandboxHandle as SandboxHandle
    from runra.runtime.types import StartParams as StartParams

#: Where each name lives.
_HOMES: Final = {
    "AgentAdapter": "runra.runtime.providers",
    "AgentResult": "runra.runtime.types",
    "AgentRun": "runra.runtime.run",
    "Capabilities": "runra.runtime.capabilities",
    "Event": "runra.events",
    "ExecuteOptions": "runra.runtime.types",
    "Exporter": "runra.runtime.providers",
    "LLMProvider": "runra.runtime.providers",
    "Runra": "runra.runtime.runtime",
    "RunraError": "runra.errors",
    "RunraOptions": "runra.runtime.options",
    "Sandbox": "runra.runtime.sandbox",
    "SandboxHandle": "runra.runtime.types",
    "SandboxProvider": "runra.runtime.providers",
    "StartParams": "runra.runtime.types",
    "SyncProcess": "runra.runtime.blocking",
    "SyncRunra": "runra.runtime.blocking",
    "SyncSandbox": "runra.runtime.blocking",
}

__all__ = [
    "AgentAdapter",
    "AgentResult",
    "AgentRun",
    "Capabilities",
    "Event",
    "ExecuteOptions",
    "Exporter",
    "LLMProvider",
    "Runra",
    "RunraError",
    "RunraOptions",
    "Sandbox",
    "SandboxHandle",
    "SandboxProvider",
    "StartParams",
    "SyncProcess",
    "SyncRunra",
    "SyncSandbox",
]

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'runra.runtime' has no attribute {name!r}")
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
