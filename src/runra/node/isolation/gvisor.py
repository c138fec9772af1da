"""The stronger wall: gVisor, a kernel in user space that answers a sandbox's system calls, run by `runsc`.

Nothing of it runs as the host's root. The launcher enters the sandbox's user namespace and starts a keeper there
(launcher/keeper.c), process 1 of a pid namespace of its own; below it run gVisor's kernel (as one id of the
sandbox's range that owns nothing, in a further user namespace) and its file server (as the range's first id), which
sees the sandbox's root and nothing else. The keeper's end is the sandbox's end.

Builds since 2024 can write down what runs in a sandbox while it stands still, and let it go on in others.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final

from runra.errors import RunraError
from runra.node.isolation import Box
from runra.node.isolation.checkpoint import CONFIG, Checkpoints
from runra.node.isolation.staging import AGENT, CAPABILITIES, RUN_BYTES, STAGE, START_TIMEOUT, Stage, null, spawn
from runra.node.launcher import Launcher, binary
from runra.node.settings import IDS_PER_SANDBOX, NodeSettings
from runra.node.waiting import read_all

#: How runsc takes over a program's system calls, best first. `kvm` needs a device that no sandbox's ids may open.
_PLATFORMS: Final = ("systrap", "ptrace")
#: User namespaces each user may make in the sandbox's: runsc puts its kernel into one. Programs inside never ask the
#: host's kernel for anything, so they gain nothing by it.
_NESTED: Final = 1
#: Flags that newer builds need to be what older ones always were: files through the file server, in the sandbox's own
#: layers rather than in memory. The last: connections to the outside do not keep a sandbox from being saved, they end.
_IF_KNOWN: Final = (
    *("--directfs=false", "--overlay2=none", "--host-uds=none", "--host-fifo=none"),
    "--net-disconnect-ok",
)
#: With `ptrace`, a memory image inside has a traced thread outside for each thread of gVisor's kernel that ever ran it
#: (measured: up to 28). gVisor ends when it cannot make one, so this is room, and the limit inside is the limit.
_TRACED_PER_PROCESS: Final = 32
#: With `systrap` it has one, and at most one more for each processor of the machine (measured on two: 2 to 3 in all).
_TRAPPED_PER_PROCESS: Final = 2
#: The part of the host's process numbers one sandbox may take, whatever it has room for.
_MOST_OF_HOST: Final = 4
#: Threads of gVisor's kernel and file server, which grow with calls that block in the host's kernel.
_OWN_THREADS: Final = 512
#: Descriptors a process starts with, unless it may have fewer.
_OPEN_FILES: Final = 65_536
#: Bytes of a memory file system that holds nothing but mount points.
_FEW_BYTES: Final = 64 << 10
#: gVisor lays a memory file system over an empty /tmp. This folder in it keeps /tmp on the sandbox's disk.
_TMP_MARK: Final = ".runra"
#: Builds before this date refuse a flag that ls and stat always set; a library preloaded inside takes it out.
_STAT_BROKEN_BEFORE: Final = 2024_10_01
#: The oldest build seen to save a sandbox that then goes on. That of December 2022 never returns from it.
SAVES_SINCE: Final = 2024_07_29
_PRELOAD: Final = "/run/runra/preload.so"
CURE: Final = "apt-get install runsc, or put gVisor's release binary of that name on the PATH"


@dataclass(frozen=True, slots=True)
class Runsc:
    """A runsc on this machine: where it is, and what it knows."""

    path: Path
    version: str
    platform: str
    flags: tuple[str, ...]

    @property
    def _date(self) -> int | None:
        date = re.search(r"20\d{6}", self.version)
        return int(date[0]) if date else None

    @property
    def stat_broken(self) -> bool:
        return self._date is not None and self._date < _STAT_BROKEN_BEFORE

    @property
    def saves(self) -> bool:
        return self._date is not None and self._date >= SAVES_SINCE


async def find_runsc(launcher: Launcher) -> Runsc:
    """Look at the runsc on the PATH. Raises INVALID_CONFIG with the cure when there is none that could be used."""
    found = shutil.which("runsc")
    if found is None:
        raise RunraError("INVALID_CONFIG", f"no runsc: {CURE}")
    path = Path(found).resolve()
    said = await _ask(launcher, path, "flags")
    version = re.search(r"version (\S+)", await _ask(launcher, path, "--version"))
    offered = re.search(r"^  -platform .*\n(.*)", said, re.MULTILINE)
    known = [platform for platform in _PLATFORMS if offered and platform in offered[1]]
    if not known or version is None:
        raise RunraError("INVALID_CONFIG", f"{path} offers no platform of {', '.join(_PLATFORMS)}: {CURE}")
    names = set(re.findall(r"^  -(\S+)", said, re.MULTILINE))
    flags = tuple(flag for flag in _IF_KNOWN if flag[2:].partition("=")[0] in names)
    return Runsc(path, version[1], known[0], flags)


async def _ask(launcher: Launcher, path: Path, word: str) -> str:
    answer, theirs = os.pipe()
    try:
        with null() as nothing, FileIO(theirs, "w"):
            await launcher.spawn(["--", str(path), word], [nothing.fileno(), theirs, theirs])
        return (await read_all(answer, START_TIMEOUT)).decode(errors="replace")
    except TimeoutError:
        raise RunraError("INVALID_CONFIG", f"{path} {word} said nothing within {START_TIMEOUT:.0f} s") from None
    finally:
        os.close(answer)


class Gvisor:
    """Isolation by gVisor."""

    name = "gvisor"
    keeps_writes = True
    networked = True
    one_memory = True

    def __init__(self, launcher: Launcher, runsc: Runsc, settings: NodeSettings) -> None:
        self._launcher = launcher
        self._runsc = runsc
        self._settings = settings
        self._agent = binary("runra-agent")
        self._preload = binary("runra-preload.so")
        self._stage = Stage(launcher)
        self.checkpoints = Checkpoints(launcher, self._tool()) if runsc.saves else None

    def host_processes(self, inside: int) -> int:
        traced = self._runsc.platform == "ptrace"
        each = _TRACED_PER_PROCESS if traced else _TRAPPED_PER_PROCESS + len(os.sched_getaffinity(0))
        numbers = int(Path("/proc/sys/kernel/pid_max").read_text())
        return min(each * inside + _OWN_THREADS, numbers // _MOST_OF_HOST)

    def prepare(self, box: Box) -> None:
        self._stage.make_layers(box)
        _mark_tmp(box.folder / "upper0")
        bundle = box.folder / "bundle"
        bundle.mkdir()
        bundle.chmod(0o755)
        config = json.dumps(self._spec(box)) if box.root.memory is None else (box.root.memory / CONFIG).read_text()
        for name, text in ((CONFIG, config), ("ld.so.preload", f"{_PRELOAD}\n")):
            (bundle / name).write_text(text)
            (bundle / name).chmod(0o644)

    async def start(self, box: Box) -> int:
        assert box.first_id is not None  # the node offers this wall to root only
        words = ["nested", str(_NESTED), "ids", str(box.first_id), str(IDS_PER_SANDBOX)]
        words += ["mount", "plain", str(self._runsc.path), "wall/runsc"]
        words += await self._stage.words(box, self._agent)
        words += ["mount", "plain", str(self._preload), "preload.so", "keep"]
        for number, overlay in enumerate(box.root.overlays):
            lower = ":".join(f"{STAGE}/lower{number}.{layer}" for layer in range(len(overlay.lower)))
            upper = f"upperdir={STAGE}/box/upper{number},workdir={STAGE}/box/work{number}"
            words += ["overlay", overlay.target, f"lowerdir={lower},{upper},userxattr"]
        if box.root.memory is not None:
            words += ["mount", "plain-ro", str(box.root.memory), "memory", "apart"]
        words += ["--", *self._command(box), "--", *self._join(box)]
        if box.netns is None:
            return await spawn(self._launcher, box, words)
        return await spawn(self._launcher, box, ["netns", *words], [box.netns])

    def _tool(self) -> list[str]:
        command = [f"{STAGE}/wall/runsc", f"--root={STAGE}/state/run", f"--platform={self._runsc.platform}"]
        return [*command, "--ignore-cgroups", "--file-access=exclusive", *self._runsc.flags]

    def _command(self, box: Box) -> list[str]:
        command = [*self._tool(), f"--network={'none' if box.netns is None else 'sandbox'}"]
        command += ["run"] if box.root.memory is None else ["restore", f"--image-path={STAGE}/memory"]
        return [*command, "--detach", f"--bundle={STAGE}/box/bundle", f"--pid-file={STAGE}/state/pid", box.id]

    def _join(self, box: Box) -> list[str]:
        """Brings an agent that was saved, here or in the copy this is, another socket, and the copy its own name."""
        name = box.id.removeprefix("sb_")
        return [*self._tool(), "exec", "--cap=CAP_SYS_ADMIN", box.id, AGENT, "--join", name]

    def _spec(self, box: Box) -> dict[str, Any]:
        """What is inside, in the words of the OCI runtime specification 1.0."""
        namespaces: list[dict[str, str]] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
        # The launcher has moved the sandbox's network into the namespace that runsc starts in.
        given_network = {"path": "/proc/self/ns/net"} if box.netns is not None else {}
        namespaces.append({"type": "network", **given_network})
        capabilities = [f"CAP_{capability}" for capability in CAPABILITIES]
        given = {AGENT: "agent"}
        if self._runsc.stat_broken:
            given |= {_PRELOAD: "preload.so", "/etc/ld.so.preload": "box/bundle/ld.so.preload"}
        files = self._settings.max_open_files
        processes = self._settings.max_pids
        limits = {
            "RLIMIT_NOFILE": (min(_OPEN_FILES, files), files),
            "RLIMIT_NPROC": (processes, processes),
            "RLIMIT_CORE": (0, 0),
        }
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": [AGENT, "--pass-fd", "0", "--max-commands", str(self._settings.max_commands)],
                "env": [],
                "cwd": "/",
                "noNewPrivileges": True,
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
                "rlimits": [{"type": name, "soft": soft, "hard": hard} for name, (soft, hard) in limits.items()],
            },
            "root": {"path": f"{STAGE}/root"},
            "hostname": box.id.removeprefix("sb_"),
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
                # What lies in a tmpfs is memory that no killing gives back: half of it stays for programs.
                _memory("/dev/shm", f"mode=1777,size={box.memory_mb << 19}"),  # noqa: S108
                _memory("/run", f"mode=755,size={RUN_BYTES}"),
                # A mount of its own, which nobody inside can move: the host runs the agent there, and may more.
                _memory(str(Path(AGENT).parent), f"mode=755,size={_FEW_BYTES}"),
                *(
                    {"destination": where, "type": "bind", "source": f"{STAGE}/{name}", "options": ["ro", "bind"]}
                    for where, name in given.items()
                ),
                *(
                    {
                        "destination": volume.path,
                        "type": "bind",
                        "source": f"{STAGE}/volume{number}",
                        "options": ["ro" if volume.read_only else "rw", "bind", "nosuid", "nodev"],
                    }
                    for number, volume in enumerate(box.volumes)
                ),
            ],
            "linux": {"namespaces": namespaces},
        }


def _mark_tmp(upper: Path) -> None:
    """Make /tmp in a sandbox's layer, with the mark; in a copy of a sandbox there is what its owner made of it, and no
    link of theirs is followed."""
    fresh = False
    with contextlib.suppress(FileExistsError):
        (upper / "tmp").mkdir()
        fresh = True
    try:
        tmp = os.open(upper / "tmp", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if fresh:
            os.fchmod(tmp, 0o1777)
        with contextlib.suppress(FileExistsError):
            os.mkdir(_TMP_MARK, dir_fd=tmp)
    finally:
        os.close(tmp)


def _memory(where: str, options: str) -> dict[str, Any]:
    mount = {"destination": where, "type": "tmpfs", "source": "tmpfs"}
    return {**mount, "options": ["nosuid", "nodev", *options.split(",")]}
