"""One sandbox: its state, and the way to its commands, files and events."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, overload

from runra.contract import (
    REVEAL,
    Egress,
    ExecutionResult,
    ForkRequest,
    Ingress,
    Network,
    NetworkSecret,
    Port,
    PortExposed,
    SandboxInfo,
    SandboxPatch,
    SignedUrl,
    SnapshotCreate,
    SnapshotInfo,
)
from runra.errors import RunraError
from runra.sdk._async import ports
from runra.sdk._async.api import AsyncApi
from runra.sdk._async.events import AsyncEventStream, AsyncListener
from runra.sdk._async.execution import execute
from runra.sdk._async.files import AsyncFiles
from runra.sdk._async.processes import AsyncProcess, AsyncProcesses
from runra.sdk._async.terminal import AsyncTerminal, open_terminal
from runra.sdk.fields import SandboxFields
from runra.sdk.gaps import GapHandler
from runra.sdk.lifecycle import Handler, LifecycleName
from runra.sdk.types import EgressOptions, ExecOptions, RawPage, SecretOptions, checked, merged, parsed
from runra.sdk.wire import sandbox_path

_log = logging.getLogger("runra.sdk")

#: How long a call waits for the event stream it may have to be seen on, and for the last event at the end.
_EVENTS_S = 3.0
#: A snapshot or a fork copies files: that is a matter of milliseconds on btrfs, and of their size elsewhere.
_COPY_MS = 180_000
#: What runs in it is written down, and read again for each copy: in ms for 1 MB of memory, and at most.
_MEMORY_MS, _MOST_MEMORY_MS = 30, 840_000


class AsyncSandbox(SandboxFields):
    """A sandbox. Its fields say what the server last answered. As a context manager it is terminated at the end."""

    def __init__(self, api: AsyncApi, info: SandboxInfo) -> None:
        self._api = api
        self._info = info
        self._listener = AsyncListener(api, info.id)
        self.files = AsyncFiles(api, info.id)
        self.processes = AsyncProcesses(api, info.id)

    # --- commands ------------------------------------------------------------------------------------------

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
    ) -> AsyncProcess: ...

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
    ) -> ExecutionResult | AsyncProcess:
        """Run a command: a string through the sandbox's shell, or a list of arguments as it stands.

        `cwd`: the sandbox's workdir when unset. `env` is added to the sandbox's. `timeout_ms`: default 60,000 ms, at
        most 300,000; at its end the command and all it started are killed and EXECUTION_TIMEOUT is raised, with the
        output so far in its `details`. `stdin`: text piped in. `user`: a name, uid or `uid:gid`; root when unset.
        `on_stdout` and `on_stderr` are called with each line, without its end, as it comes. The result keeps the
        first 8 MiB of each stream and says so in `truncated`. An exit code other than 0 is a result; with `check`
        it raises CommandFailed. `background` returns a process handle at once; it has no timeout unless one is
        given, and its stdin stays open.

        The command never runs twice, however often this is retried, and a connection that breaks is taken up
        again where it broke. A cancelled call leaves the command running.

        Raises RunraError: INVALID_STATE when the sandbox is not running, COMMAND_TOO_LONG beyond 1 MiB,
        EXECUTION_TIMEOUT, NETWORK_ERROR.
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
        return await execute(self._api, self.id, command, chosen)

    async def terminal(
        self,
        cols: int = 80,
        rows: int = 24,
        *,
        command: str | None = None,
        cwd: str | None = None,
        user: str | None = None,
        pid: int | None = None,
        offset: int = 0,
    ) -> AsyncTerminal:
        """Open a real terminal of `cols` by `rows` characters running `command` (the best shell when unset).

        With `pid` it attaches to one that runs already, and shows its output from `offset` bytes on, as far back as
        the sandbox keeps it. Raises INVALID_STATE when the sandbox is not running.
        """
        return await open_terminal(
            self._api, self.id, cols, rows, command=command, cwd=cwd, user=user, pid=pid, offset=offset
        )

    # --- ports ---------------------------------------------------------------------------------------------

    async def expose_port(self, port: int, *, private: bool = False) -> PortExposed:
        """Give a port (1024 to 65535) a URL of its own; one that has it keeps it. Nothing need listen there yet.

        A `private` port opens with its `token` (header X-Runra-Preview-Token), which is in its first answer alone, or
        with a link of `sign_url`. Raises RunraError: INVALID_REQUEST for a port out of range or outside
        `ingress.allow_ports`, INVALID_STATE when the sandbox is terminated or the port is exposed the other way.
        """
        return await ports.expose(self._api, self.id, port, private)

    async def get_ports(self) -> list[Port]:
        """The exposed ports, by number."""
        return await ports.listed(self._api, self.id)

    async def close_port(self, port: int) -> None:
        """Close a port: its URL answers 404, and what is open to it is cut. Closing a closed one is fine."""
        await ports.close(self._api, self.id, port)

    async def sign_url(self, port: int, *, expires_in_ms: int | None = None) -> SignedUrl:
        """A link that opens a private port in a browser for `expires_in_ms` (one hour when unset, at most seven days).

        Raises RunraError: INVALID_STATE for a public port, INVALID_REQUEST for one that is not exposed.
        """
        return await ports.sign(self._api, self.id, port, expires_in_ms)

    async def revoke_urls(self, port: int) -> None:
        """End every signed link to a private port at once, and what came in by them. Its token stays good."""
        await ports.revoke(self._api, self.id, port)

    # --- life ----------------------------------------------------------------------------------------------

    async def refresh(self) -> Self:
        """Ask the server for this sandbox's fields anew."""
        return await self._took("GET", None)

    async def update(
        self,
        *,
        timeout_ms: int | None = None,
        idle_timeout_ms: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Self:
        """Change its longest time running, its idle time (both ms), or replace its metadata."""
        given = {"timeout_ms": timeout_ms, "idle_timeout_ms": idle_timeout_ms, "metadata": metadata}
        patch = checked(SandboxPatch, merged(None, given, "update"))
        return await self._took("PATCH", None, patch.to_wire())

    async def update_network(
        self,
        network: Network | Mapping[str, Any] | None = None,
        *,
        egress: EgressOptions | Egress | Mapping[str, Any] | None = None,
        secrets: Sequence[SecretOptions | NetworkSecret | Mapping[str, Any]] | None = None,
        ingress: Ingress | Mapping[str, Any] | None = None,
    ) -> Self:
        """Replace what it may reach, and its secrets, at once; what is left out is as if never given, but
        for `ingress`, which then stays as it is.

        `egress`: `allow` (names, `*.` names, IPv4 addresses and ranges, each with `:port` if wanted) and `default`
        (`allow` without any policy, `deny` when only `allow` is given). `secrets`: `alias`, `host`, `header`,
        `value`; inside, `http://{alias}.gateway.runra.internal/` is that host with that header. Connections the new
        policy does not allow are cut. Raises RunraError INVALID_CONFIG for an entry that is none.
        """
        given = {"egress": egress, "secrets": secrets, "ingress": ingress}
        wanted = checked(Network, merged(network, given, "update_network"))
        return await self._took("PUT", "network", wanted.to_wire(REVEAL))

    async def pause(self) -> None:
        """Freeze it: files and processes stay as they are, and it costs no CPU. Pausing a paused one is fine."""
        await self._listener.ready(_EVENTS_S)
        await self._took("POST", "pause")

    async def resume(self) -> None:
        """Let it run on. Resuming a running one is fine."""
        await self._listener.ready(_EVENTS_S)
        await self._took("POST", "resume")

    async def terminate(self) -> None:
        """End it and free everything it had. Terminating a terminated one is fine."""
        await self._listener.ready(_EVENTS_S)
        await self._took("DELETE", None)

    async def snapshot(self, name: str | None = None) -> SnapshotInfo:
        """Keep its files as they are now, running or paused; it goes on as before.

        Make sandboxes from it with `sandboxes.create(image="snapshot:<name or id>")`. Processes, memory, volumes,
        /run and /dev/shm are not part of it. Raises INVALID_STATE when the name is taken, or the sandbox terminated.
        """
        request = checked(SnapshotCreate, merged(None, {"name": name}, "snapshot"))
        path = sandbox_path(self.id, "snapshots")
        answer = await self._api.call("POST", path, content=request.to_wire(), timeout_ms=_COPY_MS)
        return parsed(SnapshotInfo, answer.json(f"POST {path}"), f"POST {path}")

    async def fork(self, count: int = 1, *, processes: bool = False) -> list[Self]:
        """Make `count` copies (at most 32): its files at this moment, its configuration, an identity of their own.

        All of them are running when this returns, or there is none. With `processes`, what runs in it goes on in every
        copy, memory and open files included; without, nothing of that comes along, nor /run.

        Raises INVALID_STATE when the sandbox is terminated, writes to a volume that takes one writer, or runs what
        cannot be saved; INVALID_CONFIG where no processes can be: that takes isolation `gvisor` and a newer runsc.
        """
        path = sandbox_path(self.id, "fork")
        request = checked(ForkRequest, {"count": count, "processes": processes})
        memory_ms = min(self.resources.memory_mb * (1 + count) * _MEMORY_MS, _MOST_MEMORY_MS) if processes else 0
        answer = await self._api.call("POST", path, content=request.to_wire(), timeout_ms=_COPY_MS + memory_ms)
        page = parsed(RawPage, answer.json(f"POST {path}"), f"POST {path}")
        return [type(self)(self._api, parsed(SandboxInfo, item, f"POST {path}")) for item in page.data]

    async def _took(self, method: str, verb: str | None, content: Any = None) -> Self:
        path = sandbox_path(self.id) if verb is None else sandbox_path(self.id, verb)
        answer = await self._api.call(method, path, content=content, safe=True)
        request_id = answer.headers.get("x-request-id", "")
        self._info = parsed(SandboxInfo, answer.json(f"{method} {path}"), f"{method} {path}", request_id)
        return self

    # --- events --------------------------------------------------------------------------------------------

    def on(self, event: LifecycleName, handler: Handler) -> Callable[[], None]:
        """Call `handler` whenever the sandbox is `started`, `paused`, `resumed`, `terminated`, or has an `error`.

        It hears what anyone does, the server's timers included, from now on, through one connection per sandbox
        that is opened with the first handler. Of a start that lies behind, as after `create`, a handler of `started`
        is told at once. The payload has the document's fields in snake_case
        (`runtime_duration_ms`, `paused_duration_ms`, `reason`, `total_runtime_ms`, `error`); a handler may also take
        nothing. Handlers run one after another, apart from the calls; an exception in one is logged. Returns a
        function that takes the handler off again. Raises INVALID_REQUEST for another name.
        """
        return self._listener.add(event, handler, self.started_at)

    def events(
        self, *, after: str | None = None, types: Sequence[str] | None = None, on_gap: GapHandler | None = None
    ) -> AsyncEventStream:
        """Every event of this sandbox from now on, or after the id `after`; `types` as in `Runra.events`."""
        path = sandbox_path(self.id, "events")
        return AsyncEventStream(self._api, path, after=after, types=types, on_gap=on_gap)

    async def close(self) -> None:
        """Stop following its events. The sandbox lives on; `terminate()` ends it."""
        await self._listener.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.terminate()
            await self._listener.finish(_EVENTS_S)
        except RunraError as problem:
            if problem.code == "SANDBOX_NOT_FOUND":
                return
            if error is None:
                raise
            # The block's own error matters more than this one, and raising here would hide it.
            _log.warning("sandbox %s could not be terminated: %s", self.id, problem)
        finally:
            await self._listener.close()
