"""Creating sandboxes: within the key's limits, written down before it starts, once per idempotency key."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from typing import Any

from runra.contract import SandboxConfig, SandboxInfo
from runra.errors import RunraError
from runra.events import now_iso
from runra.ids import new_id
from runra.server.access import Access, Key
from runra.server.nodeport import Node, Sandbox
from runra.server.quotas import Quotas
from runra.server.store import Store
from runra.server.store.sandboxes import (
    Remembered,
    TooMany,
    begin_create,
    drop_create,
    forget_create,
    live,
    save,
    unanswered,
)

_log = logging.getLogger("runra.server")


def body_hash(config: SandboxConfig) -> str:
    """The same for two bodies that ask for the same, whatever the order of their fields."""
    return hashlib.sha256(json.dumps(config.to_wire(), sort_keys=True).encode()).hexdigest()


def _being_made(sandbox_id: str, config: SandboxConfig, organization_id: str) -> SandboxInfo:
    return SandboxInfo(
        id=sandbox_id,
        organization_id=organization_id,
        state="creating",
        image=config.image,
        resources=config.resources.model_dump(by_alias=True),
        env=config.env,
        workdir=config.workdir,
        timeout_ms=config.timeout_ms,
        idle_timeout_ms=config.idle_timeout_ms,
        metadata=config.metadata,
        network=config.network.shown() if config.network else {},
        auto_resume=config.auto_resume,
        volumes=[mount.model_dump(by_alias=True) for mount in config.volumes],
        isolation=config.isolation or "",
        created_at=now_iso(),
    )


class Creates:
    """Makes sandboxes on the node and keeps the store true about them."""

    def __init__(self, store: Store, node: Node, quotas: Quotas, deadline_s: float) -> None:
        self._store = store
        self._node = node
        self._quotas = quotas
        self._deadline_s = deadline_s
        # Creates in flight, by idempotency key: a duplicate waits for the first.
        self._flying: dict[tuple[str, str], tuple[str, asyncio.Future[dict[str, Any]]]] = {}
        self._making: set[str] = set()

    async def create(self, key: Key, config: SandboxConfig, idempotency_key: str | None) -> tuple[dict[str, Any], bool]:
        """The created sandbox as JSON values, and whether this is the answer of an earlier call with the same key."""
        Access.require_limits(key, config)
        if idempotency_key is None:
            return await self._make(key, config, None), False
        slot, body = (key.id, idempotency_key), body_hash(config)
        flying = self._flying.get(slot)
        if flying is not None:
            _same_body(flying[0], body, idempotency_key)
            try:
                async with asyncio.timeout(self._deadline_s):
                    return await asyncio.shield(flying[1]), True
            except TimeoutError:
                raise _late(self._deadline_s) from None
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        # A failure nobody else waits for is still reported by this call.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._flying[slot] = body, future
        sandbox_id = new_id("sb")
        remember = Remembered(key.id, idempotency_key, body, sandbox_id)
        try:
            made = await self._make(key, config, remember)
        except RunraError as error:
            future.set_exception(error)
            raise
        except BaseException:
            future.set_exception(
                RunraError(
                    "INTERNAL_ERROR",
                    "the first call with this Idempotency-Key did not finish; try again",
                    retryable=True,
                )
            )
            raise
        finally:
            del self._flying[slot]
            if not future.done():
                future.set_result(made)
        return made, made["id"] != sandbox_id

    async def _make(self, key: Key, config: SandboxConfig, remember: Remembered | None) -> dict[str, Any]:
        sandbox_id = remember.sandbox_id if remember else new_id("sb")
        being_made = _being_made(sandbox_id, config, key.organization_id)
        most = key.limits.max_sandboxes if key.limits else None
        # In memory first: `keep` must not write a row whose create is still being decided.
        self._making.add(sandbox_id)
        try:
            try:
                earlier = await begin_create(self._store, being_made, key.id, remember, most)
            except TooMany:
                raise _too_many(most) from None
            if earlier is not None:
                assert remember is not None
                _same_body(earlier.body_hash, remember.body_hash, remember.idempotency_key)
                if earlier.response is None:
                    raise _late(self._deadline_s)
                return earlier.response
            inherited = self._node.snapshots.size_mb(config.image, key.organization_id)
            try:
                async with (
                    self._quotas.room(key.organization_id, [sandbox_id], config.resources, inherited),
                    asyncio.timeout(self._deadline_s),
                ):
                    sandbox = await self._node.create(sandbox_id, config, key.organization_id)
            except TimeoutError:
                await drop_create(self._store, sandbox_id)
                raise _late(self._deadline_s) from None
            except Exception:
                await drop_create(self._store, sandbox_id)
                raise
            info = sandbox.info()
            await save(self._store, info, answered=remember is not None)
        finally:
            self._making.discard(sandbox_id)
        # It may have changed while its row was being written (a timer, another client).
        if sandbox.info() != info:
            await self.keep(sandbox)
        return info.to_wire()

    async def fork(self, key: Key, source: Sandbox, count: int, *, processes: bool) -> list[SandboxInfo]:
        """Copies of a sandbox, all of them running; when one cannot be made there is none."""
        config = source.config
        Access.require_limits(key, config)
        most = key.limits.max_sandboxes if key.limits else None
        ids = [new_id("sb") for _ in range(count)]
        self._making.update(ids)
        try:
            try:
                for each in ids:
                    await begin_create(self._store, _being_made(each, config, key.organization_id), key.id, None, most)
                inherited = await source.copy_mb() if self._quotas.bound_disk(key.organization_id) else 0
                async with (
                    self._quotas.room(key.organization_id, ids, config.resources, inherited),
                    asyncio.timeout(self._deadline_s),
                ):
                    made = await self._node.fork(source.id, ids, processes=processes)
            except BaseException as error:
                for each in ids:
                    await drop_create(self._store, each)
                if isinstance(error, TooMany):
                    raise _too_many(most) from None
                if isinstance(error, TimeoutError):
                    raise _late(self._deadline_s) from None
                raise
            infos = [sandbox.info() for sandbox in made]
            for info in infos:
                await save(self._store, info)
        finally:
            self._making.difference_update(ids)
        for sandbox, info in zip(made, infos, strict=True):
            if sandbox.info() != info:
                await self.keep(sandbox)
        return infos

    async def keep(self, sandbox: Sandbox) -> None:
        """Write a sandbox's row after a change; the node awaits this."""
        if sandbox.id not in self._making:
            await save(self._store, sandbox.info(), metadata=True)

    async def reconcile(self) -> None:
        """At the start: make the store and the node agree about what is alive.

        The node knows what survived. A stored sandbox it does not know is gone; one it knows without a row belongs
        to nobody who could ever name it, and is terminated.
        """
        stored = {info.id: info for info in await live(self._store)}
        pending = await unanswered(self._store)
        for sandbox_id, info in stored.items():
            sandbox = self._node.sandboxes.get(sandbox_id)
            if sandbox is not None:
                # An idempotent create whose answer was lost is answered by its retry.
                await save(self._store, sandbox.info(), answered=sandbox_id in pending)
                continue
            reason = self._node.gone.get(sandbox_id, "node_lost")
            _log.warning("sandbox %s did not survive: %s", sandbox_id, reason)
            ended = info.model_copy(
                update={"state": "terminated", "terminated_at": now_iso(), "termination_reason": reason}
            )
            await save(self._store, ended)
        for sandbox_id in pending - self._node.sandboxes.keys():
            await forget_create(self._store, sandbox_id)
        for sandbox in list(self._node.sandboxes.values()):
            if sandbox.id not in stored:
                _log.warning("sandbox %s has no row in the store; terminating it", sandbox.id)
                await sandbox.terminate("error")


def _same_body(first: str, second: str, idempotency_key: str) -> None:
    if first != second:
        raise RunraError(
            "INVALID_REQUEST",
            f"Idempotency-Key {idempotency_key!r} was used with another body within 24 h; use a new key for a new call",
            details={"field": "Idempotency-Key", "value": idempotency_key},
        )


def _too_many(most: int | None) -> RunraError:
    return RunraError(
        "RESOURCE_EXHAUSTED",
        f"this API key may hold {most} sandboxes at once, and this would be more; terminate some, or use another key",
        details={"limits": {"maxSandboxes": most}},
    )


def _late(deadline_s: float) -> RunraError:
    return RunraError(
        "INTERNAL_ERROR",
        f"the sandbox was not running within {deadline_s:.0f} s; try again, and see the server's log if it stays so",
        retryable=True,
    )
