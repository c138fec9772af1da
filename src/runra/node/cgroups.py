"""Hard limits and the freezer: this machine's cgroups, be they v2, v1 or a mix, behind one small class."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from runra.errors import RunraError

CONTROLLERS: Final = ("cpu", "memory", "pids")
_CPU_PERIOD_US: Final = 100_000
#: Seconds a dead sandbox's wall gets to reap it and end by itself before it is killed, too.
_GRACE: Final = 0.2


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use: cores, MB of memory (page cache and tmpfs included; no swap), processes."""

    cpu: int
    memory_mb: int
    pids: int


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Where our groups live: a folder per controller (v1), and one of the unified hierarchy (v2) if there is one."""

    v1: dict[str, Path] = field(default_factory=dict)
    v2: Path | None = None
    v2_controllers: frozenset[str] = frozenset()

    @property
    def enforced(self) -> dict[str, bool]:
        return {name: name in self.v1 or name in self.v2_controllers for name in CONTROLLERS}

    @property
    def can_freeze(self) -> bool:
        return self.v2 is not None or "freezer" in self.v1

    @property
    def roots(self) -> list[Path]:
        """Every folder in which a sandbox gets a group of its own, each once (cpu and cpuacct may be one)."""
        found = list(self.v1.values()) + ([self.v2] if self.v2 else [])
        return list(dict.fromkeys(path.resolve() for path in found))


def _mounts() -> list[tuple[str, Path, frozenset[str]]]:
    """(file system type, mount point, super options) of the cgroup mounts, from /proc/self/mountinfo."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            found.append((kind, Path(left.split(" ")[4]), frozenset(options.split(","))))
    return found


def _own_groups() -> dict[str, str]:
    """Controller (empty for v2) -> path of the group this process is in."""
    groups = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            groups[name] = path
    return groups


def _writable_folder(parent: Path, name: str) -> Path | None:
    folder = parent / name
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _enable(parent: Path, names: set[str]) -> None:
    """Hand controllers down from `parent`; a group with processes of its own may not, then its children lack them."""
    for name in names:
        with contextlib.suppress(OSError):
            (parent / "cgroup.subtree_control").write_text(f"+{name}")


def detect(instance: str) -> Hierarchies:
    """Find and prepare the folders this node's groups go into. Nothing writable gives an empty `Hierarchies`."""
    name = f"runra-{instance}"
    own = _own_groups()
    v1: dict[str, Path] = {}
    v2: Path | None = None
    v2_controllers: frozenset[str] = frozenset()
    for kind, mount, options in _mounts():
        if kind == "cgroup":
            wanted = {"cpu", "cpuacct", "memory", "pids", "freezer"} & options
            folder = _writable_folder(mount, name) if wanted else None
            if folder:
                v1.update(dict.fromkeys(wanted, folder))
        elif v2 is None:
            # As root beside the machine's own groups; otherwise below the group that was delegated to us.
            parents = [mount, mount / own.get("", "/").lstrip("/")]
            for parent in parents:
                available = set((parent / "cgroup.controllers").read_text().split()) if parent.exists() else set()
                _enable(parent, available & set(CONTROLLERS))
                v2 = _writable_folder(parent, name)
                if v2:
                    have = set((v2 / "cgroup.controllers").read_text().split()) & set(CONTROLLERS)
                    _enable(v2, have)
                    v2_controllers = frozenset((v2 / "cgroup.subtree_control").read_text().split())
                    break
    return Hierarchies(v1, v2, v2_controllers - v1.keys())


