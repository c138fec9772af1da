"""A node of local processes and folders, without walls: the server's tests in isolation. It keeps the agent's rules:
one reader per process, the newest wins; a bounded buffer; a reader that does not read stops the process."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import struct
import tarfile
import tempfile
import termios
import time
from collections import deque
from pathlib import Path
from typing import Any

from runra.contract import (
    FileEntry,
    ImageInfo,
    ImagePulling,
    ImagesPruned,
    Reference,
    SandboxInfo,
    SnapshotInfo,
    VolumeInfo,
    WatchEvent,
)
from runra.errors import RunraError
from runra.events import now_iso
from runra.node.agent.types import AgentLost, Exit, Output, ProcessStatus

KEEP = 1 << 20
WINDOW = 256 << 10


def file_error(error: OSError, path: str) -> RunraError:
    reason = {2: "not_found", 17: "exists", 20: "not_a_directory", 21: "is_a_directory", 39: "not_empty"}
    details = {"reason": reason.get(error.errno or 0, "io_error"), "path": path}
    return RunraError("INVALID_REQUEST", f"{path}: {error.strerror}", details=details)


class Core:
    """One process as the agent keeps it."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.pid = 0
        self.started_at_ms = int(time.time() * 1000)
        self.kept: deque[Output] = deque()
        self.start = self.end = 0
        self.exit: Exit | None = None
        self.reader: Process | None = None
        self.changed = asyncio.Condition()
        self.tasks: list[asyncio.Task[Any]] = []
        self.stdin_fd = -1
        self.stdin_open = False
        self.master = -1
        self.kill_as: str | None = None

    async def run(self, env: dict[str, str], cwd: str) -> None:
        spec = self.spec
        argv = list(spec.argv) or ["bash", "-c", spec.command]
        slave = -1
        stdin: Any = asyncio.subprocess.PIPE if spec.stdin else asyncio.subprocess.DEVNULL
        out: Any = asyncio.subprocess.PIPE
        if spec.pty:
            self.master, slave = os.openpty()
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", *spec.pty, 0, 0))
            stdin = out = slave
        try:
            self.proc = await asyncio.create_subprocess_exec(
                *argv,
                stdin=stdin,
                stdout=out,
                stderr=slave if spec.pty else asyncio.subprocess.PIPE,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        except OSError as error:
            raise RunraError("INVALID_REQUEST", f"cwd {cwd!r}: {error}", details={"reason": "bad_cwd"}) from None
        finally:
            if slave >= 0:
                os.close(slave)
        self.pid = self.proc.pid
        self.stdin_open = spec.stdin
        loop = asyncio.get_running_loop()
        if spec.pty:
            reader = asyncio.StreamReader()
            await loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(self.master), "rb")
            )
            streams = [("stdout", reader)]
        else:
            streams = [("stdout", self.proc.stdout), ("stderr", self.proc.stderr)]
        self.tasks = [loop.create_task(self._pump(name, stream)) for name, stream in streams]
        self.tasks.append(loop.create_task(self._reap(list(self.tasks))))
        if spec.timeout_ms is not None:
            loop.call_later(spec.timeout_ms / 1000, self._time_out)

    def _time_out(self) -> None:
        if self.proc.returncode is None:
            self.timed_out = True
            self.signal(signal.SIGKILL)

    timed_out = False

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def _pump(self, name: Any, stream: Any) -> None:
        while True:
            async with self.changed:
                await self.changed.wait_for(
                    lambda: (
                        self.reader is None or self.end - self.reader.at < WINDOW or self.proc.returncode is not None
                    )
                )
            try:
                data = await stream.read(64 << 10)
            except OSError:
                data = b""
            if not data:
                return
            self.kept.append(Output(name, self.end, data))
            self.end += len(data)
            while self.end - self.start > KEEP and len(self.kept) > 1:
                gone = self.kept.popleft()
                self.start = gone.offset + len(gone.data)
            async with self.changed:
                self.changed.notify_all()

    async def _reap(self, pumps: list[Any]) -> None:
        began = time.monotonic()
        code = await self.proc.wait()
        async with self.changed:
            self.changed.notify_all()
        await asyncio.wait(pumps, timeout=0.5)
        name = signal.Signals(-code).name if code < 0 else None
        self.stdin_open = False
        self.exit = Exit(
            code if code >= 0 else 128 - code,
            name,
            self.timed_out,
            round((time.monotonic() - began) * 1000),
            int(time.time() * 1000),
        )
        async with self.changed:
            self.changed.notify_all()

    async def stop(self) -> None:
        if self.pid and self.exit is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.pid:
            await self.proc.wait()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1


