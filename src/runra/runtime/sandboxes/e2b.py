"""The provider `e2b`: sandboxes of E2B, or of what speaks its API, through its official SDK."""

from __future__ import annotations

import asyncio
import logging
import shlex
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import e2b
from e2b import AsyncSandbox, SandboxQuery, SandboxState
from pydantic import Field, ValidationError

from runra.contract import SNAPSHOT_IMAGE, ExecutionResult, FileEntry, Request, SnapshotInfo
from runra.contract.network import Network
from runra.errors import RunraError, not_found
from runra.events import now_iso
from runra.runtime.capabilities import Capabilities
from runra.runtime.sandboxes import shell
from runra.runtime.sandboxes.base import BaseProvider, Files, Ports
from runra.runtime.sandboxes.e2b_errors import is_gone, mapped
from runra.runtime.sandboxes.e2b_exec import E2BExec
from runra.runtime.sandboxes.running import Running, finish
from runra.runtime.sandboxes.terminals import AttachedTerminal, TerminalOptions
from runra.runtime.tasks import to_end
from runra.runtime.types import ExecuteOptions, PortInfo, ProcessHandle, ResourceUse, SandboxHandle, TerminalHandle
from runra.sdk.types import ListOptions, SandboxConfig, refused

_log = logging.getLogger("runra.runtime")

#: Notes of ours among a sandbox's metadata; they are not shown.
_NOTE: Final = "runra."
_UNDO_S: Final = 30.0
_SNAPSHOT_S: Final = 240.0
_ID: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
#: Where E2B's own commands start.
_HOME: Final = "/home/user"


class E2BConfig(Request):
    """Options of the provider. `api_key`: E2B_API_KEY when unset. `api_url`, `sandbox_url`, `domain`: for another E2B
    than the public one (`E2B_DOMAIN` and its like work, too). `timeout_ms`: of a request."""

    api_key: str | None = Field(None, repr=False)
    api_url: str | None = None
    sandbox_url: str | None = None
    domain: str | None = None
    timeout_ms: int = Field(60_000, ge=1)


