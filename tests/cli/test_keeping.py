"""`runra snapshot`, `fork` and `volume`, as a script sees them."""

from __future__ import annotations

from tests.cli.conftest import Cli


def test_snapshot_and_fork(cli: Cli, sandbox: str) -> None:
    cli.ok("exec", sandbox, "echo kept > f")
    made = cli("snapshot", "create", sandbox, "cli-base")
    assert made.code == 0
    assert "snapshot:cli-base" in made.err
    row = next(line for line in cli.ok("snapshot", "ls").splitlines() if made.out.strip() in line)
    assert "cli-base" in row
    assert sandbox in row
    copy = cli.ok("create", "--image", "snapshot:cli-base").strip()
    forks = cli.ok("fork", sandbox, "-n", "2").split()
    assert len(forks) == 2
    for one in (copy, *forks):
        assert cli.ok("exec", one, "cat f") == "kept\n"
    cli.ok("rm", copy, *forks)
    refused = cli("fork", sandbox, "--processes")
    assert refused.code == 1
    assert "runsc" in refused.err
    ran = cli("snapshot", "rm", "never", "cli-base")
    assert (ran.code, ran.out) == (1, "cli-base\n")
    assert "no snapshot 'never'" in ran.err
    assert cli.json("snapshot", "ls") == []


def test_volume(cli: Cli) -> None:
    made = cli.ok("volume", "create", "cli-data", "--size-mb", "64").strip()
    one = cli.ok("create", "--volume", "cli-data:/data").strip()
    two = cli.ok("create", "--volume", f"{made}:/d:ro").strip()
    cli.ok("exec", one, "echo kept > /data/f")
    assert cli.ok("exec", two, "cat /d/f") == "kept\n"
    assert cli("exec", two, "echo no > /d/f").code == 1
    row = next(line for line in cli.ok("volume", "ls").splitlines() if made in line)
    assert one in row
    assert f"{two} (ro)" in row
    refused = cli("volume", "rm", "cli-data")
    assert refused.code == 1
    assert "is used by" in refused.err
    cli.ok("rm", one, two)
    assert cli.ok("volume", "rm", "cli-data") == "cli-data\n"
    for wrong in ("cli-data", ":/data", "cli-data:data", "cli-data:/data:rx"):
        assert cli("create", "--volume", wrong).code == 2
