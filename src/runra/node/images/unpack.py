"""The host's side of unpacking: starts `unpacker.py` behind a wall of its own, once per layer or archive.

The wall is a sandbox's, and smaller: a user namespace (as root: over a range of ids that is nobody's), no network, no
/proc, no /dev, nothing of the host but /usr and the Python that runs the server, both read-only, and the one folder
that is filled. The filter of system calls and a cgroup bound what a layer that breaks the program could do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from runra.errors import RunraError
from runra.node.cgroups import Cgroup, Hierarchies, Limits
from runra.node.isolation import seccomp
from runra.node.isolation.bubblewrap import find_bwrap, stage_bwrap
from runra.node.isolation.staging import STAGE
from runra.node.launcher import Launcher
from runra.node.settings import IDS_PER_SANDBOX, NodeSettings
from runra.node.waiting import read_all

_PROGRAM: Final = Path(__file__).with_name("unpacker.py")
_SEAMS: Final = Path(__file__).with_name("seams.py")
#: What the program needs to give files their owners and modes, and to make the target its root.
_CAPABILITIES: Final = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP", "SYS_CHROOT")
#: A zstd window may be 128 MB (RFC 8878 asks for 8); a tar's headers are read whole.
_LIMITS: Final = Limits(cpu=1, memory_mb=1024, pids=16)
#: All of a tree, as it is: owners, modes, times, links, holes, attributes, and the devices 0/0 that hide files.
_COPY: Final = ("-a", "--sparse=always", "/source0/.", "/target/")
#: Descriptors: stdin, stdout, errors, then the filter of system calls, and the namespace where there is one.
_SECCOMP_FD, _USERNS_FD = 3, 4
_ANSWER_BYTES: Final = 64 << 10


#: Lends the first of a range of ids; None where there is only our own.
TakeIds = Callable[[], AbstractContextManager[int | None]]


class Unpacked(BaseModel):
    """What the program says of a layer. `diff_id` is the digest of the tar, uncompressed (OCI image config)."""

    diff_id: str
    bytes: int
    entries: int
    #: What was left out: device nodes, attributes of names that are not for layers; ids nobody has became 65534.
    devices: int = 0
    attributes: int = 0
    ids: int = 0
    #: Folders that the layer has things in and says nothing of.
    implied: int = 0


@dataclass(frozen=True, slots=True)
class _Shown:
    """A host's file or folder, read-only at the same path."""

    source: Path
    name: str


