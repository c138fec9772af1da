"""One sandbox's life: creating → running ⇄ paused → terminated, each transition exactly once.

Transitions hold `_turn` and run in tasks of their own: a caller that goes away (a closed HTTP connection) never
leaves one half done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from runra.contract import Network, SandboxConfig, SandboxInfo, SandboxPatch, TerminationReason
from runra.errors import RunraError, not_found
from runra.events import EventLog, EventType, now_iso
from runra.node.agent.link import AgentLink
from runra.node.agent.types import AgentLost, ProcessStatus
from runra.node.cgroups import Cgroup
from runra.node.freezer import continue_tree, stop_tree
from runra.node.isolation.checkpoint import Checkpoints, Standing
from runra.node.memory_end import MemoryEnd
from runra.node.network.guest import Guest
from runra.node.network.host import HostNetwork
from runra.node.network.policy import NOTHING, policy_of
from runra.node.process_one import KILL_TIMEOUT, ProcessOne
from runra.node.record import Record, process_start
from runra.node.shown import shown
from runra.node.timers import Timers
from runra.node.usage import Usage

log = logging.getLogger(__name__)


#: Seconds until an agent greets that has to be brought a socket first, by a program of its wall's.
_JOIN_TIMEOUT: Final = 20.0
_MB: Final = 1 << 20


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Sandbox:
    """A live sandbox. `Node` makes it, `on_gone` gives its folder and cgroups back when it is terminated."""

    def __init__(
        self,
        record: Record,
        folder: Path,
        records: Path,
        cgroup: Cgroup,
        *,
        events: EventLog,
        enforced: dict[str, bool],
        can_freeze: bool,
        one_memory: bool,
        max_streams: int,
        on_change: Callable[[Sandbox], Awaitable[None]],
        on_gone: Callable[[Sandbox], None],
    ) -> None:
        self.record = record
        self.folder = folder
        self._records = records
        self.cgroup = cgroup
        self._events = events
        self._enforced = enforced
        self._can_freeze = can_freeze
        self._max_streams = max_streams
        self._on_change = on_change
        self._on_gone = on_gone
        self._network: HostNetwork | None = None
        #: This sandbox as its host's network knows it; None: it has no network.
        self.guest: Guest | None = None
        self._turn = asyncio.Lock()
        self._link: AgentLink | None = None
        self._linking = asyncio.Lock()
        self._process_one = ProcessOne(record.id, self._on_death)
        self._usage = Usage(cgroup, folder)
        self._memory_end = MemoryEnd(cgroup, self._on_memory_gone) if one_memory else None
        self._timers = Timers(self)
        self._users = 0
        #: When the present stretch of running began, by the monotonic clock: the wall's may be set back.
        self._running_since = time.monotonic()
        #: The OOM count when the sandbox was last used: what comes after it may be what killed process 1.
        self._ooms_known = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- what it is ---

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def organization_id(self) -> str:
        return self.record.organization_id

    @property
    def config(self) -> SandboxConfig:
        return self.record.config

    @property
    def env(self) -> dict[str, str]:
        """What every command starts with: the image's environment under the create's."""
        return {**self.record.root.env, **self.record.config.env}

    @property
    def socket_path(self) -> Path:
        return self._records / f"{self.id}.sock"

    @property
    def record_path(self) -> Path:
        return self._records / f"{self.id}.json"

    def info(self) -> SandboxInfo:
        return shown(self.record, self._enforced, self.guest)

    def ran_ms(self) -> int:
        """Time spent running so far, in ms; paused time does not count."""
        present = time.monotonic() - self._running_since if self.record.state == "running" else 0.0
        return self.record.ran_ms + int(present * 1000)

    def oom_kills(self) -> int:
        """How often the kernel killed one of its processes for want of memory."""
        return self._usage.oom_kills()

    def memory_gone(self) -> bool:
        """Whether its memory ran out and it must end for that: nothing it says is to be believed any more."""
        return self._memory_end is not None and self.oom_kills() > 0

    async def metrics(self) -> dict[str, Any]:
        """cpuMs, memoryBytes, processes and diskBytes as far as this machine measures them, oomKills and ranMs."""
        limits = self.record.config.resources.model_dump(by_alias=True)
        return {"ranMs": self.ran_ms(), **await self._usage.read(), "limits": limits}

    @property
    def inherited_mb(self) -> int:
        """MB it began with as a copy, which its own limit of disk leaves out."""
        return math.ceil(self.record.root.start_bytes / _MB)

    async def copy_mb(self) -> int:
        """MB that a copy of it begins with, as of some seconds ago at most."""
        return math.ceil(await self._usage.disk_bytes() / _MB)

    # --- the agent ---

    @asynccontextmanager
    async def use(self) -> AsyncIterator[AgentLink]:
        """The agent of a running sandbox; as long as it is held the sandbox is active.

        A paused sandbox is resumed first when it was created with `autoResume`. Raises INVALID_STATE otherwise.
        """
        self._users += 1
        try:
            await self.wake()
            self._require_running()
            try:
                yield await self._agent()
            except AgentLost as lost:
                raise self._explain(lost) from lost
        finally:
            self._users -= 1
            if self._link is not None and not self._link.closed and not self.memory_gone():
                # Its agent outlived them. When it did not, they may be what killed it.
                self._ooms_known = self.oom_kills()
            self.touch()

    async def wake(self) -> None:
        """Resume it if it is paused and was created with `autoResume`."""
        if self.record.state == "paused" and self.record.config.auto_resume:
            await self.resume()

    def touch(self) -> None:
        """A moment of activity: the idle time starts again."""
        self._timers.touch()

    @property
    def in_use(self) -> bool:
        """Whether somebody holds its agent, see `use`."""
        return self._users > 0

    async def processes(self) -> list[ProcessStatus]:
        """Every process its agent knows of, running or ended. Asking is no activity."""
        return await (await self._agent()).processes()

    def _require_running(self) -> None:
        if self.record.state == "terminated":
            raise self._ended()
        if self.record.state != "running":
            raise RunraError(
                "INVALID_STATE",
                f"sandbox {self.id} is {self.record.state}; resume it first, or create it with autoResume",
                details={"sandboxId": self.id, "state": self.record.state},
            )

    def _ended(self) -> RunraError:
        reason = self.record.termination_reason
        return RunraError(
            "INVALID_STATE",
            f"sandbox {self.id} is terminated (reason: {reason})",
            details={"sandboxId": self.id, "state": "terminated", "terminationReason": reason},
        )

    def _explain(self, lost: AgentLost) -> RunraError:
        return self._ended() if self.record.state == "terminated" else lost

    async def _agent(self) -> AgentLink:
        if self._link is not None and not self._link.closed and not self._link.apart:
            return self._link
        async with self._linking:
            if self._link is None or self._link.closed:
                self._link = await self._connect()
            return self._link

    async def _connect(self) -> AgentLink:
        joins = self.record.apart or self.record.root.memory is not None  # the first connection brings a socket
        path = self.socket_path
        link = await (AgentLink.connect(path, timeout=_JOIN_TIMEOUT) if joins else AgentLink.connect(path))
        link.max_streams = self._max_streams
        return link

    # --- start and adoption ---

    @asynccontextmanager
    async def starting(self) -> AsyncIterator[None]:
        """The first transition: whoever wants to end or pause it meanwhile waits. INVALID_STATE if it was ended before
        its start."""
        async with self._turn:
            if self.record.state != "creating":
                raise self._ended()
            yield

    async def started(self, pid: int) -> None:
        """The wall stands: watch process 1, greet the agent, and call it running."""
        record = self.record
        try:
            self._process_one.watch(pid)
        except ProcessLookupError:
            raise RunraError("INTERNAL_ERROR", f"process 1 of sandbox {self.id} died as it started") from None
        record.pid, record.pid_started = pid, process_start(pid)
        if self._memory_end is not None:
            self._memory_end.watch()
        link = await self._agent()
        if record.config.workdir != "/workspace":
            await link.files.mkdir(record.config.workdir, recursive=True)
        record.started_at = now_iso()
        self._run_from_now()
        await self._changed("sandbox.started", {})

    async def adopt(self, checkpoints: Checkpoints | None) -> None:
        """Take over a sandbox that an earlier server left. Raises when it is not what its record says."""
        record = self.record
        if not record.pid or process_start(record.pid) != record.pid_started:
            raise not_found(record.id)
        self._process_one.watch(record.pid)
        if process_start(record.pid) != record.pid_started:
            raise not_found(record.id)
        if self.memory_gone():
            raise RunraError("INVALID_STATE", "its memory ran out while no server was there")
        if self._memory_end is not None:
            self._memory_end.watch()
        if record.state == "paused":
            await self._freeze()  # the crash may have come between the decision and the deed
        else:
            self._running_since = time.monotonic() - max(0, _now_ms() - record.running_since_ms) / 1000
            self._thaw()
            if record.apart and checkpoints is not None:
                with contextlib.suppress(RunraError):  # it may run on already: then it answers
                    await checkpoints.go_on(self._standing(self._process_one.fd))
            await self._agent()
            record.apart = False
            self._timers.arm()

    def _on_death(self) -> None:
        if self.record.state != "terminated":
            self.background(self.terminate("oom" if self.oom_kills() > self._ooms_known else "error"))

    def _on_memory_gone(self) -> None:
        if self.record.state != "terminated":
            self.background(self.terminate("oom"))

    # --- transitions ---

    async def pause(self) -> None:
        """Stop every process and keep everything. Pausing a paused sandbox is fine; INVALID_STATE once terminated."""
        await self._own(self.pause_if("user", lambda: True))

    async def pause_if(self, reason: str, only_if: Callable[[], bool]) -> None:
        """Pause it when its turn has come and `only_if` holds then."""
        async with self._turn:
            record = self.record
            if record.state == "paused" or not only_if():
                return
            self._require_running()
            await self._freeze()
            runtime = self.ran_ms()
            record.ran_ms, record.state = runtime, "paused"
            record.paused_at, record.paused_since_ms = now_iso(), _now_ms()
            self._timers.disarm()
            await self._changed("sandbox.paused", {"runtimeDurationMs": runtime, "reason": reason})
            self.background(asyncio.to_thread(self.cgroup.reclaim))

    async def resume(self) -> None:
        """Let it run on. Resuming a running sandbox is fine; INVALID_STATE once terminated."""
        await self._own(self._resume())

    async def _resume(self) -> None:
        async with self._turn:
            record = self.record
            if record.state == "running":
                return
            if record.state == "terminated":
                raise self._ended()
            paused = _now_ms() - record.paused_since_ms
            record.paused_at = None
            self._thaw()
            self._run_from_now()
            await self._changed("sandbox.resumed", {"pausedDurationMs": paused})

    async def terminate(self, reason: TerminationReason = "user") -> None:
        """End it: every process is dead when this returns, its files are deleted in the background. Idempotent.

        Raises INTERNAL_ERROR when the kernel did not end it within 10 s; it may then be called again.
        """
        await self._own(self.terminate_if(reason, lambda: True))

    async def terminate_if(self, reason: TerminationReason, only_if: Callable[[], bool]) -> None:
        """End it when its turn has come and `only_if` holds then."""
        async with self._turn:
            record = self.record
            if record.state == "terminated" or not only_if():
                return
            runtime = self.ran_ms()
            await self._process_one.kill(self.cgroup.thaw)
            record.ran_ms, record.state = runtime, "terminated"
            record.terminated_at, record.termination_reason = now_iso(), reason
            self._timers.disarm()
            if self._memory_end is not None:
                self._memory_end.close()
            if self._link is not None:
                await self._link.close()
            await self._changed("sandbox.terminated", {"reason": reason, "totalRuntimeMs": runtime})
            self._on_gone(self)

    async def update(self, patch: SandboxPatch) -> None:
        """Change limits of time or metadata; a lifetime already used up ends the sandbox at once."""
        async with self._turn:
            if self.record.state == "terminated":
                raise self._ended()
            changes = {name: getattr(patch, name) for name in patch.model_fields_set}
            self.record.config = self.record.config.model_copy(update=changes)
            self.touch()
            if self.record.state == "running":
                self._timers.arm()
            await self._save()

    def connect(self, network: HostNetwork, guest: Guest) -> None:
        """It is on the network from now on, under the guest's policy."""
        self._network, self.guest = network, guest

    async def update_network(self, network: Network) -> None:
        """Replace the policy of egress and the secrets, in force when this returns; connections it forbids are cut.
        Which ports may be exposed stays as it is where `ingress` is left out.

        Raises INVALID_CONFIG for what cannot be enforced here, INVALID_STATE once terminated.
        """
        await self._own(self._update_network(network))

    async def _update_network(self, network: Network) -> None:
        async with self._turn:
            if self.record.state == "terminated":
                raise self._ended()
            if self._network is not None and self.guest is not None:
                await self._network.change(self.guest, network)
            elif network.secrets or policy_of(network.egress) != NOTHING:
                raise RunraError(
                    "INVALID_CONFIG",
                    f"sandbox {self.id} has no network; `runra doctor` says why",
                    details={"field": "network.egress"},
                )
            before = self.record.config.network
            if "ingress" not in network.model_fields_set and before is not None and before.ingress is not None:
                network = network.model_copy(update={"ingress": before.ingress})
            self.record.config = self.record.config.model_copy(update={"network": network})
            self.touch()
            await self._save()

    async def release(self) -> None:
        """Let go of it without ending it: the server stops, the sandbox lives on."""
        self._timers.close()
        self._process_one.unwatch()
        if self._memory_end is not None:
            self._memory_end.close()
        if self._tasks:  # a transition or a save under way is finished first; what is cut short, the next server mends
            _, late = await asyncio.wait(self._tasks, timeout=KILL_TIMEOUT)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=KILL_TIMEOUT)
        if self._link is not None:
            await self._link.close()
        self._process_one.close()

    async def abandon(self, reason: TerminationReason) -> None:
        """End what never ran or cannot be adopted, with its event and its reason."""
        await self._own(self.terminate_if(reason, lambda: True))

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Nothing in it moves while this is entered, and no transition begins; a running one runs on afterwards.

        Raises INVALID_STATE unless it is running or paused."""
        async with self._turn:
            if self.record.state not in ("running", "paused"):
                self._require_running()
            running = self.record.state == "running"
            try:
                if running:
                    await self._freeze()  # a caller that gives up while it freezes must not leave it frozen
                yield
            finally:
                if running:
                    self._thaw()

    @asynccontextmanager
    async def apart(self, checkpoints: Checkpoints) -> AsyncIterator[Standing]:
        """Its agent holds nothing of the host's as long as this is entered, so that what runs in it can be saved, and
        no transition begins. What is under way with the agent waits, and goes on afterwards. Enter it in a task that is
        not cancelled.

        Raises INVALID_STATE unless it is running, or where something inside is in the way.
        """
        task = asyncio.current_task()
        assert task is not None
        async with self._turn:
            self._require_running()
            link = await self._agent()
            process = os.dup(self._process_one.fd)
            self._tasks.add(task)
            back = True
            try:
                async with self._linking:
                    self._note_apart(True)
                    await link.part()
                    back = False
                    try:
                        yield self._standing(process)
                    finally:
                        back, lost = await self._rejoin(link, checkpoints)
                    if lost is not None:
                        raise lost
            except AgentLost as lost:
                raise self._explain(lost) from lost
            finally:
                os.close(process)
                self._tasks.discard(task)
                if back:
                    self._note_apart(False)
                elif self.record.state == "running":
                    self.background(self.terminate("error"))

    def _note_apart(self, apart: bool) -> None:
        self.record.apart = apart
        if self.record.state != "terminated":
            self.record.save(self.record_path)

    async def _rejoin(self, link: AgentLink, checkpoints: Checkpoints) -> tuple[bool, AgentLost | None]:
        """After it was saved: whether its agent is back, and how the link was lost if it was. Then it is made to run on
        if it still stands, and reached anew."""
        try:
            await link.resume(self.socket_path)
            return True, None
        except AgentLost as lost:
            with contextlib.suppress(RunraError):
                await checkpoints.go_on(self._standing(self._process_one.fd))
            with contextlib.suppress(RunraError):
                self._link = await self._connect()
                return True, lost
            return False, lost

    def _standing(self, process: int) -> Standing:
        record = self.record
        assert record.first_id is not None  # walls that save are offered to root only
        memory_mb = record.config.resources.memory_mb
        return Standing(self.id, self.folder, process, self.cgroup, record.first_id, memory_mb)

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """Within `apart`: not even its wall does anything."""
        try:
            await self._freeze()
            yield
        finally:
            self._thaw()

    # --- the parts of a transition ---

    async def _freeze(self) -> None:
        if self._can_freeze:
            await self.cgroup.freeze()
        else:
            await stop_tree(self.record.pid)

    def _thaw(self) -> None:
        if self._can_freeze:
            self.cgroup.thaw()
        else:
            continue_tree(self.record.pid)

    def _run_from_now(self) -> None:
        self.record.state = "running"
        self.record.running_since_ms = _now_ms()
        self._running_since = time.monotonic()
        self.touch()
        self._timers.arm()

    async def _save(self) -> None:
        if self.record.state != "terminated":  # then the record goes as well
            self.record.save(self.record_path)
        await self._on_change(self)

    async def _changed(self, event: EventType, data: dict[str, Any]) -> None:
        await self._save()
        self._events.publish(event, self.id, data, organization_id=self.organization_id)

    # --- tasks of its own ---

    def background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something that nobody waits for; what it raises is logged and told as `sandbox.error`."""
        task = asyncio.create_task(work, name=f"sandbox {self.id}")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._events.publish(
                "sandbox.error", self.id, {"message": str(error)}, organization_id=self.organization_id
            )
            log.warning("sandbox %s: %s", self.id, error)

    async def _own(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a transition to its end even when the caller is cancelled."""
        task = asyncio.create_task(work, name=f"sandbox {self.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)