class Process:
    def __init__(self, link: Link, core: Core, offset: int, *, reused: bool) -> None:
        self.core, self.link, self.reused = core, link, reused
        self.pid, self.started_at_ms = core.pid, core.started_at_ms
        self.command = core.spec.command or " ".join(core.spec.argv)
        self.at = max(offset, core.start)
        self.taken = self.left = False
        if core.reader is not None:
            core.reader.taken = True
        core.reader = self
        self._wake()

    def _wake(self) -> None:
        async def wake() -> None:
            async with self.core.changed:
                self.core.changed.notify_all()

        self.link.background(wake())

    def _check(self) -> None:
        if self.link.closed:
            raise AgentLost("the link was closed")
        if self.taken:
            raise RunraError("INVALID_STATE", "another reader took over this process's output")

    async def output(self) -> Any:
        core = self.core
        while True:
            self._check()
            self.at = max(self.at, core.start)
            for piece in list(core.kept):
                end = piece.offset + len(piece.data)
                if end > self.at:
                    data = piece.data[self.at - piece.offset :] if piece.offset < self.at else piece.data
                    offset, self.at = self.at, end
                    async with core.changed:
                        core.changed.notify_all()
                    yield Output(piece.stream, offset, data)
                    break
            else:
                if core.exit is not None or self.left:
                    return
                async with core.changed:
                    await core.changed.wait_for(
                        lambda: core.end > self.at or core.exit or self.taken or self.left or self.link.closed
                    )

    async def wait(self) -> Exit:
        async with self.core.changed:
            await self.core.changed.wait_for(lambda: self.core.exit or self.taken or self.left or self.link.closed)
        if self.core.exit is None:
            self._check()
            raise RunraError("INVALID_STATE", "detached")
        return self.core.exit

    async def write_stdin(self, data: bytes) -> None:
        self._check()
        if not self.core.stdin_open or self.left:
            raise RunraError("INVALID_STATE", "the process does not read its stdin any more")
        if self.core.master >= 0:
            os.write(self.core.master, data)
            return
        self.core.proc.stdin.write(data)
        try:
            await self.core.proc.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            self.core.stdin_open = False
            raise RunraError("INVALID_STATE", "the process does not read its stdin any more") from None

    async def close_stdin(self) -> None:
        if self.core.stdin_open and self.core.master < 0:
            self.core.stdin_open = False
            self.core.proc.stdin.close()

    async def resize(self, rows: int, cols: int) -> None:
        if self.core.master >= 0:
            fcntl.ioctl(self.core.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def detach(self) -> None:
        self.left = True
        if self.core.reader is self:
            self.core.reader = None
        self._wake()


class FileStream:
    def __init__(self, file: Any, entry: FileEntry, size: int, length: int | None) -> None:
        self.file, self.entry, self.size, self.left = file, entry, size, length
        self.closed = False

    async def __aiter__(self) -> Any:
        while self.left is None or self.left > 0:
            data = self.file.read(64 << 10 if self.left is None else min(64 << 10, self.left))
            if not data:
                return
            if self.left is not None:
                self.left -= len(data)
            await asyncio.sleep(0)
            yield data

    async def aclose(self) -> None:
        self.file.close()
        self.closed = True


class Files:
    def __init__(self, link: Link) -> None:
        self.link = link
        self.root = link.root

    def real(self, path: str, cwd: str) -> Path:
        if "\0" in path:
            raise RunraError("INVALID_REQUEST", "path: must not contain a NUL byte")
        inside = os.path.normpath(os.path.join(cwd, path))
        return self.root / inside.lstrip("/")

    def entry(self, real: Path) -> FileEntry:
        info = real.lstat()
        kind = "directory" if real.is_dir() and not real.is_symlink() else "symlink" if real.is_symlink() else "file"
        return FileEntry(
            name=real.name,
            path="/" + str(real.relative_to(self.root)),
            is_directory=real.is_dir(),
            size_bytes=info.st_size,
            modified_at=now_iso(),
            mode=oct(info.st_mode & 0o7777).replace("0o", "0"),
            owner="root",
            group="root",
            type=kind,
        )

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None, cwd: str = "/", user: str = ""
    ) -> Any:
        real = self.real(path, cwd)
        try:
            file = real.open("rb")
        except OSError as error:
            raise file_error(error, path) from None
        file.seek(offset)
        stream = FileStream(file, self.entry(real), real.stat().st_size, length)
        self.link.streams.append(stream)
        return stream

    async def write(
        self,
        path: str,
        chunks: Any,
        *,
        mode: int | None = None,
        fsync: bool = False,
        make_parents: bool = True,
        cwd: str = "/",
        user: str = "",
    ) -> FileEntry:
        real = self.real(path, cwd)
        try:
            if make_parents:
                real.parent.mkdir(parents=True, exist_ok=True)
            if real.is_dir():
                raise IsADirectoryError(21, "Is a directory")
            handle, name = tempfile.mkstemp(dir=real.parent)
            with os.fdopen(handle, "wb") as file:
                async for chunk in chunks:
                    file.write(chunk)
                    await asyncio.sleep(0)
            os.chmod(name, 0o644 if mode is None else mode)
            os.rename(name, real)
        except OSError as error:
            raise file_error(error, path) from None
        except BaseException:
            os.unlink(name)
            raise
        return self.entry(real)

    async def list(self, path: str, *, depth: int = 1, cwd: str = "/", user: str = "") -> list[FileEntry]:
        try:
            return [self.entry(child) for child in sorted(self.real(path, cwd).iterdir())]
        except OSError as error:
            raise file_error(error, path) from None

    async def stat(self, path: str, *, cwd: str = "/", user: str = "") -> FileEntry:
        try:
            return self.entry(self.real(path, cwd))
        except OSError as error:
            raise file_error(error, path) from None

    async def mkdir(self, path: str, *, recursive: bool = False, cwd: str = "/", user: str = "") -> None:
        try:
            self.real(path, cwd).mkdir(parents=recursive, exist_ok=recursive)
        except OSError as error:
            raise file_error(error, path) from None

    async def move(self, src: str, dst: str, *, cwd: str = "/", user: str = "") -> None:
        try:
            self.real(src, cwd).rename(self.real(dst, cwd))
        except OSError as error:
            raise file_error(error, src) from None

    async def delete(self, path: str, *, recursive: bool = False, cwd: str = "/", user: str = "") -> None:
        real = self.real(path, cwd)
        try:
            if recursive and real.is_dir():
                shutil.rmtree(real)
            elif real.is_dir():
                real.rmdir()
            else:
                real.unlink()
        except OSError as error:
            raise file_error(error, path) from None

    async def read_archive(self, path: str, *, cwd: str = "/", user: str = "") -> Any:
        real = self.real(path, cwd)
        with tempfile.TemporaryFile() as file:
            try:
                with tarfile.open(fileobj=file, mode="w") as tar:
                    tar.add(real, arcname=real.name)
            except OSError as error:
                raise file_error(error, path) from None
            file.seek(0)
            while data := file.read(64 << 10):
                yield data

    async def write_archive(self, path: str, chunks: Any, *, cwd: str = "/", user: str = "") -> None:
        real = self.real(path, cwd)
        with tempfile.TemporaryFile() as file:
            async for chunk in chunks:
                file.write(chunk)
            file.seek(0)
            try:
                with tarfile.open(fileobj=file) as tar:
                    tar.extractall(real, filter="data")
            except tarfile.TarError as error:
                raise RunraError(
                    "INVALID_REQUEST", f"not a tar archive: {error}", details={"reason": "bad_archive"}
                ) from None
            except OSError as error:
                raise file_error(error, path) from None

    def watch(self, path: str, *, recursive: bool = False, cwd: str = "/", user: str = "") -> Watch:
        return Watch(self, path, self.real(path, cwd))