class Unpacker:
    """Makes folders of archives. `take_ids` lends a range of ids for one run."""

    def __init__(
        self,
        launcher: Launcher,
        settings: NodeSettings,
        take_ids: TakeIds,
    ) -> None:
        #: What this machine can bound; known when the node starts.
        self.hierarchies = Hierarchies()
        self._launcher = launcher
        self._settings = settings
        self._take_ids = take_ids

    async def layer(self, archive: FileIO, target: Path, min_free_mb: int | None = None) -> Unpacked:
        """Unpack one layer into the empty folder `target`, in the form overlays read.

        Raises INVALID_REQUEST for a layer that is refused, RESOURCE_EXHAUSTED when the disk is full.
        """
        told = await self._run(archive, target, "layer", min_free_mb)
        try:
            return Unpacked(diff_id=told["diffId"], **{name: told[name] for name in told if name != "diffId"})
        except (KeyError, TypeError, ValueError):
            raise _broken(told) from None

    async def archive(self, archive: FileIO, target: Path) -> None:
        """Unpack an archive of images: plain files and folders, nothing else."""
        await self._run(archive, target, "archive")

    async def kind(self, archive: FileIO, scratch: Path) -> str:
        """`oci`, `docker` or `rootfs`."""
        told = await self._run(archive, scratch, "kind")
        kind = told.get("kind")
        if kind not in ("oci", "docker", "rootfs"):
            raise _broken(told)
        return str(kind)

    async def copy(self, source: Path, target: Path) -> None:
        """Copy a sandbox's upper layer whole. Its files are hostile too, so `cp` works behind the wall as well."""
        with FileIO(os.devnull) as nothing:
            said, status, complained = await self._behind_wall(nothing, target, ["/usr/bin/cp", *_COPY], [source])
        if status == 0:
            return
        text = (said.decode(errors="replace") + complained).strip()
        if os.strerror(errno.ENOSPC) in text:
            raise disk_full(self._settings.min_free_mb)
        raise RunraError("INTERNAL_ERROR", f"the files could not be copied: {text[-2000:] or status}")

    async def seam(self, layers: Sequence[Path], target: Path) -> int:
        """Make the layer that says what folders of `layers` (the topmost first) are like where the layers say nothing
        of them. Returns how many folders it has: with none, none is needed."""
        sources = [f"/source{number}" for number in range(len(layers))]
        program = [str(_python()), "-I", "-S", str(_SEAMS), "own" if os.geteuid() == 0 else "one", *sources]
        with FileIO(os.devnull) as nothing:
            said, status, complained = await self._behind_wall(nothing, target, program, layers)
        told = self._answer(said, status, complained, target, self._settings.min_free_mb)
        count = told.get("folders")
        if not isinstance(count, int):
            raise _broken(told)
        return count

    async def _run(self, archive: FileIO, target: Path, mode: str, min_free_mb: int | None = None) -> dict[str, Any]:
        archive.seek(0)
        settings = self._settings
        free_mb = settings.min_free_mb if min_free_mb is None else min_free_mb
        packages = [str(path.parent) for path in _packages()]
        start = f"import runpy, sys; sys.path += {packages!r}; runpy.run_path({str(_PROGRAM)!r}, run_name='__main__')"
        bounds = [settings.max_image_mb << 20, settings.max_image_entries, free_mb << 20]
        owns = "own" if os.geteuid() == 0 else "one"
        program = [str(_python()), "-I", "-S", "-c", start, "/target", mode, owns, *map(str, bounds)]
        said, status, complained = await self._behind_wall(archive, target, program)
        return self._answer(said, status, complained, target, free_mb)

    async def _behind_wall(
        self, stdin: FileIO, target: Path, program: list[str], sources: Sequence[Path] = ()
    ) -> tuple[bytes, int, str]:
        """Run a program to its end: what it wrote to stdout, its status, what it wrote to stderr."""
        with self._take_ids() as first_id:
            async with self._cgroup() as cgroup:
                errors, errors_theirs = os.pipe()
                answer, answer_theirs = os.pipe()
                try:
                    with _memory_file(seccomp.program()) as rules:
                        fds = [stdin.fileno(), answer_theirs, errors_theirs, rules.fileno()]
                        words = self._words(target, sources, program, first_id, cgroup)
                        pid, exited = await self._launcher.spawn(words, fds)
                    os.close(answer_theirs)
                    os.close(errors_theirs)
                    answer_theirs = errors_theirs = -1

                    def kill() -> None:
                        if not exited.done():
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(pid, signal.SIGKILL)  # bwrap; what is inside dies with it

                    # The caller has the deadline: how long a layer may take depends on its size.
                    timeout = self._settings.pull_timeout
                    told = [asyncio.create_task(read_all(fd, timeout, _ANSWER_BYTES)) for fd in (answer, errors)]
                    try:
                        # Both to their ends. What says more than it may is ended, or it would wait for a reader.
                        for task in told:
                            task.add_done_callback(lambda done: kill() if _too_much(done) else None)
                        said, complained = await asyncio.gather(*told)
                        async with asyncio.timeout(10.0):
                            status = await exited
                    finally:
                        kill()
                        for task in told:
                            task.cancel()
                        await asyncio.gather(*told, return_exceptions=True)
                finally:
                    for fd in (errors, errors_theirs, answer, answer_theirs):
                        if fd >= 0:
                            os.close(fd)
        return said, status, complained.decode(errors="replace").strip()

    def _answer(self, said: bytes, status: int, complained: str, target: Path, free_mb: int) -> dict[str, Any]:
        try:
            told = json.loads(said)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            if "id-map" in complained:
                raise RunraError(
                    "INVALID_CONFIG",
                    f"the file system of {target.parent} cannot id-map mounts, which images need; put the data "
                    "folder on ext4, XFS or btrfs with --data-dir",
                )
            if status and not complained:
                raise RunraError(
                    "INVALID_REQUEST", "unpacking a layer was killed: it needs more memory than any honest layer does"
                )
            raise RunraError("INTERNAL_ERROR", f"unpacking did not start: {complained[-2000:] or status}")
        if told.get("full") is True:
            raise disk_full(free_mb)
        if "refused" in told:
            raise RunraError("INVALID_REQUEST", f"the layer was refused: {str(told['refused'])[:500]}")
        return told

    @asynccontextmanager
    async def _cgroup(self) -> AsyncIterator[Cgroup]:
        cgroup = Cgroup(self.hierarchies, f"unpack-{secrets.token_hex(8)}")
        try:
            cgroup.create(_LIMITS)
            yield cgroup
        finally:
            cgroup.kill()
            await asyncio.shield(cgroup.remove())

    def _words(
        self, target: Path, sources: Sequence[Path], program: list[str], first_id: int | None, cgroup: Cgroup
    ) -> list[str]:
        staged = first_id is not None
        words: list[str] = []
        found = find_bwrap()
        bwrap = str(found)
        shown = [_Shown(path, f"host{number}") for number, path in enumerate(_needed())]
        if first_id is not None:
            more, bwrap = stage_bwrap(found)
            words = ["ids", str(first_id), str(IDS_PER_SANDBOX), *more]
            for item in shown:
                words += ["mount", "plain", str(item.source), item.name]
            words += ["mount", "idmap", str(target), "target"]
            for number, source in enumerate(sources):
                words += ["mount", "idmap", str(source), f"source{number}"]
        for path in cgroup.join_files:
            words += ["cgroup", str(path)]
        arguments = [bwrap, *(["--userns", str(_USERNS_FD)] if staged else ["--unshare-user", "--disable-userns"])]
        arguments += ["--uid", "0", "--gid", "0", "--die-with-parent", "--new-session"]
        arguments += [f"--unshare-{kind}" for kind in ("pid", "ipc", "uts", "net", "cgroup")]
        for item in shown:
            arguments += ["--ro-bind", f"{STAGE}/{item.name}" if staged else str(item.source), str(item.source)]
        for link, where in _links().items():
            arguments += ["--symlink", where, link]
        arguments += ["--bind", f"{STAGE}/target" if staged else str(target), "/target"]
        for number, source in enumerate(sources):
            arguments += ["--ro-bind", f"{STAGE}/source{number}" if staged else str(source), f"/source{number}"]
        arguments += ["--remount-ro", "/"]
        for capability in _CAPABILITIES:
            arguments += ["--cap-add", f"CAP_{capability}"]
        arguments += ["--seccomp", str(_SECCOMP_FD), "--clearenv", "--chdir", "/"]
        return [*words, "--", *arguments, "--", *program]


