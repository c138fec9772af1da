"""A node run by an ordinary user: it works with what unprivileged namespaces allow, and says what is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from runra.contract import SandboxConfig
from runra.events import EventLog
from runra.ids import new_id
from runra.node import Node, NodeSettings
from runra.node.agent.types import ExecSpec

async def run(sandbox, command):
    async with sandbox.use() as agent, await agent.exec(ExecSpec(command=command, env=sandbox.env)) as process:
        return b"".join([chunk.data async for chunk in process.output()]).decode()

async def main():
    node = Node(NodeSettings(data_dir=Path(sys.argv[1])), EventLog())
    await node.start()
    sandbox = await node.create(new_id("sb"), SandboxConfig(image="host"), "org")
    told = {"id": await run(sandbox, "id -u; touch /root/mine /etc/mine && echo written")}
    told["enforced"] = sandbox.info().enforced
    async with sandbox.use() as agent:
        ticker = await agent.exec(ExecSpec(command="while :; do date +%s%N > /tmp/tick; sleep 0.01; done", env=sandbox.env))
        ticker.detach()
    await asyncio.sleep(0.2)
    await sandbox.pause()
    tick = next(Path(sys.argv[1]).glob("sandboxes/*/upper0/tmp/tick"))
    before = tick.read_text()
    await asyncio.sleep(0.3)
    told["stood still"] = tick.read_text() == before
    await sandbox.resume()
    await asyncio.sleep(0.2)
    told["went on"] = tick.read_text() != before
    await run(sandbox, "mkdir -p /workspace/closed/deep; touch /workspace/closed/deep/file; chmod 0 /workspace/closed")
    await sandbox.terminate()
    await node.settled()
    await node.close()
    told["left"] = [path.name for name in ("sandboxes", "sandboxes/.trash") for path in Path(sys.argv[1], name).iterdir()]
    print(json.dumps(told))

asyncio.run(main())
"""

USER = 61_234


@pytest.fixture
def own_folder() -> Iterator[Path]:
    # Not pytest's tmp_path: an ordinary user must be able to reach it.
    folder = Path(tempfile.mkdtemp(prefix="runra-user-"))
    folder.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(folder, USER, USER)
    yield folder
    shutil.rmtree(folder)


def as_user(folder: Path) -> tuple[list[str], dict[str, str]]:
    """A command prefix that runs this Python as an ordinary user, and its environment.

    As root under a Python in a closed home, the system's Python of the same version stands in.
    """
    if os.geteuid() != 0:
        return [sys.executable], dict(os.environ)
    prefix = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        if subprocess.run([*prefix, python, "-c", "import runra.node"], env=environment, check=False).returncode == 0:
            return [*prefix, python], environment
    pytest.fail(f"no Python 3.{sys.version_info.minor} an ordinary user can run: apt-get install python3")


def test_an_ordinary_user_gets_sandboxes(own_folder: Path) -> None:
    command, environment = as_user(own_folder)
    done = subprocess.run(
        [*command, "-c", SCRIPT, str(own_folder / "data")],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["id"].split() == ["0", "written"]
    assert (told["stood still"], told["went on"]) == (True, True)
    assert told["left"] == [".trash"]
    if os.geteuid() == 0:  # this user owns no cgroup, and is told so
        assert [name for name, held in told["enforced"].items() if held] == ["network"], "none is held"