class Cgroup:
    """The groups of one sandbox, one folder per hierarchy. Its owner calls `remove` on every path."""

    def __init__(self, hierarchies: Hierarchies, name: str) -> None:
        self._h = hierarchies
        self.name = name
        self._folders = [root / name for root in hierarchies.roots]

    def _v1(self, controller: str) -> Path | None:
        root = self._h.v1.get(controller)
        return root / self.name if root else None

    def _v2(self, controller: str = "") -> Path | None:
        if self._h.v2 is None or (controller and controller not in self._h.v2_controllers):
            return None
        return self._h.v2 / self.name

    @property
    def join_files(self) -> list[Path]:
        """The files a process writes its pid to in order to enter."""
        return [folder / "cgroup.procs" for folder in self._folders]

    def create(self, limits: Limits, *, as_one: bool = False) -> None:
        """`as_one`: when memory is gone, cgroups v2 kill all of it; v1 cannot, see `memory_notices`."""
        for folder in self._folders:
            folder.mkdir(exist_ok=True)
        quota = limits.cpu * _CPU_PERIOD_US
        memory = limits.memory_mb << 20
        if group := self._v1("cpu"):
            (group / "cpu.cfs_period_us").write_text(str(_CPU_PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        elif group := self._v2("cpu"):
            (group / "cpu.max").write_text(f"{quota} {_CPU_PERIOD_US}")
        if group := self._v1("memory"):
            (group / "memory.limit_in_bytes").write_text(str(memory))
            swap = group / "memory.memsw.limit_in_bytes"
            if swap.exists():
                swap.write_text(str(memory))
            else:  # a kernel without swap accounting: what this group frees to stay below its limit is never swapped
                (group / "memory.swappiness").write_text("0")
        elif group := self._v2("memory"):
            (group / "memory.max").write_text(str(memory))
            swap = group / "memory.swap.max"
            if swap.exists():
                swap.write_text("0")
            if as_one:
                (group / "memory.oom.group").write_text("1")
        if group := self._v1("pids") or self._v2("pids"):
            (group / "pids.max").write_text(str(limits.pids))

    async def freeze(self, timeout: float = 10.0) -> None:
        """Stop every process of the sandbox; returns when all stand still. INTERNAL_ERROR (and thawed) if not."""
        if group := self._v2():
            order, state, wanted = (group / "cgroup.freeze", "1"), group / "cgroup.events", "frozen 1"
        elif group := self._v1("freezer"):
            order, state, wanted = (group / "freezer.state", "FROZEN"), group / "freezer.state", "FROZEN"
        else:
            raise RunraError("INVALID_STATE", "this machine has no freezer we may use: see `runra doctor`")
        order[0].write_text(order[1])
        deadline = time.monotonic() + timeout
        pause = 0.0002
        while wanted not in state.read_text().splitlines():
            if time.monotonic() > deadline:
                self.thaw()
                raise RunraError("INTERNAL_ERROR", "the sandbox's processes did not stop in time; it runs on")
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)

    def thaw(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if group := self._v2():
                (group / "cgroup.freeze").write_text("0")
            elif group := self._v1("freezer"):
                (group / "freezer.state").write_text("THAWED")

    def kill(self) -> None:
        """SIGKILL to every process in the group: at once with v2 (Linux 5.14), one after the other without."""
        with contextlib.suppress(FileNotFoundError):
            if group := self._v2():
                (group / "cgroup.kill").write_text("1")
                return
        for path in self.join_files[:1]:
            with contextlib.suppress(OSError):
                for pid in map(int, path.read_text().split()):
                    os.kill(pid, signal.SIGKILL)

    def reclaim(self) -> None:
        """Give a frozen sandbox's clean page cache back to the host. Blocks: call it in a thread."""
        with contextlib.suppress(OSError):  # EAGAIN/EBUSY: less could be had than was asked for
            if group := self._v1("memory"):
                (group / "memory.force_empty").write_text("0")
            elif group := self._v2("memory"):
                (group / "memory.reclaim").write_text((group / "memory.current").read_text())

    def memory_notices(self) -> int | None:
        """A descriptor (an eventfd, not blocking, the caller's to close) that becomes readable just before the kernel
        kills for want of memory. None without a v1 controller: that of v2 needs nobody's help (`create`)."""
        group = self._v1("memory")
        if group is None:
            return None
        notices = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            with (group / "memory.oom_control").open() as control:
                (group / "cgroup.event_control").write_text(f"{notices} {control.fileno()}")
        except BaseException:
            os.close(notices)
            raise
        return notices

    def oom_kills(self) -> int:
        """How often the kernel killed a process here because memory was gone."""
        if group := self._v1("memory"):
            return _field(group / "memory.oom_control", "oom_kill")
        if group := self._v2("memory"):
            return _field(group / "memory.events", "oom_kill")
        return 0

    def free_memory(self) -> int | None:
        """Bytes of memory it may still take, what can be reclaimed of its page cache included; None: not measured."""
        if group := self._v1("memory"):
            most, used = _number(group / "memory.limit_in_bytes"), _number(group / "memory.usage_in_bytes")
            return most - used + _field(group / "memory.stat", "total_inactive_file")
        if (group := self._v2("memory")) and (most_text := (group / "memory.max").read_text().strip()) != "max":
            used = _number(group / "memory.current")
            return int(most_text) - used + _field(group / "memory.stat", "inactive_file")
        return None

    def usage(self) -> dict[str, Any]:
        """`cpuMs` since the start, `memoryBytes` now, `processes` now; what cannot be measured is left out."""
        found: dict[str, Any] = {}
        if group := self._v1("cpuacct"):
            found["cpuMs"] = _number(group / "cpuacct.usage") // 1_000_000
        elif group := self._v2("cpu"):
            found["cpuMs"] = _field(group / "cpu.stat", "usage_usec") // 1000
        if group := self._v1("memory"):
            found["memoryBytes"] = _number(group / "memory.usage_in_bytes")
        elif group := self._v2("memory"):
            found["memoryBytes"] = _number(group / "memory.current")
        if group := self._v1("pids") or self._v2("pids"):
            found["processes"] = _number(group / "pids.current")
        return found

    async def remove(self, timeout: float = 10.0) -> None:
        """Delete the groups; their last processes may take a moment to be gone. INTERNAL_ERROR if they stay."""
        started = time.monotonic()
        for folder in self._folders:
            pause = 0.001
            while True:
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError as error:
                    waited = time.monotonic() - started
                    if waited > timeout:
                        raise RunraError("INTERNAL_ERROR", f"cannot remove cgroup {folder}: {error}") from error
                    if waited > _GRACE:
                        self.kill()
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.1)


def leftovers(hierarchies: Hierarchies) -> set[str]:
    """Names of groups that exist, for the clean-up at start."""
    return {entry.name for root in hierarchies.roots for entry in root.iterdir() if entry.is_dir()}


def remove_roots(hierarchies: Hierarchies) -> None:
    """Take our own folders away when they are empty; with sandboxes alive they stay."""
    for root in hierarchies.roots:
        with contextlib.suppress(OSError):
            root.rmdir()


def _number(path: Path) -> int:
    return int(path.read_text())


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
