"""`runra port`, as a script sees it."""

from __future__ import annotations

from tests.cli.conftest import Cli


def test_expose_list_url_close(cli: Cli, sandbox: str) -> None:
    made = cli.json("port", "expose", sandbox, "3000")
    assert made["url"].startswith(f"http://3000-{sandbox.removeprefix('sb_')}.localhost:")
    assert cli.ok("port", "expose", sandbox, "3000").strip() == made["url"]
    assert cli.ok("port", "url", sandbox, "3000").strip() == made["url"]
    private = cli("port", "expose", sandbox, "4000", "--private")
    assert private.code == 0
    assert "rpt_" in private.err
    assert "rpt_" not in private.out
    assert "?runra-token=" in cli.ok("port", "url", sandbox, "4000", "--expires-ms", "60000")
    cli.ok("port", "revoke", sandbox, "4000")
    lines = [line.split() for line in cli.ok("port", "ls", sandbox).splitlines()]
    assert [line[0] for line in lines] == ["PORT", "3000", "4000"]
    assert [line[2] for line in lines[1:]] == ["public", "private"]
    assert cli.ok("port", "close", sandbox, "3000", "4000").split() == ["3000", "4000"]
    assert cli.json("port", "ls", sandbox) == []
    wrong = cli("port", "url", sandbox, "3000")
    assert (wrong.code, wrong.out) == (1, "")
    assert "not exposed" in wrong.err
