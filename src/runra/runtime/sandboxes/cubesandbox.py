"""The provider `cubesandbox`: microVMs of a CubeSandbox installation, by a client of our own."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
from pydantic import ValidationError

from runra.contract import SNAPSHOT_IMAGE, ExecutionResult, FileEntry, SnapshotInfo
from runra.contract.network import Egress, Network
from runra.errors import RunraError, not_found
from runra.events import now_iso
from runra.ids import new_id
from runra.runtime.capabilities import Capabilities
from runra.runtime.sandboxes import shell
from runra.runtime.sandboxes.base import Files, Ports
from runra.runtime.sandboxes.cube_client import CubeClient, CubeConfig
from runra.runtime.sandboxes.cube_exec import CubeExec
from runra.runtime.sandboxes.ledger import Ledger, state_dir
from runra.runtime.sandboxes.lifetimes import Life
from runra.runtime.sandboxes.running import Attached, finish
from runra.runtime.sandboxes.terminals import SHELL, Resize, TerminalOptions
from runra.runtime.sandboxes.timed import TimedProvider
from runra.runtime.tasks import to_end
from runra.runtime.types import ExecuteOptions, PortInfo, ProcessHandle, SandboxHandle, TerminalHandle
from runra.sdk.types import ListOptions, SandboxConfig, refused

_UNDO_S: Final = 60.0
#: It takes up to 240 s.
_SNAPSHOT_S: Final = 250.0
_POLL_S: Final = 0.1
#: Just after a resume the API may not know a sandbox for a moment.
_FRESH_S: Final = 5.0
_HOME: Final = "/root"
_ID: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


class CubeSandboxProvider(TimedProvider):
    """`image` is a name from `templates`, or a template's id; the template fixes CPU, memory and disk.

    What CubeSandbox loses over a pause (metadata, the desired network policy, its traffic token) and what it does not
    count as we do (a lifetime, an idle time) is kept on our side, in `state_dir`.
    """

    id = "cubesandbox"
    capabilities = Capabilities.of(
        "streaming",
        "stdin",
        "background",
        "pty",
        "user",
        "ports",
        "pause",
        "auto_resume",
        "timeout",
        "idle_timeout",
        "network_deny",
        "network_allow_list",
        "network_change",
        "metadata",
        "metadata_filter",
        "snapshots",
        ports="every port is always reachable at its URL; none can be closed",
        timeout="watched by the process that uses the provider",
        idle_timeout="watched by the process that uses the provider",
        snapshots="with its processes and memory",
    )

    async def initialize(self, config: Mapping[str, Any]) -> None:
        try:
            self._config = CubeConfig.model_validate(dict(config))
        except ValidationError as error:
            problem = refused(error)
            raise RunraError("INVALID_CONFIG", f"sandbox.config: {problem.message}", details=problem.details) from None
        ledger = Ledger(state_dir(self._config.state_dir, "cubesandbox", self._config.namespace))
        ledger.open()
        self._watch(ledger)
        self._resumed: dict[str, float] = {}
        self._exposed: dict[str, dict[int, PortInfo]] = {}
        self._client = CubeClient(self._config)
        try:
            await self._client.control("GET", "/health")
            for id in ledger.ids():
                try:
                    await self._found(id)
                except RunraError as error:
                    if error.code == "SANDBOX_NOT_FOUND":
                        ledger.remove(id)
        except BaseException:
            await self._client.close()
            raise

    # --- life --------------------------------------------------------------------------------------------------------

    async def create(self, config: SandboxConfig) -> SandboxHandle:
        if "host-mount" in config.metadata:
            raise RunraError(
                "INVALID_REQUEST",
                "metadata: 'host-mount' has a meaning to CubeSandbox that opens its host; choose another key",
                details={"field": "metadata"},
            )
        creating = asyncio.ensure_future(self._client.control("POST", "/sandboxes", self._wanted(config)))
        try:
            told = await asyncio.shield(creating)
            id, domain = self._read(told)
            own_workdir = config.workdir if "workdir" in config.model_fields_set else _HOME
            note = {
                "image": config.image,
                "metadata": config.metadata,
                "env": config.env,
                "workdir": own_workdir,
                "timeoutMs": config.timeout_ms,
                "idleTimeoutMs": config.idle_timeout_ms,
                "autoResume": config.auto_resume,
                "network": config.network.to_wire() if config.network is not None else None,
                "domain": domain,
                "accessToken": told.get("envdAccessToken"),
                "trafficToken": told.get("trafficAccessToken"),
                "createdAt": now_iso(),
            }
            # Noted first: what outlives a crash of this process must be found, and ended, by the next one.
            life = Life(id, config.timeout_ms, config.idle_timeout_ms, config.auto_resume, note=note)
            self._lifetimes.add(life)
            await self._no_timer(id)
            await self._reachable(life)
            if own_workdir != _HOME:
                await self.make_dir(id, own_workdir, recursive=True)
        except BaseException:
            # It finishes a create whose caller hangs up: only one that has been answered can be taken back.
            await to_end(self._take_back(creating), _UNDO_S)
            raise
        return self._handle(id, "running", note, {})

    async def _take_back(self, creating: asyncio.Future[Any]) -> None:
        await asyncio.wait({creating})
        if not creating.cancelled() and creating.exception() is None:
            id, _ = self._read(creating.result())
            await self._destroy(id)

    def _wanted(self, config: SandboxConfig) -> dict[str, Any]:
        wanted: dict[str, Any] = {
            "templateID": self._config.templates.get(config.image, config.image.removeprefix(SNAPSHOT_IMAGE)),
            "timeout": -(-config.timeout_ms // 1000) + 60,  # should the next call never come
            "envVars": config.env,
            "metadata": config.metadata,
            "lifecycle": {"onTimeout": "kill", "autoResume": False},
        }
        if self._config.node_selector is not None:
            wanted["nodeSelector"] = self._config.node_selector
        if config.network is not None and config.network.egress is not None:
            wanted |= _network(config.network.egress)
        return wanted

    def _read(self, told: Any) -> tuple[str, str]:
        id = told.get("sandboxID") if isinstance(told, dict) else None
        if not isinstance(id, str) or not id or not set(id) <= _ID:
            raise RunraError("INTERNAL_ERROR", "cubesandbox: its create answered no sandboxID; is this its API?")
        domain = told.get("domain")
        return id, domain if isinstance(domain, str) and domain else self._config.domain

    async def _reachable(self, life: Life) -> None:
        """Wait for the agent inside: a proxy may lead astray for a moment."""
        await self._inside(life.id, "GET", "/health", again=True)

    async def get(self, id: str) -> SandboxHandle:
        told = await self._told(id)
        await self._noticed(id, told)
        return self._handle(id, told.get("state", "running"), self._note(id), told)

    async def _told(self, id: str) -> dict[str, Any]:
        if not isinstance(id, str) or not id or len(id) > 128 or not set(id) <= _ID:
            raise not_found(str(id)[:80])
        told = await self._ask(id, "GET", f"/sandboxes/{id}")
        return told if isinstance(told, dict) else {}

    async def list(self, options: ListOptions | None = None) -> list[SandboxHandle]:
        chosen = options or ListOptions()
        answer = await self._client.control("GET", "/v2/sandboxes")
        found = []
        for told in answer if isinstance(answer, list) else []:
            id = told.get("sandboxID") if isinstance(told, dict) else None
            if isinstance(id, str) and set(id) <= _ID:
                found.append(self._handle(id, told.get("state", "running"), self._note(id), told))
        # On our side: its own filter knows no metadata any more after a pause.
        matching = [
            one
            for one in sorted(found, key=lambda it: it.created_at, reverse=True)
            if chosen.state in (None, one.state)
            and chosen.image in (None, one.image)
            and (chosen.metadata or {}).items() <= one.metadata.items()
        ]
        offset = chosen.offset or 0
        return matching[offset : None if chosen.limit is None else offset + chosen.limit]

    async def terminate(self, id: str) -> None:
        try:
            life = await self._found(id)
        except RunraError as error:
            if error.code == "SANDBOX_NOT_FOUND" and isinstance(id, str) and set(id) <= _ID:
                self._forget(id)
                return
            raise
        await self._end(life, "user")

    async def _destroy(self, id: str) -> None:
        try:
            # 503 while it is being paused: asked again for as long as it says.
            await self._client.control("DELETE", f"/sandboxes/{id}", id=id, again=True)
        except RunraError as error:
            if error.code != "SANDBOX_NOT_FOUND":
                raise
        self._forget(id)

    def _forget(self, id: str) -> None:
        self._lifetimes.remove(id)
        self._resumed.pop(id, None)
        self._exposed.pop(id, None)

    async def _freeze(self, id: str) -> None:
        """Pause, and wait for it: its API answers before it has happened."""
        await self._client.control("POST", f"/sandboxes/{id}/pause", id=id)
        deadline = time.monotonic() + self._config.pause_timeout_ms / 1000
        while (state := (await self._told(id)).get("state")) != "paused":
            if time.monotonic() > deadline:
                raise RunraError(
                    "INTERNAL_ERROR",
                    f"cubesandbox: sandbox {id} was to be paused and is still {state!r} after "
                    f"{self._config.pause_timeout_ms} ms; look at it there, or end it",
                    details={"sandboxId": id, "state": state},
                    retryable=True,
                )
            await asyncio.sleep(_POLL_S)

    async def _thaw(self, id: str) -> None:
        for attempt in range(5):
            try:
                await self._client.control("POST", f"/sandboxes/{id}/connect", {}, id=id, again=True)
                break
            except RunraError as error:
                # 409: another call is at it.
                if error.code != "INVALID_STATE" or attempt == 4:
                    raise
                await asyncio.sleep(0.2 * 2**attempt)
        self._resumed[id] = time.monotonic()

    async def _thawed(self, life: Life) -> None:
        policy = life.note.get("network")
        if isinstance(policy, dict):  # it does not keep the policy over a pause; what was frozen runs already
            await self._put_network(life.id, Network.model_validate(policy))
        await self._no_timer(life.id)
        await self._reachable(life)

    async def _no_timer(self, id: str) -> None:
        """Its own timer counts idle time only; ours counts what the contract promises."""
        await self._ask(id, "POST", f"/sandboxes/{id}/timeout", {"timeout": -1}, again=True)

    async def _ask(self, id: str, method: str, path: str, body: Any = None, *, again: bool = False) -> Any:
        """A call about a sandbox, which the API may not know just after a resume."""
        while True:
            try:
                return await self._client.control(method, path, body, id=id, again=again)
            except RunraError as error:
                fresh = time.monotonic() - self._resumed.get(id, -_FRESH_S) < _FRESH_S
                if error.code != "SANDBOX_NOT_FOUND" or not fresh:
                    raise
            await asyncio.sleep(_POLL_S)

    async def _is_paused(self, id: str) -> bool:
        return (await self._told(id)).get("state") in ("paused", "pausing")

    async def _found(self, id: str) -> Life:
        told = await self._told(id)
        return await self._noticed(id, told)

    async def _noticed(self, id: str, told: Mapping[str, Any]) -> Life:
        """Its times: as this process knows them, or as an earlier one wrote them down."""
        known = self._lifetimes.get(id)
        if known is not None:
            return known
        note = self._ledger.load(id) or {}
        if not note:  # made by somebody else: it is used as it is, and never ended by us
            note = {"domain": told.get("domain") or self._config.domain, "accessToken": told.get("envdAccessToken")}
        timeout, idle = note.get("timeoutMs"), note.get("idleTimeoutMs")
        life = Life(
            id,
            timeout if isinstance(timeout, int) else 10 * 365 * 86_400_000,
            idle if isinstance(idle, int) else None,
            note.get("autoResume") is True,
            paused=told.get("state") in ("paused", "pausing"),
        )
        return self._lifetimes.adopt(life, note, time.time())

    def _note(self, id: str) -> dict[str, Any]:
        life = self._lifetimes.get(id)
        return life.note if life is not None else self._ledger.load(id) or {}

    def _handle(self, id: str, state: str, note: Mapping[str, Any], told: Mapping[str, Any]) -> SandboxHandle:
        resources = {
            name: told[theirs] for name, theirs in (("cpu", "cpuCount"), ("memoryMb", "memoryMB"))
            if isinstance(told.get(theirs), int)
        }  # fmt: skip
        metadata = note.get("metadata", told.get("metadata")) or {}
        created = note.get("createdAt") or told.get("startedAt") or ""
        return SandboxHandle(
            id=id,
            state="paused" if state in ("paused", "pausing") else "running",
            image=note.get("image") or str(told.get("templateID") or ""),
            resources=resources,
            env=note.get("env") or {},
            metadata={str(name): str(value) for name, value in metadata.items()},
            workdir=note.get("workdir") or _HOME,
            timeout_ms=note.get("timeoutMs"),
            idle_timeout_ms=note.get("idleTimeoutMs"),
            network=note.get("network") or {},
            created_at=created,
            started_at=created or None,
        )

    # --- commands ----------------------------------------------------------------------------------------------------

    async def execute(
        self, id: str, command: str | Sequence[str], options: ExecuteOptions | None = None
    ) -> ExecutionResult:
        chosen = options or ExecuteOptions()
        async with self._active(id), self._input(id, chosen.stdin) as feed:
            words = command if isinstance(command, str) else shlex.join(command)
            attached = await self._attach(id, feed(words), chosen, stdin=False)
            return await finish(attached, ExecuteOptions(**{**vars(chosen), "stdin": None}))

    @asynccontextmanager
    async def _input(self, id: str, stdin: str | bytes | None) -> AsyncIterator[Any]:
        """stdin by way of a file: the stream of a process cannot be ended from outside."""
        if stdin is None:
            yield lambda words: words
            return
        path = f"/tmp/.{new_id('stdin')}"  # noqa: S108 - inside the sandbox, with a name of 80 random bits
        await self.write_file(id, path, stdin)
        try:
            yield lambda words: f"{{ rm -f {path} 2>/dev/null; {shlex.join(['/bin/bash', '-c', words])}; }} < {path}"
        finally:
            with contextlib.suppress(RunraError):
                await to_end(self._shell(id, "delete", path, 'rm -f "$1"'), 15.0)

    async def start_process(
        self, id: str, command: str | Sequence[str], options: ExecuteOptions | None = None
    ) -> ProcessHandle:
        chosen = options or ExecuteOptions()
        words = command if isinstance(command, str) else shlex.join(command)
        if chosen.stdin is not None:
            raise RunraError("INVALID_CONFIG", "stdin: with background, use the process's send_stdin at cubesandbox")

        async def attach() -> Attached:
            return await self._attach(id, words, chosen, stdin=True)

        return await self._in_background(id, attach, chosen)

    async def open_terminal(self, id: str, **options: Any) -> TerminalHandle:
        chosen = TerminalOptions.of(options)

        async def attach() -> tuple[CubeExec, Resize]:
            size = chosen.rows, chosen.cols
            attached = await self._attach(id, chosen.command or SHELL, chosen.execute(), stdin=True, size=size)
            return attached, attached.resize

        return await self._in_terminal(id, attach)

    async def _attach(
        self, id: str, command: str, options: ExecuteOptions, *, stdin: bool, size: tuple[int, int] | None = None
    ) -> CubeExec:
        note = self._note(id)

        async def open(body: bytes) -> aiohttp.ClientResponse:
            domain, token = note.get("domain") or self._config.domain, note.get("accessToken")
            return await self._client.stream(id, domain, token, options.user, "/process.Process/Start", body)

        async def call(method: str, message: Any) -> Any:
            return await self._inside(id, "POST", f"/process.Process/{method}", json=message)

        cwd = options.cwd or note.get("workdir") or _HOME
        return await CubeExec.start(
            open, call, command, options, stdin=stdin, env=dict(options.env), cwd=cwd, size=size
        )

    async def _inside(self, id: str, method: str, path: str, **options: Any) -> Any:
        note = self._note(id)
        domain, token = note.get("domain") or self._config.domain, note.get("accessToken")
        return await self._client.inside(id, domain, token, method, path, **options)

    # --- files -------------------------------------------------------------------------------------------------------

    async def read_bytes(self, id: str, path: str) -> bytes:
        async with self._active(id):
            query = {"path": self._place(id, path), "username": "root"}
            data = await self._inside(id, "GET", "/files", params=query, again=True)
        return data if isinstance(data, bytes) else b""

    async def write_file(self, id: str, path: str, content: str | bytes) -> None:
        data = content.encode() if isinstance(content, str) else bytes(content)
        query = {"path": self._place(id, path), "username": "root"}
        async with self._active(id):
            try:
                raw = {"Content-Type": "application/octet-stream"}
                await self._inside(id, "POST", "/files", params=query, data=data, headers=raw)
            except RunraError as error:
                if error.code in ("SANDBOX_NOT_FOUND", "NETWORK_ERROR"):
                    raise
                form = aiohttp.FormData()  # what older agents take
                form.add_field("file", data, filename=path.rpartition("/")[2])
                await self._inside(id, "POST", "/files", params=query, data=form)

    async def list_files(self, id: str, path: str) -> Files:
        place = self._place(id, path)
        async with self._active(id):
            told = await self._inside(
                id, "POST", "/filesystem.Filesystem/ListDir", json={"path": place, "depth": 1}, again=True
            )
        entries = told.get("entries", []) if isinstance(told, dict) else []
        found = [one for one in map(_entry, entries) if one is not None]
        return sorted(found, key=lambda one: one.name)

    async def delete_file(self, id: str, path: str, *, recursive: bool) -> None:
        # Its own Remove takes a full folder with it, and a missing file for granted.
        await self._shell(id, "delete", self._place(id, path), shell.DELETE, "1" if recursive else "0")

    def _place(self, id: str, path: str) -> str:
        shell.path_argument(path)
        return path if path.startswith("/") else f"{self._note(id).get('workdir') or _HOME}/{path}"

    # --- ports and network -------------------------------------------------------------------------------------------

    async def expose_port(self, id: str, port: int) -> PortInfo:
        life = await self._met(id)
        host = f"{port}-{id}.{life.note.get('domain') or self._config.domain}"
        exposed = PortInfo(port=port, url=f"http://{host}", exposed_at=now_iso())
        return self._exposed.setdefault(id, {}).setdefault(port, exposed)

    async def list_ports(self, id: str) -> Ports:
        await self._met(id)
        return list(self._exposed.get(id, {}).values())

    async def close_port(self, id: str, port: int) -> None:
        raise RunraError(
            "INVALID_CONFIG",
            "CubeSandbox cannot close a port: each is reachable at its URL for as long as something listens on it",
            details={"provider": self.id, "port": port},
        )

    async def set_network(self, id: str, network: Network) -> None:
        life = await self._met(id)
        async with self._active(id):
            await self._put_network(id, network)
        life.note["network"] = network.to_wire()
        self._lifetimes.note(life)

    async def _put_network(self, id: str, network: Network) -> None:
        policy = _network(network.egress) if network.egress is not None else {}
        await self._ask(id, "PUT", f"/sandboxes/{id}/network", policy.get("network", {}), again=True)

    async def snapshot(self, id: str, name: str | None = None) -> SnapshotInfo:
        async with self._active(id):
            told = await self._client.control(
                "POST", f"/sandboxes/{id}/snapshots", {"name": name} if name else {}, id=id, limit_s=_SNAPSHOT_S
            )
        taken = told.get("snapshotID") if isinstance(told, dict) else None
        if not isinstance(taken, str) or not taken:
            raise RunraError("INTERNAL_ERROR", "cubesandbox: it answered no snapshotID; is this its API?")
        image = self._note(id).get("image") or ""
        return SnapshotInfo(
            id=taken, name=name, organization_id="", sandbox_id=id, image=image, size_bytes=0, created_at=now_iso()
        )

    async def dispose(self) -> None:
        await self._unwatch()
        await self._client.close()


def _network(egress: Egress) -> dict[str, Any]:
    """Its form of an egress policy: names are only held when everything else is denied."""
    if egress.default == "allow" or (egress.default is None and not egress.allow):
        return {"network": {}}
    denied = {"allowOut": list(egress.allow), "denyOut": ["0.0.0.0/0"]}
    return {"network": denied} if egress.allow else {"network": denied, "allow_internet_access": False}


def _entry(told: Any) -> FileEntry | None:
    """An entry as it tells it; None for what is none."""
    if not isinstance(told, dict) or not isinstance(told.get("name"), str):
        return None
    kind = str(told.get("type", ""))
    size = str(told.get("size", "0"))
    return FileEntry(
        name=told["name"],
        path=str(told.get("path", told["name"])),
        is_directory=kind.endswith("DIRECTORY"),
        size_bytes=int(size) if size.isdigit() else 0,
        modified_at=str(told.get("modifiedTime", "")),
        mode=f"{told['mode'] & 0o7777:04o}" if isinstance(told.get("mode"), int) else "",
        owner=str(told.get("owner", "")),
        group=str(told.get("group", "")),
        symlink_target=told.get("symlinkTarget") if isinstance(told.get("symlinkTarget"), str) else None,
        type="directory" if kind.endswith("DIRECTORY") else "symlink" if kind.endswith("SYMLINK") else "file",
    )
