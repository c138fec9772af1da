"""Staging: what every wall is shown below one folder, and how it is started and reports.

The launcher makes a mount namespace of its own for each sandbox (launcher/stage.c). As root, layers and the sandbox's
folder come through id-mapped mounts where the file system can do that; elsewhere the fresh upper layers are given to
the sandbox's ids. Without root they come as they are; their short names count all the same, for an overlay's layers
must fit in one page of a mount's options (4,096 bytes), which 127 paths into a data folder do not.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Final

from runra.errors import RunraError
from runra.node.id_ranges import shift_owners
from runra.node.isolation import Box
from runra.node.isolation.checkpoint import allowance
from runra.node.launcher import Launcher
from runra.node.settings import IDS_PER_SANDBOX
from runra.node.waiting import read_all

#: Where the launcher shows a wall's sources (launcher/launcher.h).
STAGE: Final = "/mnt"
#: The agent's program, inside.
AGENT: Final = "/run/runra/agent"
#: What root may do inside: a container's usual set without raw sockets and device nodes. All of it counts
#: only against the sandbox's own ids and namespaces.
CAPABILITIES: Final = (
    *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID", "SETFCAP", "SETPCAP"),
    *("NET_BIND_SERVICE", "SYS_CHROOT", "KILL"),
)
#: Bytes of /run, which is memory.
RUN_BYTES: Final = 64 << 20
START_TIMEOUT: Final = 20.0
#: What a wall says of why it did not start, at most.
_REASON: Final = 2000


class Stage:
    """Prepares folders and the launcher's words. Remembers which sources this machine's file systems can id-map."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._idmapped: dict[Path, bool] = {}

    @staticmethod
    def make_layers(box: Box) -> None:
        """Make the private layers of a sandbox's overlays in its folder."""
        for number in range(len(box.root.overlays)):
            for kind in ("upper", "work"):
                folder = box.folder / f"{kind}{number}"
                if folder.exists():  # a copy of another sandbox's
                    continue
                folder.mkdir()
                # The upper folder is the sandbox's own "/" or "/usr": it shows this mode inside.
                folder.chmod(0o755)

    async def words(self, box: Box, agent: Path) -> list[str]:
        """Show the agent as `agent`, each layer as `lower<overlay>.<layer>`, volumes as `volume<number>`, the sandbox's
        folder as `box`."""
        words = ["mount", "plain", str(agent), "agent"]
        for number, overlay in enumerate(box.root.overlays):
            for layer, lower in enumerate(overlay.lower):
                kind = await self._kind(box, lower, key=_disk_of(lower))
                words += ["mount", kind, str(lower), f"lower{number}.{layer}"]
        kind = await self._kind(box, box.folder, key=box.folder.parent)
        if box.first_id is None or kind == "idmap":
            for number, volume in enumerate(box.volumes):
                shown = f"{kind}-ro" if volume.read_only else kind
                words += ["mount", shown, str(volume.source), f"volume{number}"]
            return [*words, "mount", kind, str(box.folder), "box"]
        if box.volumes:
            raise RunraError(
                "INVALID_CONFIG",
                "volumes: the disk of this server's data folder has no id-mapped mounts, so sandboxes cannot share "
                "folders on it; install btrfs-progs, or move the data folder to ext4, XFS or btrfs (Linux 5.15)",
                details={"field": "volumes"},
            )
        self._give(box, box.first_id)
        return [*words, "mount", "plain", str(box.folder), "box"]

    @staticmethod
    def _give(box: Box, first_id: int) -> None:
        """Where the data folder cannot be id-mapped, the fresh upper layers simply belong to the range."""
        box.folder.chmod(0o711)
        for number in range(len(box.root.overlays)):
            for top in (box.folder / f"upper{number}", box.folder / f"work{number}"):
                shift_owners(top, first_id)

    async def _kind(self, box: Box, source: Path, key: Path) -> str:
        return "idmap" if box.first_id is not None and await self._can_idmap(source, box.first_id, key) else "plain"

    async def _can_idmap(self, source: Path, first_id: int, key: Path | None = None) -> bool:
        """Whether this source's file system takes id-mapped mounts; tried once per source (or `key`)."""
        key = key or source
        if key not in self._idmapped:
            words = ["ids", str(first_id), str(IDS_PER_SANDBOX), "mount", "idmap", str(source), "probe"]
            with null() as nothing:
                _, exited = await self._launcher.spawn([*words, "--", "/bin/true"], [nothing.fileno()] * 3)
            async with asyncio.timeout(START_TIMEOUT):
                self._idmapped[key] = await exited == 0
        return self._idmapped[key]


async def spawn(launcher: Launcher, box: Box, words: Sequence[str], more: Sequence[int] = ()) -> int:
    """Start a wall in the sandbox's cgroups; returns the pid it reports, on descriptor 3, as `{"child-pid": N}`.

    Its descriptors: 0 and 1 nothing, 2 errors, 3 the report, 4 the agent's socket, then `more`. Raises INTERNAL_ERROR
    with what it said when it reports nothing.
    """
    joined = [word for path in box.cgroup.join_files for word in ("cgroup", str(path))]
    errors, errors_theirs = os.pipe()
    info, info_theirs = os.pipe()
    try:
        with null() as nothing:
            fds = [nothing.fileno(), nothing.fileno(), errors_theirs, info_theirs, box.listen.fileno(), *more]
            await launcher.spawn([*joined, *words], fds)
        os.close(info_theirs)
        info_theirs = -1
        longer = 0.0 if box.root.memory is None else allowance(box.memory_mb)
        report = await read_all(info, START_TIMEOUT + longer)
        if report:
            pid = json.loads(report)["child-pid"]
            assert isinstance(pid, int)
            return pid
        os.close(errors_theirs)
        errors_theirs = -1
        said = (await read_all(errors, START_TIMEOUT)).decode(errors="replace").strip()
        raise RunraError(
            "INTERNAL_ERROR",
            f"the wall did not start: {said[:_REASON] or 'no reason given'}; `runra doctor` tells what is missing",
            details={"sandboxId": box.id},
        )
    finally:
        for fd in (errors, errors_theirs, info, info_theirs):
            if fd >= 0:
                os.close(fd)


def _disk_of(folder: Path) -> Path:
    """The mount a folder lies on: what a file system can do, all of it can, so layers need not be tried one by one."""
    device = folder.stat().st_dev
    while folder != folder.parent and folder.parent.stat().st_dev == device:
        folder = folder.parent
    return folder


def null() -> FileIO:
    return FileIO(os.devnull, "r+")
