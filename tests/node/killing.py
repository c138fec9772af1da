"""A server that is killed by its own hand at a named step: a program of its own, and how to run it to its death."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from runra.node.record import process_start
from tests.hosting import until

#: Before a program that has `OWNERS`: classes and modules by name. It is called with a data folder and a step, `owner
#: name when act`, and dies before or after that function of that owner once it has called `set_trap`.
TRAP = """
import asyncio, functools, inspect, json, os, sys
from pathlib import Path

owner, name, when, act = sys.argv[2].split()

def die():
    os.kill(os.getpid(), 9)

def set_trap():
    original = getattr(OWNERS[owner], name)
    if asyncio.iscoroutinefunction(original):
        @functools.wraps(original)
        async def trapped(*arguments, **options):
            if when == "before": die()
            await original(*arguments, **options)
            die()
    else:
        @functools.wraps(original)
        def trapped(*arguments, **options):
            if when == "before": die()
            original(*arguments, **options)
            die()
    static = isinstance(inspect.getattr_static(OWNERS[owner], name), staticmethod)
    setattr(OWNERS[owner], name, staticmethod(trapped) if static else trapped)

async def the_step_did_not_come():
    await asyncio.sleep(20)
    print("the step did not come", file=sys.stderr)
"""


async def dead_server(program: str, data: Path, step: str) -> list[Any]:
    """Run a server to its death at a step. What it said, one line of JSON, without the launcher's pid at its end: that
    one is gone as well when this returns."""
    arguments = [sys.executable, "-c", TRAP + program, str(data), step]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        try:
            said, errors = await asyncio.to_thread(server.communicate, timeout=40)
        finally:
            server.kill()
    assert server.returncode == -signal.SIGKILL, errors.decode()
    *told, launcher = json.loads(said)
    await until(lambda: process_start(launcher) == 0)
    return told
