"""The agent inside an E2B or CubeSandbox sandbox, as its clients see it: Connect with JSON frames, and files over HTTP."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import pty
import signal
import stat
import struct
import termios
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.runtime.fakes.box import Box

_TYPES = {"json": "application/connect+json"}


class Faults:
    """What goes wrong, each set by a test."""

    def __init__(self) -> None:
        self.truncate_frame = False
        self.end_error = ""
        self.no_exit_code = False
        self.drop_stream = False
        self.proxy_504 = 0


class Running:
    def __init__(self, process: asyncio.subprocess.Process, terminal: int | None) -> None:
        self.process = process
        self.pid = process.pid
        #: Our end of its terminal.
        self.terminal = terminal


class Envd:
    """The agent of one box."""

    def __init__(self, box: Box, env: dict[str, str], faults: Faults) -> None:
        self.box = box
        self.env = env
        self.faults = faults
        self.running: dict[int, Running] = {}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == "/health":
            return web.Response(status=204)
        if path == "/files":
            return await (self._upload(request) if request.method == "POST" else self._download(request))
        if path == "/process.Process/Start":
            return await self._start(request)
        _, service, name = path.split("/")
        body = await request.json()
        handler = getattr(self, f"_{service.split('.')[-1].lower()}_{name.lower()}", None)
        if handler is None:
            return _error(501, "unimplemented", path)
        answer = handler(body)
        return answer if isinstance(answer, web.Response) else web.json_response(answer)

    # --- processes -------------------------------------------------------------------------------------------------

    async def _start(self, request: web.Request) -> web.StreamResponse:
        assert request.content_type == "application/connect+json", request.content_type
        assert request.headers["Connect-Protocol-Version"] == "1"
        raw = await request.read()
        flag, length = struct.unpack(">BI", raw[:5])
        assert (flag, length) == (0, len(raw) - 5)
        asked = json.loads(raw[5:])
        config = asked["process"]
        stdin = asyncio.subprocess.PIPE if asked.get("stdin") else asyncio.subprocess.DEVNULL
        response = web.StreamResponse(headers={"Content-Type": "application/connect+json"})
        cwd = config.get("cwd") or "/home/user"
        if not self.box.place(cwd).is_dir():
            await response.prepare(request)
            await _frame(response, {"error": {"code": "invalid_argument", "message": f"cwd '{cwd}' does not exist"}}, 2)
            return response
        argv = [config["cmd"], *config.get("args", [])]
        env, terminal, theirs = {**self.env, **config.get("envs", {})}, None, None
        if "pty" in asked:
            terminal, theirs = pty.openpty()
            _resize(terminal, asked["pty"]["size"])
        process = await self.box.run(argv, env, cwd, stdin=stdin, user=_user(request), terminal=theirs)
        if theirs is not None:
            os.close(theirs)
        it = self.running[process.pid] = Running(process, terminal)
        await response.prepare(request)
        try:
            await _frame(response, {"event": {"start": {"pid": it.pid}}})
            await _frame(response, {"event": {"keepalive": {}}})
            lock = asyncio.Lock()
            if it.terminal is None:
                await asyncio.gather(self._copy(response, it, "stdout", lock), self._copy(response, it, "stderr", lock))
            else:
                await self._show(response, it)
            code = await process.wait()
            if self.faults.drop_stream:
                assert request.transport is not None
                request.transport.close()
                return response
            await self._end(response, code)
        except (ConnectionError, asyncio.CancelledError):
            # A client that hangs up does not end the command.
            self.left = asyncio.ensure_future(_drain(process))
            raise
        finally:
            self.running.pop(it.pid, None)
            if it.terminal is not None:
                os.close(it.terminal)  # what runs in it hangs up
        return response

    async def _show(self, response: web.StreamResponse, it: Running) -> None:
        """What a terminal shows, until its command has ended."""
        assert it.terminal is not None
        os.set_blocking(it.terminal, False)
        while True:
            ended = it.process.returncode is not None
            try:
                piece = os.read(it.terminal, 3001)
            except BlockingIOError:
                piece = b""
            except OSError:  # nobody has its other end open
                return
            if piece:
                await _frame(response, {"event": {"data": {"pty": base64.b64encode(piece).decode()}}})
            elif ended:
                return
            else:
                await asyncio.sleep(0.01)

    async def _copy(self, response: web.StreamResponse, it: Running, name: str, lock: asyncio.Lock) -> None:
        pipe = getattr(it.process, name)
        while piece := await pipe.read(3001):  # so that characters are cut in two
            async with lock:
                if self.faults.truncate_frame:
                    await response.write(struct.pack(">BI", 0, 1000) + b'{"event":')
                    return
                await _frame(response, {"event": {"data": {name: base64.b64encode(piece).decode()}}})

    async def _end(self, response: web.StreamResponse, code: int) -> None:
        if self.faults.truncate_frame:
            return
        if self.faults.end_error:
            await _frame(response, {"error": {"code": self.faults.end_error, "message": "as the test wants it"}}, 2)
            return
        if code < 0:
            name = {9: "killed", 15: "terminated", 2: "interrupt"}.get(-code, f"signal {-code}")
            end: dict[str, Any] = {
                "exitCode": -1,
                "exited": False,
                "status": f"signal: {name}",
                "error": f"signal: {name}",
            }
        else:
            end = {"exitCode": code, "exited": True, "status": f"exit status {code}"}
            if code:
                end["error"] = f"exit status {code}"
        if self.faults.no_exit_code or end["exitCode"] == 0:
            del end["exitCode"]  # as proto3 JSON leaves out what is zero
        await _frame(response, {"event": {"end": end}})
        await _frame(response, {}, 2)

    def _at(self, body: dict[str, Any]) -> Running | None:
        return self.running.get(int(body["process"].get("pid", 0)))

    async def _input(self, it: Running, data: bytes) -> None:
        assert it.process.stdin is not None
        with contextlib.suppress(ConnectionError):
            it.process.stdin.write(data)
            await it.process.stdin.drain()

    def _process_sendinput(self, body: dict[str, Any]) -> Any:
        it = self._at(body)
        if it is not None and it.terminal is not None and "pty" in body["input"]:
            os.write(it.terminal, base64.b64decode(body["input"]["pty"]))
            return {}
        if it is None or it.process.stdin is None or it.process.returncode is not None:
            return _error(404, "not_found", "process not found")
        it.process.stdin.write(base64.b64decode(body["input"]["stdin"]))
        return {}

    def _process_update(self, body: dict[str, Any]) -> Any:
        it = self._at(body)
        if it is None or it.terminal is None:
            return _error(404, "not_found", "process not found")
        _resize(it.terminal, body["pty"]["size"])
        return {}

    def _process_closestdin(self, body: dict[str, Any]) -> Any:
        it = self._at(body)
        if it is None or it.process.stdin is None:
            return _error(404, "not_found", "process not found")
        it.process.stdin.close()
        return {}

    def _process_sendsignal(self, body: dict[str, Any]) -> Any:
        it = self._at(body)
        if it is None:
            return _error(404, "not_found", "process not found")
        # nsenter's child is the command itself.
        number = {"SIGNAL_SIGKILL": signal.SIGKILL, "SIGNAL_SIGTERM": signal.SIGTERM}[body["signal"]]
        for child in Path(f"/proc/{it.pid}/task/{it.pid}/children").read_text().split() or [str(it.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), number)
        return {}

    def _process_list(self, body: dict[str, Any]) -> Any:
        return {"processes": [{"config": {"cmd": "/bin/bash"}, "pid": pid} for pid in self.running]}

    # --- files -------------------------------------------------------------------------------------------------------

    def _path(self, text: str) -> str:
        return text if text.startswith("/") else f"/home/user/{text}"

    async def _download(self, request: web.Request) -> web.StreamResponse:
        path = self._path(request.query["path"])
        place = self.box.place(path)
        if not place.exists():
            return _plain(404, f"path '{path}' does not exist")
        if place.is_dir():
            return _plain(400, f"path '{path}' is a directory")
        return web.Response(body=place.read_bytes(), content_type="application/octet-stream")

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        written = []
        if request.content_type == "application/octet-stream":
            written.append((self._path(request.query["path"]), await request.read()))
        else:
            async for part in await request.multipart():
                name = request.query.get("path") or part.filename
                written.append((self._path(name), bytes(await part.read())))
        for path, data in written:
            place = self.box.place(path)
            if place.is_dir():
                return _plain(400, f"path '{path}' is a directory")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        return web.json_response([{"path": path, "name": Path(path).name, "type": "file"} for path, _ in written])

    def _filesystem_listdir(self, body: dict[str, Any]) -> Any:
        path = self._path(body["path"])
        place = self.box.place(path)
        if not place.exists():
            return _error(404, "not_found", f"path '{path}' does not exist")
        if not place.is_dir():
            return _error(400, "invalid_argument", f"path '{path}' is not a directory")
        return {"entries": [self._entry(one, f"{path.rstrip('/')}/{one.name}") for one in sorted(place.iterdir())]}

    def _filesystem_stat(self, body: dict[str, Any]) -> Any:
        path = self._path(body["path"])
        place = self.box.place(path)
        if not place.exists() and not place.is_symlink():
            return _error(404, "not_found", f"path '{path}' does not exist")
        return {"entry": self._entry(place, path)}

    def _filesystem_makedir(self, body: dict[str, Any]) -> Any:
        place = self.box.place(self._path(body["path"]))
        if place.is_dir():
            return _error(409, "already_exists", "directory already exists")
        place.mkdir(parents=True)
        return {"entry": self._entry(place, body["path"])}

    def _entry(self, place: Path, path: str) -> dict[str, Any]:
        shown = place.lstat()
        kind = "DIRECTORY" if stat.S_ISDIR(shown.st_mode) else "SYMLINK" if stat.S_ISLNK(shown.st_mode) else "FILE"
        at = datetime.fromtimestamp(shown.st_mtime, UTC).isoformat().replace("+00:00", "Z")
        return {
            "name": place.name, "path": path, "type": f"FILE_TYPE_{kind}", "size": str(shown.st_size),
            "mode": shown.st_mode & 0o7777, "permissions": "", "owner": "user", "group": "user", "modifiedTime": at,
        }  # fmt: skip


def _user(request: web.Request) -> str:
    """As whom: the name in `Authorization`, root where there is none."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return base64.b64decode(given).decode().rstrip(":") if scheme == "Basic" else "root"


def _resize(terminal: int, size: dict[str, int]) -> None:
    termios.tcsetwinsize(terminal, (size["rows"], size["cols"]))


async def _drain(process: asyncio.subprocess.Process) -> None:
    await process.communicate()


async def _frame(response: web.StreamResponse, message: Any, flag: int = 0) -> None:
    data = json.dumps(message).encode()
    await response.write(struct.pack(">BI", flag, len(data)) + data)


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"code": code, "message": message}, status=status)


def _plain(status: int, message: str) -> web.Response:
    return web.json_response({"code": status, "message": message}, status=status)
