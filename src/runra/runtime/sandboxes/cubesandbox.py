"""The provider `cubesandbox`: microVMs of a CubeSandbox installation, by a client of our own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from runra.contract import SnapshotInfo
from runra.contract.network import Network
from runra.errors import RunraError, not_found
from runra.events import now_iso
from runra.runtime.capabilities import Capabilities
from runra.runtime.sandboxes.base import Ports
from runra.runtime.sandboxes.cube_client import CubeClient, CubeConfig
from runra.runtime.sandboxes.cube_inside import CubeInside
from runra.runtime.sandboxes.cube_shape import HOME, created, egress_body, handle, is_id, wanted
from runra.runtime.sandboxes.ledger import Ledger, state_dir
from runra.runtime.sandboxes.lifetimes import Life
from runra.runtime.tasks import to_end
from runra.runtime.types import PortInfo, SandboxHandle
from runra.sdk.types import ListOptions, SandboxConfig, refused

_UNDO_S: Final = 60.0
#: It takes up to 240 s.
_SNAPSHOT_S: Final = 250.0
_POLL_S: Final = 0.1
#: Just after a resume the API may not know a sandbox for a moment.
_FRESH_S: Final = 5.0


class CubeSandboxProvider(CubeInside):
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
        creating = asyncio.ensure_future(self._client.control("POST", "/sandboxes", wanted(self._config, config)))
        try:
            told = await asyncio.shield(creating)
            id, domain = created(self._config, told)
            own_workdir = config.workdir if "workdir" in config.model_fields_set else HOME
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
            if own_workdir != HOME:
                await self.make_dir(id, own_workdir, recursive=True)
        except BaseException:
            # It finishes a create whose caller hangs up: only one that has been answered can be taken back.
            await to_end(self._take_back(creating), _UNDO_S)
            raise
        return handle(id, "running", note, {})

    async def _take_back(self, creating: asyncio.Future[Any]) -> None:
        await asyncio.wait({creating})
        if not creating.cancelled() and creating.exception() is None:
            id, _ = created(self._config, creating.result())
            await self._destroy(id)

    async def _reachable(self, life: Life) -> None:
        """Wait for the agent inside: a proxy may lead astray for a moment."""
        await self._inside(life.id, "GET", "/health", again=True)

    async def get(self, id: str) -> SandboxHandle:
        told = await self._told(id)
        await self._noticed(id, told)
        return handle(id, told.get("state", "running"), self._note(id), told)

    async def _told(self, id: str) -> dict[str, Any]:
        if not is_id(id) or not id or len(id) > 128:
            raise not_found(str(id)[:80])
        told = await self._ask(id, "GET", f"/sandboxes/{id}")
        return told if isinstance(told, dict) else {}

    async def list(self, options: ListOptions | None = None) -> list[SandboxHandle]:
        chosen = options or ListOptions()
        answer = await self._client.control("GET", "/v2/sandboxes")
        found = []
        for told in answer if isinstance(answer, list) else []:
            id = told.get("sandboxID") if isinstance(told, dict) else None
            if is_id(id):
                found.append(handle(id, told.get("state", "running"), self._note(id), told))
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
            if error.code == "SANDBOX_NOT_FOUND" and is_id(id):
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
        policy = egress_body(network.egress) if network.egress is not None else {}
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
