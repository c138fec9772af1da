"""`runra doctor`: truthful as root, as an ordinary user, and where there is nothing to write to."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runra.node import open_files
from runra.node.network.host import obstacle
from tests.cli.conftest import Cli
from tests.node.test_unprivileged import USER, as_user

NAMES = {
    *("user", "kernel", "bubblewrap", "agent and launcher", "system-call filter", "user namespaces", "overlay"),
    *(
        "open files",
        "open files of all",
        "CPU limit",
        "memory limit",
        "process limit",
        "pause",
        "disk limit",
        "network",
        "gvisor",
        "sandbox",
    ),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's tmp_path: an ordinary user must be able to reach it.
    folder = Path(tempfile.mkdtemp(prefix="runra-doctor-test-"))
    folder.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(folder, USER, USER)
    yield folder
    shutil.rmtree(folder)


def states(told: dict[str, Any]) -> dict[str, str]:
    return {finding["name"]: finding["state"] for finding in told["findings"]}


def test_it_looks_at_everything_and_leaves_nothing(tmp_path: Path) -> None:
    told = Cli(tmp_path).json("doctor", "--data-dir", tmp_path / "data")
    found = states(told)
    assert told["sandboxesRun"] is True
    assert found.keys() >= NAMES
    assert (found["bubblewrap"], found["sandbox"], found["network"]) == ("ok", "ok", "limited" if obstacle() else "ok")
    if os.geteuid() == 0:
        assert (found["user"], found["id-mapped mounts"]) == ("ok", "ok")
        assert found["disk limit"] == ("ok" if shutil.which("mkfs.btrfs") else "limited")
    assert "missing" not in found.values()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert found["open files"] == ("ok" if hard >= 16_384 else "limited")
    assert found["open files of all"] == ("ok" if open_files.beyond_memory() or open_files.may_raise() else "limited")
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_few_open_files_are_a_finding(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    few = ["prlimit", "--nofile=512:1024", *cli.command("doctor", "--json", "--data-dir", tmp_path / "data")]
    done = subprocess.run(few, env=cli.env, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    found = states(json.loads(done.stdout))
    assert (found["open files"], found["sandbox"]) == ("limited", "ok")


def test_a_table_for_people(tmp_path: Path) -> None:
    ran = Cli(tmp_path)("doctor", "--data-dir", tmp_path)
    assert ran.code == 0
    assert re.match(r"WHAT +STATE +MEANING +CURE\n", ran.out)
    assert re.search(r"^sandbox +ok +created in \d+ ms, ran `true` in [\d.]+ ms", ran.out, re.MULTILINE)
    assert ran.err == "Sandboxes run here.\n"


def test_an_ordinary_user_is_told_what_is_limited_and_why(folder: Path) -> None:
    command, environment = as_user(folder)
    done = subprocess.run(
        [*command, "-m", "runra.cli", "doctor", "--json", "--data-dir", folder / "data"],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    found = states(told)
    assert found.keys() >= NAMES
    assert (found["user"], found["sandbox"]) == ("limited", "ok")
    assert found["disk limit"] == "limited"
    if os.geteuid() == 0:  # this user owns no cgroup
        assert {found["CPU limit"], found["memory limit"], found["process limit"], found["pause"]} == {"limited"}
    assert all(finding["cure"] for finding in told["findings"] if finding["name"] in ("user", "CPU limit", "pause"))
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_used_is_a_finding(folder: Path) -> None:
    command, environment = as_user(folder)
    done = subprocess.run(
        [*command, "-m", "runra.cli", "doctor", "--json", "--data-dir", "/proc/none"],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["sandboxesRun"] is False
    assert states(told)["data folder"] == "missing"
    assert "--data-dir" in told["findings"][-1]["cure"]
