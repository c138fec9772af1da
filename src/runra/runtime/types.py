"""The runtime's types: what a run is started with and how it ends, and what a provider says of a sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import Field

from runra.contract import ExecutionResult, Request, SandboxState, Wire
from runra.sdk.output import OutputChunk
from runra.sdk.types import TerminalExit


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
    #: Called at once with each piece of output as it came; what `exec.streamed` is made of.
    on_output: Callable[[OutputChunk], None] | None = None


class StdinWriter(Protocol):
    """A stdin that stays open for many writes."""

    async def write(self, data: bytes) -> None:
        """Returns when the data is on its way; raises what ended the stream before."""
        ...

    async def wait_closed(self) -> None:
        """Raises what ends the stream, when that happens; returns when it was closed here."""
        ...


#: Opens one: leaving it leaves the process's stdin open.
HoldStdin = Callable[[], AbstractAsyncContextManager[StdinWriter]]


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


class TerminalHandle(Protocol):
    """A terminal, as `runra.runtime.terminal.Terminal` describes it."""

    @property
    def pid(self) -> int | None: ...

    @property
    def exit(self) -> TerminalExit | None: ...

    async def send(self, data: str | bytes) -> None: ...

    async def recv(self, timeout_ms: int | None = None) -> bytes | None: ...

    async def resize(self, rows: int, cols: int) -> None: ...

    async def wait(self, timeout_ms: int | None = None) -> TerminalExit: ...

    async def close(self) -> None: ...


class PortInfo(Wire):
    """A port of a sandbox and where it is reached (seed, Port)."""

    port: int
    url: str
    exposed_at: str = ""


@dataclass(frozen=True)
class ResourceUse:
    """What a sandbox uses now; None where a provider does not tell. `cpu_ms`: CPU time so far."""

    cpu_ms: int | None = None
    cpu_limit: float | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    disk_bytes: int | None = None
    disk_limit_bytes: int | None = None


class StartParams(Request):
    """What `start` is given: the prompt, and a sandbox by id, or options of a new one (the defaults when unset).
    `session_id`: go on with a conversation an earlier run in that sandbox had. `diff`: keep what the agent changed in
    text files, as one unified diff."""

    prompt: str = Field(min_length=1)
    sandbox_id: str | None = None
    sandbox_options: dict[str, Any] | None = None
    session_id: str | None = Field(None, min_length=1, max_length=200)
    diff: bool = False


class Usage(Wire):
    """Tokens, counted alike for all providers: `input_tokens` without what the cache read or wrote, `output_tokens`
    with `reasoning_tokens` in them. `cost` in US dollars where the provider itself says so."""

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | None = None

    @property
    def total(self) -> int:
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens + self.output_tokens


class Failure(Wire):
    """Why a run failed. `kind`: one of the model's (`llms.failures.Kind`), or `setup` (the agent could not be started),
    `silence` (it said nothing for too long), `timeout`, `stopped` (by its caller), `sandbox` (it broke), `no_result`
    (the agent never said how it ended), `failed`. `stderr`: the agent's last lines there."""

    kind: str
    message: str
    retryable: bool = False
    stderr: list[str] = Field(default_factory=list)


class ChangedFiles(Wire):
    """Files below the agent's workdir that differ from before the run, `.git` left out; at most 1,000 of a kind are
    named, and `truncated` says that there were more."""

    created: list[str] = Field(default_factory=list)
    modified: list[str] = Field(default_factory=list)
    deleted: list[str] = Field(default_factory=list)
    truncated: bool = False


class AgentResult(Wire):
    """How a run ended (seed, AgentResult). `total_cost` in US dollars; None where a model's price is not known.

    `cost_source`: who counted it, our `gateway`, the `agent` itself, or `none` where no model was paid for. `files` is
    None where it could not be told. `session_id` goes into a later `start` in the same sandbox.
    """

    success: bool
    summary: str
    total_turns: int = 0
    total_duration_ms: int = 0
    total_cost: float | None = 0.0
    error: str | None = None
    run_id: str = ""
    sandbox_id: str = ""
    session_id: str = ""
    cost_source: Literal["gateway", "agent", "none"] = "none"
    usage: Usage = Field(default_factory=Usage)
    usage_by_model: dict[str, Usage] = Field(default_factory=dict)
    files: ChangedFiles | None = None
    diff: str | None = None
    failure: Failure | None = None
    warnings: list[str] = Field(default_factory=list)
