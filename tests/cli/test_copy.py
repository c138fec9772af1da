"""`runra cp`: files and folders, both ways."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what folders have: depth, an empty one, a program, a link, bytes that are no text."""
    root = tmp_path / "project"
    (root / "deep/er").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "deep/er/data.bin").write_bytes(bytes(range(256)) * 100)
    (root / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("run.sh")
    return root


def tree(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = (path.stat().st_mode & 0o777, path.read_bytes())
    return found


def test_a_file_up_and_down(cli: Cli, sandbox: str, tmp_path: Path) -> None:
    local = tmp_path / "a.bin"
    local.write_bytes(os.urandom(3_000_000))
    cli.ok("cp", local, f"{sandbox}:/tmp/b.bin")
    cli.ok("cp", f"{sandbox}:/tmp/b.bin", tmp_path / "c.bin")
    assert (tmp_path / "c.bin").read_bytes() == local.read_bytes()


def test_a_file_goes_into_a_folder_under_its_own_name(cli: Cli, sandbox: str, tmp_path: Path) -> None:
    (tmp_path / "name.txt").write_text("hello")
    cli.ok("cp", tmp_path / "name.txt", f"{sandbox}:/workspace")
    cli.ok("cp", tmp_path / "name.txt", f"{sandbox}:new/")
    assert cli.ok("exec", sandbox, "cat /workspace/name.txt /workspace/new/name.txt") == "hellohello"
    (tmp_path / "back").mkdir()
    cli.ok("cp", f"{sandbox}:name.txt", tmp_path / "back")
    assert (tmp_path / "back/name.txt").read_text() == "hello"


def test_a_folder_up_and_down(cli: Cli, sandbox: str, folder: Path, tmp_path: Path) -> None:
    cli.ok("cp", folder, f"{sandbox}:/workspace")
    assert cli.ok("exec", sandbox, "./project/run.sh; readlink project/link; ls -A project/empty") == "ran\nrun.sh\n"
    cli.ok("cp", f"{sandbox}:/workspace/project", tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(folder)
    cli.ok("cp", f"{sandbox}:project/deep", tmp_path)
    assert tree(tmp_path / "deep") == tree(folder / "deep")


def test_stdin_and_stdout(cli: Cli, sandbox: str) -> None:
    data = bytes(range(256)) * 5000
    assert cli.raw("cp", "-", f"{sandbox}:/tmp/piped", stdin=data).returncode == 0
    done = cli.raw("cp", f"{sandbox}:/tmp/piped", "-")
    assert (done.returncode, done.stdout) == (0, data)


def test_what_cannot_be_copied_is_said(cli: Cli, sandbox: str, tmp_path: Path) -> None:
    assert cli("cp", tmp_path / "none", f"{sandbox}:/tmp").code == 2
    assert cli("cp", tmp_path, tmp_path / "x").code == 2
    ran = cli("cp", f"{sandbox}:/no/such", tmp_path / "x")
    assert ran.code == 1
    assert "/no/such" in ran.err
    assert not (tmp_path / "x").exists()
