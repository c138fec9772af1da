"""What sandbox providers have in common: the optional calls, refused by name, and files through the shell."""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from runra.contract import ExecutionResult, FileEntry, SnapshotInfo
from runra.contract.network import Network
from runra.errors import RunraError
from runra.events import Event, EventType
from runra.runtime.capabilities import Ability, Capabilities, require
from runra.runtime.providers import SandboxProvider
from runra.runtime.sandboxes import shell
from runra.runtime.types import ExecuteOptions, PortInfo, ProcessHandle, ResourceUse, SandboxHandle, TerminalHandle
from runra.sdk.types import ListOptions, SandboxConfig

#: How a provider tells what it did by itself, such as ending a sandbox whose time was over: type, sandbox, data.
Report = Callable[[EventType, str, dict[str, Any]], None]

# By name: inside the classes below `list` is a method.
Ports = list[PortInfo]
Files = list[FileEntry]


class BaseProvider(ABC):
    """The base of the built-in providers, and a good one for others.

    Fulfil the abstract methods and declare `capabilities`; for each ability you declare, override its method below.
    Files work through `execute` as they stand. A provider without the ability `events` calls `self.report` for what it
    does by itself; the runtime tells of everything that was asked for.
    """

    id: str
    capabilities: Capabilities = Capabilities.of()
    #: Whether it reports every pause, resume and end itself, those that were asked for, too: it knows the times.
    reports_life = False

    def __init__(self) -> None:
        self.report: Report = lambda type, sandbox_id, data: None

    @abstractmethod
    async def initialize(self, config: Mapping[str, Any]) -> None: ...

    @abstractmethod
    async def create(self, config: SandboxConfig) -> SandboxHandle: ...

    @abstractmethod
    async def get(self, id: str) -> SandboxHandle: ...

    @abstractmethod
    async def list(self, options: ListOptions | None = None) -> list[SandboxHandle]: ...

    @abstractmethod
    async def execute(
        self, id: str, command: str | Sequence[str], options: ExecuteOptions | None = None
    ) -> ExecutionResult: ...

    @abstractmethod
    async def terminate(self, id: str) -> None: ...

    async def dispose(self) -> None:
        return None

    # --- abilities ---------------------------------------------------------------------------------------------------

    async def pause(self, id: str) -> None:
        self._lacks("pause")

    async def resume(self, id: str) -> None:
        self._lacks("pause")

    async def start_process(
        self, id: str, command: str | Sequence[str], options: ExecuteOptions | None = None
    ) -> ProcessHandle:
        """Run a command in the background (`background`)."""
        raise self._lacking("background")

    async def open_terminal(self, id: str, **options: Any) -> TerminalHandle:
        """A terminal (`pty`): `cols`, `rows`, and what the provider knows of `command`, `cwd`, `user`, `env`."""
        raise self._lacking("pty")

    async def expose_port(self, id: str, port: int) -> PortInfo:
        """A URL for a port (`ports`)."""
        raise self._lacking("ports")

    async def list_ports(self, id: str) -> Ports:
        raise self._lacking("ports")

    async def close_port(self, id: str, port: int) -> None:
        self._lacks("ports")

    async def set_network(self, id: str, network: Network) -> None:
        """Replace the network policy (`network_change`)."""
        self._lacks("network_change")

    async def snapshot(self, id: str, name: str | None = None) -> SnapshotInfo:
        """Keep its files as they are now (`snapshots`)."""
        raise self._lacking("snapshots")

    async def usage(self, id: str) -> ResourceUse:
        """What it uses now (`resources`). Asking is no activity."""
        raise self._lacking("resources")

    def events(
        self, id: str, *, after: str | None, types: Sequence[str], connected: Callable[[], None]
    ) -> AsyncIterator[Event]:
        """What happens in a sandbox until it is terminated (`events`): after the event with the id `after`, all there
        is when that is empty, from now on when it is None. `types` are patterns, as `runra.events.matches` reads them.
        `connected` is called once nothing can be missed any more."""
        raise self._lacking("events")

    def _lacking(self, ability: Ability) -> RunraError:
        try:
            require(self.id, Capabilities.of(), [(ability, "this call")])
        except RunraError as error:
            return error
        raise AssertionError("unreachable")

    def _lacks(self, ability: Ability) -> None:
        raise self._lacking(ability)

    # --- files -------------------------------------------------------------------------------------------------------

    async def read_bytes(self, id: str, path: str) -> bytes:
        """A file's content."""
        result = await self._shell(id, "read", path, shell.READ_BASE64)
        if result.truncated:
            raise RunraError(
                "INVALID_REQUEST",
                f"read {path[:200]!r}: the provider {self.id!r} keeps too little output for a file of this size",
                details={"reason": "too_large", "path": path},
            )
        try:
            return base64.b64decode(result.stdout)
        except binascii.Error:
            raise RunraError("INTERNAL_ERROR", f"read {path[:200]!r}: the sandbox answered no base64") from None

    async def read_file(self, id: str, path: str) -> str:
        """A file's content as text. Raises INVALID_REQUEST when it is no UTF-8."""
        data = await self.read_bytes(id, path)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise RunraError(
                "INVALID_REQUEST",
                f"{path[:200]!r} is no UTF-8 text (at byte {error.start}); read it as bytes",
                details={"field": "format", "path": path},
            ) from None

    async def write_file(self, id: str, path: str, content: str | bytes) -> None:
        """Write a file, whole or not at all; missing folders are made."""
        data = content.encode() if isinstance(content, str) else content
        require(self.id, self.capabilities, [("stdin", "write_file")])
        await self._shell(id, "write", path, shell.WRITE, str(len(data)), stdin=data)

    async def list_files(self, id: str, path: str) -> Files:
        result = await self._shell(id, "list", path, shell.LIST)
        return shell.entries(path, result.stdout)

    async def file_exists(self, id: str, path: str) -> bool:
        try:
            await self._shell(id, "stat", path, shell.EXISTS)
        except RunraError as error:
            if error.details.get("reason") == "not_found":
                return False
            raise
        return True

    async def delete_file(self, id: str, path: str, *, recursive: bool) -> None:
        await self._shell(id, "delete", path, shell.DELETE, "1" if recursive else "0")

    async def make_dir(self, id: str, path: str, *, recursive: bool) -> None:
        await self._shell(id, "mkdir", path, shell.MKDIR, "1" if recursive else "0")

    async def _shell(
        self, id: str, operation: str, path: str, script: str, *arguments: str, stdin: bytes | None = None
    ) -> ExecutionResult:
        command = shell.argv(script, shell.path_argument(path), *arguments)
        result = await self.execute(id, command, ExecuteOptions(stdin=stdin, timeout_ms=60_000))
        return shell.check(result, operation, path)