class Watch:
    """Looks at one folder again and again."""

    def __init__(self, files: Files, path: str, real: Path) -> None:
        self.files, self.path, self.real = files, path, real
        self.before: set[str] = set()

    def _names(self) -> set[str]:
        return {child.name for child in self.real.iterdir()}

    async def ready(self) -> None:
        try:
            self.before = self._names()
        except OSError as error:
            raise file_error(error, self.path) from None

    async def __aiter__(self) -> Any:
        while True:
            await asyncio.sleep(0.02)
            before, now = self.before, self._names()
            self.before = now
            for name in sorted(now - before):
                yield WatchEvent(type="created", path=f"{self.path}/{name}")
            for name in sorted(before - now):
                yield WatchEvent(type="deleted", path=f"{self.path}/{name}")

    async def aclose(self) -> None:
        """Nothing is held."""


class Link:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.cores: dict[int, Core] = {}
        self.closed = False
        self.streams: list[FileStream] = []
        self.files = Files(self)
        self.execs = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    def background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def exec(self, spec: Any) -> Process:
        if self.closed:
            raise AgentLost("the link was closed")
        assert len(spec.tag) <= 64
        for core in self.cores.values():
            if spec.tag and core.spec.tag == spec.tag:
                return Process(self, core, 0, reused=True)
        self.execs += 1
        core = Core(spec)
        cwd = self.files.real(spec.cwd, "/")
        await core.run({"PATH": os.environ["PATH"], **spec.env}, str(cwd))
        self.cores[core.pid] = core
        return Process(self, core, 0, reused=False)

    async def attach(self, pid: int, *, offset: int = 0) -> Process:
        core = self.cores.get(pid)
        if core is None:
            raise RunraError("INVALID_REQUEST", "no such process", details={"reason": "no_such_process", "pid": pid})
        return Process(self, core, offset, reused=False)

    async def processes(self) -> list[ProcessStatus]:
        return [
            ProcessStatus(
                core.pid, core.spec.command or " ".join(core.spec.argv), core.started_at_ms, core.exit, core.spec.tag
            )
            for core in self.cores.values()
        ]

    async def signal(self, pid: int, signum: int) -> None:
        core = self.cores.get(pid)
        if core is None:
            raise RunraError("INVALID_REQUEST", "no such process", details={"reason": "no_such_process", "pid": pid})
        core.signal(signum)

    async def close(self) -> None:
        self.closed = True
        for core in self.cores.values():
            async with core.changed:
                core.changed.notify_all()
            await core.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Sandbox:
    def __init__(self, node: Node, sandbox_id: str, config: Any, organization_id: str) -> None:
        self.node, self.id, self.config, self.organization_id = node, sandbox_id, config, organization_id
        self.state: Any = "creating"
        self.created_at, self.started_at = now_iso(), None
        self.paused_at = self.terminated_at = self.reason = None
        self.users = self.touched = self.ooms = 0
        self.link = Link(node.root / sandbox_id)
        (self.link.root / config.workdir.lstrip("/")).mkdir(parents=True)

    def info(self) -> SandboxInfo:
        c = self.config
        return SandboxInfo(
            id=self.id, organization_id=self.organization_id, state=self.state, image=c.image,
            resources=c.resources.model_dump(by_alias=True), env=c.env, workdir=c.workdir, timeout_ms=c.timeout_ms,
            idle_timeout_ms=c.idle_timeout_ms, metadata=c.metadata, created_at=self.created_at,
            started_at=self.started_at, paused_at=self.paused_at, terminated_at=self.terminated_at,
            termination_reason=self.reason, auto_resume=c.auto_resume, isolation="fake",
        )  # fmt: skip

    async def _changed(self, type: Any, data: dict[str, Any]) -> None:
        if self.node.on_change:
            await self.node.on_change(self)
        self.node.events.publish(type, self.id, data, organization_id=self.organization_id)

    @property
    def env(self) -> dict[str, str]:
        return dict(self.config.env)

    def _alive(self) -> None:
        if self.state == "terminated":
            raise RunraError("INVALID_STATE", f"sandbox {self.id} is terminated", details={"state": "terminated"})

    async def pause(self) -> None:
        self._alive()
        if self.state == "running":
            self.state, self.paused_at = "paused", now_iso()
            for core in self.link.cores.values():
                core.signal(signal.SIGSTOP)
            await self._changed("sandbox.paused", {"reason": "user"})

    async def resume(self) -> None:
        self._alive()
        if self.state == "paused":
            self.state, self.paused_at = "running", None
            for core in self.link.cores.values():
                core.signal(signal.SIGCONT)
            await self._changed("sandbox.resumed", {})

    async def terminate(self, reason: Any = "user") -> None:
        if self.state == "terminated":
            return
        self.state, self.reason, self.terminated_at = "terminated", reason, now_iso()
        await self.link.close()
        await self._changed("sandbox.terminated", {"reason": reason})
        self.node.sandboxes.pop(self.id, None)

    async def update(self, patch: Any) -> None:
        self._alive()
        self.config = self.config.model_copy(update={n: getattr(patch, n) for n in patch.model_fields_set})
        await self.node.on_change(self)

    async def update_network(self, network: Any) -> None:
        self._alive()
        self.config = self.config.model_copy(update={"network": network})
        await self.node.on_change(self)

    @contextlib.asynccontextmanager
    async def use(self) -> Any:
        if self.state == "paused" and self.config.auto_resume:
            await self.resume()
        if self.state != "running":
            raise RunraError("INVALID_STATE", f"sandbox {self.id} is {self.state}", details={"state": self.state})
        self.users += 1
        try:
            yield self.link
        finally:
            self.users -= 1

    def touch(self) -> None:
        self.touched += 1

    async def metrics(self) -> dict[str, Any]:
        return {"cpuMs": 1, "memoryBytes": 2, "diskBytes": 3, "processes": len(self.link.cores)}

    #: MB it began with, and MB of disk a copy of it would begin with.
    inherited_mb = held_mb = 0

    async def copy_mb(self) -> int:
        return self.held_mb

    def oom_kills(self) -> int:
        return self.ooms

    def memory_gone(self) -> bool:
        return False  # behind bubblewrap a sandbox goes on without what was killed


