"""The catalogue of events says of every type what it is, and the document says the same."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from runra.event_catalogue import CATALOGUE, level_of
from runra.events import EventType
from runra.runtime.registry import EXPORTERS

ROOT = Path(__file__).resolve().parent.parent.parent


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_events", ROOT / "scripts" / "generate_events.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_type_is_in_it() -> None:
    assert tuple(CATALOGUE) == get_args(EventType)


def test_the_document_is_up_to_date() -> None:
    script = _script()
    assert script.main(["--check"]) == 0
    stale = script.DOCUMENT.read_text().replace("`exec.completed` | info", "`exec.completed` | warn")
    assert script.current(stale) == script.DOCUMENT.read_text()


def test_every_exporter_is_documented_and_has_an_example() -> None:
    document = (ROOT / "docs" / "observability.md").read_text()
    for name in EXPORTERS.names():
        assert f"| `{name}` |" in document, name
        assert (ROOT / "examples" / f"observability_{name}.py").exists(), name


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("observability_*.py")), ids=lambda path: path.stem)
def test_the_examples_options_are_ones(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs nobody else's service is run by hand; that its options are accepted is checked here."""
    from runra.runtime.exporters import build

    for name in ("AXIOM_TOKEN", "LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"):
        monkeypatch.setenv(name, "set-by-a-test")
    monkeypatch.setattr("runra.runtime.Runra", object, raising=False)
    text = example.read_text()
    scope: dict[str, object] = {}
    exec(compile(text[: text.index("\n\nasync def main")], str(example), "exec"), scope)
    assert build(scope["OBSERVABILITY"])  # type: ignore[arg-type]


def test_levels_rise_where_data_tells_of_trouble() -> None:
    assert level_of("exec.completed", {"exitCode": 1}) == "info"
    assert level_of("exec.completed", {"oom": True}) == "warn"
    assert level_of("sandbox.terminated", {"reason": "timeout"}) == "info"
    assert level_of("sandbox.terminated", {"reason": "node_lost"}) == "warn"
    assert level_of("network.egress", {"allowed": False}) == "warn"
    assert level_of("cost.llm", {"error": "overloaded"}) == "warn"
    assert level_of("file.error", {}) == "error"


def test_what_the_server_and_the_runtime_publish_is_in_it() -> None:
    """Fields named in the code that publishes; a new one wants a line in the catalogue."""
    said = (ROOT / "src/runra/server").rglob("*.py"), (ROOT / "src/runra/node").rglob("*.py")
    published = re.compile(r'(?:_changed|publish)\(\s*"([a-z_]+\.[a-z_]+)",[^{]{0,80}\{([^}]*)\}', re.DOTALL)
    seen = 0
    for path in (*said[0], *said[1]):
        for type, fields in published.findall(path.read_text()):
            for field in re.findall(r'"(\w+)":', fields):
                assert field in CATALOGUE[type].fields, f"{path.name}: {type} {field}"
                seen += 1
    assert seen >= 5
