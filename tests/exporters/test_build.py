"""From options to exporters: the three shapes, what is refused, and what the caller may bring."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runra.errors import RunraError
from runra.events import Event
from runra.runtime.exporters import Pipeline, build, pipeline
from runra.runtime.registry import EXPORTERS
from tests.exporters.making import event
from tests.hosting import until


@pytest.mark.parametrize(
    "shape",
    [
        "jsonl",
        {"provider": "jsonl", "path": "x.jsonl"},
        {"provider": "jsonl", "config": {"path": "x.jsonl"}},
        {"exporters": [{"provider": "jsonl", "config": {"path": "x.jsonl", "batchSize": 100}}]},
        {"exporters": [{"provider": "jsonl", "config": {"path": "x.jsonl", "batch_size": 100}, "filter": None}]},
    ],
)
def test_the_three_shapes(shape: Any) -> None:
    (route,) = build(shape)
    assert route.exporter.name == "jsonl"
    assert route.delivery.batch_size == 100


def test_none_and_several() -> None:
    assert build(None) == []
    assert build({}) == []
    routes = build({"exporters": [{"provider": "console"}, {"provider": "jsonl", "filter": {"types": ["exec.*"]}}]})
    assert [route.exporter.name for route in routes] == ["console", "jsonl"]
    assert routes[1].wants("exec.error")
    assert not routes[1].wants("file.read")


def test_the_documents_defaults_of_axiom() -> None:
    (route,) = build({"provider": "axiom", "token": "xaat-of-a-test"})
    config: Any = route.delivery
    assert (config.dataset, config.batch_size, config.flush_interval_ms) == ("runra-events", 100, 5000)
    assert "xaat-of-a-test" not in repr(config)


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"provider": "jsonl", "pathh": "x"}, "exporters.0.config: pathh"),
        ({"provider": "jsonl", "config": {"maxBytes": "many"}}, "maxBytes"),
        ({"exporters": [{"provider": "console"}, {"provider": "nope"}]}, "nope"),
        ({"provider": "console", "config": {"format": "yaml"}}, "format"),
        ({"provider": "console", "filter": {"types": ["exek.*"]}}, "exek.*"),
        ({"provider": "console", "filter": {"minLevel": "loud"}}, "min"),
        ({"provider": "axiom"}, "AXIOM_TOKEN"),
        ({"provider": "axiom", "token": "t", "url": "ftp://x"}, "url"),
        ({"provider": "axiom", "token": "t", "url": "https://user:pw@x"}, "url"),
        ({"provider": "webhook", "url": "http://x"}, "secret"),
        ({"provider": "webhook", "url": "http://x", "secret": "whsec_?"}, "base64"),
        ({"provider": "langfuse"}, "LANGFUSE_PUBLIC_KEY"),
        ({"provider": "postgres", "table": 'x"; DROP'}, "table"),
        ({"provider": "postgres", "retentionDays": 3}, "partitionByDay"),
        ({"provider": "otel", "protocol": "http/json"}, "protocol"),
        ({"provider": "custom"}, "exporter"),
        ({"provider": "custom", "exporter": 7}, "exporter"),
        ({"provider": "custom", "exporter": "no.such.module:x"}, "no.such.module"),
        ({"provider": "console", "exporters": []}, "not both"),
        ({"exporters": {"provider": "console"}}, "exporters"),
    ],
)
def test_what_is_wrong_is_refused_by_name(shape: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AXIOM_TOKEN", "LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RunraError) as caught:
        build(shape)
    assert caught.value.code == "INVALID_CONFIG"
    assert named in caught.value.message


def test_a_wrong_secret_is_not_in_the_error() -> None:
    with pytest.raises(RunraError) as caught:
        build({"provider": "axiom", "token": ["xaat-do-not-show"]})
    assert "xaat-do-not-show" not in str(caught.value) + repr(caught.value.details)


@pytest.mark.parametrize(
    ("provider", "package", "extra"),
    [
        ("otel", "opentelemetry", "otel"),
        ("langfuse", "opentelemetry", "otel"),
        ("postgres", "asyncpg", "postgres"),
        ("prometheus", "prometheus_client", "prometheus"),
        ("console", "rich", "cli"),
    ],
)
def test_a_missing_package_is_named_with_what_to_install(provider: str, package: str, extra: str) -> None:
    program = f"""
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
class Finder(Hide): pass
sys.meta_path.insert(0, Finder())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == {package!r} else found(name, package)
from runra import RunraError
from runra.runtime.exporters import build
try:
    build({{"provider": {provider!r}}})
except RunraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "INVALID_CONFIG" in done.stdout, done
    assert f"runra[{extra}]" in done.stdout


def test_building_loads_no_exporters_library() -> None:
    program = (
        "import sys; from runra.runtime.exporters import build; build({'provider': 'jsonl'}); "
        "print([m for m in ('opentelemetry', 'asyncpg', 'prometheus_client', 'grpc', 'rich', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_pipeline_knows_the_exporters_own_secrets() -> None:
    it = pipeline({"provider": "webhook", "url": "http://x", "secret": "an-own-secret"}, ["of-the-runtime"])
    assert it.redactor.text("an-own-secret of-the-runtime") == "[redacted] [redacted]"


# --- custom --------------------------------------------------------------------------------------------------------


async def exported(shape: dict[str, Any], *events: Event) -> Pipeline:
    it = pipeline(shape)
    await it.start()
    for item in events:
        it.offer(item)
    assert await it.close(10)
    return it


TAKEN: list[Any] = []


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    TAKEN.clear()
    yield
    TAKEN.clear()


def take(events: list[Event]) -> None:
    TAKEN.append((threading.current_thread() is threading.main_thread(), [item.id for item in events]))


async def take_async(events: list[Event]) -> None:
    await asyncio.sleep(0)
    TAKEN.append((threading.current_thread() is threading.main_thread(), [item.id for item in events]))


class Document:
    """The document's interface, sync."""

    id = "mine"

    def initialize(self, config: dict[str, Any]) -> None:
        TAKEN.append(("initialize", config))

    def export(self, events: list[Event]) -> None:
        TAKEN.append(("export", len(events)))

    def flush(self) -> None:
        TAKEN.append("flush")

    def dispose(self) -> None:
        TAKEN.append("dispose")


@pytest.mark.parametrize("given", [take, f"{__name__}:take", lambda events: take(events)])
async def test_a_function_is_called_in_a_thread(given: Any) -> None:
    sent = event()
    await exported({"provider": "custom", "exporter": given}, sent)
    assert [(False, [sent.id])] == TAKEN


async def test_a_coroutine_function_is_called_on_the_loop() -> None:
    sent = event()
    await exported({"provider": "custom", "exporter": take_async}, sent)
    assert [(True, [sent.id])] == TAKEN


@pytest.mark.parametrize("given", [Document, Document(), f"{__name__}:Document"])
async def test_an_exporter_of_the_documents_interface(given: Any) -> None:
    it = await exported({"provider": "custom", "exporter": given, "config": {"url": "u"}}, event())
    assert TAKEN == [("initialize", {"url": "u"}), ("export", 1), "flush", "dispose"]
    assert list(it.stats) == ["mine"]


async def test_a_registered_exporter_gets_what_is_its_own_and_its_factory_nothing() -> None:
    EXPORTERS.register("registered", Document)
    try:
        it = pipeline({"provider": "registered", "url": "u", "batchSize": 3, "flushIntervalMs": 0})
        await it.start()
        it.offer(event())
        assert await it.close(10)
    finally:
        EXPORTERS.unregister("registered")
    assert TAKEN[0] == ("initialize", {"url": "u"})
    assert ("export", 1) in TAKEN


async def test_a_function_that_blocks_for_ever_blocks_nothing_else(tmp_path: Path) -> None:
    release = threading.Event()

    def block(events: list[Event]) -> None:
        release.wait(60)

    it = pipeline(
        {
            "exporters": [
                {"provider": "custom", "config": {"exporter": block, "flushIntervalMs": 0, "timeoutMs": 50}},
                {"provider": "jsonl", "config": {"path": str(tmp_path / "e.jsonl"), "flushIntervalMs": 0}},
            ]
        }
    )
    try:
        await it.start()
        threads = threading.active_count()
        for _ in range(20):
            it.offer(event())
            await asyncio.sleep(0.01)
        await until(lambda: it.stats["jsonl"].exported == 20)
        await until(lambda: it.stats["custom"].retries > 0)
        assert threading.active_count() <= threads + 2  # its attempts do not pile up
        begun = time.monotonic()
        assert not await it.close(0.2)
        assert time.monotonic() - begun < 5
    finally:
        release.set()
