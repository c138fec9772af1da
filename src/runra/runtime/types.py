"""The runtime's types: what a run is started with and how it ends, and what a provider says of a sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import Field

from runra.contract import ExecutionResult, Request, SandboxState, Wire
from runra.sdk.output import OutputChunk


class SandboxHandle(Wire):
    """What a provider knows of a sandbox (seed, SandboxHandle). Fields a provider cannot tell are None or empty."""

    id: str
    state: SandboxState
    image: str = ""
    resources: dict[str, int] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)
    metadata: dict[str, str] = Field(default_factory=dict)
    workdir: str = "/workspace"
    timeout_ms: int | None = None
    idle_timeout_ms: int | None = None
    network: dict[str, Any] = Field(default_factory=dict)
    created_at: str = ""
    started_at: str | None = None
    paused_at: str | None = None
    terminated_at: str | None = None
    termination_reason: str | None = None


@dataclass(frozen=True)
class ExecuteOptions:
    """How a command is run. `timeout_ms` None means the provider's default of 60,000 ms for `execute` and no limit for
    a process in the background. `on_stdout` and `on_stderr` get each line, without its end."""

    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    timeout_ms: int | None = None
    stdin: str | bytes | None = None
    user: str | None = None
    on_stdout: Callable[[str], Any] | None = None
    on_stderr: Callable[[str], Any] | None = None


class ProcessHandle(Protocol):
    """A command that runs in the background."""

    @property
    def pid(self) -> int: ...

    def output(self) -> AsyncIterator[OutputChunk]:
        """Its output as it comes, until it ends. To be read once."""
        ...

    async def wait(self) -> ExecutionResult:
        """How it ended. Output that `output` did not take is in the result."""
        ...

    async def send_stdin(self, data: bytes) -> None: ...

    async def close_stdin(self) -> None: ...

    async def kill(self) -> None:
        """End it and what it started; one that has ended is fine."""
        ...


class PortInfo(Wire):
    """A port of a sandbox and where it is reached (seed, Port)."""

    port: int
    url: str
    exposed_at: str = ""


class StartParams(Request):
    """What `start` is given: the prompt, and a sandbox by id, or options of a new one (the defaults when unset)."""

    prompt: str = Field(min_length=1)
    sandbox_id: str | None = None
    sandbox_options: dict[str, Any] | None = None


class AgentResult(Wire):
    """How a run ended (seed, AgentResult). `total_cost` in US dollars; None where a model's price is not known."""

    success: bool
    summary: str
    total_turns: int = 0
    total_duration_ms: int = 0
    total_cost: float | None = 0.0
    error: str | None = None
    run_id: str = ""


StopReason = Literal["end_turn", "tool_use", "max_tokens", "stop"]
