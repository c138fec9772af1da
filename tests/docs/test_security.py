"""docs/security.md says what is so: every test it names is there, and every file of attacks is named."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text()


def decorators(path: str) -> dict[str, list[str]]:
    """The tests of a file, each with its decorators as text."""
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {one.name: [ast.unparse(mark) for mark in one.decorator_list] for one in tree.body if isinstance(one, kinds)}


def test_every_test_named_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 40
    for path, name in named:
        assert (ROOT / path).exists(), path
        assert not name or name in decorators(path), f"{path}::{name}"


def test_what_is_claimed_for_gvisor_runs_behind_it() -> None:
    table = PAGE.partition("| claim | bubblewrap")[2].partition("\n\n")[0]
    named = [
        one for row in table.splitlines()[2:] for one in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.split("|")[3])
    ]
    assert len(named) > 20
    for path, name in named:
        assert "gvisor" in path or any("both_walls" in mark or "gvisor" in mark for mark in decorators(path)[name]), (
            name
        )


def test_no_file_of_attacks_is_left_out() -> None:
    for path in (ROOT / "tests/attacks").glob("test_*.py"):
        assert f"tests/attacks/{path.name}" in PAGE, path.name
