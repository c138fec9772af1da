"""The host's side of runra-launcher: starts sandboxes and deletes trees without forking this process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import socket
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Final

from runra.errors import RunraError
from runra.node.waiting import read_all, writable

BIN: Final = Path(__file__).parent / "bin"
_ANSWER_BYTES: Final = 256
_DEADLINE: Final = 30.0
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: A started program's pid, and what `waitpid` will say of it.
Spawned = tuple[int, "asyncio.Future[int]"]


def binary(name: str) -> Path:
    """The path of a compiled part. Raises INVALID_CONFIG with the cure when it was not built."""
    path = BIN / name
    if not path.exists():
        raise RunraError(
            "INVALID_CONFIG",
            f"{name} was not built with this installation: apt-get install gcc libc6-dev, then reinstall runra[server]",
            details={"path": str(path)},
        )
    return path


class Launcher:
    """One resident runra-launcher. When it dies it is started again; sandboxes are not its children's keepers."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._pid = 0
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._spawned: dict[str, asyncio.Future[Spawned]] = {}
        self._exited: dict[int, asyncio.Future[int]] = {}
        self._ids = itertools.count()

    async def start(self) -> None:
        async with self._starting:
            if self._socket is not None:
                return
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                theirs.set_inheritable(True)
                # posix_spawn, not a fork of this big process; the launcher resets what it inherits.
                self._pid = os.posix_spawn(
                    binary("runra-launcher"),
                    ["runra-launcher"],
                    {"PATH": _PATH},
                    file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)],
                    setsid=True,
                )
            ours.setblocking(False)
            self._socket = ours
            self._reader = asyncio.create_task(self._read(ours, self._pid), name="launcher")

    async def close(self) -> None:
        """The launcher exits when its socket closes; what it started lives on."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def spawn(self, words: Sequence[str], fds: Sequence[int]) -> Spawned:
        """Start a program (launcher/stage.c has the words). Returns its pid and a future of its wait status."""
        return await self._request("spawn", words, fds)

    async def run(self, *argv: str, timeout: float = 60.0) -> None:
        """Run a system tool to its end, or kill it after `timeout` s. Raises INTERNAL_ERROR with what it said when it
        fails."""
        program = shutil.which(argv[0], path=_PATH)
        if program is None:
            raise RunraError("INTERNAL_ERROR", f"{argv[0]} is not installed")
        await self.finish([], [program, *argv[1:]], timeout=timeout)

    async def finish(
        self, words: Sequence[str], argv: Sequence[str], fds: Sequence[int] = (), *, timeout: float
    ) -> None:
        """Start a program as `spawn` does, with `fds` from 3 on, and wait for its end, or kill it after `timeout` s.
        Raises INTERNAL_ERROR with what it said when it fails."""
        name = Path(argv[0]).name
        said, said_theirs = os.pipe()
        exited: asyncio.Future[int] | None = None
        pid = 0
        try:
            with FileIO(os.devnull, "r+") as null:
                stdio = [null.fileno(), said_theirs, said_theirs]
                pid, exited = await self.spawn([*words, "--", *argv], [*stdio, *fds])
            os.close(said_theirs)
            said_theirs = -1
            async with asyncio.timeout(timeout):
                text = (await read_all(said, timeout)).decode(errors="replace").strip()
                if await asyncio.shield(exited) != 0:
                    raise RunraError("INTERNAL_ERROR", f"{name} failed: {text[-2000:]}")
        except TimeoutError:
            raise RunraError("INTERNAL_ERROR", f"{name} was not done within {timeout:.0f} s") from None
        finally:
            if exited is not None and not exited.done():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(exited), _DEADLINE)
            os.close(said)
            if said_theirs >= 0:
                os.close(said_theirs)

    async def remove(self, path: Path) -> None:
        """Delete a tree of any depth. Raises INTERNAL_ERROR when something is left; the deadline is 10 minutes."""
        _, exited = await self._request("remove", [str(path)], [])
        async with asyncio.timeout(600):
            status = await exited
        if status:
            raise RunraError("INTERNAL_ERROR", f"could not delete {path}", details={"status": status})

    async def _request(self, verb: str, words: Sequence[str], fds: Sequence[int]) -> Spawned:
        await self.start()
        assert self._socket is not None
        request = f"r{next(self._ids)}"
        answer: asyncio.Future[Spawned] = asyncio.get_running_loop().create_future()
        self._spawned[request] = answer
        message = b"".join(os.fsencode(word) + b"\0" for word in (verb, request, *words))
        try:
            async with asyncio.timeout(_DEADLINE):
                await self._send(self._socket, message, fds)
                return await answer
        except OSError as error:
            why = f"it said nothing within {_DEADLINE:.0f} s" if isinstance(error, TimeoutError) else str(error)
            raise RunraError("INTERNAL_ERROR", f"the launcher did not take a request: {why}") from error
        finally:
            self._spawned.pop(request, None)

    @staticmethod
    async def _send(link: socket.socket, message: bytes, fds: Sequence[int]) -> None:
        while True:
            try:
                socket.send_fds(link, [message], fds)
                return
            except BlockingIOError:
                await writable(link.fileno())

    async def _read(self, link: socket.socket, pid: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                said = await loop.sock_recv(link, _ANSWER_BYTES)
                if not said:
                    return
                self._handle(said.decode().split())
        finally:
            link.close()
            # What it was asked goes with it, at once: from here on a request starts a new launcher and waits for that.
            self._socket = None
            asked, self._spawned = self._spawned, {}
            watched, self._exited = self._exited, {}
            lost = RunraError("INTERNAL_ERROR", "the launcher ended; the next request starts a new one")
            for answer in asked.values():
                if not answer.done():
                    answer.set_exception(lost)
            for exited in watched.values():
                exited.cancel()
            # Reap it; it exits as soon as its socket closes.
            await asyncio.shield(asyncio.to_thread(os.waitpid, pid, 0))

    def _handle(self, words: list[str]) -> None:
        match words:
            case ["spawned", request, pid]:
                exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
                self._exited[int(pid)] = exited
                waiting = self._spawned.get(request)
                if waiting is not None and not waiting.done():
                    waiting.set_result((int(pid), exited))
            case ["failed", request, number]:
                waiting = self._spawned.get(request)
                if waiting is not None and not waiting.done():
                    waiting.set_exception(OSError(int(number), os.strerror(int(number))))
            case ["exit", pid, status]:
                ended = self._exited.pop(int(pid), None)
                if ended is not None and not ended.done():
                    ended.set_result(int(status))
