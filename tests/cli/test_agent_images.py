"""`runra image build agents/…`: npm, here or in a sandbox, puts a pinned command line into an image.

In the suite with a small package of our own, as a file; with the three real ones by `make agents`, which sets
RUNRA_REAL_AGENTS.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
import tomllib
from pathlib import Path

import pytest

from runra.runtime.agents.pins import pins
from tests.cli.conftest import Cli
from tests.images.oci import BUSYBOX, Layer

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not on the PATH")
real = pytest.mark.skipif("RUNRA_REAL_AGENTS" not in os.environ, reason="downloads 700 MB: make agents")
APPLETS = ("sh", "ls", "cat", "env", "rm", "mkdir", "readlink", "id")


@pytest.fixture(scope="module")
def tiny(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image of a shell and nothing else."""
    layer = Layer().folder("bin").folder("tmp", 0o1777).folder("root").folder("usr").folder("usr/local")
    layer.add("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
    for applet in APPLETS:
        layer.link(f"bin/{applet}", "busybox")
    file = tmp_path_factory.mktemp("tiny") / "root.tar"
    file.write_bytes(layer.bytes())
    cli.ok("image", "import", file, "tiny:1")
    return "tiny:1"


def package(folder: Path, version: str, program: str) -> Path:
    """An npm package with one program, and the pins that name it."""
    about = {"name": "stand-in", "version": version, "bin": {"stand-in": "bin/stand-in"}}
    file = folder / f"stand-in-{version}.tgz"
    with tarfile.open(file, "w:gz") as archive:
        for name, data, mode in (("package.json", json.dumps(about), 0o644), ("bin/stand-in", program, 0o755)):
            info = tarfile.TarInfo(f"package/{name}")
            info.size, info.mode = len(data), mode
            archive.addfile(info, io.BytesIO(data.encode()))
    mine = folder / f"pins-{version}.toml"
    mine.write_text(
        f'[stand-in]\npackage = "stand-in"\nversion = "file:{file}"\nprogram = "stand-in"\ncheck = "stand-in --version"\n'
    )
    return mine


@needs_npm
def test_an_agent_fetched_here_is_in_an_image_of_any_base(cli: Cli, tiny: str, tmp_path: Path) -> None:
    mine = package(tmp_path, "1.2.3", '#!/bin/sh\necho "stand-in 1.2.3 $*"\n')
    build = ("image", "build", "agents/stand-in", "--local", "--from", tiny, "--pins", mine)
    made = cli(*build)
    assert (made.code, made.out) == (0, "agents/stand-in:latest\n"), made.err
    assert "run   npm install here: stand-in@file:" in made.err
    assert "run   stand-in --version" in made.err
    assert cli.ok("run", "--image", "agents/stand-in", "stand-in hello") == "stand-in 1.2.3 hello\n"
    again = cli(*build, "-t", "other:1")
    assert (again.code, again.out) == (0, "other:1\n"), again.err
    assert again.err.startswith("kept  npm install here"), "the step is taken from before"
    assert cli.ok("run", "--image", "other:1", "stand-in") == "stand-in 1.2.3 \n"


@needs_npm
def test_an_agent_that_does_not_start_names_no_image(cli: Cli, tiny: str, tmp_path: Path) -> None:
    mine = package(tmp_path, "2.0.0", "#!/usr/bin/env no-such-interpreter\n")
    made = cli("image", "build", "agents/stand-in", "--local", "--from", tiny, "--pins", mine, "-t", "bad:1")
    assert made.code == 1
    assert "the image tiny:1 lacks a program" in made.err
    assert "debian:bookworm --packages nodejs,npm" in made.err
    assert cli("image", "inspect", "bad:1").code == 1


def test_what_cannot_be_is_said_with_what_to_do(cli: Cli, tiny: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text('[x]\npackage = "x; rm -rf /"\nversion = "1"\nprogram = "x"\ncheck = "x"\n')
    for words, code, said in (
        (("agents/codex", "--from", tiny), 1, "lacks a program"),  # no npm in it
        (("agents/codex", "--from", "host"), 1, "no image can be made of `host`"),
        (("agents/nobody",), 2, "agents/claude-code, agents/codex, agents/opencode and agents/all"),
        (("agents/x", "--pins", broken), 1, "package"),
        ((".", "--local", "-t", "x"), 2, "agents/NAME"),
    ):
        ran = cli("image", "build", *words)
        assert (ran.code, said in re.sub(r"[\s│]+", " ", ran.err)) == (code, True), (words, ran.err)


def test_each_agent_of_ours_has_its_pin() -> None:
    from runra.runtime.registry import AGENTS

    ours = pins()
    for agent, pin in ours.items():
        made = AGENTS.create(agent)
        assert (made.image, pin.check) == (f"agents/{agent}", f"{pin.program} --version")
        assert re.fullmatch(r"\d+\.\d+\.\d+", pin.version), "a version, not a range"
    text = Path(pins.__code__.co_filename).with_name("pins.toml").read_text()
    assert set(tomllib.loads(text)) == set(ours)


@pytest.fixture(scope="module")
def debian(cli: Cli) -> str:
    """A Debian with Node and npm, of Debian's own packages."""
    cli.ok("image", "build", "debian:bookworm", "--packages", "nodejs,npm", "-t", "debian-node:1", timeout=900)
    return "debian-node:1"


@real
@needs_npm
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("agent", list(pins()))
def test_the_real_ones_start_in_their_images(cli: Cli, debian: str, agent: str) -> None:
    made = cli("image", "build", f"agents/{agent}", "--local", "--from", debian, timeout=900)
    assert made.code == 0, made.err
    told = cli.ok("run", "--image", f"agents/{agent}", pins()[agent].check, timeout=120)
    assert pins()[agent].version in told


@real
@pytest.mark.timeout(900)
def test_a_registry_that_sandboxes_cannot_reach_is_told_of(cli: Cli, debian: str) -> None:
    ran = cli("image", "build", "agents/codex", "--from", debian, timeout=600)
    if ran.code == 0:
        pytest.skip("sandboxes reach npm's registry from here")
    assert "add --local" in ran.err