class E2BProvider(BaseProvider):
    """`image` is a template's name or id, which fixes CPU, memory and disk. Commands run in the home of E2B's user
    unless a `workdir` is given. The lifetime is E2B's own; a sandbox that is resumed gets what it had left, as far as
    this process knows, else all of it."""

    id = "e2b"
    capabilities = Capabilities.of(
        "streaming",
        "stdin",
        "background",
        "stdin_end",
        "pty",
        "user",
        "ports",
        "pause",
        "timeout",
        "network_deny",
        "network_allow_list",
        "network_change",
        "metadata",
        "metadata_filter",
        "snapshots",
        "resources",
        timeout="held by E2B, in whole seconds",
        ports="every port is always reachable at its URL; none can be closed",
        pty="a login shell, into which a command you name is typed",
        snapshots="with its processes and memory",
        resources="memory and disk",
    )

    async def initialize(self, config: Mapping[str, Any]) -> None:
        try:
            chosen = E2BConfig.model_validate(dict(config))
        except ValidationError as error:
            problem = refused(error)
            raise RunraError("INVALID_CONFIG", f"sandbox.config: {problem.message}", details=problem.details) from None
        options = {
            "api_key": chosen.api_key,
            "api_url": chosen.api_url,
            "sandbox_url": chosen.sandbox_url,
            "domain": chosen.domain,
            "request_timeout": chosen.timeout_ms / 1000,
        }
        self._options: Any = {name: value for name, value in options.items() if value is not None}
        self._limit_s = chosen.timeout_ms / 1000
        self._met: dict[str, AsyncSandbox] = {}
        #: How long each may still run (ms), and since when it does (monotonic); None while it is paused.
        self._left: dict[str, tuple[float, float | None]] = {}
        self._exposed: dict[str, dict[int, PortInfo]] = {}
        self._workdirs: dict[str, str] = {}
        self._background: set[Running] = set()
        self._terminals: set[AttachedTerminal] = set()
        if not e2b.ConnectionConfig(**self._options).api_key:
            raise RunraError(
                "INVALID_CONFIG", "no E2B key: give sandbox.apiKey or set E2B_API_KEY", details={"field": "apiKey"}
            )

    # --- life --------------------------------------------------------------------------------------------------------

    async def create(self, config: SandboxConfig) -> SandboxHandle:
        own_workdir = "workdir" in config.model_fields_set
        notes = {f"{_NOTE}image": config.image, f"{_NOTE}timeoutMs": str(config.timeout_ms)}
        if own_workdir:
            notes[f"{_NOTE}workdir"] = config.workdir
        egress = config.network.egress if config.network is not None else None
        creating = asyncio.ensure_future(
            AsyncSandbox.create(
                template=config.image.removeprefix(SNAPSHOT_IMAGE),
                timeout=-(-config.timeout_ms // 1000),
                metadata={**config.metadata, **notes},
                envs=config.env,
                network=_network(egress) if egress is not None else None,
                **self._options,
            )
        )
        async with self._call("creating a sandbox"):
            try:
                sandbox = await asyncio.shield(creating)
            except asyncio.CancelledError:
                # E2B finishes a create whose caller hangs up: only one that has been answered can be taken back.
                await to_end(self._take_back(creating), _UNDO_S)
                raise
            self._met[sandbox.sandbox_id] = sandbox
            self._left[sandbox.sandbox_id] = (float(config.timeout_ms), time.monotonic())
            try:
                if own_workdir:
                    await sandbox.commands.run(f"mkdir -p {shlex.quote(config.workdir)}")
                    self._workdirs[sandbox.sandbox_id] = config.workdir
                info = await sandbox.get_info()
            except BaseException:
                await to_end(self._take_back(creating), _UNDO_S)
                raise
        return self._handle(info).model_copy(update={"env": dict(config.env)})

    async def _take_back(self, creating: asyncio.Future[AsyncSandbox]) -> None:
        await asyncio.wait({creating})
        if not creating.cancelled() and creating.exception() is None:
            await AsyncSandbox.kill(creating.result().sandbox_id, **self._options)

    async def get(self, id: str) -> SandboxHandle:
        async with self._call("looking at a sandbox", id):
            return self._handle(await AsyncSandbox.get_info(_checked(id), **self._options))

    async def list(self, options: ListOptions | None = None) -> list[SandboxHandle]:
        chosen = options or ListOptions()
        if chosen.state in ("creating", "terminated"):
            return []  # E2B forgets those that have ended
        states = [SandboxState(chosen.state)] if chosen.state is not None else None
        query = SandboxQuery(metadata=chosen.metadata, state=states)
        found: list[SandboxHandle] = []
        async with self._call("listing sandboxes"):
            pages = AsyncSandbox.list(query=query, **self._options)
            while pages.has_next:
                found += [self._handle(info) for info in await pages.next_items()]
        matching = [one for one in found if chosen.image in (None, one.image)]
        offset = chosen.offset or 0
        return matching[offset : None if chosen.limit is None else offset + chosen.limit]

    async def pause(self, id: str) -> None:
        async with self._call("pausing", id):
            await AsyncSandbox.pause(_checked(id), **self._options)
        left, since = self._left.get(id, (0.0, None))
        if since is not None:
            self._left[id] = (left - (time.monotonic() - since) * 1000, None)

    async def resume(self, id: str) -> None:
        async with self._call("resuming", id):
            info = await AsyncSandbox.get_info(_checked(id), **self._options)
            if info.state is SandboxState.RUNNING:
                return
            left = self._left.get(id, (float(info.metadata.get(f"{_NOTE}timeoutMs", "300000")), None))[0]
            self._met[id] = await AsyncSandbox.connect(id, timeout=max(1, round(left / 1000)), **self._options)
            self._left[id] = (left, time.monotonic())

    async def terminate(self, id: str) -> None:
        async with self._call("ending", id):
            await AsyncSandbox.kill(_checked(id), **self._options)
        for kept in (self._met, self._left, self._exposed, self._workdirs):
            kept.pop(id, None)

    # --- commands ----------------------------------------------------------------------------------------------------

    async def execute(
        self, id: str, command: str | Sequence[str], options: ExecuteOptions | None = None
    ) -> ExecutionResult:
        chosen = options or ExecuteOptions()
        async with self._call("running a command", id):
            return await finish(await self._attach(id, command, chosen, stdin=chosen.stdin is not None), chosen)

    async def start_process(
        self, id: str, command: str | Sequence[str], options: ExecuteOptions | None = None
    ) -> ProcessHandle:
        chosen = options or ExecuteOptions()
        async with self._call("starting a process", id):
            attached = await self._attach(id, command, chosen, stdin=True)
            running = Running(attached, chosen, lambda: self._background.discard(running))
            self._background.add(running)
            if chosen.stdin is not None:
                await running.send_stdin(chosen.stdin.encode() if isinstance(chosen.stdin, str) else chosen.stdin)
                await running.close_stdin()
        return running

    async def open_terminal(self, id: str, **options: Any) -> TerminalHandle:
        chosen = TerminalOptions.of(options)
        if chosen.cwd is None and id in self._workdirs:
            chosen = chosen.model_copy(update={"cwd": self._workdirs[id]})
        async with self._call("opening a terminal", id):
            attached = await E2BExec.open(await self._at(id), chosen)
        terminal = AttachedTerminal(attached, attached.resize, lambda: self._terminals.discard(terminal))
        self._terminals.add(terminal)
        return terminal

    async def _attach(self, id: str, command: str | Sequence[str], options: ExecuteOptions, *, stdin: bool) -> E2BExec:
        sandbox = await self._at(id)
        words = command if isinstance(command, str) else shlex.join(command)
        if options.cwd is None and id in self._workdirs:
            options = ExecuteOptions(**{**vars(options), "cwd": self._workdirs[id]})
        return await E2BExec.start(sandbox, words, options, stdin=stdin)

    # --- files -------------------------------------------------------------------------------------------------------

    async def read_bytes(self, id: str, path: str) -> bytes:
        async with self._call("read", id, path):
            return bytes(await (await self._at(id)).files.read(self._place(id, path), format="bytes"))

    async def write_file(self, id: str, path: str, content: str | bytes) -> None:
        async with self._call("write", id, path):
            await (await self._at(id)).files.write(self._place(id, path), content)

    async def list_files(self, id: str, path: str) -> Files:
        async with self._call("list", id, path):
            found = await (await self._at(id)).files.list(self._place(id, path))
        return [_entry(one) for one in sorted(found, key=lambda it: it.name)]

    async def file_exists(self, id: str, path: str) -> bool:
        async with self._call("stat", id, path):
            return bool(await (await self._at(id)).files.exists(self._place(id, path)))

    async def delete_file(self, id: str, path: str, *, recursive: bool) -> None:
        # E2B's own remove takes a full folder with it, and a missing file for granted.
        await self._shell(id, "delete", self._place(id, path), shell.DELETE, "1" if recursive else "0")

    async def make_dir(self, id: str, path: str, *, recursive: bool) -> None:
        await self._shell(id, "mkdir", self._place(id, path), shell.MKDIR, "1" if recursive else "0")

    def _place(self, id: str, path: str) -> str:
        """A path as E2B's file API takes it: that knows no working folder."""
        shell.path_argument(path)
        return path if path.startswith("/") else f"{self._workdirs.get(id, _HOME)}/{path}"

    # --- ports and network -----------------------------------------------------------------------------------------

    async def expose_port(self, id: str, port: int) -> PortInfo:
        async with self._call("exposing a port", id):
            host = (await self._at(id)).get_host(port)
        exposed = PortInfo(port=port, url=f"https://{host}", exposed_at=now_iso())
        return self._exposed.setdefault(id, {}).setdefault(port, exposed)

    async def list_ports(self, id: str) -> Ports:
        return list(self._exposed.get(_checked(id), {}).values())

    async def close_port(self, id: str, port: int) -> None:
        raise RunraError(
            "INVALID_CONFIG",
            "E2B cannot close a port: each is reachable at its URL for as long as something listens on it",
            details={"provider": self.id, "port": port},
        )

    async def set_network(self, id: str, network: Network) -> None:
        async with self._call("changing the network", id):
            await AsyncSandbox.update_network(_checked(id), _network(network.egress), **self._options)

    # --- snapshots and what it uses ----------------------------------------------------------------------------------

    async def snapshot(self, id: str, name: str | None = None) -> SnapshotInfo:
        async with self._call("taking a snapshot", id):
            taken = await AsyncSandbox.create_snapshot(
                _checked(id), name=name, **{**self._options, "request_timeout": _SNAPSHOT_S}
            )
            info = await AsyncSandbox.get_info(id, **self._options)
        image = self._handle(info).image
        return SnapshotInfo(
            id=taken.snapshot_id, name=name, organization_id="", sandbox_id=id, image=image, size_bytes=0,
            created_at=now_iso(),
        )  # fmt: skip

    async def usage(self, id: str) -> ResourceUse:
        async with self._call("asking what it uses", id):
            found = await AsyncSandbox.get_metrics(_checked(id), **self._options)
        if not found:
            return ResourceUse()
        latest = max(found, key=lambda one: one.timestamp)
        return ResourceUse(
            memory_bytes=latest.mem_used,
            memory_limit_bytes=latest.mem_total,
            disk_bytes=latest.disk_used,
            disk_limit_bytes=latest.disk_total,
        )

    # --- what it stands on -------------------------------------------------------------------------------------------

    async def _at(self, id: str) -> AsyncSandbox:
        known = self._met.get(_checked(id))
        if known is None:
            info = await AsyncSandbox.get_info(id, **self._options)
            if info.state is SandboxState.PAUSED:
                raise _paused(id)  # connecting would resume it
            # What it has left: that lengthens nothing, and one that was paused meanwhile, which this resumes, lives on.
            left = int((info.end_at - datetime.now(UTC)).total_seconds())
            known = self._met[id] = await AsyncSandbox.connect(id, timeout=max(1, left), **self._options)
            if workdir := info.metadata.get(f"{_NOTE}workdir"):
                self._workdirs[id] = workdir
        return known

    def _handle(self, info: Any) -> SandboxHandle:
        own = {name: value for name, value in info.metadata.items() if not name.startswith(_NOTE)}
        timeout = info.metadata.get(f"{_NOTE}timeoutMs", "")
        return SandboxHandle(
            id=info.sandbox_id,
            state=info.state.value,
            image=info.metadata.get(f"{_NOTE}image") or info.name or info.template_id,
            resources={"cpu": info.cpu_count, "memoryMb": info.memory_mb},
            metadata=own,
            workdir=info.metadata.get(f"{_NOTE}workdir", _HOME),
            timeout_ms=int(timeout) if timeout.isdigit() else None,
            created_at=_iso(info.started_at),
            started_at=_iso(info.started_at),
        )

    @asynccontextmanager
    async def _call(self, doing: str, id: str = "", path: str = "") -> AsyncIterator[None]:
        """A call of E2B's SDK, its failures as RunraError."""
        try:
            yield
        except RunraError:
            raise
        except Exception as error:  # E2B's SDK raises its own, its transports', and bare ones
            if is_gone(error) and id:
                await self._why_gone(id, error)
            raise mapped(error, doing, id, path) from error

    async def _why_gone(self, id: str, error: Exception) -> NoReturn:
        try:
            info = await AsyncSandbox.get_info(id, **self._options)
        except Exception as other:  # noqa: BLE001 - as above
            raise mapped(other, "looking at a sandbox", id) from error
        if info.state is SandboxState.PAUSED:
            raise _paused(id) from error
        raise RunraError(
            "NETWORK_ERROR", f"e2b: sandbox {id} runs, and does not answer", details={"sandboxId": id}, retryable=True
        ) from error

    async def dispose(self) -> None:
        for terminal in list(self._terminals):
            await terminal.close()
        for running in list(self._background):
            await running.abandon()
        self._met.clear()


def _checked(id: str) -> str:
    if not isinstance(id, str) or not id or len(id) > 64 or not set(id) <= _ID:
        raise not_found(str(id)[:80])
    return id


def _paused(id: str) -> RunraError:
    return RunraError(
        "INVALID_STATE",
        f"sandbox {id} is paused: resume it first",
        details={"sandboxId": id, "state": "paused"},
    )


def _network(egress: Any) -> Any:
    """E2B's form of an egress policy: names are only held when everything else is denied."""
    if egress is None or egress.default == "allow":
        return {}
    return {"allow_out": list(egress.allow), "deny_out": ["0.0.0.0/0"]}


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _entry(one: Any) -> FileEntry:
    kind = one.type.value if one.type is not None else "file"
    return FileEntry(
        name=one.name,
        path=one.path,
        is_directory=kind == "dir",
        size_bytes=one.size,
        modified_at=_iso(one.modified_time),
        mode=f"{one.mode & 0o7777:04o}",
        owner=one.owner,
        group=one.group,
        symlink_target=one.symlink_target,
        type="directory" if kind == "dir" else "symlink" if kind == "symlink" else "file",
    )
