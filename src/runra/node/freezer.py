"""Stopping a sandbox without a cgroup freezer: SIGSTOP to the whole process tree, for servers without root."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

from runra.errors import RunraError


def _tree(pid: int) -> list[int]:
    """`pid` and its descendants. In a pid namespace every process descends from process 1, daemons included."""
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{current}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return found


def _stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TtZX"
    except OSError:
        return True


async def stop_tree(pid: int, timeout: float = 10.0) -> None:
    """Stop all of it, process 1 first so that nothing new is started for us. INTERNAL_ERROR (and continued) if not.

    A process that job control had stopped before is continued with the rest at resume: without a freezer the two
    cannot be told apart.
    """
    deadline = time.monotonic() + timeout
    while True:
        running = [one for one in _tree(pid) if not _stopped(one)]
        if not running:
            return
        for one in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGSTOP)
        if time.monotonic() > deadline:
            continue_tree(pid)
            raise RunraError("INTERNAL_ERROR", "the sandbox's processes did not stop in time; it runs on")
        await asyncio.sleep(0.002)


def continue_tree(pid: int) -> None:
    for one in _tree(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGCONT)
