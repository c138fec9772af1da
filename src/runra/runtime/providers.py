"""The interfaces a provider fulfils: sandboxes, agents, models, exporters (seed, Provider Interfaces)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from runra.contract import ExecutionResult
from runra.events import Event
from runra.runtime.types import AgentResult, ExecuteOptions, SandboxHandle
from runra.sdk.types import ListOptions, SandboxConfig

if TYPE_CHECKING:
    from runra.runtime.capabilities import Capabilities
    from runra.runtime.run import AgentRun


@runtime_checkable
class SandboxProvider(Protocol):
    """Where sandboxes come from. `capabilities` declares the optional abilities; what is not declared is never asked
    for, so it needs no method. `BaseProvider` in `runra.runtime.sandboxes` has what most have in common.

    Errors are RunraError with the contract's codes: SANDBOX_NOT_FOUND for an id that is gone or never was,
    INVALID_STATE for a call the sandbox's state forbids, EXECUTION_TIMEOUT with the output so far in `details`.
    """

    id: str
    capabilities: Capabilities

    async def initialize(self, config: Mapping[str, Any]) -> None:
        """Check the configuration (camelCase names, `apiKey` and `apiUrl` among them) and connect. Called once."""
        ...

    async def create(self, config: SandboxConfig) -> SandboxHandle:
        """A running sandbox. Cancelled, it leaves none behind."""
        ...

    async def get(self, id: str) -> SandboxHandle: ...

    async def list(self, options: ListOptions | None = None) -> list[SandboxHandle]: ...

    async def execute(
        self, id: str, command: str | Sequence[str], options: ExecuteOptions | None = None
    ) -> ExecutionResult:
        """Run a command to its end: a string through a shell, a list as it stands. An exit code is a result."""
        ...

    async def pause(self, id: str) -> None: ...

    async def resume(self, id: str) -> None: ...

    async def terminate(self, id: str) -> None:
        """End it; one that has ended already is fine."""
        ...

    async def write_file(self, id: str, path: str, content: str | bytes) -> None: ...

    async def read_file(self, id: str, path: str) -> str: ...

    async def dispose(self) -> None:
        """Free connections. Sandboxes live on: the runtime ends those it owns before."""
        ...


@runtime_checkable
class AgentAdapter(Protocol):
    """An agent. `send_message` and `stop` are optional, as in the seed: declare them only when you have them."""

    id: str

    async def initialize(self, config: Mapping[str, Any]) -> None: ...

    async def start(self, run: AgentRun) -> AgentResult:
        """Work on `run.prompt` in `run.sandbox` until done. Cancelled, it stops at once and leaves nothing running."""
        ...

    async def dispose(self) -> None: ...


@runtime_checkable
class LLMProvider(Protocol):
    """A model behind `chat` and `stream`; requests and answers are the types of `runra.runtime.llms`."""

    id: str

    async def initialize(self, config: Mapping[str, Any]) -> None: ...

    async def chat(self, request: Any) -> Any: ...

    def stream(self, request: Any) -> AsyncIterator[Any]: ...

    async def dispose(self) -> None: ...


@runtime_checkable
class Exporter(Protocol):
    """Where events go. `runra.runtime.exporters` queues, batches, filters and redacts before `export` is called."""

    name: str

    async def start(self) -> None: ...

    async def export(self, events: Sequence[Event]) -> None: ...

    async def close(self) -> None: ...
