"""`runra image build --from BASE --run "pip install …"`: real sandboxes that reach a package index."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runra.node.network.settings import NetworkSettings
from runra.server.settings import ServerSettings
from tests.images.conftest import debian_root
from tests.network.internet import GOOD, Internet
from tests.server.conftest import Running, started

PIP = "pip install --no-cache-dir --index-url http://good.example/simple/ --trusted-host good.example"


def wheel(name: str, version: str, text: str) -> bytes:
    """The least that is a wheel (PyPA, "Binary distribution format")."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return packed.getvalue()


@pytest.fixture
def index(internet: Internet) -> Internet:
    internet.clear()
    file, data = "greeting-1.0-py3-none-any.whl", wheel("greeting", "1.0", "print('hello from a wheel')\n")
    link = f'<a href="/files/{file}#sha256={hashlib.sha256(data).hexdigest()}">{file}</a>'
    internet.files = {"/simple/greeting/": link.encode(), f"/files/{file}": data}
    return internet


@pytest.fixture
async def real(index: Internet, settings: dict[str, Any], tmp_path: Path) -> AsyncIterator[Running]:
    node = {"network": NetworkSettings(**settings)}
    where = ServerSettings(data_dir=tmp_path / "server", client_config=tmp_path / "config.json", node=node)
    async with started(where, real=True) as running:
        yield running
        await asyncio.gather(*(sandbox.terminate() for sandbox in list(running.node.sandboxes.values())))
        await running.node.settled()


async def cli(real: Running, *words: str) -> tuple[int | None, str, str]:
    """Started from this thread, which stands on the machine that has the internet."""
    environment = {**os.environ, "RUNRA_API_URL": real.client.url, "RUNRA_API_KEY": real.client.key}
    command = [sys.executable, "-m", "runra.cli", "image", *words]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=environment)
    async with asyncio.timeout(100):
        said, complained = await process.communicate()
    return process.returncode, said.decode(), complained.decode()


async def test_a_recipe_installs_from_a_package_index(real: Running, index: Internet, debian_root: Path) -> None:
    assert (await cli(real, "import", str(debian_root), "py:1"))[0] == 0
    recipe = ("build", "--from", "py:1", "--run", f"{PIP} --break-system-packages greeting", "-t", "warm:1")
    status, said, complained = await cli(real, *recipe)
    assert (status, said) == (0, "warm:1\n"), complained
    assert "Successfully installed greeting-1.0" in complained
    asked = [seen.what for seen in index.at(GOOD, "http")]
    assert asked[0] == "GET /simple/greeting/"
    box = await real.client.sandbox(image="warm:1", network={"egress": {"default": "deny"}})
    assert (await real.client.run(box["id"], "python3 -m greeting"))["stdout"] == "hello from a wheel\n"
    # Again it is taken from where it was kept, and nobody is asked.
    index.clear()
    status, _, complained = await cli(real, *recipe[:-1], "warm:2")
    assert (status, complained.split()[0]) == (0, "kept")
    assert index.at(GOOD, "http") == []
    # What cannot be had ends it, with the program's own words, and names nothing.
    status, _, complained = await cli(
        real, "build", "--from", "warm:1", "--run", f"{PIP} --break-system-packages nowhere", "-t", "cold:1"
    )
    assert status == 1
    assert "No matching distribution found for nowhere" in complained
    assert "exit code 1" in complained
    named = {image["reference"] for image in (await real.client.call("GET", "/images")).json["data"]}
    assert named == {"py:1", "warm:1", "warm:2"}


__all__ = ["debian_root"]
