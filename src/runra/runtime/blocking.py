"""The runtime for programs without an event loop: the same calls, each waiting for its end.

Made by scripts/generate_blocking.py from the asynchronous classes: never edit it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from runra.contract import ExecutionResult, FileEntry, SandboxState, SnapshotInfo
from runra.contract import SandboxConfig as Config
from runra.runtime.bus import Handler
from runra.runtime.config import Resolved
from runra.runtime.files import SandboxFiles
from runra.runtime.portal import Portal
from runra.runtime.process import Process
from runra.runtime.runtime import DISPOSE_MS, Runra
from runra.runtime.sandbox import Sandbox
from runra.runtime.stream import RunStream
from runra.runtime.terminal import Terminal
from runra.runtime.types import AgentResult, PortInfo, SandboxHandle, StartParams
from runra.sdk.output import OutputChunk
from runra.sdk.types import ExecOptions, ListOptions, SandboxConfig, TerminalExit

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from runra.contract.network import Network
    from runra.events import Event
    from runra.runtime.options import RunraOptions
    from runra.runtime.providers import AgentAdapter, Exporter, LLMProvider, SandboxProvider
    from runra.runtime.sandboxes.base import BaseProvider
    from runra.sdk.types import SandboxOptions


class SyncProcess:
    """A command that runs in the background. It lives in the sandbox, not here: a handle needs no closing."""

    def __init__(self, portal: Portal, inner: Process) -> None:
        self._portal = portal
        self._inner: Any = inner

    @property
    def pid(self) -> int:
        """Its number, as seen inside where the provider tells that."""
        return self._inner.pid

    def output(self) -> Iterator[OutputChunk]:
        """Its output as it comes, until it ends. Read it once: what nobody reads is kept only in part."""
        return self._portal.iterate(self._inner.output())

    def wait(self) -> ExecutionResult:
        """Wait for its end. The result has the output that was kept, the first 8 MiB of each stream.

        Raises EXECUTION_TIMEOUT when it was killed by the timeout it was started with.
        """
        return self._portal.call(lambda: self._inner.wait())

    def send_stdin(self, data: str | bytes) -> None:
        """Write to its stdin. Raises INVALID_STATE when that is closed."""
        self._portal.call(lambda: self._inner.send_stdin(data))

    def close_stdin(self) -> None:
        """End its stdin."""
        self._portal.call(lambda: self._inner.close_stdin())

    def kill(self) -> None:
        """Kill it and what it started; one that has ended already is fine."""
        self._portal.call(lambda: self._inner.kill())

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def command(self) -> str:
        return self._inner.command

    @property
    def result(self) -> ExecutionResult | None:
        return self._inner.result


class SyncSandboxFiles:
    """Files of one sandbox. A relative path starts at the sandbox's workdir.

    What fails raises INVALID_REQUEST whose `details["reason"]` says why (`not_found`, `not_empty`, …).
    """

    def __init__(self, portal: Portal, inner: SandboxFiles) -> None:
        self._portal = portal
        self._inner: Any = inner

    @overload
    def read(self, path: str, *, format: Literal["text"] = "text") -> str: ...

    @overload
    def read(self, path: str, *, format: Literal["bytes"]) -> bytes: ...

    def read(self, path: str, *, format: Literal["text", "bytes"] = "text") -> str | bytes:
        """A file's content, as text (UTF-8) or as bytes."""
        return self._portal.call(lambda: self._inner.read(path, format=format))

    def write(self, path: str, content: str | bytes) -> None:
        """Write a file, whole or not at all; missing folders are made."""
        self._portal.call(lambda: self._inner.write(path, content))

    def exists(self, path: str) -> bool:
        """Whether there is anything at `path`."""
        return self._portal.call(lambda: self._inner.exists(path))

    def delete(self, path: str, *, recursive: bool = False) -> None:
        """Delete a file or an empty folder; a full one with `recursive`. A link is deleted, not what it leads to."""
        self._portal.call(lambda: self._inner.delete(path, recursive=recursive))

    def mkdir(self, path: str, *, recursive: bool = False) -> None:
        """Make a folder; `recursive` makes those above it too, and does not mind one that is there."""
        self._portal.call(lambda: self._inner.mkdir(path, recursive=recursive))

    def list(self, path: str = ".") -> list[FileEntry]:
        """What is in a folder."""
        return self._portal.call(lambda: self._inner.list(path))


