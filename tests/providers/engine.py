"""A Docker engine of the test session's own: nothing shared with one that may run on this machine."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

IMAGE = "runra-test"


def _lacking() -> str:
    if os.geteuid() != 0:
        return "a Docker engine of one's own needs root"
    if not shutil.which("dockerd") or not shutil.which("containerd"):
        return "no Docker engine: apt-get install docker.io"
    if not Path("/bin/busybox").exists():
        return "no image to make: apt-get install busybox-static"
    return ""


@contextlib.contextmanager
def engine() -> Iterator[str]:
    """The URL of a running engine that has the image IMAGE (busybox and no more), without bridge and iptables."""
    if reason := _lacking():
        pytest.skip(reason)
    home = Path(tempfile.mkdtemp(prefix="rd-", dir="/tmp"))  # short: socket names must be
    group = f"runra-test-{os.getpid()}"
    url = f"unix://{home}/sock"
    log = (home / "log").open("wb")
    with log:
        process = subprocess.Popen(
            [
                "dockerd", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--bridge=none",
                f"--data-root={home}/data", f"--exec-root={home}/exec", f"--pidfile={home}/pid", f"--host={url}",
                "--storage-driver=vfs", f"--cgroup-parent=/{group}", "--exec-opt=native.cgroupdriver=cgroupfs",
            ],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 40
        while _docker(url, "version").returncode != 0:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail("dockerd did not start:\n" + (home / "log").read_text()[-3000:])
            time.sleep(0.1)
        imported = _docker(url, "import", "-", IMAGE, stdin=_root_file_system())
        assert imported.returncode == 0, imported.stderr
        yield url
    finally:
        ids = _docker(url, "ps", "-aq").stdout.split()
        if ids:
            _docker(url, "rm", "-f", *[id.decode() for id in ids])
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        _clear(home, group)


def _docker(url: str, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = ["docker", "-H", url, *words]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)


def _root_file_system() -> bytes:
    """busybox under every name it has, in a tar."""
    names = (
        subprocess.run(["/bin/busybox", "--list"], capture_output=True, check=True, timeout=10).stdout.decode().split()
    )
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for folder in ("bin", "etc", "proc", "sys", "dev", "tmp", "root", "home"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        tar.add("/bin/busybox", "bin/busybox", filter=lambda it: it)
        for name in names:
            if name != "busybox":
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        for path, text in {
            "etc/passwd": "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n",
            "etc/group": "root:x:0:\nuser:x:1000:\n",
        }.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


def _clear(home: Path, group: str) -> None:
    """Unmount and delete what an engine leaves, and its cgroups."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((one for one in mounts if one.startswith(f"{home}/")), key=len, reverse=True):
        subprocess.run(["umount", "-l", mount], check=False, timeout=10, capture_output=True)
    shutil.rmtree(home, ignore_errors=True)
    for root in Path("/sys/fs/cgroup").iterdir():
        folder = root / group
        if folder.is_dir():
            for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), key=lambda it: -len(it.parts)):
                with contextlib.suppress(OSError):
                    inner.rmdir()
            with contextlib.suppress(OSError):
                folder.rmdir()
