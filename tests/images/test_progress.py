"""What `runra image pull | import` shows on the way: bars on a real terminal, lines in a pipe, JSON for programs."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.images.oci import Layer, busybox, image, oci_archive
from tests.images.registries import OddRegistry
from tests.images.test_import import real, shell_for_images
from tests.server.conftest import Running

#: A bar, as rich draws it, and what takes the cursor back to draw it again.
BAR, AGAIN = "━", "\x1b["


@pytest.fixture
def slow(odd: OddRegistry) -> str:
    """An image whose layers take a second or two to come."""
    odd.piece, odd.pause = 32 << 10, 0.05
    layers = (busybox(), Layer().add("noise", os.urandom(1 << 20)))
    return odd.push(image(*layers, how=""), "slow/app:1")


@pytest.fixture
def on_terminal(real: Running, tmp_path: Path) -> Callable[..., Awaitable[str]]:
    """Run `runra image …` on a terminal of its own: all that it shows there."""
    environment = {**os.environ, "RUNRA_API_URL": real.client.url, "RUNRA_API_KEY": real.client.key}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}

    def run(*words: str) -> str:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "runra.cli", "image", *words]
        process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=tmp_path, start_new_session=True
        )
        os.close(theirs)
        shown = []
        with suppress(OSError), os.fdopen(ours, "rb", buffering=0) as terminal:  # EIO: nobody has it open any more
            while data := terminal.read(65536):
                shown.append(data)
        status = process.wait(60)
        text = b"".join(shown).decode()
        assert status == 0, text
        return text

    async def in_thread(*words: str) -> str:
        return await asyncio.to_thread(run, *words)

    return in_thread


async def test_a_pull_has_a_bar(on_terminal: Callable[..., Awaitable[str]], slow: str) -> None:
    shown = await on_terminal("pull", slow)
    assert BAR in shown
    assert shown.count(AGAIN) > 10
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    done = [float(number) for number in re.findall(r"([\d.]+)/[\d.]+ MB", plain)]
    assert len(set(done)) > 1, plain
    assert done == sorted(done)
    assert "0/2 layers" in plain
    # At the end the bar is gone, the cursor there again, and what was asked for stands on a line of its own.
    assert shown.rindex(BAR) < shown.rindex("\x1b[?25h") < shown.rindex(f"{slow}\r\n")
    assert "2 layers, sha256:" in plain.splitlines()[-1]


async def test_an_import_has_one_too(on_terminal: Callable[..., Awaitable[str]], tmp_path: Path) -> None:
    made = image(busybox(), Layer().add("noise", os.urandom(4 << 20)), how="")
    (tmp_path / "app.tar").write_bytes(oci_archive(made, "app:1"))
    shown = await on_terminal("import", "app.tar")
    assert "app.tar" in shown
    assert BAR in shown
    assert "app:1\r\n" in shown


async def test_in_a_pipe_there_are_lines(real: Running, slow: str) -> None:
    environment = {**os.environ, "RUNRA_API_URL": real.client.url, "RUNRA_API_KEY": real.client.key}

    async def run(*words: str) -> tuple[str, str]:
        command = [sys.executable, "-m", "runra.cli", "image", *words]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode(), done.stderr.decode()

    said, remarked = await run("pull", slow)
    assert said == f"{slow}\n"
    assert "\x1b" not in remarked
    assert re.match(rf"{re.escape(slow)}: [01] of 2 layers, [\d.]+ .?B", remarked), remarked
    assert "MB in 2 layers" in remarked.splitlines()[-1]
    assert (await real.client.call("DELETE", f"/images/{slow}")).status == 200
    said, remarked = await run("pull", slow, "--json")
    *steps, last = [json.loads(line) for line in said.splitlines()]
    assert remarked == ""
    assert last["reference"] == slow
    done = [step["done_bytes"] for step in steps]
    assert done == sorted(done)
    assert len(set(done)) > 1
    assert max(done) <= steps[-1]["total_bytes"]


__all__ = ["real", "shell_for_images"]
