"""The provider `docker`: containers of a Docker engine, over its API."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aiodocker
import aiohttp
from pydantic import ValidationError

from runra.contract import ExecutionResult
from runra.errors import RunraError, not_found
from runra.ids import SANDBOX_ID, new_id
from runra.runtime.capabilities import Capabilities
from runra.runtime.sandboxes import shell
from runra.runtime.sandboxes.docker_exec import DockerExec, mapped
from runra.runtime.sandboxes.docker_shape import (
    LABEL,
    DockerConfig,
    asked,
    container,
    epoch,
    handle,
    is_ours,
    name_of,
    used,
)
from runra.runtime.sandboxes.ledger import Ledger, state_dir
from runra.runtime.sandboxes.lifetimes import Life
from runra.runtime.sandboxes.running import Attached, finish
from runra.runtime.sandboxes.terminals import SHELL, Resize, TerminalOptions
from runra.runtime.sandboxes.timed import TimedProvider
from runra.runtime.tasks import to_end
from runra.runtime.types import ExecuteOptions, ProcessHandle, ResourceUse, SandboxHandle, TerminalHandle
from runra.sdk.types import ListOptions, SandboxConfig, refused

_log = logging.getLogger("runra.runtime")

_PULL_S: Final = 900.0
_UNDO_S: Final = 30.0
_AT_ONCE: Final = 16


class DockerProvider(TimedProvider):
    """A sandbox is a container: labelled, with hard limits of CPU, memory (no swap) and processes, without privileges
    to gain, and without a network unless one is configured. Its wall is the engine's: one kernel, shared.

    Lifetime and idle time are watched by this process, and by the next one that uses the same namespace; while no such
    process runs, nobody does. A terminated sandbox is forgotten by the engine: `get` does not find it.
    """

    id = "docker"
    capabilities = Capabilities.of(
        "streaming",
        "stdin",
        "background",
        "stdin_end",
        "pty",
        "user",
        "pause",
        "auto_resume",
        "timeout",
        "idle_timeout",
        "cpu_limit",
        "memory_limit",
        "network_deny",
        "metadata",
        "metadata_filter",
        "resources",
        timeout="watched by the process that uses the provider",
        idle_timeout="watched by the process that uses the provider",
        resources="CPU and memory",
    )

    async def initialize(self, config: Mapping[str, Any]) -> None:
        try:
            self._config = DockerConfig.model_validate(dict(config))
        except ValidationError as error:
            problem = refused(error)
            raise RunraError("INVALID_CONFIG", f"sandbox.config: {problem.message}", details=problem.details) from None
        self._limit_s = self._config.timeout_ms / 1000
        ledger = Ledger(state_dir(self._config.state_dir, "docker", self._config.namespace))
        ledger.open()
        self._watch(ledger)
        self._connector: aiohttp.BaseConnector | None = None
        self._docker = self._client()
        try:
            async with self._call("connecting"):
                self._cpus = int((await self._docker.system.info()).get("NCPU") or 1)
            await self._adopt()
        except BaseException:
            await self._disconnect()
            raise

    def _client(self) -> aiodocker.Docker:
        url = self._config.url or self._config.api_url
        timeout = aiohttp.ClientTimeout(sock_connect=10.0, sock_read=max(self._limit_s, 60.0))
        # Each command holds a connection of its own: aiohttp's limit of 100 would make the next one wait.
        try:
            if url is not None and url.startswith("unix://"):
                self._connector = aiohttp.UnixConnector(url.removeprefix("unix://"), limit=0)
                return aiodocker.Docker(url="unix://localhost", connector=self._connector, timeout=timeout)
            return aiodocker.Docker(url=url, timeout=timeout)
        except (ValueError, AssertionError):
            raise RunraError(
                "INVALID_CONFIG",
                "no Docker engine: there is no socket at the usual places; start one, or give sandbox.config.url or "
                "DOCKER_HOST",
                details={"field": "sandbox.config.url"},
            ) from None

    async def _adopt(self) -> None:
        """Watch what an earlier process left, and forget the notes of what is gone."""
        found = {handle.id for handle in await self.list()}
        for id in self._ledger.ids():
            if id not in found:
                self._ledger.remove(id)

    # --- life --------------------------------------------------------------------------------------------------------

    async def create(self, config: SandboxConfig) -> SandboxHandle:
        id = new_id("sb")
        wanted = container(id, config, self._config, self._cpus)
        try:
            async with self._call("finding the image", image=config.image, limit_s=_PULL_S):
                await self._image(config.image)
            async with self._call("creating a container", image=config.image):
                await self._create(id, wanted)
            await self._try(id, config.image)
            shown = await self._show(id)
        except BaseException:
            await to_end(self._destroy(id), _UNDO_S)
            raise
        self._lifetimes.add(Life(id, config.timeout_ms, config.idle_timeout_ms, config.auto_resume))
        return handle(shown)

    async def _try(self, id: str, image: str) -> None:
        """See that it runs: the engine calls a container started before its first program has been found."""
        try:
            attached = await self._attach(id, shell.argv(":"), ExecuteOptions(), stdin=False)
            result = await finish(attached, ExecuteOptions(timeout_ms=self._config.timeout_ms))
        except RunraError as error:
            if error.code not in ("SANDBOX_NOT_FOUND", "INVALID_REQUEST", "INVALID_STATE", "INTERNAL_ERROR"):
                raise
            why = error.message
        else:
            if result.exit_code == 0:
                return
            why = (result.stderr or result.stdout).strip()[-300:]
        raise RunraError(
            "INVALID_REQUEST",
            f"image: {image!r} does not run as a sandbox: it needs /bin/sh and sleep ({why})",
            details={"field": "image"},
        )

    async def _create(self, id: str, wanted: dict[str, Any]) -> None:
        # The engine finishes a create whose caller hangs up: only one that has been answered can be taken back.
        creating = asyncio.ensure_future(self._docker.containers.create(wanted, name=name_of(id)))
        try:
            created = await asyncio.shield(creating)
        except asyncio.CancelledError:
            await to_end(_settled(creating), _UNDO_S)
            raise
        await created.start()

    async def _image(self, image: str) -> None:
        try:
            await self._docker.images.inspect(image)
        except aiodocker.DockerError as error:
            if error.status != 404 or self._config.pull == "never":
                raise
            _log.info("pulling the image %s", image)
            await self._docker.images.pull(
                image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"
            )

    async def get(self, id: str) -> SandboxHandle:
        shown = await self._show(id)
        self._known(shown)
        return handle(shown)

    async def list(self, options: ListOptions | None = None) -> list[SandboxHandle]:
        chosen = options or ListOptions()
        labels = [f"{LABEL}={self._config.namespace}"]
        labels += [f"{LABEL}.metadata.{name}={value}" for name, value in (chosen.metadata or {}).items()]
        async with self._call("listing containers"):
            found = await self._docker.containers.list(all=True, filters=json.dumps({"label": labels}))
        turns = asyncio.Semaphore(_AT_ONCE)

        async def look(container: Any) -> dict[str, Any] | None:
            async with turns:
                try:
                    async with self._call("looking at a container"):
                        shown: dict[str, Any] = await container.show()
                        if is_ours(shown):
                            return shown
                        _log.warning("the container %s has Runra's labels, and is not Runra's", shown.get("Name"))
                        return None
                except RunraError as error:
                    if error.code == "SANDBOX_NOT_FOUND":  # it ended meanwhile
                        return None
                    raise

        every = [shown for shown in await asyncio.gather(*map(look, found)) if shown is not None]
        for shown in every:
            self._known(shown)
        matching = [
            one
            for one in sorted(map(handle, every), key=lambda it: it.created_at, reverse=True)
            if chosen.state in (None, one.state) and chosen.image in (None, one.image)
        ]
        offset = chosen.offset or 0
        return matching[offset : None if chosen.limit is None else offset + chosen.limit]

    async def _freeze(self, id: str) -> None:
        async with self._call("pausing", id=id):
            try:
                await self._docker.containers.container(name_of(id)).pause()
            except aiodocker.DockerError as error:
                if "already paused" not in error.message:
                    raise

    async def _thaw(self, id: str) -> None:
        async with self._call("resuming", id=id):
            try:
                await self._docker.containers.container(name_of(id)).unpause()
            except aiodocker.DockerError as error:
                if "is not paused" not in error.message:
                    raise

    async def _is_paused(self, id: str) -> bool:
        return bool((await self._show(id))["State"]["Paused"])

    async def terminate(self, id: str) -> None:
        try:
            shown = await self._show(id)  # only what is of this namespace
        except RunraError as error:
            if error.code != "SANDBOX_NOT_FOUND" or not SANDBOX_ID.fullmatch(id):
                raise
            self._lifetimes.remove(id)
            return
        life = self._known(shown)
        if life is None:  # it ended by itself: what is left of it is cleared away
            await self._destroy(id)
        else:
            await self._end(life, "user")

    async def _destroy(self, id: str) -> None:
        """Kill it and delete what it had; one that is gone is fine."""
        async with self._call("ending", id=id):
            try:
                await self._docker.containers.container(name_of(id)).delete(force=True, v=True)
            except aiodocker.DockerError as error:
                # 409: it is being removed already.
                if error.status not in (404, 409):
                    raise
        self._lifetimes.remove(id)

    # --- commands ----------------------------------------------------------------------------------------------------

    async def execute(
        self, id: str, command: str | Sequence[str], options: ExecuteOptions | None = None
    ) -> ExecutionResult:
        chosen = options or ExecuteOptions()
        async with self._active(id):
            return await finish(await self._attach(id, command, chosen, stdin=chosen.stdin is not None), chosen)

    async def start_process(
        self, id: str, command: str | Sequence[str], options: ExecuteOptions | None = None
    ) -> ProcessHandle:
        chosen = options or ExecuteOptions()

        async def attach() -> Attached:
            attached = await self._attach(id, command, chosen, stdin=True)
            await attached.find_pid()
            return attached

        return await self._in_background(id, attach, chosen)

    async def open_terminal(self, id: str, **options: Any) -> TerminalHandle:
        chosen = TerminalOptions.of(options)

        async def attach() -> tuple[DockerExec, Resize]:
            attached = await self._attach(id, chosen.command or SHELL, chosen.execute(), stdin=True, tty=True)
            try:
                await attached.resize(chosen.rows, chosen.cols)
                await attached.find_pid()
            except BaseException:
                await to_end(attached.kill(), _UNDO_S)
                await attached.close()
                raise
            return attached, attached.resize

        return await self._in_terminal(id, attach)

    async def _attach(
        self, id: str, command: str | Sequence[str], options: ExecuteOptions, stdin: bool, tty: bool = False
    ) -> DockerExec:
        argv = shell.argv(shell.BASH_ELSE_SH, command) if isinstance(command, str) else list(command)
        async with self._call("running a command", id=id):
            return await DockerExec.start(
                self._docker, name_of(id), argv, options, stdin=stdin, limit_s=self._limit_s, tty=tty
            )

    async def read_bytes(self, id: str, path: str) -> bytes:
        parts: list[bytes] = []
        async with self._active(id):
            command = shell.argv(shell.READ, shell.path_argument(path))
            attached = await self._attach(id, command, ExecuteOptions(), stdin=False)
            # Output as it is: what a result keeps is text, and bounded.
            result = await finish(_Tee(attached, parts), ExecuteOptions(timeout_ms=300_000))
        shell.check(result, "read", path)
        return b"".join(parts)

    async def usage(self, id: str) -> ResourceUse:
        shown = await self._show(id)
        async with self._call("asking what it uses", id=id):
            told = await self._docker.containers.container(name_of(id)).stats(stream=False)
        return used(shown, told[-1] if told else {})

    # --- what it stands on -------------------------------------------------------------------------------------------

    async def _show(self, id: str) -> dict[str, Any]:
        """What the engine says of a sandbox of this namespace. Any other container is SANDBOX_NOT_FOUND, too."""
        if not isinstance(id, str) or not SANDBOX_ID.fullmatch(id):
            raise not_found(str(id)[:80])
        async with self._call("looking at a container", id=id):
            shown: dict[str, Any] = await self._docker.containers.container(name_of(id)).show()
        if (shown["Config"].get("Labels") or {}).get(LABEL) != self._config.namespace or not is_ours(shown):
            raise not_found(id)
        return shown

    async def _found(self, id: str) -> Life:
        life = self._known(await self._show(id))
        if life is None:
            raise not_found(id)
        return life

    def _known(self, shown: dict[str, Any]) -> Life | None:
        """Its times, taken up from what an earlier process noted; None for one that has ended."""
        labels, state = shown["Config"]["Labels"], shown["State"]
        id = labels[f"{LABEL}.id"]
        if not state["Running"] and not state["Paused"]:
            return None
        life = self._lifetimes.get(id)
        if life is None:
            config = asked(labels)
            life = Life(id, config.timeout_ms, config.idle_timeout_ms, config.auto_resume, paused=bool(state["Paused"]))
            note = self._ledger.load(id) or {}
            life = self._lifetimes.adopt(life, note, epoch(state.get("StartedAt", "")))
        return life

    @asynccontextmanager
    async def _call(
        self, doing: str, *, id: str = "", image: str = "", limit_s: float | None = None
    ) -> AsyncIterator[None]:
        """A call to the engine: with a deadline, its failures as RunraError."""
        seconds = self._limit_s if limit_s is None else limit_s
        try:
            async with asyncio.timeout(seconds):
                yield
        except aiodocker.DockerError as error:
            if error.status > 599:  # aiodocker's own, for an engine it cannot reach
                raise self._unreachable(doing, id, error) from error
            raise mapped(error, doing, id, image) from None
        except TimeoutError:
            raise RunraError(
                "NETWORK_ERROR",
                f"docker, {doing}: the engine did not answer within {seconds:g} s",
                details={"reason": "timeout", "sandboxId": id},
                retryable=False,
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(doing, id, error) from error

    def _unreachable(self, doing: str, id: str, error: Exception) -> RunraError:
        return RunraError(
            "NETWORK_ERROR",
            f"docker, {doing}: no engine answers at {self._config.url or self._docker.docker_host} ({error}); is it "
            "running, and may you use its socket?",
            details={"reason": "connect", "sandboxId": id},
            retryable=True,
        )

    async def dispose(self) -> None:
        await self._unwatch()
        await self._disconnect()

    async def _disconnect(self) -> None:
        await self._docker.close()
        if self._connector is not None:
            await self._connector.close()


async def _settled(task: asyncio.Future[Any]) -> None:
    await asyncio.wait({task})


class _Tee:
    """A command whose stdout is kept as it is, beside what the result keeps of it."""

    def __init__(self, inner: DockerExec, parts: list[bytes]) -> None:
        self.pid = inner.pid
        self._parts = parts
        self.exit, self.write, self.close_stdin = inner.exit, inner.write, inner.close_stdin
        self.kill, self.close, self._read = inner.kill, inner.close, inner.read

    async def read(self) -> Any:
        piece = await self._read()
        if piece is not None and piece[0] == "stdout":
            self._parts.append(piece[1])
            return "stdout", b""
        return piece
