"""The provider `runra-sandbox`: a Runra server, through the SDK as any user would."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, cast

from runra.contract import ExecutionResult, SnapshotInfo
from runra.contract.network import Network
from runra.errors import RunraError
from runra.events import Event
from runra.ids import new_id
from runra.runtime.capabilities import Capabilities
from runra.runtime.sandboxes import shell
from runra.runtime.sandboxes.base import BaseProvider, Files, Ports
from runra.runtime.tasks import to_end
from runra.runtime.types import ExecuteOptions, PortInfo, SandboxHandle, StdinWriter, TerminalHandle
from runra.sdk._async.client import AsyncRunra
from runra.sdk._async.events import AsyncEventStream
from runra.sdk._async.processes import AsyncProcess
from runra.sdk._async.sandbox import AsyncSandbox
from runra.sdk.output import OutputChunk
from runra.sdk.types import ListOptions, SandboxConfig, SandboxList

#: Before every event there is: replay begins with the first that the server still has.
_FROM_START = "evt_"
_CONNECT_S = 5.0
_PAGE = 100
_KILL_S = 15.0
_log = logging.getLogger("runra.runtime")


class RunraSandboxProvider(BaseProvider):
    """Sandboxes of a Runra server. Configuration: `apiKey`, `apiUrl` (as the SDK resolves them when unset), `timeoutMs`
    of a request, `maxRetries`."""

    id = "runra-sandbox"
    capabilities = Capabilities.of(
        "streaming",
        "stdin",
        "background",
        "stdin_end",
        "pty",
        "user",
        "ports",
        "pause",
        "auto_resume",
        "timeout",
        "idle_timeout",
        "cpu_limit",
        "memory_limit",
        "disk_limit",
        "network_deny",
        "network_allow_list",
        "network_change",
        "secrets",
        "volumes",
        "metadata",
        "metadata_filter",
        "snapshots",
        "isolation",
        "resources",
        "events",
        network_allow_list="where the server can hold it; one that cannot refuses the create",
    )

    async def initialize(self, config: Mapping[str, Any]) -> None:
        known = {"apiKey": "api_key", "apiUrl": "api_url", "timeoutMs": "timeout_ms", "maxRetries": "max_retries"}
        unknown = sorted(set(config) - set(known))
        if unknown:
            raise RunraError(
                "INVALID_CONFIG",
                f"sandbox.config: unknown option {unknown[0]!r} of runra-sandbox; known: {', '.join(known)}",
                details={"field": f"sandbox.config.{unknown[0]}"},
            )
        self._client = AsyncRunra(**{known[name]: value for name, value in config.items()})
        #: Those this client has met; all calls on a sandbox go through the same object.
        self._met: dict[str, AsyncSandbox] = {}

    async def create(self, config: SandboxConfig) -> SandboxHandle:
        return self._meet(await self._client.sandboxes.create(config))

    async def get(self, id: str) -> SandboxHandle:
        return self._meet(await self._client.sandboxes.get(id))

    async def list(self, options: ListOptions | None = None) -> list[SandboxHandle]:
        chosen = options or ListOptions()
        if chosen.limit is not None or chosen.offset is not None:
            page: SandboxList[AsyncSandbox] = await self._client.sandboxes.list(chosen)
            return [_handle(sandbox) for sandbox in page]
        found = self._client.sandboxes.iter(
            state=chosen.state, image=chosen.image, metadata=chosen.metadata, page_size=_PAGE
        )
        return [_handle(sandbox) async for sandbox in found]

    async def execute(
        self, id: str, command: str | Sequence[str], options: ExecuteOptions | None = None
    ) -> ExecutionResult:
        given = _given(options)
        tag = new_id("exec")
        given["env"] = {**given.get("env", {}), shell.TAG: tag}
        sandbox = await self._at(id)
        try:
            return await sandbox.exec(command, given)
        except asyncio.CancelledError:
            # A client that goes away leaves its command running; a run that is cancelled must not.
            await to_end(_kill(sandbox, tag, given.get("user")), _KILL_S)
            raise

    async def start_process(
        self, id: str, command: str | Sequence[str], options: ExecuteOptions | None = None
    ) -> _Process:
        given = _given(options)
        stdin = given.pop("stdin", None)
        process = _Process(await (await self._at(id)).exec(command, given, background=True))
        if stdin is not None:
            await process.send_stdin(stdin.encode() if isinstance(stdin, str) else stdin)
            await process.close_stdin()
        return process

    async def open_terminal(self, id: str, **options: Any) -> TerminalHandle:
        return await (await self._at(id)).terminal(**options)

    async def pause(self, id: str) -> None:
        await self._client.sandboxes.pause(id)

    async def resume(self, id: str) -> None:
        await self._client.sandboxes.resume(id)

    async def terminate(self, id: str) -> None:
        await self._client.sandboxes.terminate(id)
        self._met.pop(id, None)

    # --- ports -------------------------------------------------------------------------------------------------------

    async def expose_port(self, id: str, port: int) -> PortInfo:
        exposed = await (await self._at(id)).expose_port(port)
        return PortInfo(port=exposed.port, url=exposed.url, exposed_at=exposed.exposed_at)

    async def list_ports(self, id: str) -> Ports:
        found = await (await self._at(id)).get_ports()
        return [PortInfo(port=one.port, url=one.url, exposed_at=one.exposed_at) for one in found]

    async def close_port(self, id: str, port: int) -> None:
        await (await self._at(id)).close_port(port)

    # --- network and snapshots -----------------------------------------------------------------------------------

    async def set_network(self, id: str, network: Network) -> None:
        await (await self._at(id)).update_network(network)

    async def snapshot(self, id: str, name: str | None = None) -> SnapshotInfo:
        return await (await self._at(id)).snapshot(name)

    # --- files: the server does them inside the sandbox, binary safe and of any size --------------------------------

    async def read_bytes(self, id: str, path: str) -> bytes:
        return await (await self._at(id)).files.read(path, format="bytes")

    async def read_file(self, id: str, path: str) -> str:
        return await (await self._at(id)).files.read(path)

    async def write_file(self, id: str, path: str, content: str | bytes) -> None:
        await (await self._at(id)).files.write(path, content)

    async def list_files(self, id: str, path: str) -> Files:
        return await (await self._at(id)).files.list(path)

    async def file_exists(self, id: str, path: str) -> bool:
        return await (await self._at(id)).files.exists(path)

    async def delete_file(self, id: str, path: str, *, recursive: bool) -> None:
        await (await self._at(id)).files.delete(path, recursive=recursive)

    async def make_dir(self, id: str, path: str, *, recursive: bool) -> None:
        await (await self._at(id)).files.mkdir(path, recursive=recursive)

    # --- events ------------------------------------------------------------------------------------------------------

    async def events(
        self, id: str, *, after: str | None, types: Sequence[str], connected: Callable[[], None]
    ) -> AsyncIterator[Event]:
        stream = (await self._at(id)).events(after=_FROM_START if after == "" else after, types=types)
        opening = asyncio.create_task(_tell(stream, connected))
        try:
            async with stream, aclosing(cast(Any, stream.__aiter__())) as events:
                async for event in events:
                    yield event
        finally:
            opening.cancel()

    async def dispose(self) -> None:
        await self._client.close()

    async def _at(self, id: str) -> AsyncSandbox:
        known = self._met.get(id)
        if known is None:
            known = self._met[id] = await self._client.sandboxes.get(id)
        return known

    def _meet(self, sandbox: AsyncSandbox) -> SandboxHandle:
        self._met.setdefault(sandbox.id, sandbox)
        return _handle(sandbox)


async def _kill(sandbox: AsyncSandbox, tag: str, user: str | None) -> None:
    command = shell.argv(shell.KILL, f"{shell.TAG}={tag}")
    try:
        await sandbox.exec(command, user=user, timeout_ms=int(_KILL_S * 1000))
    except RunraError as error:
        if error.code not in ("SANDBOX_NOT_FOUND", "INVALID_STATE"):  # then nothing runs in it
            _log.warning("sandbox %s: a cancelled command may run on: %s", sandbox.id, error)


async def _tell(stream: AsyncEventStream, connected: Callable[[], None]) -> None:
    if await stream.connected.wait(_CONNECT_S):
        connected()


def _handle(sandbox: AsyncSandbox) -> SandboxHandle:
    return SandboxHandle.model_validate(sandbox.info.model_dump())


def _given(options: ExecuteOptions | None) -> dict[str, Any]:
    """The options that were set, as the SDK takes them."""
    if options is None:
        return {}
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {name: value for name, value in fields.items() if value is not None and value != {}}


class _Process:
    """The SDK's process, as the runtime takes it."""

    def __init__(self, inner: AsyncProcess) -> None:
        self._inner = inner

    @property
    def pid(self) -> int:
        return self._inner.pid

    def output(self) -> AsyncIterator[OutputChunk]:
        return self._inner.logs()

    async def wait(self) -> ExecutionResult:
        return await self._inner.wait()

    async def send_stdin(self, data: bytes) -> None:
        await self._inner.send_stdin(data)

    def hold_stdin(self) -> AbstractAsyncContextManager[StdinWriter]:
        return self._inner.open_stdin(close=False)

    async def close_stdin(self) -> None:
        await self._inner.close_stdin()

    async def kill(self) -> None:
        await self._inner.kill()