class Volumes:
    """Names without folders; a fake sandbox mounts nothing."""

    def __init__(self) -> None:
        self.made: dict[str, VolumeInfo] = {}

    @property
    def ids(self) -> set[str]:
        return set(self.made)

    async def make(self, volume_id: str, organization_id: str, wanted: Any) -> VolumeInfo:
        self.made[volume_id] = VolumeInfo(
            id=volume_id, organization_id=organization_id, created_at=now_iso(), **wanted.model_dump()
        )
        return self.made[volume_id]

    async def info(self, volume_id: str) -> VolumeInfo:
        return self.made[volume_id]

    def delete(self, volume_id: str) -> None:
        self.made.pop(volume_id, None)


class Snapshots:
    def __init__(self) -> None:
        self.ids: set[str] = set()

    def size_mb(self, image: str, organization_id: str) -> int:
        return 0

    def delete(self, snapshot_id: str) -> None:
        self.ids.discard(snapshot_id)


class Images:
    """Image names in memory: a pull is done as soon as it begins."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], ImageInfo] = {}

    def add(self, name: str, organization_id: str, shared: bool) -> ImageInfo:
        made = ImageInfo(reference=self._reference(name), shared=shared)
        self.known["" if shared else organization_id, made.reference] = made
        return made

    @staticmethod
    def _reference(name: str) -> str:
        try:
            return Reference.parse(name).short
        except ValueError as error:
            raise RunraError("INVALID_REQUEST", f"image {error}") from None

    def _find(self, name: str, organization_id: str) -> tuple[str, str]:
        for key in ((organization_id, self._reference(name)), ("", self._reference(name))):
            if key in self.known:
                return key
        raise RunraError("INVALID_REQUEST", f"no image {name[:100]!r}", status=404)

    def info(self, name: str, organization_id: str, *, administrator: bool = False) -> ImageInfo:
        return self.known[self._find(name, organization_id)]

    def listed(self, organization_id: str, *, steps: bool = False, administrator: bool = False) -> list[ImageInfo]:
        return [made for (owner, _), made in self.known.items() if owner in ("", organization_id)]

    def begin(self, name: str, organization_id: str, credentials: Any, shared: bool | None) -> ImagePulling:
        made = self.add(name, organization_id, credentials is None if shared is None else shared)
        return ImagePulling(reference=made.reference, pull_id="pull_fake")

    async def import_archive(self, chunks: Any, name: str | None, organization_id: str, *, shared: bool) -> ImageInfo:
        if not [chunk async for chunk in chunks]:
            raise RunraError("INVALID_REQUEST", "the archive is empty")
        return self.add(name or "imported", organization_id, shared)

    async def tag(self, image: str, name: str, organization_id: str, *, shared: bool) -> ImageInfo:
        self._find(image, organization_id)
        return self.add(name, organization_id, shared)

    async def delete(self, name: str, organization_id: str) -> ImageInfo:
        return self.known.pop(self._find(name, organization_id))

    async def prune(self, organization_id: str, unused_for_ms: int) -> ImagesPruned:
        gone = [key for key in self.known if key[0] in ("", organization_id)]
        return ImagesPruned(references=[self.known.pop(key).reference for key in gone], freed_bytes=0)


class Node:
    """`world` outlives a node as a machine outlives a server: what is in it is adopted by the next node."""

    def __init__(self, root: Path, events: Any, world: dict[str, Sandbox]) -> None:
        self.root, self.events, self.world = root, events, world
        self.sandboxes: dict[str, Sandbox] = {}
        self.gone: dict[str, Any] = {}
        self.on_change: Any = None
        self.volumes, self.snapshots = Volumes(), Snapshots()
        self.created = 0
        self.delay = 0.0
        self.fail: BaseException | None = None
        self.images = Images()

    async def start(self) -> None:
        for sandbox in self.world.values():
            sandbox.node = self
        self.sandboxes = dict(self.world)

    async def close(self) -> None:
        self.world.clear()
        self.world.update(self.sandboxes)

    async def commit(self, sandbox_id: str, name: str, *, shared: bool, step: bool) -> ImageInfo:
        return self.images.add(name, self.sandboxes[sandbox_id].organization_id, shared)

    async def create(self, sandbox_id: str, config: Any, organization_id: str) -> Sandbox:
        if self.fail:
            raise self.fail
        if config.image != "host":
            raise RunraError("INVALID_REQUEST", f"no image {config.image!r}", details={"field": "image"})
        self.created += 1
        sandbox = Sandbox(self, sandbox_id, config, organization_id)
        self.sandboxes[sandbox_id] = sandbox
        self.events.publish("sandbox.created", sandbox_id, {}, organization_id=organization_id)
        await asyncio.sleep(self.delay)
        sandbox.state, sandbox.started_at = "running", now_iso()
        await sandbox._changed("sandbox.started", {})
        return sandbox

    async def snapshot(self, sandbox_id: str, snapshot_id: str, name: str | None) -> SnapshotInfo:
        sandbox = self.sandboxes[sandbox_id]
        self.snapshots.ids.add(snapshot_id)
        return SnapshotInfo(
            id=snapshot_id, name=name, organization_id=sandbox.organization_id, sandbox_id=sandbox_id,
            image=sandbox.config.image, size_bytes=0, created_at=now_iso(),
        )  # fmt: skip

    async def fork(self, sandbox_id: str, ids: Any, *, processes: bool = False) -> list[Sandbox]:
        source = self.sandboxes[sandbox_id]
        return [await self.create(one, source.config, source.organization_id) for one in ids]
