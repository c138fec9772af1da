"""Asks this machine's runsc whether a sandbox's processes could be forked: run by root, it prints an answer a line.

A fork with processes is `runsc checkpoint` of one sandbox and `runsc restore` of its image, once for each copy, over a
copy of the files. Three things decide whether that can be built on: that a process goes on in a copy, that
the agent can be restored while it holds the host's socket, and that the source lives on. docs/snapshots.md says what
follows from the answers.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
AGENT = Path(__file__).resolve().parent.parent / "src/runra/node/bin/runra-agent"
#: Counts in a shell's memory, and shows where it is; without the descriptor it was started with.
COUNT = "exec 0<&-; i=0; while :; do i=$((i+1)); echo $i > /count; /bin/busybox sleep 0.1; done"
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Answer:
    """Whether it can, and what runsc said or what was seen."""

    can: bool
    said: str


class Trial:
    """One state folder of runsc's, with containers of our own in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: list[str] = []

    def runsc(self, *words: str, stdin: int = subprocess.DEVNULL, timeout: float = _TIMEOUT) -> str:
        """What it complained of: nothing when all is well. (A file: a detached sandbox keeps what it inherits.)"""
        command = ["runsc", f"--root={self._folder}/state", "--ignore-cgroups", "--network=none", *words]
        with (self._folder / "said").open("w+") as said:
            done = subprocess.run(command, stdin=stdin, stdout=said, stderr=said, timeout=timeout, check=False)
            said.seek(0)
            return said.read()[:300] or f"it ended with {done.returncode}" if done.returncode else ""

    def bundle(self, name: str, args: list[str]) -> Path:
        folder = self._folder / name
        for inner in ("bin", "proc"):
            (folder / "root" / inner).mkdir(parents=True)
        shutil.copy(BUSYBOX, folder / "root/bin/busybox")
        shutil.copy(AGENT, folder / "root/bin/agent")
        spec = {
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": args, "env": [], "cwd": "/"},
            "root": {"path": str(folder / "root")},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
        }
        (folder / "config.json").write_text(json.dumps(spec))
        return folder

    def run(self, name: str, args: list[str], stdin: int) -> Path:
        self._names.append(name)
        folder = self.bundle(name, args)
        complaint = self.runsc("run", "--detach", f"--bundle={folder}", name, stdin=stdin)
        if complaint:
            raise RuntimeError(f"runsc starts no sandbox here: {complaint}")
        return folder

    def save(self, name: str, *options: str, timeout: float = _TIMEOUT) -> str:
        (self._folder / name / "image").mkdir()
        where = f"--image-path={self._folder / name / 'image'}"
        return self.runsc("checkpoint", *options, where, name, timeout=timeout)

    def restore(self, name: str, source: str) -> str:
        """A further sandbox from a saved one, over a copy of its files."""
        self._names.append(name)
        folder = self._folder / name
        folder.mkdir()
        shutil.copytree(self._folder / source / "root", folder / "root", symlinks=True)
        config = (self._folder / source / "config.json").read_text()
        (folder / "config.json").write_text(config.replace(f"/{source}/root", f"/{name}/root"))
        image = f"--image-path={self._folder / source / 'image'}"
        return self.runsc("restore", "--detach", f"--bundle={folder}", image, name)

    def end(self) -> None:
        for name in self._names:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.runsc("delete", "-force", name)


@contextlib.contextmanager
def trial() -> Iterator[Trial]:
    with tempfile.TemporaryDirectory(prefix="rg-") as folder:
        one = Trial(Path(folder))
        try:
            yield one
        finally:
            one.end()


def counted(folder: Path, beyond: int) -> int:
    """Wait until the count in a sandbox is larger than this; what it is by then, or at the deadline."""
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError, ValueError):
            found = int((folder / "root/count").read_text())
            if found > beyond or time.monotonic() > deadline:
                return found
        if time.monotonic() > deadline:
            return -1
        time.sleep(0.05)


def goes_on() -> Answer:
    """A process that holds nothing of the host's is saved, and goes on in two copies."""
    with trial() as one:
        source = one.run("source", ["/bin/busybox", "sh", "-c", COUNT], subprocess.DEVNULL)
        counted(source, 3)
        if complaint := one.save("source"):
            return Answer(False, complaint)
        reached = counted(source, 0)
        complaints = [one.restore(name, "source") for name in ("first", "second")]
        if any(complaints):
            return Answer(False, "; ".join(complaints))
        further = [counted(source.with_name(name), reached) for name in ("first", "second")]
        return Answer(min(further) > reached, f"saved at {reached}, its copies counted on to {further}")


def with_the_socket() -> Answer:
    """The agent, which holds a socket of the host's, is saved and restored."""
    ours, theirs = socket.socketpair()
    with ours, theirs, trial() as one:
        one.run("source", ["/bin/agent", "--pass-fd", "0"], theirs.fileno())
        complaint = one.save("source") or one.restore("copy", "source")
        return Answer(not complaint, complaint or "it is there")


def leaves_the_source() -> Answer:
    """The sandbox that is saved runs on."""
    with trial() as one:
        source = one.run("source", ["/bin/busybox", "sh", "-c", COUNT], subprocess.DEVNULL)
        counted(source, 3)
        try:
            if complaint := one.save("source", "--leave-running", timeout=_TIMEOUT / 2):
                return Answer(False, complaint)
        except subprocess.TimeoutExpired:
            return Answer(False, f"`checkpoint --leave-running` did not end within {_TIMEOUT / 2:.0f} s")
        reached = counted(source, 0)
        further = counted(source, reached)
        return Answer(further > reached, f"saved at {reached}, it counted on to {further}")


def main() -> int:
    version = subprocess.run(["runsc", "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    print(version.partition("\n")[0])
    answers = [question() for question in (goes_on, with_the_socket, leaves_the_source)]
    names = ("a process goes on", "with the agent's socket", "the source runs on")
    for what, answer in zip(names, answers, strict=True):
        print(f"{'yes' if answer.can else 'no ':3}  {what}: {answer.said.strip()}")
    return 0 if all(answer.can for answer in answers) else 1


if __name__ == "__main__":
    sys.exit(main())