def _too_much(read: asyncio.Task[bytes]) -> bool:
    return not read.cancelled() and read.exception() is None and len(read.result()) >= _ANSWER_BYTES


def disk_full(min_free_mb: int) -> RunraError:
    return RunraError(
        "RESOURCE_EXHAUSTED",
        f"the server's disk is full (it keeps {min_free_mb} MB free, for sandboxes too); remove images with "
        "`runra image prune` or `runra image rm`, or make room, and try again",
    )


def _python() -> Path:
    return Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")


def _packages() -> list[Path]:
    """What reads zstd: a folder of its own wherever it was installed."""
    spec = find_spec("zstandard")
    return [Path(spec.origin).parent] if spec is not None and spec.origin else []


def _needed() -> list[Path]:
    """What of the host the program runs on, nothing twice."""
    prefix = Path(sys.base_prefix).resolve()
    found = [Path("/usr")]
    found += [Path(f"/{name}") for name in ("lib", "lib64") if Path(f"/{name}").is_dir() and f"/{name}" not in _links()]
    for path in (prefix, *_packages(), _PROGRAM, _SEAMS):
        if not any(place in (path, *path.parents) for place in found):
            found.append(path)
    return found


def _links() -> dict[str, str]:
    """/lib and /lib64 where they are links into /usr."""
    names = ("/lib", "/lib32", "/lib64", "/libx32")
    return {name: str(Path(name).readlink()) for name in names if Path(name).is_symlink()}


def _broken(told: object) -> RunraError:
    return RunraError("INTERNAL_ERROR", f"unpacking said what cannot be: {str(told)[:200]}")


def _memory_file(content: bytes) -> FileIO:
    file = FileIO(os.memfd_create("runra", os.MFD_CLOEXEC), "r+")
    file.write(content)
    file.seek(0)
    return file