class SyncTerminal:
    """An open terminal: send keys, read what it shows. Close it, or use it as a context manager.

    With `runra-sandbox` closing only detaches; its command runs on, and `terminal(pid=…, offset=…)` takes it up again.
    At the other providers nobody could: closing ends it.
    """

    def __init__(self, portal: Portal, inner: Terminal) -> None:
        self._portal = portal
        self._inner: Any = inner

    @property
    def pid(self) -> int | None:
        """The process behind it, as the provider numbers it; None where that is not told."""
        return self._inner.pid

    @property
    def exit(self) -> TerminalExit | None:
        """How its command ended; None while it runs."""
        return self._inner.exit

    def send(self, data: str | bytes) -> None:
        """Type `data`. Raises INVALID_STATE or NETWORK_ERROR when its command has ended."""
        self._portal.call(lambda: self._inner.send(data))

    def recv(self, timeout_ms: int | None = None) -> bytes | None:
        """The next output, or None once its command has ended. Raises NETWORK_ERROR, with `details["reason"]`
        `timeout` when nothing came within `timeout_ms` milliseconds, `closed` when the connection was lost."""
        return self._portal.call(lambda: self._inner.recv(timeout_ms))

    def resize(self, rows: int, cols: int) -> None:
        """Tell it the size of its window, in characters."""
        self._portal.call(lambda: self._inner.resize(rows, cols))

    def wait(self, timeout_ms: int | None = None) -> TerminalExit:
        """Wait for its command to end; what it shows meanwhile is dropped. Raises NETWORK_ERROR as `recv` does."""
        return self._portal.call(lambda: self._inner.wait(timeout_ms))

    def close(self) -> None:
        """Let go of it. Closing it twice is fine."""
        self._portal.call(lambda: self._inner.close())

    def __iter__(self) -> Iterator[bytes]:
        return self._portal.iterate(self._inner.__aiter__())

    def __enter__(self) -> Self:
        self._portal.call(lambda: self._inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal.call(lambda: self._inner.__aexit__(kind, error, trace))

    def __repr__(self) -> str:
        return repr(self._inner)


class SyncSandbox:
    """A sandbox of any provider. Its fields say what the provider last answered. As a context manager it is terminated
    at the end.

    What the provider has not declared (see `docs/providers.md`) raises INVALID_CONFIG before anything happens.
    """

    def __init__(self, portal: Portal, inner: Sandbox) -> None:
        self._portal = portal
        self._inner: Any = inner
        self.files = SyncSandboxFiles(portal, inner.files)

    @property
    def id(self) -> str:
        return self._inner.id

    @property
    def handle(self) -> SandboxHandle:
        """Everything the provider said, at once."""
        return self._inner.handle

    @property
    def provider(self) -> str:
        """The provider's id."""
        return self._inner.provider

    @property
    def state(self) -> SandboxState:
        """`creating`, `running`, `paused` or `terminated`, when the provider was last asked."""
        return self._inner.state

    @property
    def image(self) -> str:
        return self._inner.image

    @property
    def resources(self) -> dict[str, int]:
        """Its limits, by the names `cpu`, `memoryMb`, `diskMb`; those the provider does not tell are missing."""
        return self._inner.resources

    @property
    def env(self) -> dict[str, str]:
        return self._inner.env

    @property
    def metadata(self) -> dict[str, str]:
        return self._inner.metadata

    @property
    def workdir(self) -> str:
        return self._inner.workdir

    @overload
    def exec(
        self,
        command: str | Sequence[str],
        options: ExecOptions | Mapping[str, Any] | None = None,
        *,
        background: Literal[True],
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_ms: int | None = None,
        stdin: str | bytes | None = None,
        user: str | None = None,
    ) -> SyncProcess: ...

    @overload
    def exec(
        self,
        command: str | Sequence[str],
        options: ExecOptions | Mapping[str, Any] | None = None,
        *,
        background: Literal[False] = False,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_ms: int | None = None,
        stdin: str | bytes | None = None,
        user: str | None = None,
        on_stdout: Callable[[str], Any] | None = None,
        on_stderr: Callable[[str], Any] | None = None,
        check: bool = False,
    ) -> ExecutionResult: ...

    def exec(
        self,
        command: str | Sequence[str],
        options: ExecOptions | Mapping[str, Any] | None = None,
        *,
        background: bool = False,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_ms: int | None = None,
        stdin: str | bytes | None = None,
        user: str | None = None,
        on_stdout: Callable[[str], Any] | None = None,
        on_stderr: Callable[[str], Any] | None = None,
        check: bool = False,
    ) -> ExecutionResult | SyncProcess:
        """Run a command: a string through the sandbox's shell, or a list of arguments as it stands.

        `cwd`: the sandbox's workdir when unset. `env` is added to the sandbox's. `timeout_ms`: 60,000 ms when unset; at
        its end the command is killed and EXECUTION_TIMEOUT raised, with the output so far in its `details`. `stdin`:
        piped in. `on_stdout`, `on_stderr`: called with each line as it comes. An exit code other than 0 is a result;
        with `check` it raises CommandFailed. `background` returns a process at once, without a timeout unless one is
        given.

        Raises RunraError: INVALID_CONFIG for what the provider cannot do, INVALID_STATE when the sandbox is not
        running, SANDBOX_NOT_FOUND when it is gone, EXECUTION_TIMEOUT, NETWORK_ERROR.
        """
        return self._portal.wrap(
            self._portal.call(
                lambda: self._inner.exec(
                    command,
                    options,
                    background=background,
                    cwd=cwd,
                    env=env,
                    timeout_ms=timeout_ms,
                    stdin=stdin,
                    user=user,
                    on_stdout=on_stdout,
                    on_stderr=on_stderr,
                    check=check,
                )
            )
        )

    def terminal(self, cols: int = 80, rows: int = 24, **options: Any) -> SyncTerminal:
        """Open a terminal of `cols` by `rows` characters, with a shell in it or with `command`; `cwd`, `user` and, but
        for `runra-sandbox`, `env` as in `exec`. `pid` and `offset` take up one of `runra-sandbox` again. An open
        terminal is activity.

        Raises INVALID_CONFIG for what the provider cannot do, INVALID_REQUEST for an option that cannot be.
        """
        return self._portal.wrap(self._portal.call(lambda: self._inner.terminal(cols, rows, **options)))

    def expose_port(self, port: int) -> PortInfo:
        """Make a port inside reachable; the answer's `url` says where."""
        return self._portal.call(lambda: self._inner.expose_port(port))

    def get_ports(self) -> list[PortInfo]:
        """The ports that are exposed."""
        return self._portal.call(lambda: self._inner.get_ports())

    def close_port(self, port: int) -> None:
        """Make a port unreachable again."""
        self._portal.call(lambda: self._inner.close_port(port))

    def set_network(self, network: Network) -> None:
        """Replace the network policy while it runs, its secrets with it."""
        self._portal.call(lambda: self._inner.set_network(network))

    def snapshot(self, name: str | None = None) -> SnapshotInfo:
        """Keep its files as they are now; it goes on as before. Make others by `create_sandbox(image="snapshot:…")`
        with the name or id. Raises INVALID_STATE when the name is taken."""
        return self._portal.call(lambda: self._inner.snapshot(name))

    def refresh(self) -> Self:
        """Ask the provider for this sandbox's fields anew."""
        self._portal.call(lambda: self._inner.refresh())
        return self

    def pause(self) -> None:
        """Freeze it: files and processes stay as they are. Pausing a paused one is fine."""
        self._portal.call(lambda: self._inner.pause())

    def resume(self) -> None:
        """Let it run on. Resuming a running one is fine."""
        self._portal.call(lambda: self._inner.resume())

    def terminate(self) -> None:
        """End it and free everything it had. A terminated one is fine; cancelled, it is ended all the same."""
        self._portal.call(lambda: self._inner.terminate())

    def on(self, event: str, handler: Callable[..., Any]) -> Callable[[], None]:
        """Call `handler` with the event when this sandbox is `started`, `paused`, `resumed`, `terminated`, or has an
        `error`. Returns a function that takes it off again."""
        return self._portal.do(lambda: self._inner.on(event, handler))

    def __enter__(self) -> Self:
        self._portal.call(lambda: self._inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal.call(lambda: self._inner.__aexit__(kind, error, trace))

    def __repr__(self) -> str:
        return repr(self._inner)


class SyncRunStream:
    """Events of one run: iterate it in an `async with` block. `result` is there once the iteration has ended; a run
    that could not begin raises from the iteration. Who reads 10,000 events too slowly loses the oldest."""

    def __init__(self, portal: Portal, inner: RunStream) -> None:
        self._portal = portal
        self._inner: Any = inner

    @property
    def result(self) -> AgentResult:
        """How the run ended. Raises INVALID_STATE while it is under way."""
        return self._inner.result

    @property
    def dropped(self) -> int:
        """How many events were lost because they were not read in time."""
        return self._inner.dropped

    def send_message(self, message: str) -> None:
        """Say more to the agent: it has it as the next turn of the same conversation. Raises INVALID_CONFIG for an
        agent that takes no messages, INVALID_STATE when the run has ended."""
        self._portal.call(lambda: self._inner.send_message(message))

    def stop(self) -> None:
        """End the agent's work; the run then ends with a result whose failure is `stopped`, costs and files in it.
        One that has ended is fine."""
        self._portal.call(lambda: self._inner.stop())

    def __enter__(self) -> Self:
        self._portal.call(lambda: self._inner.__aenter__())
        return self

    def __iter__(self) -> Iterator[Event]:
        return self._portal.iterate(self._inner.__aiter__())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal.call(lambda: self._inner.__aexit__(kind, error, trace))

    @property
    def id(self) -> str:
        return self._inner.id


class SyncRunra:
    """An agent, a model and exporters around a sandbox of any provider (seed, `@runra/runtime`).

    Options as one model or dict, or by name; what is not given comes from the environment and the configuration files
    (`runra.runtime.config.resolve` has the order). `sandbox`, `agent`, `llm` and `observability` also take a provider's
    name alone. Use it in an `async with` block, or call `dispose`: sandboxes made here end with it.

    Raises INVALID_CONFIG for options that cannot be; nothing is connected before the first call.
    """

    def __init__(
        self,
        options: RunraOptions | Mapping[str, Any] | None = None,
        *,
        sandbox: Mapping[str, Any] | str | None = None,
        agent: Mapping[str, Any] | str | None = None,
        llm: Mapping[str, Any] | str | None = None,
        observability: Mapping[str, Any] | str | None = None,
        config_file: str | Path | None = None,
    ) -> None:
        inner = Runra(
            options, sandbox=sandbox, agent=agent, llm=llm, observability=observability, config_file=config_file
        )
        self._portal = Portal(WRAPPERS)
        self._inner: Any = inner

    @property
    def config(self) -> Resolved:
        """The options in force, and where each came from."""
        return self._inner.config

    @property
    def provider(self) -> BaseProvider:
        """The sandbox provider; its `capabilities` say what it can do."""
        return self._inner.provider

    @property
    def events_dropped(self) -> int:
        """How many events handlers have lost by being too slow."""
        return self._inner.events_dropped

    def create_sandbox(
        self, config: SandboxConfig | Config | Mapping[str, Any] | None = None, **options: Unpack[SandboxOptions]
    ) -> SyncSandbox:
        """Create a sandbox; it is running when this returns, and ends with `dispose` unless it was ended before or
        `keep_sandbox` let it go. What is left unset comes from `sandbox.defaults`, then from the provider.

        Raises INVALID_CONFIG naming provider and ability for what the provider cannot do, before anything starts;
        INVALID_REQUEST for a bad option; RESOURCE_EXHAUSTED. Cancelled, it leaves no sandbox behind.
        """
        return self._portal.wrap(self._portal.call(lambda: self._inner.create_sandbox(config, **options)))

    def get_sandbox(self, id: str) -> SyncSandbox | None:
        """The sandbox with this id, None when there is none. It does not end with `dispose` unless it was made here."""
        return self._portal.wrap(self._portal.call(lambda: self._inner.get_sandbox(id)))

    def list_sandboxes(
        self, options: ListOptions | Mapping[str, Any] | None = None, **filters: Any
    ) -> list[SyncSandbox]:
        """The provider's sandboxes, by `state`, `image`, `metadata`: all, or a page by `limit` and `offset`."""
        return self._portal.wrap(self._portal.call(lambda: self._inner.list_sandboxes(options, **filters)))

    def keep_sandbox(self, sandbox: SyncSandbox) -> None:
        """Let a sandbox live on after `dispose`."""
        self._portal.do(lambda: self._inner.keep_sandbox(sandbox._inner))

    def start(
        self,
        prompt: str | StartParams | Mapping[str, Any],
        *,
        sandbox_id: str | None = None,
        sandbox_options: SandboxConfig | Mapping[str, Any] | None = None,
        session_id: str | None = None,
        diff: bool | None = None,
        timeout_ms: int | None = None,
    ) -> AgentResult:
        """Let the agent work on a prompt until it is done: in the sandbox `sandbox_id`, or in a new one of
        `sandbox_options`, which ends with the run; unless said otherwise it is of the agent's own image and lives for
        5 minutes longer than `timeout_ms`, or for an hour.

        `session_id` goes on with an earlier run's conversation in the same sandbox. `diff` keeps what was changed in
        text files as one unified diff. An agent that fails is a result with `success` False, its `error` and `failure`.
        `timeout_ms` ends the run likewise; there is none when unset. Cancelled, the agent is stopped and a sandbox made
        for it is ended. Raises INVALID_CONFIG when no agent is configured or it cannot do what is asked, and whatever
        making the sandbox raises.
        """
        return self._portal.call(
            lambda: self._inner.start(
                prompt,
                sandbox_id=sandbox_id,
                sandbox_options=sandbox_options,
                session_id=session_id,
                diff=diff,
                timeout_ms=timeout_ms,
            )
        )

    def stream(
        self,
        prompt: str | StartParams | Mapping[str, Any],
        *,
        sandbox_id: str | None = None,
        sandbox_options: SandboxConfig | Mapping[str, Any] | None = None,
        session_id: str | None = None,
        diff: bool | None = None,
        timeout_ms: int | None = None,
    ) -> SyncRunStream:
        """As `start`, with the run's events as they come: `async with runra.stream(…) as run: async for event in run`;
        then `run.result`. `run.send_message` says more to the agent, `run.stop` ends its work. Leaving the block early
        cancels the run."""
        return self._portal.wrap(
            self._portal.do(
                lambda: self._inner.stream(
                    prompt,
                    sandbox_id=sandbox_id,
                    sandbox_options=sandbox_options,
                    session_id=session_id,
                    diff=diff,
                    timeout_ms=timeout_ms,
                )
            )
        )

    def on(self, event: str, handler: Handler) -> Callable[[], None]:
        """Call `handler`, sync or async, with each event of a type (`exec.completed`), a topic (`sandbox.*`) or all
        (`*`), in order, apart from the run. Returns a function that takes it off again. Raises INVALID_REQUEST for an
        event there is none of."""
        return self._portal.do(lambda: self._inner.on(event, handler))

    def dispose(self, timeout_ms: int = DISPOSE_MS) -> None:
        """End the runs and the sandboxes made here, hand the last events to handlers and exporters, and free
        everything, within `timeout_ms`. What could not be ended by then is named in the log."""
        if self._portal.open:
            try:
                self._portal.call(lambda: self._inner.dispose(timeout_ms))
            finally:
                self._portal.close()

    def __enter__(self) -> Self:
        self._portal.call(lambda: self._inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dispose()

    def __repr__(self) -> str:
        return repr(self._inner)

    @staticmethod
    def register_sandbox_provider(id: str, factory: Callable[[], SandboxProvider]) -> None:
        """Know a sandbox provider by `id`, in this process, from now on. A class is a factory."""
        Runra.register_sandbox_provider(id, factory)

    @staticmethod
    def register_agent_adapter(id: str, factory: Callable[[], AgentAdapter]) -> None:
        """Know an agent by `id`."""
        Runra.register_agent_adapter(id, factory)

    @staticmethod
    def register_llm_provider(id: str, factory: Callable[[], LLMProvider]) -> None:
        """Know a model provider by `id`."""
        Runra.register_llm_provider(id, factory)

    @staticmethod
    def register_observability_exporter(id: str, factory: Callable[..., Exporter]) -> None:
        """Know an exporter by `id`."""
        Runra.register_observability_exporter(id, factory)


#: The sync form of each class.
WRAPPERS: dict[type[Any], Callable[..., Any]] = {
    Process: SyncProcess,
    SandboxFiles: SyncSandboxFiles,
    Terminal: SyncTerminal,
    Sandbox: SyncSandbox,
    RunStream: SyncRunStream,
}