class PlainProvider(BaseProvider):
    """A provider that has only the document's calls, with the others on top."""

    def __init__(self, inner: SandboxProvider) -> None:
        super().__init__()
        self._inner = inner
        self.id = inner.id
        self.capabilities = getattr(inner, "capabilities", None) or Capabilities.of()

    async def initialize(self, config: Mapping[str, Any]) -> None:
        await self._inner.initialize(config)

    async def create(self, config: SandboxConfig) -> SandboxHandle:
        return await self._inner.create(config)

    async def get(self, id: str) -> SandboxHandle:
        return await self._inner.get(id)

    async def list(self, options: ListOptions | None = None) -> list[SandboxHandle]:
        return await self._inner.list(options)

    async def execute(
        self, id: str, command: str | Sequence[str], options: ExecuteOptions | None = None
    ) -> ExecutionResult:
        return await self._inner.execute(id, command, options)

    async def pause(self, id: str) -> None:
        await self._inner.pause(id)

    async def resume(self, id: str) -> None:
        await self._inner.resume(id)

    async def terminate(self, id: str) -> None:
        await self._inner.terminate(id)

    async def write_file(self, id: str, path: str, content: str | bytes) -> None:
        await self._inner.write_file(id, path, content)

    async def read_file(self, id: str, path: str) -> str:
        return await self._inner.read_file(id, path)

    async def dispose(self) -> None:
        await self._inner.dispose()


def full(provider: SandboxProvider) -> BaseProvider:
    """The provider with every call the runtime makes."""
    return provider if isinstance(provider, BaseProvider) else PlainProvider(provider)
