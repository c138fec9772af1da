"""A sandbox as the runtime gives it: the same calls whatever the provider, and an event for each."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from runra.contract import ExecutionResult, SandboxState
from runra.errors import RunraError
from runra.runtime.capabilities import needs_of_execute, needs_of_network, require
from runra.runtime.files import SandboxFiles
from runra.runtime.process import Process, Told, shown, tell_end, telling
from runra.runtime.session import Session
from runra.runtime.tasks import to_end
from runra.runtime.terminal import Terminal
from runra.runtime.types import ExecuteOptions, PortInfo, SandboxHandle
from runra.sdk.failures import CommandFailed, invalid
from runra.sdk.lifecycle import check_name
from runra.sdk.types import ExecOptions, checked, merged

if TYPE_CHECKING:
    from runra.contract import SnapshotInfo
    from runra.contract.network import Network
    from runra.events import Event
    from runra.runtime.capabilities import Ability

#: How long ending a sandbox may take when its caller is cancelled, in seconds.
TERMINATE_S = 30.0


class Sandbox:
    """A sandbox of any provider. Its fields say what the provider last answered. As a context manager it is terminated
    at the end.

    What the provider has not declared (see `docs/providers.md`) raises INVALID_CONFIG before anything happens.
    """

    def __init__(self, session: Session, handle: SandboxHandle) -> None:
        self._session = session
        self._provider = session.provider
        self._handle = handle
        self._since = time.monotonic()
        self._ran_s = 0.0
        self.files = SandboxFiles(session, handle.id)

    @property
    def id(self) -> str:
        return self._handle.id

    @property
    def handle(self) -> SandboxHandle:
        """Everything the provider said, at once."""
        return self._handle

    @property
    def provider(self) -> str:
        """The provider's id."""
        return self._provider.id

    @property
    def state(self) -> SandboxState:
        """`creating`, `running`, `paused` or `terminated`, when the provider was last asked."""
        return self._handle.state

    @property
    def image(self) -> str:
        return self._handle.image

    @property
    def resources(self) -> dict[str, int]:
        """Its limits, by the names `cpu`, `memoryMb`, `diskMb`; those the provider does not tell are missing."""
        return dict(self._handle.resources)

    @property
    def env(self) -> dict[str, str]:
        return dict(self._handle.env)

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self._handle.metadata)

    @property
    def workdir(self) -> str:
        return self._handle.workdir

    # --- commands ------------------------------------------------------------------------------------------------

    @overload
    async def exec(
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
    ) -> Process: ...

    @overload
    async def exec(
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

    async def exec(
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
    ) -> ExecutionResult | Process:
        """Run a command: a string through the sandbox's shell, or a list of arguments as it stands.

        `cwd`: the sandbox's workdir when unset. `env` is added to the sandbox's. `timeout_ms`: 60,000 ms when unset; at
        its end the command is killed and EXECUTION_TIMEOUT raised, with the output so far in its `details`. `stdin`:
        piped in. `on_stdout`, `on_stderr`: called with each line as it comes. An exit code other than 0 is a result;
        with `check` it raises CommandFailed. `background` returns a process at once, without a timeout unless one is
        given.

        Raises RunraError: INVALID_CONFIG for what the provider cannot do, INVALID_STATE when the sandbox is not
        running, SANDBOX_NOT_FOUND when it is gone, EXECUTION_TIMEOUT, NETWORK_ERROR.
        """
        keywords = {
            "background": background or None,
            "cwd": cwd,
            "env": env,
            "timeout_ms": timeout_ms,
            "stdin": stdin,
            "user": user,
            "on_stdout": on_stdout,
            "on_stderr": on_stderr,
            "check": check or None,
        }
        chosen = checked(ExecOptions, merged(options, keywords, "exec"))
        wanted = ExecuteOptions(
            cwd=chosen.cwd,
            env=dict(chosen.env or {}),
            timeout_ms=chosen.timeout_ms,
            stdin=chosen.stdin,
            user=chosen.user,
            on_stdout=chosen.on_stdout,
            on_stderr=chosen.on_stderr,
        )
        if not isinstance(command, str):
            command = list(command)
        if not command:
            raise invalid("command", "must not be empty")
        needs = needs_of_execute(wanted)
        if chosen.background:
            if chosen.check or (needs and needs[0][0] == "streaming"):
                raise invalid("background", "has no callbacks and no check; use the handle's output() and wait()")
            needs.append(("background", "background"))
        require(self._provider.id, self._provider.capabilities, needs)
        self._session.hide(wanted.env)
        if chosen.background:
            return await self._start(command, wanted)
        result = await self._run(command, wanted)
        if chosen.check and result.exit_code != 0:
            raise CommandFailed(shown(command), result)
        return result

    async def _start(self, command: str | list[str], options: ExecuteOptions) -> Process:
        told = shown(command)
        output, options = self._tapped(told, options)
        async with self._noticing(), telling(self._session, self.id, told):
            inner = await self._provider.start_process(self.id, command, options)
        return Process(self._session, self.id, told, inner, output)

    async def _run(self, command: str | list[str], options: ExecuteOptions) -> ExecutionResult:
        told = shown(command)
        output, options = self._tapped(told, options)
        async with self._noticing(), telling(self._session, self.id, told):
            self._session.tell("exec.started", self.id, {"command": told, "pid": None})
            output.begin(None)
            try:
                result = await self._provider.execute(self.id, command, options)
            finally:
                output.end()
        tell_end(self._session, self.id, told, None, result)
        return result

    def _tapped(self, command: str, options: ExecuteOptions) -> tuple[Told, ExecuteOptions]:
        """Who tells of its output, and the options with that; where a server tells of it nobody else does."""
        output = Told(self._session, self.id, command)
        return output, options if self._session.told else replace(options, on_output=output.add)

    async def terminal(self, cols: int = 80, rows: int = 24, **options: Any) -> Terminal:
        """Open a terminal of `cols` by `rows` characters, with a shell in it or with `command`; `cwd`, `user` and, but
        for `runra-sandbox`, `env` as in `exec`. `pid` and `offset` take up one of `runra-sandbox` again. An open
        terminal is activity.

        Raises INVALID_CONFIG for what the provider cannot do, INVALID_REQUEST for an option that cannot be.
        """
        self._require("pty", "terminal")
        async with self._noticing():
            return Terminal(await self._provider.open_terminal(self.id, cols=cols, rows=rows, **options))

    # --- ports and network -----------------------------------------------------------------------------------------

    async def expose_port(self, port: int) -> PortInfo:
        """Make a port inside reachable; the answer's `url` says where."""
        self._require("ports", "expose_port")
        exposed = await self._provider.expose_port(self.id, port)
        self._session.tell("port.exposed", self.id, {"port": port, "url": exposed.url})
        return exposed

    async def get_ports(self) -> list[PortInfo]:
        """The ports that are exposed."""
        self._require("ports", "get_ports")
        return await self._provider.list_ports(self.id)

    async def close_port(self, port: int) -> None:
        """Make a port unreachable again."""
        self._require("ports", "close_port")
        await self._provider.close_port(self.id, port)
        self._session.tell("port.closed", self.id, {"port": port})

    async def set_network(self, network: Network) -> None:
        """Replace the network policy while it runs, its secrets with it."""
        needs = [("network_change", "set_network"), *needs_of_network(network)]
        require(self._provider.id, self._provider.capabilities, needs)
        self._session.hide({}, *(secret.value.get_secret_value() for secret in network.secrets))
        async with self._noticing():
            await self._provider.set_network(self.id, network)

    async def snapshot(self, name: str | None = None) -> SnapshotInfo:
        """Keep its files as they are now; it goes on as before. Make others by `create_sandbox(image="snapshot:…")`
        with the name or id. Raises INVALID_STATE when the name is taken."""
        self._require("snapshots", "snapshot")
        async with self._noticing():
            return await self._provider.snapshot(self.id, name)

    def _require(self, ability: Ability, option: str) -> None:
        require(self._provider.id, self._provider.capabilities, [(ability, option)])

    # --- life ----------------------------------------------------------------------------------------------------

    async def refresh(self) -> Self:
        """Ask the provider for this sandbox's fields anew."""
        async with self._noticing():
            self._handle = await self._provider.get(self.id)
        return self

    async def pause(self) -> None:
        """Freeze it: files and processes stay as they are. Pausing a paused one is fine."""
        self._require("pause", "pause")
        before = self.state
        async with self._noticing():
            await self._provider.pause(self.id)
        self._now("paused")
        if before != "paused" and not self._provider.reports_life:
            self._ran_s += time.monotonic() - self._since
            self._since = time.monotonic()
            data = {"runtimeDurationMs": int(self._ran_s * 1000), "reason": "user"}
            self._session.tell("sandbox.paused", self.id, data)

    async def resume(self) -> None:
        """Let it run on. Resuming a running one is fine."""
        self._require("pause", "resume")
        before = self.state
        async with self._noticing():
            await self._provider.resume(self.id)
        self._now("running")
        if before != "running" and not self._provider.reports_life:
            paused_ms = int((time.monotonic() - self._since) * 1000)
            self._since = time.monotonic()
            self._session.tell("sandbox.resumed", self.id, {"pausedDurationMs": paused_ms})

    async def terminate(self) -> None:
        """End it and free everything it had. A terminated one is fine; cancelled, it is ended all the same."""
        await to_end(self._terminate(), TERMINATE_S)

    async def _terminate(self) -> None:
        if self.state == "running":
            self._ran_s += time.monotonic() - self._since
        await self._session.ready(self.id)
        await self._provider.terminate(self.id)
        self._now("terminated")
        self._session.ended(self.id, "user", int(self._ran_s * 1000))
        await self._session.settled(self.id)

    def _now(self, state: SandboxState) -> None:
        self._handle = self._handle.model_copy(update={"state": state})

    @asynccontextmanager
    async def _noticing(self) -> AsyncIterator[None]:
        await self._session.ready(self.id)
        try:
            yield
        except RunraError as error:
            self._gone(error)
            raise

    def _gone(self, error: RunraError) -> None:
        """A sandbox that is not found any more has ended, of what the provider cannot say."""
        if error.code == "SANDBOX_NOT_FOUND" and self.state != "terminated":
            self._now("terminated")
            self._session.ended(self.id, "error", int(self._ran_s * 1000))

    # --- events --------------------------------------------------------------------------------------------------

    def on(self, event: str, handler: Callable[..., Any]) -> Callable[[], None]:
        """Call `handler` with the event when this sandbox is `started`, `paused`, `resumed`, `terminated`, or has an
        `error`. Returns a function that takes it off again."""
        check_name(event)

        def mine(happened: Event) -> Any:
            return handler(happened) if happened.sandbox_id == self.id else None

        return self._session.on(f"sandbox.{event}", mine)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.terminate()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.state} of {self.provider!r}>"
